"""Dagster from outside, through the same GraphQL that its own pages use."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from infra.settings import Settings
from orchestration.dagster_home import BY_HAND, KIND, LOCATION, job_of

ASSETS = ("batch_metrics", "reconciliation", "certificates")
_REPOSITORY = "__repository__"
_TIMEOUT_S = 60.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of our loopback
_ENDED = {"SUCCESS", "FAILURE", "CANCELED"}

_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on InvalidSubsetError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
_BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
_BACKFILL_STATUS = """
query Backfill($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    __typename
    ... on PartitionBackfill { status runs(limit: 100) { runId status } error { message } }
    ... on PythonError { message }
  }
}
"""
_STATUS = """
query Run($id: ID!) {
  runOrError(runId: $id) {
    __typename
    ... on Run { status stepStats { stepKey status } }
    ... on PythonError { message }
  }
}
"""
_EVENTS = """
query Failure($id: ID!) {
  logsForRun(runId: $id, limit: 1000) {
    ... on EventConnection { events { __typename ... on ErrorEvent { error { message causes { message } } } } }
  }
}
"""


class DagsterError(RuntimeError):
    """Dagster refused, or a run failed; the text says which and where to look."""


@dataclass(frozen=True)
class RunState:
    """A run as it is now: Dagster's status, and the status of each step that has begun."""

    run_id: str
    status: str
    steps: dict[str, str]

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in _ENDED


class DagsterClient:
    """Launches ranges of days and follows them."""

    def __init__(self, settings: Settings) -> None:
        self.address = f"http://{settings.host}:{settings.dagster_port}"

    def launch(self, source: str, first: date, last: date, assets: Sequence[str] = ASSETS) -> str:
        """Start one run over the days of a source from the first to the last, both included; returns its id.

        Raises:
            DagsterError: Dagster did not take it.
        """
        within = {"dagster/asset_partition_range_start": str(first), "dagster/asset_partition_range_end": str(last)}
        tags = within | {KIND: BY_HAND}
        params = {
            "selector": {
                "repositoryLocationName": LOCATION,
                "repositoryName": _REPOSITORY,
                "pipelineName": job_of(source),
                "assetSelection": [{"path": [source, name]} for name in assets],
                "assetCheckSelection": None,
            },
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        answer = self.query(_LAUNCH, {"params": params})["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            msg = f"Dagster did not start {first} to {last} of `{source}`: {_messages(answer)}"
            raise DagsterError(msg)
        return str(answer["run"]["runId"])

    def backfill(self, source: str, days: Sequence[date], assets: Sequence[str] = ASSETS) -> str:
        """Start a backfill of a source as the page's button does; returns its id. The daemon makes one run of a range.

        Raises:
            DagsterError: Dagster did not take it.
        """
        params = {
            "assetSelection": [{"path": [source, name]} for name in assets],
            "partitionNames": [str(day) for day in days],
        }
        answer = self.query(_BACKFILL, {"params": params})["launchPartitionBackfill"]
        if answer["__typename"] != "LaunchBackfillSuccess":
            msg = f"Dagster did not take the backfill: {_messages(answer)}"
            raise DagsterError(msg)
        return str(answer["backfillId"])

    def backfill_state(self, backfill_id: str) -> dict[str, Any]:
        """A backfill's `status` and its `runs`, each with `runId` and `status`."""
        return dict(self.query(_BACKFILL_STATUS, {"id": backfill_id})["partitionBackfillOrError"])

    def state(self, run_id: str) -> RunState:
        """A run as it is now.

        Raises:
            DagsterError: There is no such run.
        """
        answer = self.query(_STATUS, {"id": run_id})["runOrError"]
        if answer["__typename"] != "Run":
            msg = f"Dagster knows no run `{run_id}`: {_messages(answer)}"
            raise DagsterError(msg)
        return RunState(run_id, answer["status"], {step["stepKey"]: step["status"] for step in answer["stepStats"]})

    def wait(self, run_id: str, told: Callable[[RunState], None] = lambda _: None, poll_s: float = 0.5) -> None:
        """Follow a run to its end.

        Raises:
            DagsterError: It did not succeed; with the first errors that it logged.
        """
        while not (state := self.state(run_id)).ended:
            told(state)
            time.sleep(poll_s)
        told(state)
        if state.status != "SUCCESS":
            msg = f"Dagster's run ended as {state.status}: {self.failure(run_id)}. see {self.address}/runs/{run_id}"
            raise DagsterError(msg)

    def failure(self, run_id: str) -> str:
        """The innermost error messages that a run logged."""
        events = self.query(_EVENTS, {"id": run_id})["logsForRun"].get("events", [])
        errors = [event["error"] for event in events if event.get("error")]
        lines = [cause["message"].strip() for error in errors for cause in (error["causes"] or [error])[-1:]]
        return "; ".join(dict.fromkeys(lines)) or "it logged no error"

    def query(self, text: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Send one GraphQL document.

        Raises:
            DagsterError: Nothing answered, or the document was refused.
        """
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{self.address}/graphql", body, {"Content-Type": "application/json"}
        )
        try:
            with _DIRECT.open(request, timeout=_TIMEOUT_S) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            answer = {"errors": [{"message": error.read().decode(errors="replace")}]}
        except OSError as error:
            msg = f"Dagster does not answer at {self.address}: {error}. start it by `lockstep up`"
            raise DagsterError(msg) from error
        if answer.get("errors"):
            msg = f"Dagster refused: {answer['errors'][0]['message']}"
            raise DagsterError(msg)
        return dict(answer["data"])


def _messages(answer: dict[str, Any]) -> str:
    if "message" in answer:
        return str(answer["message"])
    return "; ".join(error["message"] for error in answer.get("errors", [])) or str(answer["__typename"])
