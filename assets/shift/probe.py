"""The classifier: a probe of labelled texts, and the behaviour that its circuit explains.

The probe learns from the ambiguous texts, in which an attribute goes with the label, so it may go
by either; the balanced ones show by which. Its behaviour is its margin on ambiguous texts: the
circuit is of what it does where it was trained, and nothing balanced enters.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.circuits.behaviours import (
    Behaviour,
    Example,
    ReadBy,
    behaviours_made,
    classifier_settings,
    example_lines,
    read_behaviours,
)
from assets.discovery.tokens import example
from assets.engine.stage import Made, Metadata, TableStage, Work, always, contents
from assets.engine.store import ArtifactStore
from assets.plots import records
from assets.settings import Experiment, default_site
from assets.shift.texts import AMBIGUOUS, GROUPS, TEST, TRAIN
from assets.tables.places import (
    CLASSIFIER,
    LABELLED_TEXTS,
    PROBE,
    PROBE_GROUPS,
    behaviours,
    examples,
)
from assets.tables.schemas import TABLES
from core.options import Pooling

if TYPE_CHECKING:
    from torch import Tensor

    from core.probe import Probe
    from core.readout import Readout


@dataclass(frozen=True)
class Reading:
    """Where a probe reads; see `assets.settings.ProbeSettings`."""

    site: str
    pooling: Pooling

    @property
    def readout(self) -> Readout:
        """The same, as the core takes it."""
        from core.readout import Readout

        return Readout(self.site, self.pooling)


@dataclass(frozen=True)
class Training:
    """How a probe is trained; see `assets.settings.ProbeSettings`."""

    epochs: int
    lr: float
    weight_decay: float
    batch: int

    def train(self, pooled: Tensor, label: Tensor, seed: int) -> Probe:
        """A probe of these vectors."""
        from core.probe import train_probe

        return train_probe(
            pooled,
            label,
            epochs=self.epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch=self.batch,
            seed=seed,
        )


@dataclass(frozen=True)
class Probing:
    """A probe that is trained."""

    reading: Reading
    training: Training
    seed: int


def reading_of(experiment: Experiment) -> Reading:
    """Where the experiment's probe reads."""
    probe = classifier_settings(experiment).probe
    return Reading(probe.site or default_site(experiment.settings.model.n_layers), probe.pooling)


def training_of(experiment: Experiment) -> Training:
    """How the experiment's probes are trained."""
    probe = classifier_settings(experiment).probe
    return Training(probe.epochs, probe.lr, probe.weight_decay, probe.batch)


@dataclass(frozen=True)
class TextSet:
    """The texts of one set.

    Attributes:
        number: row of each in the table of labelled texts.
        tokens: token ids.
        tells: what each token tells, where that is known.
        label, attribute: ``(n,)``, 0 or 1.
    """

    number: Sequence[int]
    tokens: Sequence[Sequence[int]]
    tells: Sequence[Sequence[str] | None]
    label: Tensor
    attribute: Tensor

    @property
    def group(self) -> Tensor:
        """Place in `GROUPS` of each, ``(n,)``."""
        return 2 * self.label + self.attribute


def read_sets(store: ArtifactStore) -> dict[str, TextSet]:
    """The labelled texts, by set."""
    import torch

    columns = ["set", "tokens", "tells", "label", "attribute"]
    rows = store.read(LABELLED_TEXTS, columns).to_pylist()
    sets = {}
    for name in (AMBIGUOUS, TRAIN, TEST):
        own = [(i, row) for i, row in enumerate(rows) if row["set"] == name]
        sets[name] = TextSet(
            [i for i, _ in own],
            [row["tokens"] for _, row in own],
            [row["tells"] for _, row in own],
            torch.tensor([row["label"] for _, row in own], dtype=torch.long),
            torch.tensor([row["attribute"] for _, row in own], dtype=torch.long),
        )
    return sets


def pooled_of(work: Work, texts: Sequence[Sequence[int]], readout: Readout) -> Tensor:
    """What the readout gives of each text, ``(n, d)``, on the CPU: probes are small."""
    from core.probe import pooled_vectors

    return pooled_vectors(work.load.model(), texts, readout).cpu()


