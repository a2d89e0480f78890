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
# Each run of days is a Spark job, so there is one of each kind at a time: a backfill, one for stale days, the nightly
# run. A backfill of months takes one place, and the nightly run has another. What the place is of stands in a tag.
run_queue:
  max_concurrent_runs: 4
  dequeue_interval_seconds: 1
  tag_concurrency_limits:
    - key: dagster/backfill
      limit: 1
    - key: lockstep/kind
      value:
        applyLimitPerUniqueValue: true
      limit: 1
# A run whose process died is started again, once; what fails while it runs is tried again by its step.
run_retries:
  enabled: true
  max_retries: 1
  retry_on_asset_or_op_failure: false
freshness:
  enabled: true
run_monitoring:
  enabled: true
  start_timeout_seconds: 180
"""

KIND = "lockstep/kind"
"""Tag of a run: what asked for it. Of each there is one run at a time."""
WHY = "lockstep/why"
"""Tag of a run: why it was asked for."""
NIGHTLY, STALE, FOLLOW, CHECK, BY_HAND = "nightly", "stale", "follow", "check", "by-hand"


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
