"""Beam's external worker pool, bound to loopback: `python -m infra.worker_pool`.

Flink asks it for a Python process per worker, and asks again after it has restarted a job. Beam's own pool listens on
all interfaces, runs whatever `python` is on PATH, and keeps the workers' output in a pipe that nobody reads.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

from infra.settings import load_settings

_IMPORTED = ("apache_beam.runners.worker.sdk_worker", "clickhouse_connect", "confluent_kafka", "msgspec", "sqlglot")
"""What every worker needs and takes seconds to import; nothing that starts threads: a fork leaves them behind."""

_STOP_S = 10.0


class WorkerPool(BeamFnExternalWorkerPoolServicer):
    """Starts and stops worker processes for a runner; they are forked from one that has imported what they need."""

    def __init__(self) -> None:
        super().__init__(use_process=True)
        # Workers share the cores by being many; threads of their own would only contend.
        os.environ |= {"POLARS_MAX_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*_IMPORTED])

    def StartWorker(  # noqa: N802 - a gRPC method's name
        self,
        start_worker_request: beam_fn_api_pb2.StartWorkerRequest,
        unused_context: object,
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        """Start one worker process that reports to the runner's control endpoint."""
        control, worker_id = start_worker_request.control_endpoint.url, start_worker_request.worker_id
        try:
            worker = self._context.Process(target=work, args=(control, worker_id), daemon=True)
            worker.start()
            self._worker_processes[worker_id] = worker
        except OSError:
            return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(  # noqa: N802 - a gRPC method's name
        self,
        stop_worker_request: beam_fn_api_pb2.StopWorkerRequest,
        unused_context: object,
    ) -> beam_fn_api_pb2.StopWorkerResponse:
        """Stop one worker process."""
        if worker := self._worker_processes.pop(stop_worker_request.worker_id, None):
            worker.terminate()
            worker.join(_STOP_S)
            worker.kill()
        return beam_fn_api_pb2.StopWorkerResponse()

    def stop(self) -> None:
        """Ask every worker to end; what does not is killed with the process group."""
        for worker in self._worker_processes.values():
            worker.terminate()


def work(control: str, worker_id: str) -> None:
    """What a worker process does: it serves a runner until that ends."""
    from apache_beam.runners.worker import statecache  # noqa: PLC0415 - the pool itself needs none of it
    from apache_beam.runners.worker.sdk_worker import SdkHarness  # noqa: PLC0415

    # Beam weighs each state that is written, and would look through the globals of all modules each time.
    statecache.objsize.default_settings.exclude_modules_globals = False
    logging.basicConfig(level=logging.WARNING)
    SdkHarness(control, worker_id=worker_id, state_cache_size=64 << 20, data_buffer_time_limit_ms=-1).run()


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
