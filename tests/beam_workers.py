"""Beam's Python workers of a stack, as processes."""

from contextlib import suppress

import psutil

from infra.settings import Settings
from infra.stack import status

_FORKED = "multiprocessing.forkserver"


def workers(settings: Settings) -> list[psutil.Process]:
    """Those that live; one that was killed may still be waited for.

    The pool's server is its child, and has the same command line as the workers that it forks.
    """
    [pool] = [each for each in status(settings) if each.name == "beam-workers"]
    assert pool.pid is not None
    found = []
    for child in psutil.Process(pool.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            parent = child.parent()
            if child.status() != psutil.STATUS_ZOMBIE and parent and any(_FORKED in part for part in parent.cmdline()):
                found.append(child)
    return found
