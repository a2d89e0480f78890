"""The job server's jobs: which run, in which state, and how one is stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from apache_beam.portability.api import beam_job_api_pb2 as api
from apache_beam.portability.api import beam_job_api_pb2_grpc as services

from infra.settings import Settings
from speed_layer import flink

LIVE = frozenset({"STARTING", "RUNNING", "STOPPED", "UPDATING"})
"""States of jobs that do, or will do, their work; `STOPPED` is Beam's word for not yet started."""

_TIMEOUT_S = 30


class JobServerUnavailableError(ConnectionError):
    """No job server answered at the configured address."""


@dataclass(frozen=True)
class Job:
    """A job as the server lists it."""

    id: str
    name: str
    state: str


def jobs(settings: Settings) -> list[Job]:
    """The jobs that the server knows of.

    Raises:
        JobServerUnavailableError: It does not answer.
    """
    with _server(settings) as server:
        listed = server.GetJobs(api.GetJobsRequest(), timeout=_TIMEOUT_S).job_info
    return [Job(job.job_id, job.job_name, api.JobState.Enum.Name(job.state)) for job in listed]


def state(settings: Settings, job_id: str) -> str:
    """The state of a job, `LOST` if the server does not know it.

    Raises:
        JobServerUnavailableError: It does not answer.
    """
    return next((job.state for job in jobs(settings) if job.id == job_id), "LOST")


def cancel(settings: Settings, job_id: str) -> None:
    """Stops a job; one that is unknown or over is left alone.

    The server is told first: where Flink ends a job whose submitter no longer listens, the server takes it to run on.

    Raises:
        JobServerUnavailableError: The server does not answer.
    """
    for job in jobs(settings):
        if job.id == job_id and job.state in LIVE:
            with _server(settings) as server:
                server.Cancel(api.CancelJobRequest(job_id=job_id), timeout=_TIMEOUT_S)
            flink.cancel(settings, job.name)


@contextmanager
def _server(settings: Settings) -> Iterator[services.JobServiceStub]:
    with grpc.insecure_channel(settings.job_endpoint) as channel:
        try:
            yield services.JobServiceStub(channel)
        except grpc.RpcError as error:
            msg = f"no Beam job server answered at `{settings.job_endpoint}`. start the stack with `lockstep up`"
            raise JobServerUnavailableError(msg) from error
