"""Two runs of one stage at once: the second waits, says for whom, and finds the work done."""

from __future__ import annotations

import threading
from pathlib import Path

from assets.corpus.stages import CONTEXTS_STAGE
from assets.engine.lock import alone
from tests.tiny_experiment import tiny_experiment


def test_a_second_run_waits_and_says_for_whom(tmp_path: Path) -> None:
    said: list[str] = []
    entered, ended = threading.Event(), threading.Event()

    def second() -> None:
        with alone(tmp_path, "circuits", said.append):
            entered.set()
        ended.set()

    with alone(tmp_path, "circuits", said.append):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.5)
        assert len(said) == 1
        assert "circuits: waiting for another run to end: process" in said[0]
    assert ended.wait(10)
    thread.join()


def test_other_stages_do_not_wait(tmp_path: Path) -> None:
    said: list[str] = []
    with alone(tmp_path, "circuits", said.append), alone(tmp_path, "clusters", said.append):
        assert said == []


def test_two_runs_of_a_stage_at_once_make_its_table_once(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path)
    worked: list[bool] = []
    threads = [
        threading.Thread(target=lambda: worked.append(CONTEXTS_STAGE.run(experiment)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(worked) == [False, True]
