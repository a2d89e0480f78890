"""Every setting of Lockstep, read once from the environment and frozen.

A setting `x` is the environment variable `LOCKSTEP_X`. A printed `Settings` says everything of Lockstep's own that
differs between two machines. `LOCKSTEP_CATALOG` is no setting: it is another way to write `--catalog`, what to compute
and not where, which the command line and Dagster's code location read.
"""

import re
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Settings(BaseSettings):
    """Where everything runs.

    Ports are those of the local stack; each is bound to `host`, which is loopback unless someone says otherwise.
    Heap sizes are JVM sizes (`512m`, `1g`).
    """

    model_config = SettingsConfigDict(env_prefix="LOCKSTEP_", frozen=True, extra="ignore")

    data_dir: Path = Field(default=Path(".lockstep"), description="all state of the local stack: data, logs, pid files")
    host: str = Field(default="127.0.0.1", description="address that local services listen on")

    kafka_port: int = Field(default=19092, ge=1, le=65535)
    kafka_controller_port: int = Field(default=19093, ge=1, le=65535)
    schema_registry_port: int = Field(default=18093, ge=1, le=65535, description="started where a catalog asks for it")
    clickhouse_port: int = Field(default=18123, ge=1, le=65535)
    clickhouse_native_port: int = Field(default=18124, ge=1, le=65535, description="used by a `clickhouse` binary only")
    job_port: int = Field(default=18099, ge=1, le=65535, description="Beam job server")
    artifact_port: int = Field(default=18098, ge=1, le=65535, description="Beam artifact staging")
    expansion_port: int = Field(default=18097, ge=1, le=65535, description="Beam expansion service (Java)")
    worker_port: int = Field(default=18096, ge=1, le=65535, description="Beam worker pool (Python)")
    job_expansion_port: int = Field(default=18095, ge=1, le=65535, description="the job server's own expansion service")
    flink_ui_port: int = Field(default=18081, ge=1, le=65535, description="web page of a Flink cluster, where one runs")
    flink_rpc_port: int = Field(default=18092, ge=1, le=65535, description="job manager of a standalone Flink cluster")
    spark_master_port: int = Field(default=18077, ge=1, le=65535, description="master of a standalone Spark cluster")
    spark_master_ui_port: int = Field(default=18078, ge=1, le=65535, description="that master's web page and JSON")
    dagster_port: int = Field(default=3000, ge=1, le=65535, description="Dagster's UI and GraphQL")
    dagster_code_port: int = Field(default=18094, ge=1, le=65535, description="Dagster's code server")
    api_port: int = Field(default=8080, ge=1, le=65535, description="HTTP API and dashboard")

    kafka_bootstrap: str | None = Field(default=None, description="brokers to use instead of the local one")
    schema_registry: str | None = Field(
        default=None, repr=False, description="address of a schema registry to use instead of the local one"
    )
    clickhouse_url: str | None = Field(
        default=None, description="ClickHouse HTTP address to use instead of a local one"
    )
    clickhouse_user: str = "default"
    clickhouse_password: str = Field(default="", repr=False)
    clickhouse_threads: int = Field(default=2, ge=1, description="threads one query of the embedded engine may use")
    clickhouse_memory_bytes: int = Field(
        default=2_000_000_000, ge=100_000_000, description="most memory of one query of the local server"
    )
    clickhouse_binary: str | None = Field(
        default=None, description="path of a `clickhouse` binary; unset: the one on PATH; `embedded`: none"
    )

    flink_master: str = Field(default="[local]", description="`[local]` (embedded) or host:port of a Flink cluster")
    parallelism: int = Field(default=2, ge=1, le=256, description="Flink subtasks and Python workers")
    checkpoint_interval_ms: int = Field(default=10_000, ge=100)
    state_backend: Literal["rocksdb", "filesystem"] = Field(
        default="rocksdb",
        description="where Flink keeps state: on disk or on its heap; checkpoints are files either way",
    )
    worker_memory_bytes: int = Field(
        default=512 << 20, ge=0, description="merged states that a Python worker keeps at hand; others are read back"
    )
    alarm_rows: int = Field(
        default=100_000, ge=1, description="rows of one slice and group of metrics from which an alarm is raised"
    )

    java_home: Path | None = Field(default=None, description="a Java 17 home; unset: JAVA_HOME, then `java` on PATH")
    kafka_heap: str = Field(default="512m", pattern=r"^\d+[mg]$")
    flink_heap: str = Field(default="1g", pattern=r"^\d+[mg]$")
    expansion_heap: str = Field(default="128m", pattern=r"^\d+[mg]$")
    spark_heap: str = Field(default="2g", pattern=r"^\d+[mg]$")
    spark_master: str = Field(
        default="local[2]", description="`local[N]` (a JVM of the run's own) or spark://host:port of a Spark cluster"
    )

    portion_events: int = Field(
        default=2_000_000, ge=1, description="events that a batch run computes and publishes together, or a day of more"
    )
    archive_url: str | None = Field(
        default=None,
        description="where logs are archived, any fsspec URL; unset: `archive` in the data directory",
    )
    runs_kept_days: int = Field(
        default=35, ge=0, description="how long a batch run that another has replaced can be shown again"
    )
    kafka_retention_hours: int = Field(
        default=-1,
        ge=-1,
        description="of the local broker, by record timestamp; -1 keeps all, so history can be loaded",
    )
    first_day: date = Field(default=date(2024, 1, 1), description="first UTC day that Dagster has a partition for")
    database_prefix: str = Field(default="", description="put before every ClickHouse database name")
    start_timeout_s: float = Field(default=120.0, gt=0, description="a service not ready after this has failed")

    @field_validator("database_prefix")
    @classmethod
    def _prefix_is_an_identifier(cls, value: str) -> str:
        if value and not _IDENTIFIER.match(value):
            msg = f"`database_prefix` must be letters, digits and _, not starting with a digit; got {value!r}"
            raise ValueError(msg)
        return value

    @field_validator(
        "java_home",
        "kafka_bootstrap",
        "schema_registry",
        "clickhouse_url",
        "clickhouse_binary",
        "archive_url",
        mode="before",
    )
    @classmethod
    def _empty_means_unset(cls, value: object) -> object:
        return None if value == "" else value

    @property
    def archive(self) -> str:
        """URL of the archive of logs."""
        return self.archive_url or str(self.data_dir.absolute() / "archive")

    @property
    def bootstrap(self) -> str:
        """Kafka bootstrap servers, `host:port[,host:port]`."""
        return self.kafka_bootstrap or f"{self.host}:{self.kafka_port}"

    @property
    def schema_registry_address(self) -> str:
        """The schema registry's HTTP address, without a trailing slash."""
        return (self.schema_registry or f"http://{self.host}:{self.schema_registry_port}").rstrip("/")

    @property
    def clickhouse_address(self) -> str:
        """ClickHouse's HTTP address, without a trailing slash."""
        return (self.clickhouse_url or f"http://{self.host}:{self.clickhouse_port}").rstrip("/")

    @property
    def job_endpoint(self) -> str:
        """Beam job server, `host:port`."""
        return f"{self.host}:{self.job_port}"

    @property
    def artifact_endpoint(self) -> str:
        """Beam artifact service, `host:port`."""
        return f"{self.host}:{self.artifact_port}"

    @property
    def expansion_endpoint(self) -> str:
        """Beam expansion service for Java transforms, `host:port`."""
        return f"{self.host}:{self.expansion_port}"

    @property
    def worker_endpoint(self) -> str:
        """Beam Python worker pool, `host:port`."""
        return f"{self.host}:{self.worker_port}"

    @property
    def run_dir(self) -> Path:
        """Absolute directory of the stack's pid files."""
        return self.data_dir.absolute() / "run"

    @property
    def log_dir(self) -> Path:
        """Absolute directory of the services' logs."""
        return self.data_dir.absolute() / "logs"

    def database(self, source: str) -> str:
        """ClickHouse database of a catalog's source: `database_prefix` + the source, `-` and `.` as `_`."""
        return self.database_prefix + re.sub(r"[^A-Za-z0-9_]", "_", source)

    def environ(self) -> dict[str, str]:
        """The environment variables that make another process read exactly these settings.

        Laid over an environment, they hide whatever it says: what is unset here is given as empty.
        """
        values = self.model_dump(mode="json")
        values["data_dir"] = str(self.data_dir.absolute())
        return {f"LOCKSTEP_{name.upper()}": "" if value is None else str(value) for name, value in values.items()}


def setting_name(field: str) -> str:
    """The environment variable that sets a field: `kafka_port` -> `LOCKSTEP_KAFKA_PORT`."""
    if field not in Settings.model_fields:
        msg = f"no setting is called `{field}`"
        raise KeyError(msg)
    return f"LOCKSTEP_{field.upper()}"


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: a `LOCKSTEP_` variable has a value that its setting does not allow.
    """
    try:
        return Settings()
    except ValueError as error:
        raise SettingsError(_explain(error)) from error


class SettingsError(ValueError):
    """A `LOCKSTEP_` variable is wrong; the text names it, its rule and the value got."""


def _explain(error: ValueError) -> str:
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    lines = []
    for detail in details():
        name = "LOCKSTEP_" + "_".join(str(part) for part in detail["loc"]).upper()
        lines.append(f"`{name}`: {detail['msg'].lower()}; got {detail.get('input')!r}. correct or unset it")
    return "\n".join(lines)
