"""Training all dictionaries of a model from one read of its activations.

Every submodule's dictionary takes one step on each batch. Dictionaries do not interact, so each
step runs on one core and as many run at once as there are cores: that keeps every weight
independent of the number of cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from core.dictionaries import Dictionary
from core.errors import NotFinite
from core.training.buffer import RowSource, ShuffledBuffer
from core.training.checkpoint import read_checkpoint, write_checkpoint
from core.training.learner import Learner, Report
from core.training.settings import TrainingSettings

_PROGRESS_PARTS = 10


def train_dictionaries(
    source: RowSource,
    settings: TrainingSettings,
    *,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, Mapping[str, Report]], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Dictionary]:
    """Train one dictionary for each submodule of `source` (App. B).

    Args:
        source: activations: a cache, or `ModelRows`.
        settings: shared by all submodules.
        checkpoint: a folder for the state. A training that was killed goes on from its last
            checkpoint to the very weights it would have reached (on a CPU); a finished one is read
            and nothing else is done.
        device: where to train.
        on_step: called after each step with its number and each submodule's report.
        progress: told now and then how far it is.

    Returns:
        Dictionaries by submodule, in the units of the activations, decoder rows of unit norm.

    Raises:
        InputError: fewer rows than two batches, or a checkpoint of another training.
        NotFinite: a loss became NaN or infinite.
    """
    learners = {name: Learner(name, d, settings, device) for name, d in source.widths.items()}
    key = settings.key(source.widths, source.fingerprint)
    first = 0 if checkpoint is None else read_checkpoint(checkpoint, key, learners)
    saved = first
    if first < settings.n_steps:
        batches = _batches(source, settings, first)
        with _one_core_each(device, len(learners)) as pool:
            for step in range(first, settings.n_steps):
                batch = next(batches)
                if step == 0:
                    list(pool.map(lambda name, x=batch: learners[name].start(x[name]), learners))
                reports = _step(pool, learners, step, batch)
                _check_finite(reports, step, saved, checkpoint)
                if on_step is not None:
                    on_step(step, reports)
                done = step + 1
                if checkpoint is not None and _due(done, settings):
                    write_checkpoint(checkpoint, key, done, learners)
                    saved = done
                if progress is not None and _worth_telling(done, settings.n_steps):
                    progress(_line(done, settings, reports))
    return {name: learner.dictionary() for name, learner in learners.items()}


def _batches(
    source: RowSource, settings: TrainingSettings, first: int
) -> Iterator[dict[str, Tensor]]:
    buffer = ShuffledBuffer(
        source,
        batch_size=settings.batch_size,
        buffer_bytes=settings.buffer_bytes,
        seed=settings.seed,
    )
    return buffer.batches(first)


@contextmanager
def _one_core_each(device: torch.device | str, n_tasks: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads use one core each; on an accelerator, one thread."""
    n_threads = torch.get_num_threads()
    n_workers = min(n_threads, n_tasks) if torch.device(device).type == "cpu" else 1
    try:
        with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as p:
            yield p
    finally:
        torch.set_num_threads(n_threads)


def _step(
    pool: ThreadPoolExecutor,
    learners: Mapping[str, Learner],
    step: int,
    batch: Mapping[str, Tensor],
) -> dict[str, Report]:
    def one(name: str) -> Report:
        return learners[name].step(step, batch[name])

    return dict(zip(learners, pool.map(one, learners), strict=True))


def _check_finite(
    reports: Mapping[str, Report], step: int, saved: int, checkpoint: Path | None
) -> None:
    bad = [name for name, report in reports.items() if not math.isfinite(report.loss)]
    if not bad:
        return
    kept = f"the last good checkpoint is step {saved} in '{checkpoint}'"
    if checkpoint is None or not saved:
        kept = "there is no checkpoint before it"
    raise NotFinite(
        f"the loss of '{bad[0]}' is {reports[bad[0]].loss} at step {step}; {kept}. Lower the "
        "learning rate or lengthen its warm-up; if it fails in the first steps, look at the "
        "activations."
    )


def _due(done: int, settings: TrainingSettings) -> bool:
    return done % settings.checkpoint_every == 0 or done == settings.n_steps


def _worth_telling(done: int, n_steps: int) -> bool:
    return done % max(1, n_steps // _PROGRESS_PARTS) == 0 or done == n_steps


def _line(done: int, settings: TrainingSettings, reports: Mapping[str, Report]) -> str:
    n = len(reports)
    loss = sum(report.loss for report in reports.values()) / n
    l0 = sum(report.l0 for report in reports.values()) / n
    dead = sum(report.n_dead for report in reports.values()) / (n * settings.n_features)
    return (
        f"training: step {done} of {settings.n_steps}; mean loss {loss:.4g}, L0 {l0:.3g}, "
        f"{dead:.1%} dead"
    )
