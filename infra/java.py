"""Finding the Java that runs Kafka, Flink and Spark: version 17, a full runtime."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.settings import Settings

JAVA_VERSION = 17
SPARK_MODULE = "jdk.incubator.vector"
_WAY_OUT = (
    f"install a Java {JAVA_VERSION} runtime (Debian: openjdk-17-jre-headless), or name one by `LOCKSTEP_JAVA_HOME`"
)


class JavaError(RuntimeError):
    """There is no Java, or not one that runs the stack; the text says what was found and what to do."""


@dataclass(frozen=True)
class Java:
    """A Java home and what its `release` file says."""

    home: Path
    version: int
    modules: frozenset[str]

    @property
    def executable(self) -> Path:
        """Path of the `java` launcher."""
        return self.home / "bin" / "java"


def find_java(
    settings: Settings, environ: Mapping[str, str], which: Callable[[str], str | None] = shutil.which
) -> Java:
    """The Java named by `LOCKSTEP_JAVA_HOME`, else by JAVA_HOME, else the `java` on PATH.

    The first that is named decides: a wrong one is an error, not a reason to look further.

    Args:
        settings: may name a Java home.
        environ: where JAVA_HOME is looked up.
        which: finds a command on PATH.

    Raises:
        JavaError: none was found, or its version is not 17.
    """
    named = settings.java_home or environ.get("JAVA_HOME")
    if named:
        origin = "LOCKSTEP_JAVA_HOME" if settings.java_home else "JAVA_HOME"
        home = Path(named)
        if not (home / "bin" / "java").exists():
            msg = f"`{origin}` must be a Java home; there is no bin/java under {home}. {_WAY_OUT}"
            raise JavaError(msg)
    else:
        launcher = which("java")
        if launcher is None:
            msg = f"Kafka, Flink and Spark need Java {JAVA_VERSION}; there is no `java` on PATH. {_WAY_OUT}"
            raise JavaError(msg)
        home, origin = Path(launcher).resolve().parent.parent, "PATH"
    java = _read_release(home, origin)
    if java.version != JAVA_VERSION:
        msg = f"Java must be version {JAVA_VERSION}; `{origin}` gives version {java.version} at {home}. {_WAY_OUT}"
        raise JavaError(msg)
    return java


def require_spark_module(java: Java) -> None:
    """Refuse a runtime that was trimmed of what Spark needs.

    Raises:
        JavaError: the runtime lacks the module.
    """
    if SPARK_MODULE not in java.modules:
        msg = f"Spark needs the Java module `{SPARK_MODULE}`; the runtime at {java.home} was built without. {_WAY_OUT}"
        raise JavaError(msg)


def _read_release(home: Path, origin: str) -> Java:
    try:
        text = (home / "release").read_text()
    except OSError as error:
        msg = f"`{origin}` gives {home}, which has no `release` file to tell its version. {_WAY_OUT}"
        raise JavaError(msg) from error
    entries = dict(re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE))
    found = re.match(r"(?:1\.)?(\d+)", entries.get("JAVA_VERSION", ""))
    return Java(home, int(found[1]) if found else 0, frozenset(entries.get("MODULES", "").split()))
