"""Work spread over processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from assets.engine.workers import n_workers, spread
from assets.settings import ExperimentError
from core.errors import InputError


def test_results_come_in_the_order_of_the_items() -> None:
    offset = 10  # what a worker needs it inherits

    def slow_first(item: int) -> int:
        time.sleep(0.05 if item == 0 else 0.0)
        return item + offset

    assert list(spread(slow_first, range(20), 2)) == list(range(10, 30))
    assert list(spread(slow_first, range(3), 1)) == [10, 11, 12]
    assert list(spread(slow_first, [], 2)) == []


def test_work_is_done_by_several_processes_with_a_share_of_the_threads() -> None:
    n_threads = torch.get_num_threads()

    def who(_item: int) -> tuple[int, int]:
        time.sleep(0.02)
        return os.getpid(), torch.get_num_threads()

    done = list(spread(who, range(8), 2))
    processes = {process for process, _ in done}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert {threads for _, threads in done} == {max(1, n_threads // 2)}
    assert torch.get_num_threads() == n_threads


def test_one_item_is_computed_as_it_is_among_many() -> None:
    def product(seed: int) -> bytes:
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(200, 300, generator=generator, requires_grad=True)
        (a @ a.T).square().sum().backward()
        assert a.grad is not None
        return a.grad.numpy().tobytes()

    assert list(spread(product, [3], 2)) == list(spread(product, range(6), 2))[3:4]


def test_what_a_worker_raises_is_raised_here() -> None:
    def refuse(item: int) -> int:
        if item == 2:
            raise InputError("the third will not do.")
        return item

    made = spread(refuse, range(5), 2)
    assert next(made) == 0
    assert next(made) == 1
    with pytest.raises(InputError, match="the third will not do"):
        next(made)


def test_a_killed_worker_is_said_with_the_way_out() -> None:
    def die(_item: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ExperimentError, match=r"was killed.*model\.workers.*memory_gb"):
        list(spread(die, range(3), 2))


def test_nobody_waits_for_the_others_when_one_is_killed() -> None:
    def die_or_wait(item: int) -> None:
        if item == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(ExperimentError, match="was killed"):
        list(spread(die_or_wait, range(4), 2))
    assert time.monotonic() - began < 30


def test_a_worker_that_is_killed_while_it_waits_for_work_stops_nobody(tmp_path: Path) -> None:
    def work(item: int) -> None:
        if item == 0:
            time.sleep(60)
        (tmp_path / "idle").write_text(str(os.getpid()))

    def kill() -> None:
        while not (tmp_path / "idle").exists():
            time.sleep(0.02)
        time.sleep(0.5)  # until it waits for work
        os.kill(int((tmp_path / "idle").read_text()), signal.SIGKILL)

    began = time.monotonic()
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ExperimentError, match="was killed"):
        list(spread(work, range(2), 2))
    killer.join()
    assert time.monotonic() - began < 30


_ORPHANS = """
import os, sys, time
from assets.engine.workers import spread
def wait(item):
    print(os.getpid(), flush=True)
    time.sleep(60)
list(spread(wait, range(2), 2))
"""


def test_workers_end_with_the_process_that_began_them() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _ORPHANS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(_lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.stdout.close()
    assert not any(map(_lives, workers))


_INTERRUPTED = """
import os, signal, time
from assets.engine.workers import spread
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, interrupt)
def send(item):
    os.write(1, b"%d\\n" % os.getpid())  # print would keep it in a buffer that both have
    time.sleep(item)
    return bytes(10**8)
for result in spread(send, [SECONDS] * 1000, 2):
    del result
"""


@pytest.mark.parametrize(
    ("number", "everyone", "seconds"),
    [(signal.SIGTERM, False, 60), (signal.SIGINT, True, 60), (signal.SIGTERM, False, 0)],
    ids=["asked to end", "Ctrl-C", "while results are sent"],
)
def test_one_signal_ends_all_in_the_midst_of_their_work(
    number: signal.Signals, everyone: bool, seconds: int
) -> None:
    program = _INTERRUPTED.replace("SECONDS", str(seconds))
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    time.sleep(0.5)
    (os.killpg if everyone else os.kill)(parent.pid, number)
    try:
        _, said = parent.communicate(timeout=10)
    finally:
        parent.kill()
    assert not any(map(_lives, workers))
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert said.count("Traceback") == 1, "workers say nothing"


def _lives(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_there_is_a_worker_for_each_core_unless_another_number_is_asked_for() -> None:
    assert n_workers(3) == 3
    assert n_workers(None) == len(os.sched_getaffinity(0))
