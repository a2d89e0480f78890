"""Dagster's home: its storage and settings, under the data directory."""

from pathlib import Path

from infra.settings import Settings

LOCATION = "lockstep"
WORKSPACE = "workspace.yaml"

_INSTANCE = """\
# Written by Lockstep at each start.
telemetry:
  enabled: false
# No invitation to a newsletter over the first page.
nux:
  enabled: false
# One run at a time: each is a Spark job that takes all cores of a small machine.
run_queue:
  max_concurrent_runs: 1
  dequeue_interval_seconds: 1
run_monitoring:
  enabled: true
  start_timeout_seconds: 180
"""


def job_of(source: str) -> str:
    """The job that closes days of a source."""
    return f"{source}_close_days"


def path(settings: Settings) -> Path:
    """The absolute directory that `DAGSTER_HOME` names."""
    return settings.data_dir.absolute() / "dagster"


def write(settings: Settings) -> Path:
    """Write the instance's settings and the workspace; what Dagster stored stays. Returns the directory."""
    home = path(settings)
    home.mkdir(parents=True, exist_ok=True)
    _replace(home / "dagster.yaml", _INSTANCE)
    _replace(
        home / WORKSPACE,
        "load_from:\n"
        f"  - grpc_server: {{host: {settings.host}, port: {settings.dagster_code_port}, location_name: {LOCATION}}}\n",
    )
    return home


def _replace(file: Path, text: str) -> None:
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
