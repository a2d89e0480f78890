"""Settings come from `LOCKSTEP_` variables, once, and say what is wrong with one."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.settings import Settings, SettingsError, load_settings, setting_name


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os  # noqa: PLC0415

    for name in list(os.environ):
        if name.startswith("LOCKSTEP_"):
            monkeypatch.delenv(name)


def test_addresses_follow_from_host_and_ports() -> None:
    settings = Settings(kafka_port=1, clickhouse_port=2, job_port=3)
    assert settings.bootstrap == "127.0.0.1:1"
    assert settings.clickhouse_address == "http://127.0.0.1:2"
    assert settings.job_endpoint == "127.0.0.1:3"


def test_named_servers_take_the_place_of_local_ones() -> None:
    settings = Settings(kafka_bootstrap="a:1,b:1", clickhouse_url="https://ch.example:8443/")
    assert settings.bootstrap == "a:1,b:1"
    assert settings.clickhouse_address == "https://ch.example:8443"


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_KAFKA_BOOTSTRAP", "")
    assert load_settings().kafka_bootstrap is None


def test_a_wrong_variable_is_named_with_what_was_got(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_KAFKA_PORT", "abc")
    with pytest.raises(SettingsError, match=r"`LOCKSTEP_KAFKA_PORT`: .*integer.*; got 'abc'. correct or unset it"):
        load_settings()


def test_a_database_prefix_must_be_an_identifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_DATABASE_PREFIX", "1; DROP")
    with pytest.raises(SettingsError, match="`LOCKSTEP_DATABASE_PREFIX`.*letters, digits and _"):
        load_settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().host = "elsewhere"  # type: ignore[misc]


def test_another_process_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCKSTEP_KAFKA_BOOTSTRAP", "somebody.else:9092")
    settings = Settings(data_dir=tmp_path, kafka_bootstrap=None, kafka_port=5, database_prefix="x_")
    for name, value in settings.environ().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_a_password_is_not_shown() -> None:
    assert "hunter2" not in repr(Settings(clickhouse_password="hunter2"))


def test_a_source_names_a_database() -> None:
    assert Settings(database_prefix="dev_").database("web-shop.eu") == "dev_web_shop_eu"


def test_every_setting_has_its_variable() -> None:
    assert setting_name("job_port") == "LOCKSTEP_JOB_PORT"
    with pytest.raises(KeyError):
        setting_name("no_such_setting")
