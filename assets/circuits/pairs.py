"""Stage 5: behaviours from files of contrastive pairs (section 3), such as agreement of verbs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.circuits.behaviours import Behaviour, Example, behaviours_made, show_behaviours
from assets.engine.automation import rerun_on_new_data
from assets.engine.recipe import Source
from assets.engine.stage import Made, TableStage, Work, always, contents
from assets.settings import Experiment, ExperimentError, TaskSettings
from assets.tables.places import behaviours, examples

Pair = dict[str, str]


@dataclass(frozen=True)
class Files:
    """Pairs a circuit is found from, and pairs it is judged on."""

    train: Source
    test: Source


@dataclass(frozen=True)
class Tasks:
    """Which pairs are taken; see `assets.settings.TaskSettings`."""

    pairs: Mapping[str, Files]
    n_examples: int
    n_evaluated: int
    by_position: bool
    bos: bool


def task_settings(experiment: Experiment) -> TaskSettings:
    """What the experiment says about tasks; there are some where stages of tasks run."""
    assert experiment.settings.tasks is not None, "stages of tasks exist only with tasks"
    return experiment.settings.tasks


def _reads(experiment: Experiment) -> Tasks:
    tasks = task_settings(experiment)

    def source(written: str) -> Source:
        return Source(written, experiment.resolve(written))

    return Tasks(
        {n: Files(source(f.train), source(f.test)) for n, f in tasks.pairs.items()},
        tasks.n_examples,
        tasks.n_evaluated,
        tasks.by_position,
        experiment.settings.corpus.bos,
    )


def read_pairs(path: str) -> list[Pair]:
    """The rows of a file of pairs.

    Raises:
        ExperimentError: the file is not there, or not JSON lines of pairs.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise ExperimentError(f"pairs in {path} cannot be read: {error}") from None
    keys = {"clean_prefix", "patch_prefix", "clean_answer", "patch_answer"}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not keys <= row.keys():
            raise ExperimentError(f"line {number} of {path} must have {', '.join(sorted(keys))}.")
    return rows


def without(rows: Sequence[Pair], known: Sequence[Pair]) -> list[Pair]:
    """Those rows whose prefixes and answers are not among `known`.

    The authors' held-out files overlap their training files almost wholly.
    """
    seen = {_content(row) for row in known}
    return [row for row in rows if _content(row) not in seen]


def _content(row: Pair) -> tuple[str, ...]:
    return (row["clean_prefix"], row["patch_prefix"], row["clean_answer"], row["patch_answer"])


@dataclass(frozen=True)
class _Usable:
    """Pairs of one file that can be run on, the first of them, and how many could not."""

    examples: list[Example]
    n_dropped: int


def _usable(
    tokenizer: Any, rows: Sequence[Pair], tasks: Tasks, path: str, *, found: bool
) -> _Usable:
    """The first usable pairs of a file; by position, only those of the most frequent length."""
    from core.inputs import tokenize_pairs

    if not rows:
        raise ExperimentError(f"{path} has no pairs that are not in the training file too.")
    bos = tokenizer.bos_token_id if tasks.bos else None
    inputs, numbers = tokenize_pairs(tokenizer, list(rows), bos=bos)
    assert inputs.patch is not None, "pairs have a patch side"
    lengths = inputs.mask.sum(1).tolist()
    usable = list(range(len(numbers)))
    if tasks.by_position:
        length, _ = Counter(lengths).most_common(1)[0]
        usable = [i for i in usable if lengths[i] == length]
    answers = inputs.metric.answers.tolist()
    chosen = usable[: tasks.n_examples if found else tasks.n_evaluated]
    return _Usable(
        [
            Example(
                number=numbers[i],
                found=found,
                evaluated=not found,
                clean=tuple(inputs.clean[i, : lengths[i]].tolist()),
                answer=answers[i][0],
                patch=tuple(inputs.patch[i, : lengths[i]].tolist()),
                patch_answer=answers[i][1],
            )
            for i in chosen
        ],
        len(rows) - len(usable),
    )


def _behaviour(tokenizer: Any, name: str, files: Files, tasks: Tasks) -> Behaviour:
    train = read_pairs(files.train.place)
    test = without(read_pairs(files.test.place), train)
    found = _usable(tokenizer, train, tasks, files.train.place, found=True)
    judged = _usable(tokenizer, test, tasks, files.test.place, found=False)
    first = found.examples[0]
    if tasks.by_position and len(first.clean) != len(judged.examples[0].clean):
        raise ExperimentError(
            f"pairs of {name} have {len(first.clean)} tokens for training and "
            f"{len(judged.examples[0].clean)} for testing: a circuit by position needs the same. "
            "Set tasks.by_position: false, or give files of one template."
        )
    tokens = tuple(tokenizer.decode([token]) for token in first.clean)
    same_length = len({len(e.clean) for e in found.examples}) == 1
    row = train[first.number]
    return Behaviour(
        name=name,
        metric="logit_difference",
        by_position=tasks.by_position,
        examples=[*found.examples, *judged.examples],
        size=len(found.examples) + len(judged.examples),
        n_dropped=found.n_dropped + judged.n_dropped,
        about=f"{row['clean_prefix']} [{row['clean_answer'].strip()}, not "
        f"{row['patch_answer'].strip()}]",
        label=name,
        tokens=tokens if tasks.by_position and same_length else None,
    )


def make_task_behaviours(work: Work, tasks: Tasks) -> Made:
    """Read every file of pairs; what is wrong with any of them is said before any circuit."""
    return behaviours_made("tasks", _each(work, tasks))


def _each(work: Work, tasks: Tasks) -> Iterator[Behaviour]:
    from core.errors import InputError

    tokenizer, problems = work.load.tokenizer(), []
    for name, files in tasks.pairs.items():
        try:
            yield _behaviour(tokenizer, name, files, tasks)
        except (ExperimentError, InputError) as error:
            problems.append(f"tasks.pairs.{name}: {error}")
    if problems:
        raise ExperimentError("\n".join(problems))


TASK_BEHAVIOURS_STAGE = TableStage(
    name="task_behaviours",
    group="circuits",
    description=(
        "Contrastive pairs that differ in one thing, such as a noun's number: a behaviour for "
        "each file, pairs to find a circuit from and others to judge it on."
    ),
    kinds=frozenset({"parquet"}),
    key=behaviours("tasks"),
    beside=[examples("tasks")],
    deps=always(),
    needs=always("tokenizer"),
    automation=rerun_on_new_data,
    reads=_reads,
    inputs=contents(),
    make=make_task_behaviours,
    show=lambda work, _tasks: show_behaviours("tasks", work.store),
)
