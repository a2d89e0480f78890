"""The jars of Kafka, Flink and Spark's Kafka source: pinned, checked against a checksum, fetched once.

`jars.toml` names what is wanted; `jars.sha256` pins every jar that this pulls in, with its checksum. Jars are kept in
the local Maven repository (`M2_REPO`, else `~/.m2/repository`), and come from Maven Central or the repositories of
jgo's own configuration file. A stamp under `data_dir/jars` makes the next call a matter of milliseconds.
"""

import argparse
import hashlib
import json
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.settings import Settings, load_settings

SETS = ("kafka", "flink", "flink-sql", "spark")
_HERE = Path(__file__).parent
WANTED_FILE = _HERE / "jars.toml"
LOCK_FILE = _HERE / "jars.sha256"
_PARALLEL_DOWNLOADS = 16
_COORDINATE_PARTS = (3, 4)


class JarError(RuntimeError):
    """A jar cannot be had, or is not the one that was pinned."""


@dataclass(frozen=True)
class Jar:
    """One pinned jar: `coordinate` is `group:artifact:version[:classifier]`, `sha256` in hex."""

    set_name: str
    coordinate: str
    sha256: str


def resolve(
    set_name: str, settings: Settings | None = None, *, fetch: Callable[[str], Path] | None = None
) -> list[Path]:
    """Paths of a set's jars, in class path order, downloading what is missing and checking every checksum.

    Args:
        set_name: one of `SETS`.
        settings: where the stamp of the last check is kept; None reads the settings.
        fetch: turns a coordinate into a local path; None uses Maven repositories.

    Raises:
        JarError: a download failed, or a jar differs from its checksum even after a second download.
    """
    stamp = (settings or load_settings()).data_dir.absolute() / "jars" / f"{set_name}.json"
    jars = locked(set_name)
    if known := _stamped(stamp, jars):
        return known
    fetcher = fetch or _maven_fetcher()
    paths: dict[str, Path] = {}
    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool, _progress(f"{set_name} jars", len(jars)) as advance:
        pending = {pool.submit(_checked, jar, fetcher): jar for jar in jars}
        try:
            for done in as_completed(pending):
                paths[pending[done].coordinate] = done.result()
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    ordered = [paths[jar.coordinate] for jar in jars]
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps({"lock": _digest(jars), "jars": [_fingerprint(path) for path in ordered]}))
    return ordered


def classpath(paths: Iterable[Path]) -> str:
    """Jars as the value of Java's CLASSPATH."""
    return ":".join(str(path) for path in paths)


def locked(set_name: str, lock_file: Path = LOCK_FILE) -> list[Jar]:
    """The pinned jars of a set, in class path order.

    Raises:
        JarError: there is no such set.
    """
    lines = [line.split() for line in lock_file.read_text().splitlines() if line and not line.startswith("#")]
    jars = [Jar(name, coordinate, digest) for digest, name, coordinate in lines if name == set_name]
    if not jars:
        msg = f"jar set must be one of {', '.join(f'`{name}`' for name in SETS)}; got `{set_name}`"
        raise JarError(msg)
    return jars


def lock(set_names: Sequence[str] = SETS) -> str:
    """Resolve the coordinates of `jars.toml` anew; return the text of the lock file."""
    wanted = tomllib.loads(WANTED_FILE.read_text())
    fetch = _maven_fetcher()
    lines = ["# sha256, set, group:artifact:version[:classifier]; written by: python -m infra.jars --lock"]
    for name in set_names:
        excluded = set(wanted[name].get("exclude", []))
        for coordinate in (*_closure(wanted[name]["coordinates"]), *wanted[name].get("alone", [])):
            if ":".join(coordinate.split(":")[:2]) in excluded:
                continue
            lines.append(f"{_sha256(fetch(coordinate))}  {name}  {coordinate}")
    return "\n".join(lines) + "\n"


