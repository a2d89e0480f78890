"""Work on stretches of a log in several processes beside each other, none of which outlives this one."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

from infra.processes import end_with

Result = TypeVar("Result")

Told = Callable[[str, int, int], None]
"""Told of progress: what is done, how much more of it, and how much there is in all."""


@dataclass(frozen=True)
class Stretch:
    """Offsets ``[begin, end)`` of a topic partition."""

    topic_partition: int
    begin: int
    end: int


def carried_out(work: Callable[[Stretch], Result], stretches: Sequence[Stretch]) -> Iterator[tuple[Stretch, Result]]:
    """Each stretch with what came of it, as they are done.

    Args:
        work: Can be pickled.
        stretches: In any order.
    """
    workers = min(len(stretches), os.cpu_count() or 1)
    if workers <= 1:
        yield from ((stretch, work(stretch)) for stretch in stretches)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=end_with, initargs=(os.getpid(),)) as pool:
        futures = {pool.submit(work, stretch): stretch for stretch in stretches}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)
