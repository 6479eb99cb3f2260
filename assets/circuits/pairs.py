"""Stage 5: behaviours from files of contrastive pairs (section 3), such as agreement of verbs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from assets.circuits.behaviours import Behaviour, Example, behaviours_made, show_behaviours
from assets.corpus.rows import Row, json_rows
from assets.corpus.text import harmless
from assets.engine.recipe import Source
from assets.engine.stage import Made, Metadata, TableStage, Work, always, contents
from assets.settings import Experiment, ExperimentError, TaskSettings
from assets.tables.places import DROPPED_PAIRS, behaviours, examples
from assets.tables.schemas import TABLES
from core.errors import InputError

TEXTS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")
"""What every row of a file of pairs has."""

Side = Literal["train", "test"]
"""The file that circuits are found from, or the one they are judged on."""


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


@dataclass(frozen=True)
class Pair:
    """One row of a file of pairs.

    Attributes:
        number: its place among the pairs of the file, from 0.
        line: its line in the file, from 1.
        texts: by the names in `TEXTS`.
    """

    number: int
    line: int
    texts: Mapping[str, str]

    @property
    def content(self) -> tuple[str, ...]:
        """What makes it this pair and no other."""
        return tuple(self.texts[name] for name in TEXTS)


def read_pairs(path: str) -> list[Pair]:
    """The pairs of a file.

    Raises:
        ExperimentError: the file is not there, or not JSON lines of pairs; says which line.
    """
    try:
        with Path(path).open("rb") as lines:
            rows = list(json_rows(lines, Path(path)))
    except OSError as error:
        raise ExperimentError(f"pairs in {path} cannot be read: {error}") from None
    except InputError as error:
        raise ExperimentError(str(error)) from None
    return [
        Pair(number, row.line or 0, {name: _text(row, name) for name in TEXTS})
        for number, row in enumerate(rows)
    ]


def _text(row: Row, name: str) -> str:
    if name not in row.values:
        raise ExperimentError(f"{row.where} must have {', '.join(TEXTS)}, and has no {name}.")
    text = row.values[name]
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise ExperimentError(
            f"{row.where}: {name} must be text, not {harmless(json.dumps(text)):.80}."
        ) from None
    return text


@dataclass(frozen=True)
class Dropped:
    """A pair that is not used: the file it is in, its line there, and why."""

    side: Side
    line: int
    reason: str


@dataclass(frozen=True)
class _Usable:
    """Pairs of one file that can be run on, the first of them, and those that cannot."""

    examples: list[Example]
    dropped: list[Dropped]


def _usable(tokenizer: Any, pairs: Sequence[Pair], tasks: Tasks, path: str, side: Side) -> _Usable:
    """The first usable pairs of a file; by position, only those of the most frequent length."""
    from core.inputs import tokenize_pairs

    if not pairs:
        raise ExperimentError(f"{path} has no pairs that are not in the training file too.")
    bos = tokenizer.bos_token_id if tasks.bos else None
    if tasks.bos and bos is None:
        raise ExperimentError("the tokenizer has no BOS token: set corpus.bos to false.")
    try:
        tokenized = tokenize_pairs(tokenizer, [pair.texts for pair in pairs], bos=bos)
    except InputError as error:
        raise ExperimentError(f"{path}: {error}") from error
    inputs = tokenized.inputs
    assert inputs.patch is not None, "pairs have a patch side"
    lengths = inputs.mask.sum(1).tolist()
    kept = [pairs[row] for row in tokenized.kept]
    dropped = [Dropped(side, pairs[d.row].line, d.reason) for d in tokenized.dropped]
    usable = list(range(len(kept)))
    if tasks.by_position:
        length, _ = Counter(lengths).most_common(1)[0]
        usable = [i for i in usable if lengths[i] == length]
        others = [pair for pair, n in zip(kept, lengths, strict=True) if n != length]
        reason = "of another length than most, and positions are kept apart"
        dropped += [Dropped(side, pair.line, reason) for pair in others]
    answers = inputs.metric.answers.tolist()
    found = side == "train"
    chosen = usable[: tasks.n_examples if found else tasks.n_evaluated]
    return _Usable(
        [
            Example(
                number=kept[i].number,
                found=found,
                evaluated=not found,
                clean=tuple(inputs.clean[i, : lengths[i]].tolist()),
                answer=answers[i][0],
                patch=tuple(inputs.patch[i, : lengths[i]].tolist()),
                patch_answer=answers[i][1],
            )
            for i in chosen
        ],
        dropped,
    )


@dataclass(frozen=True)
class _Task:
    """A task's behaviour, and what its files hold besides."""

    behaviour: Behaviour
    dropped: list[Dropped]