def _checked(jar: Jar, fetch: Callable[[str], Path]) -> Path:
    """The jar's path once its checksum holds; a wrong file is put aside and fetched once more."""
    path = _fetched(jar, fetch)
    if _sha256(path) == jar.sha256:
        return path
    path.replace(path.with_suffix(".jar.mismatch"))  # an interrupted download, most likely
    path = _fetched(jar, fetch)
    got = _sha256(path)
    if got == jar.sha256:
        return path
    msg = (
        f"jar `{jar.coordinate}` must have sha256 {jar.sha256}; got {got} in {path}, downloaded twice. do not use it: "
        "see whether the Maven repository of this machine (jgo's configuration file) serves something else, "
        "remove the file and run again"
    )
    raise JarError(msg)


def _fetched(jar: Jar, fetch: Callable[[str], Path]) -> Path:
    try:
        return fetch(jar.coordinate)
    except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
        msg = (
            f"jar `{jar.coordinate}` could not be downloaded: {error}. connect to a Maven repository "
            "(jgo's configuration file can name another one), or copy the jar into the local Maven repository"
        )
        raise JarError(msg) from error


def _maven_fetcher() -> Callable[[str], Path]:
    context = _maven_context()

    def fetch(coordinate: str) -> Path:
        parts = coordinate.split(":")
        if len(parts) not in _COORDINATE_PARTS:
            msg = f"a jar must be written group:artifact:version[:classifier]; got `{coordinate}`"
            raise JarError(msg)
        group, artifact, version, *classifier = parts
        component = context.project(group, artifact).at_version(version)
        return Path(component.artifact(*classifier).resolve())

    return fetch


def _closure(coordinates: Sequence[str]) -> list[str]:
    """Everything the coordinates need at run time, nearest version first, themselves included."""
    import jgo  # noqa: PLC0415 - a third of a second, for a command that is rarely run

    artifacts = jgo.resolve("+".join(coordinates)) if coordinates else []
    found: dict[str, None] = {}
    for artifact in artifacts:
        suffix = f":{artifact.classifier}" if artifact.classifier else ""
        found[f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}{suffix}"] = None
    return list(found)


def _maven_context() -> Any:  # noqa: ANN401 - jgo's own type
    from jgo.config import GlobalSettings  # noqa: PLC0415 - not needed once the stamp is there
    from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
    from jgo.maven import MavenContext  # noqa: PLC0415

    config = GlobalSettings.load()
    repositories = {**config.repositories, "central": MAVEN_CENTRAL_URL}
    return MavenContext(repo_cache=config.repo_cache, remote_repos=repositories)


def _stamped(stamp: Path, jars: Sequence[Jar]) -> list[Path] | None:
    """The paths of the last successful check, if the pins and the files are still the same."""
    try:
        known = json.loads(stamp.read_text())
        paths = [Path(entry[0]) for entry in known["jars"]]
        fresh = known["lock"] == _digest(jars) and [_fingerprint(path) for path in paths] == known["jars"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return paths if fresh else None


def _fingerprint(path: Path) -> list[Any]:
    info = path.stat()
    return [str(path), info.st_size, info.st_mtime_ns]


def _digest(jars: Sequence[Jar]) -> str:
    return hashlib.sha256("\n".join(f"{jar.sha256} {jar.coordinate}" for jar in jars).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, where stderr is a terminal; nothing elsewhere. Yields the step function."""
    from rich.console import Console  # noqa: PLC0415 - not needed once the stamp is there
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch all jars, or with `--lock` pin them anew: `python -m infra.jars [--lock]`."""
    parser = argparse.ArgumentParser(prog="python -m infra.jars", description="fetch the JVM jars of the local stack")
    parser.add_argument("--lock", action="store_true", help="resolve jars.toml anew and rewrite jars.sha256")
    options = parser.parse_args(arguments)
    try:
        if options.lock:
            LOCK_FILE.write_text(lock())
        settings = load_settings()
        for name in SETS:
            print(f"{name}: {len(resolve(name, settings))} jars")
    except JarError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
