"""A jar is used only if it is the one that was pinned."""

import hashlib
from pathlib import Path

import pytest

from infra import jars
from infra.jars import Jar, JarError, locked, resolve
from infra.settings import Settings


class Repository:
    """Serves jars from a directory, and counts."""

    def __init__(self, home: Path, contents: dict[str, list[bytes]]) -> None:
        self.home, self.contents, self.asked = home, contents, 0

    def __call__(self, coordinate: str) -> Path:
        self.asked += 1
        path = self.home / (coordinate.replace(":", "-") + ".jar")
        if not path.exists():
            versions = self.contents[coordinate]
            if not versions:
                msg = "connection refused"
                raise OSError(msg)
            path.write_bytes(versions.pop(0))
        return path


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Jar]:
    pins = [Jar("kafka", f"g:{name}:1", hashlib.sha256(name.encode()).hexdigest()) for name in ("a", "b")]
    monkeypatch.setattr(jars, "locked", lambda _: pins)
    return pins


def test_jars_come_in_class_path_order_and_the_next_call_asks_nobody(tmp_path: Path, pinned: list[Jar]) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    repository = Repository(tmp_path, {"g:a:1": [b"a"], "g:b:1": [b"b"]})
    assert [path.name for path in resolve("kafka", settings, fetch=repository)] == ["g-a-1.jar", "g-b-1.jar"]
    assert resolve("kafka", settings, fetch=repository) == [tmp_path / "g-a-1.jar", tmp_path / "g-b-1.jar"]
    assert repository.asked == 2


def test_a_jar_that_changed_is_noticed(tmp_path: Path, pinned: list[Jar]) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    repository = Repository(tmp_path, {"g:a:1": [b"a", b"a"], "g:b:1": [b"b"]})
    first = resolve("kafka", settings, fetch=repository)[0]
    first.write_bytes(b"tampered")
    assert resolve("kafka", settings, fetch=repository)[0].read_bytes() == b"a"


def test_half_a_jar_is_fetched_again(tmp_path: Path, pinned: list[Jar]) -> None:
    repository = Repository(tmp_path, {"g:a:1": [b"", b"a"], "g:b:1": [b"b"]})
    assert resolve("kafka", Settings(data_dir=tmp_path / "data"), fetch=repository)[0].read_bytes() == b"a"
    assert (tmp_path / "g-a-1.jar.mismatch").exists()


def test_a_jar_that_is_another_one_is_refused_with_the_way_out(tmp_path: Path, pinned: list[Jar]) -> None:
    repository = Repository(tmp_path, {"g:a:1": [b"evil", b"evil"], "g:b:1": [b"b"]})
    with pytest.raises(
        JarError, match=r"jar `g:a:1` must have sha256 ca978.*; got .*downloaded twice.*remove the file"
    ):
        resolve("kafka", Settings(data_dir=tmp_path / "data"), fetch=repository)


def test_a_failed_download_names_the_jar_and_the_way_out(tmp_path: Path, pinned: list[Jar]) -> None:
    repository = Repository(tmp_path, {"g:a:1": [], "g:b:1": [b"b"]})
    with pytest.raises(JarError, match=r"jar `g:a:1` could not be downloaded: connection refused. connect to"):
        resolve("kafka", Settings(data_dir=tmp_path / "data"), fetch=repository)


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(JarError, match="jar set must be one of `kafka`, `flink`, `flink-sql`, `spark`; got `flume`"):
        locked("flume")


@pytest.mark.parametrize("name", jars.SETS)
def test_every_pinned_jar_is_pinned_once(name: str) -> None:
    coordinates = [jar.coordinate for jar in locked(name)]
    assert len(coordinates) == len(set(coordinates))
    artifacts = [tuple(coordinate.split(":")[:2] + coordinate.split(":")[3:]) for coordinate in coordinates]
    assert len(artifacts) == len(set(artifacts)), "two versions of one artifact on a class path"
