"""The Java that is found is the one named first, and must be version 17."""

from pathlib import Path

import pytest

from infra.java import JavaError, find_java, require_spark_module
from infra.settings import Settings


def _home(path: Path, version: str = "17.0.9", modules: str = "java.base jdk.incubator.vector") -> Path:
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "java").touch()
    (path / "release").write_text(f'JAVA_VERSION="{version}"\nMODULES="{modules}"\n')
    return path


def _nowhere(_: str) -> None:
    return None


def test_the_setting_comes_before_the_environment_and_that_before_the_path(tmp_path: Path) -> None:
    one, two, three = (_home(tmp_path / name) for name in ("one", "two", "three"))
    environ, which = {"JAVA_HOME": str(two)}, lambda _: str(three / "bin" / "java")
    assert find_java(Settings(java_home=one), environ, which).home == one
    assert find_java(Settings(java_home=None), environ, which).home == two
    assert find_java(Settings(java_home=None), {}, which).home == three


def test_no_java_says_what_to_install() -> None:
    with pytest.raises(JavaError, match=r"need Java 17; there is no `java` on PATH. install .*LOCKSTEP_JAVA_HOME"):
        find_java(Settings(java_home=None), {}, _nowhere)


@pytest.mark.parametrize(("version", "number"), [("11.0.2", 11), ("21", 21), ("1.8.0_392", 8)])
def test_another_version_is_refused(tmp_path: Path, version: str, number: int) -> None:
    home = _home(tmp_path / "jdk", version)
    with pytest.raises(JavaError, match=f"Java must be version 17; `JAVA_HOME` gives version {number} at "):
        find_java(Settings(java_home=None), {"JAVA_HOME": str(home)}, _nowhere)


def test_a_home_without_java_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JavaError, match="`LOCKSTEP_JAVA_HOME` must be a Java home; there is no bin/java under"):
        find_java(Settings(java_home=tmp_path), {}, _nowhere)


def test_a_trimmed_runtime_is_refused_for_spark(tmp_path: Path) -> None:
    java = find_java(Settings(java_home=_home(tmp_path / "jre", modules="java.base")), {}, _nowhere)
    with pytest.raises(JavaError, match=r"Spark needs the Java module `jdk.incubator.vector`"):
        require_spark_module(java)