@dataclass(frozen=True)
class Score:
    """How a probe does on balanced texts.

    Attributes:
        groups: accuracy in each of `GROUPS`.
        attribute: share of texts that it gives their attribute.
    """

    groups: tuple[float, ...]
    attribute: float

    @property
    def label(self) -> float:
        """Accuracy, every group counted alike."""
        return sum(self.groups) / len(self.groups)

    @property
    def worst_group(self) -> float:
        """Accuracy in the group where it is least."""
        return min(self.groups)


def score(probe: Probe, pooled: Tensor, texts: TextSet) -> Score:
    """How a probe does on texts of all four groups."""
    predicted = probe.predict(pooled)
    right = (predicted == texts.label).double()
    groups = tuple(float(right[texts.group == i].mean()) for i in range(len(GROUPS)))
    return Score(groups, float((predicted == texts.attribute).double().mean()))


# -- the probe ------------------------------------------------------------------------------------


def _reads_probe(experiment: Experiment) -> Probing:
    seed = classifier_settings(experiment).probe.seed
    return Probing(reading_of(experiment), training_of(experiment), seed)


def make_probe(work: Work, settings: Probing) -> Made:
    """Train the probe on the ambiguous texts, and look at every group of every set."""
    reading, sets = settings.reading, read_sets(work.store)
    readout = reading.readout
    pooled = {name: pooled_of(work, of.tokens, readout) for name, of in sets.items()}
    probe = settings.training.train(pooled[AMBIGUOUS], sets[AMBIGUOUS].label, settings.seed)
    groups = [
        {"set": name, "label": label, "attribute": attribute, "n": n, "accuracy": accuracy}
        for name, of in sets.items()
        for label, attribute, n, accuracy in _of_groups(probe, pooled[name], of)
    ]
    own = score(probe, pooled[TEST], sets[TEST])
    work.say(
        f"probe of {reading.site}: of balanced texts {own.label:.1%} right, {own.attribute:.1%} "
        f"by the attribute, {own.worst_group:.1%} in the worst group; loss {probe.loss[1]:.3f}, "
        f"{probe.loss[0]:.3f} before the last epoch"
    )
    row = {
        "site": reading.site,
        "pooling": reading.pooling,
        "weight": probe.weight.tolist(),
        "bias": probe.bias,
        "loss_before": probe.loss[0],
        "loss": probe.loss[1],
    }
    return Made(
        TABLES["probe"].build([row]),
        beside={PROBE_GROUPS: TABLES["probe_groups"].build(groups)},
        files=[_write_weights(work.store.path(PROBE, ".safetensors"), probe, reading)],
    )


def _write_weights(path: Path, probe: Probe, reading: Reading) -> Path:
    """``weight`` (d,) and ``bias`` (1,), with the site and pooling as metadata."""
    import torch
    from safetensors.torch import save_file

    from core.atomic import replacing

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"weight": probe.weight, "bias": torch.tensor([probe.bias])}
    with replacing(path) as file:
        # One entry only: the order of several is not reproducible in the header.
        save_file(tensors, file, metadata={"readout": reading.readout.name})
    return path


def _of_groups(
    probe: Probe, pooled: Tensor, texts: TextSet
) -> Iterator[tuple[int, int, int, float]]:
    """Label, attribute, texts and accuracy of each group that there is."""
    right = (probe.predict(pooled) == texts.label).double()
    for i, (label, attribute) in enumerate(GROUPS):
        of_group = right[texts.group == i]
        if len(of_group):
            yield label, attribute, len(of_group), float(of_group.mean())


def read_probe(store: ArtifactStore) -> ReadBy:
    """The probe that was trained."""
    (row,) = store.read(PROBE, ["site", "pooling", "weight", "bias"]).to_pylist()
    return ReadBy(row["site"], row["pooling"], tuple(row["weight"]), row["bias"])