def _task(tokenizer: Any, name: str, files: Files, tasks: Tasks) -> _Task:
    train = read_pairs(files.train.place)
    known = {pair.content for pair in train}
    # The authors' held-out files overlap their training files almost wholly.
    held_out = read_pairs(files.test.place)
    test = [pair for pair in held_out if pair.content not in known]
    overlap = [
        Dropped("test", pair.line, "in the training file too")
        for pair in held_out
        if pair.content in known
    ]
    found = _usable(tokenizer, train, tasks, files.train.place, "train")
    judged = _usable(tokenizer, test, tasks, files.test.place, "test")
    first = found.examples[0]
    if tasks.by_position and len(first.clean) != len(judged.examples[0].clean):
        raise ExperimentError(
            f"pairs of {name} have {len(first.clean)} tokens for training and "
            f"{len(judged.examples[0].clean)} for testing: a circuit by position needs the same. "
            "Set tasks.by_position: false, or give files of one template."
        )
    tokens = tuple(tokenizer.decode([token]) for token in first.clean)
    same_length = len({len(e.clean) for e in found.examples}) == 1
    texts = train[first.number].texts
    dropped = [*found.dropped, *overlap, *judged.dropped]
    behaviour = Behaviour(
        name=name,
        metric="logit_difference",
        by_position=tasks.by_position,
        examples=[*found.examples, *judged.examples],
        size=len(found.examples) + len(judged.examples),
        n_dropped=len(dropped),
        about=harmless(
            f"{texts['clean_prefix']} [{texts['clean_answer'].strip()}, not "
            f"{texts['patch_answer'].strip()}]"
        ),
        label=name,
        tokens=tokens if tasks.by_position and same_length else None,
    )
    return _Task(behaviour, dropped)


def make_task_behaviours(work: Work, tasks: Tasks) -> Made:
    """Read every file of pairs; what is wrong with any of them is said before any circuit."""
    tokenizer, problems, found = work.load.tokenizer(), [], []
    for name, files in tasks.pairs.items():
        try:
            found.append(_task(tokenizer, name, files, tasks))
        except ExperimentError as error:
            problems.append(f"tasks.pairs.{name}: {error}")
    if problems:
        raise ExperimentError("\n".join(problems))
    for task in found:
        if task.dropped:
            work.say(
                f"{task.behaviour.name}: {len(task.dropped)} pairs are left out: "
                + "; ".join(f"{n} x {reason} ({side})" for side, reason, n in _counts(task.dropped))
            )
    made = behaviours_made("tasks", [task.behaviour for task in found])
    rows = [{"name": task.behaviour.name, **asdict(d)} for task in found for d in task.dropped]
    table = TABLES["dropped_pairs"].build(rows)
    return replace(made, beside={**made.beside, DROPPED_PAIRS: table})


def _counts(dropped: Iterable[Dropped]) -> list[tuple[str, str, int]]:
    """Side, reason and number of pairs, the most frequent first."""
    counted = Counter((pair.side, pair.reason) for pair in dropped)
    return [(side, reason, n) for (side, reason), n in counted.most_common()]


def _show(work: Work, _tasks: Tasks) -> Metadata:
    """What `show_behaviours` shows, and how many pairs were dropped for each reason."""
    rows = work.store.read(DROPPED_PAIRS).to_pylist()
    counted = Counter((row["name"], row["side"], row["reason"]) for row in rows)
    records = [
        dg.TableRecord({"name": name, "side": side, "reason": reason, "pairs": n})
        for (name, side, reason), n in counted.most_common(25)
    ]
    shown = {"dropped_pairs": dg.MetadataValue.table(records)} if records else {}
    return {**show_behaviours("tasks", work.store), **shown}


TASK_BEHAVIOURS_STAGE = TableStage(
    name="task_behaviours",
    group="circuits",
    description=(
        "Contrastive pairs that differ in one thing, such as a noun's number: a behaviour for "
        "each file, pairs to find a circuit from and others to judge it on."
    ),
    kinds=frozenset({"parquet"}),
    key=behaviours("tasks"),
    beside=[examples("tasks"), DROPPED_PAIRS],
    deps=always(),
    needs=always("tokenizer"),
    files="pair_files",
    reads=_reads,
    inputs=contents(),
    make=make_task_behaviours,
    show=_show,
)
