"""Beam's external worker pool, bound to loopback: `python -m infra.worker_pool`.

Flink asks it for a Python process per worker, and asks again after it has restarted a job. Beam's own pool listens on
all interfaces, runs whatever `python` is on PATH, and keeps the workers' output in a pipe that nobody reads.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import traceback

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

from infra.settings import load_settings

_WORKER = (
    "import sys, logging; logging.basicConfig(level=logging.WARNING); "
    "from apache_beam.runners.worker.sdk_worker import SdkHarness; "
    "SdkHarness(sys.argv[1], worker_id=sys.argv[2], state_cache_size=64 << 20, data_buffer_time_limit_ms=-1).run()"
)


class WorkerPool(BeamFnExternalWorkerPoolServicer):
    """Starts and stops worker processes for a runner."""

    def __init__(self) -> None:
        super().__init__(use_process=True)

    def StartWorker(  # noqa: N802 - a gRPC method's name
        self,
        start_worker_request: beam_fn_api_pb2.StartWorkerRequest,
        unused_context: object,
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        """Start one worker process that reports to the runner's control endpoint."""
        control, worker_id = start_worker_request.control_endpoint.url, start_worker_request.worker_id
        try:
            command = [sys.executable, "-c", _WORKER, control, worker_id]
            # Workers share the cores by being many; threads of their own would only contend.
            self._worker_processes[worker_id] = subprocess.Popen(command, env={**os.environ, "POLARS_MAX_THREADS": "1"})
        except OSError:
            return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
        return beam_fn_api_pb2.StartWorkerResponse()

    def stop(self) -> None:
        """Ask every worker to end; what does not is killed with the process group."""
        for worker in self._worker_processes.values():
            worker.terminate()


def main() -> int:
    """Serve until SIGTERM."""
    settings = load_settings()
    logging.basicConfig(level=logging.WARNING)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=ended.set).start())
    options = [("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0), ("grpc.so_reuseport", 0)]
    server = grpc.server(shared_unbounded_instance(), options=options)
    server.add_insecure_port(settings.worker_endpoint)
    pool = WorkerPool()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.start()
    ended.wait()
    server.stop(0)
    pool.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
