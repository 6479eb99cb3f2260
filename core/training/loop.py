"""Training all dictionaries of a model from one read of its activations.

Every submodule's dictionary takes one step on each batch. Dictionaries do not interact, so each
step runs on one core and as many run at once as there are cores: that keeps every weight
independent of the number of cores, and of which other dictionaries are trained in the same call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from core.errors import InputError, NotFinite
from core.training.buffer import RowSource, ShuffledBuffer, rows_within
from core.training.checkpoint import read_checkpoint, write_checkpoint
from core.training.learner import Learner, Report, Trained
from core.training.settings import TrainingSettings

_PROGRESS_PARTS = 10
# Rows from which thresholds are measured after the last step, and as many to count features on.
_MEASURED_ROWS = 4096


def train_dictionaries(
    source: RowSource,
    settings: TrainingSettings,
    *,
    ks: Mapping[str, int] | None = None,
    all_widths: Mapping[str, int] | None = None,
    checkpoint: Path | Mapping[str, Path] | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, Mapping[str, Report]], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Trained]:
    """Train one dictionary for each submodule of `source` (App. B).

    Args:
        source: activations: a cache, or `ModelRows`.
        settings: shared by all submodules.
        ks: features per token of some of `all_widths`, in place of ``settings.k``.
        all_widths: width of every submodule that ``settings.buffer_bytes`` is for, those of
            `source` among them, so that some dictionaries at a time become, byte for byte, what
            all at once become: how many rows the buffer holds decides in which order rows are met.
            Those of `source` alone where not given.
        checkpoint: a folder for the state, a file for each dictionary; or the folder of each
            submodule, several of which may be the same. A training that was killed goes on from its
            last checkpoint to the very weights it would have reached (on a CPU), with whichever
            dictionaries it is then asked for; a finished one is read and nothing else is done.
        device: where to train.
        on_step: called after each step with its number and the report of each submodule that took
            it: one that is ahead of the others waits for them.
        progress: told now and then how far it is.

    Returns:
        By submodule, the dictionary in the units of the activations, decoder rows of unit norm,
        and how many features of it are active.

    Raises:
        InputError: fewer rows than two batches, a checkpoint of another training, `all_widths`
            that lack a submodule of `source`, or `ks` that name what they lack or more features
            than there are.
        NotFinite: a loss became NaN or infinite.
    """
    all_widths = source.widths if all_widths is None else all_widths
    _check_widths(source.widths, all_widths)
    buffer_rows = rows_within(settings.buffer_bytes, all_widths)
    own = _with_own_k(settings, ks or {}, source.widths, all_widths)
    learners = {name: Learner(name, d, own[name], device) for name, d in source.widths.items()}
    keys = {
        name: own[name].key(d, buffer_rows, source.fingerprint) for name, d in source.widths.items()
    }
    done = dict.fromkeys(learners, 0)
    folders: Mapping[str, Path] = {}
    if checkpoint is not None:
        of_all = dict.fromkeys(learners, checkpoint) if isinstance(checkpoint, Path) else checkpoint
        folders = {name: of_all[name] for name in learners}
        done = {name: read_checkpoint(folders[name], keys[name], x) for name, x in learners.items()}
    first = min(done.values(), default=settings.n_steps)
    if first < settings.n_steps:
        buffer = ShuffledBuffer(
            source, batch_size=settings.batch_size, buffer_rows=buffer_rows, seed=settings.seed
        )
        batches = buffer.batches(first)
        with _one_core_each(device, len(learners)) as pool:
            for step in range(first, settings.n_steps):
                active = {name: x for name, x in learners.items() if done[name] <= step}
                reports = _step(pool, active, step, next(batches))
                _check_finite(reports, step, done, folders)
                if on_step is not None:
                    on_step(step, reports)
                n_done = step + 1
                if n_done == settings.n_steps:
                    _measure(pool, active, batches, settings)
                if folders and _due(n_done, settings):
                    for name, learner in active.items():
                        write_checkpoint(folders[name], keys[name], n_done, learner)
                        done[name] = n_done
                if progress is not None and _worth_telling(n_done, settings.n_steps):
                    progress(_line(n_done, settings, reports))
    return {name: learner.trained() for name, learner in learners.items()}


def _with_own_k(
    settings: TrainingSettings,
    ks: Mapping[str, int],
    names: Iterable[str],
    all_names: Collection[str],
) -> dict[str, TrainingSettings]:
    """The settings of each submodule."""
    for name in ks:
        if name not in all_names:
            raise InputError(f"ks names '{name}', where no dictionary is trained.")
    own = {}
    for name in names:
        try:
            own[name] = replace(settings, k=ks.get(name, settings.k))
        except InputError as error:
            raise InputError(f"'{name}': {error}") from None
    return own


def _check_widths(widths: Mapping[str, int], all_widths: Mapping[str, int]) -> None:
    for name, d in widths.items():
        if all_widths.get(name) != d:
            raise InputError(
                f"'{name}' has width {d} but all_widths says {all_widths.get(name)}: it must hold "
                "every submodule of the experiment, those trained now among them."
            )


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
        if step == 0:
            learners[name].start(batch[name])
        return learners[name].step(step, batch[name])

    return dict(zip(learners, pool.map(one, learners), strict=True))


def _measure(
    pool: ThreadPoolExecutor,
    learners: Mapping[str, Learner],
    batches: Iterator[Mapping[str, Tensor]],
    settings: TrainingSettings,
) -> None:
    """After the last step: what each kind measures from data, then L0 on rows after those."""
    n_batches = math.ceil(_MEASURED_ROWS / settings.batch_size)
    for measure in (Learner.calibrate, Learner.count_active):
        for batch in islice(batches, n_batches):

            def one(name: str, measure=measure, batch=batch) -> None:
                measure(learners[name], batch[name], 1 / n_batches)

            list(pool.map(one, learners))


def _check_finite(
    reports: Mapping[str, Report], step: int, saved: Mapping[str, int], folders: Mapping[str, Path]
) -> None:
    bad = next((name for name, r in reports.items() if not math.isfinite(r.loss)), None)
    if bad is None:
        return
    way_back = f"the last good checkpoint is step {saved[bad]} in '{folders.get(bad)}'"
    if not saved[bad]:
        way_back = "there is no checkpoint before it"
    raise NotFinite(
        f"the loss of '{bad}' is {reports[bad].loss} at step {step}; {way_back}. Lower the "
        "learning rate or lengthen its warm-up; if it fails in the first steps, look at the "
        "activations."
    )


def _due(n_done: int, settings: TrainingSettings) -> bool:
    return n_done % settings.checkpoint_every == 0 or n_done == settings.n_steps


def _worth_telling(n_done: int, n_steps: int) -> bool:
    return n_done % max(1, n_steps // _PROGRESS_PARTS) == 0 or n_done == n_steps


def _line(n_done: int, settings: TrainingSettings, reports: Mapping[str, Report]) -> str:
    n = len(reports)
    loss = sum(report.loss for report in reports.values()) / n
    l0 = sum(report.l0 for report in reports.values()) / n
    dead = sum(report.n_dead for report in reports.values()) / (n * settings.n_features)
    return (
        f"training: step {n_done} of {settings.n_steps}; mean loss {loss:.4g}, L0 {l0:.3g}, "
        f"{dead:.1%} dead"
    )
