"""Several pieces of work at once, each in a process of its own that shares what was loaded.

Small models leave most of a core idle when one run of them is spread over several: a process for
each core, with one thread, does more. Workers are forks, so that model and dictionaries lie in
memory once. They end with the process that began them, however that ends, and at once where it is
interrupted: signals are its affair, not theirs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from assets.settings import ExperimentError

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2
"""Results that may wait to be taken, for each worker."""

_work: Callable[[Any], Any]
"""In a worker: what it does with an item; inherited, so that it need not be sent."""


def n_workers(asked: int | None) -> int:
    """How many processes work at once: as many as asked, or one for each core.

    One where this process uses a GPU, or where processes cannot be forked safely.
    """
    import torch

    if sys.platform != "linux" or torch.cuda.is_initialized():
        return 1
    return asked or len(os.sched_getaffinity(0))


def spread(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """`function` of each item, in their order, by so many processes; by this one if it is one.

    Each worker computes with its share of the threads that this process has, so that results do
    not depend on how many items there are.

    Args:
        function: gives what can be pickled; what it raises is raised here.

    Raises:
        ExperimentError: a worker was killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(items)) or 1,
        multiprocessing.get_context("fork"),
        initializer=_begin,
        initargs=(function, workers),
    )
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            if len(waiting) == _AHEAD * workers:
                yield waiting.popleft().result()
            with warnings.catch_warnings():
                # No other thread of this process computes meanwhile.
                warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
                waiting.append(pool.submit(_do, item))
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        _kill(pool)  # the pool would ask the others to end, who do not listen
        raise ExperimentError(
            f"one of {workers} processes that worked at once was killed, most likely for want of "
            "memory: give fewer by model.workers, or lower model.memory_gb. What was done is kept."
        ) from error
    except BaseException:
        _kill(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _kill(pool: ProcessPoolExecutor) -> None:
    """End its processes in the midst of what they do: nobody waits for what they would give."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    # One may have been sending a result, whose rest the pool would wait for as long as it could
    # be written to.
    pool._result_queue._writer.close()  # pyright: ignore[reportAttributeAccessIssue]


def _begin(function: Callable[[Any], Any], workers: int) -> None:
    global _work
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to all at once
        signal.signal(number, signal.SIG_IGN)
    import torch

    _work = function
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(item: Any) -> Any:
    return _work(item)