def show_probe(work: Work, _settings: Probing) -> Metadata:
    """Its loss, and its accuracy in every group of every set."""
    (row,) = work.store.read(PROBE, ["site", "loss", "loss_before"]).to_pylist()
    return {
        "reads": row["site"],
        "loss": row["loss"],
        "loss before the last epoch": row["loss_before"],
        "groups": records(work.store.read(PROBE_GROUPS).to_pylist()),
        "weights": dg.MetadataValue.path(work.store.place(PROBE, ".safetensors")),
    }


PROBE_STAGE = TableStage(
    name="probe",
    group="classifier",
    description=(
        "A linear probe trained on the ambiguous texts, and its accuracy in every group: does it "
        "go by the label or by the attribute?"
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    key=PROBE,
    beside=[PROBE_GROUPS],
    deps=always("labelled_texts"),
    needs=always("model"),
    reads=_reads_probe,
    inputs=contents(LABELLED_TEXTS),
    make=make_probe,
    show=show_probe,
)


# -- its behaviour --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """How many ambiguous texts are taken; see `assets.settings.ClassifierCircuitSettings`."""

    n_examples: int
    n_evaluated: int


def _reads_behaviour(experiment: Experiment) -> Drawing:
    circuit = classifier_settings(experiment).circuit
    return Drawing(circuit.n_examples, circuit.n_evaluated)


def make_classifier_behaviours(work: Work, drawing: Drawing) -> Made:
    """The probe's margin on ambiguous texts, as many of either class."""
    probe, texts = read_probe(work.store), read_sets(work.store)[AMBIGUOUS]
    labels: list[int] = texts.label.tolist()
    # A tenth at least is kept back to judge the circuit on.
    n_found = min(drawing.n_examples, max(2, len(labels) * 9 // 10))
    found, rest = _drawn(labels, range(len(labels)), n_found)
    evaluated, _ = _drawn(labels, rest, drawing.n_evaluated)
    tokenizer = work.load.tokenizer()
    behaviour = Behaviour(
        name=CLASSIFIER,
        metric="probe_margin",
        by_position=False,
        examples=[
            Example(
                number=texts.number[i],
                found=i in found,
                evaluated=i in evaluated,
                clean=tuple(texts.tokens[i]),
                answer=labels[i],
            )
            for i in (*found, *evaluated)
        ],
        size=len(labels),
        n_dropped=0,
        about=example(tokenizer, texts.tokens[found[0]], f"class {labels[found[0]]}"),
        probe=probe,
    )
    return behaviours_made("classifiers", [behaviour])


def _drawn(labels: Sequence[int], among: Iterable[int], n: int) -> tuple[list[int], list[int]]:
    """Up to n texts, both classes in turn, in an order by chance; and the rest."""
    # A checksum shuffles without a generator, and alike on every machine.
    shuffled = sorted(among, key=lambda i: zlib.crc32(str(i).encode()))
    of_class = [[i for i in shuffled if labels[i] == label] for label in (0, 1)]
    each = min(max(1, n // 2), *(len(own) for own in of_class))
    chosen = [i for pair in zip(*(own[:each] for own in of_class), strict=True) for i in pair]
    return chosen, [i for i in shuffled if i not in set(chosen)]


def show_classifier_behaviours(work: Work, _drawing: Drawing) -> Metadata:
    """How many texts, and a few of them."""
    behaviour = read_behaviours(work.store, "classifiers", [CLASSIFIER])[CLASSIFIER]
    counts: Mapping[str, Any] = {
        "found from": len(behaviour.chosen("found")),
        "judged on": len(behaviour.chosen("evaluated")),
    }
    return {
        **counts,
        "examples": dg.MetadataValue.md(example_lines(behaviour, work.load.tokenizer())),
    }


CLASSIFIER_BEHAVIOURS_STAGE = TableStage(
    name="classifier_behaviours",
    group="circuits",
    description=(
        "The margin of the probe on ambiguous texts: some to find its circuit from, others to "
        "judge it on."
    ),
    kinds=frozenset({"parquet"}),
    key=behaviours("classifiers"),
    beside=[examples("classifiers")],
    deps=always("labelled_texts", "probe"),
    needs=always("tokenizer"),
    reads=_reads_behaviour,
    inputs=contents(LABELLED_TEXTS, PROBE),
    make=make_classifier_behaviours,
    show=show_classifier_behaviours,
)
