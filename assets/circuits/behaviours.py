"""Stage 5: behaviours: a metric, examples to find a circuit from and examples to judge it on.

Wherever a behaviour comes from, a cluster of samples here, a file of contrastive pairs in
`assets.circuits.pairs`, a classifier in `assets.shift.probe`, it is a row of one table and its
examples are rows of another. What follows, effects, circuit, picture and evaluations, is the same
for all.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from assets.discovery.clusterings import members
from assets.discovery.tokens import example
from assets.engine.recipe import digest
from assets.engine.stage import Made, Metadata, TableStage, Work, always, contents
from assets.engine.store import ArtifactStore, Content
from assets.plots import records
from assets.settings import ClassifierSettings, Experiment, ExperimentError
from assets.tables.conversions import read_samples
from assets.tables.places import (
    FILTERED_TOKENS,
    BehaviourSource,
    Key,
    assignments,
    behaviours,
    clusters,
    examples,
)
from assets.tables.schemas import TABLES
from core.options import SINGLE_METRICS, Pooling, SingleMetric

if TYPE_CHECKING:
    from torch import Tensor

    from core.discovery import Sample
    from core.inputs import Inputs

Metric = SingleMetric | Literal["logit_difference", "probe_margin"]


@dataclass(frozen=True)
class ReadBy:
    """The probe that the behaviour of a classifier is read by.

    Attributes:
        site, pooling: where it reads, see `core.readout.Readout`.
        weight, bias: its logit of class 1 is weight . pooled + bias.
    """

    site: str
    pooling: Pooling
    weight: tuple[float, ...]
    bias: float

    def inputs(self, tokens: Tensor, label: Tensor, mask: Tensor) -> Inputs:
        """Texts with the probe's margin of these labels as their metric."""
        import torch

        from core.probe import Probe
        from core.readout import Readout

        probe = Probe(torch.tensor(self.weight), self.bias)
        return probe.inputs(tokens, label, Readout(self.site, self.pooling), mask)


@dataclass(frozen=True)
class Example:
    """One input of a behaviour.

    Attributes:
        number: of the sample, of the pair in its file, or of the labelled text.
        found: a circuit is found from it.
        evaluated: a circuit is judged on it.
        clean: token ids.
        answer: the token that follows, or the class of a text that is classified.
        patch, patch_answer: the other side of a contrastive pair; None for a single input.
    """

    number: int
    found: bool
    evaluated: bool
    clean: tuple[int, ...]
    answer: int
    patch: tuple[int, ...] | None = None
    patch_answer: int | None = None


@dataclass(frozen=True)
class Behaviour:
    """What a circuit explains.

    Attributes:
        name: the cluster, the task or the classifier.
        metric: of single inputs' answers, the ``logit_difference`` of pairs, or the
            ``probe_margin`` of a classifier.
        by_position: each position of a node is a node of its own.
        examples: what a circuit is found from and judged on; none for an empty cluster.
        size: samples of the cluster, or usable pairs of the file.
        n_dropped: pairs that could not be used, or samples that repeat another.
        about: one example as text.
        label: what is known to be behind it, if that is known.
        tokens: what stands at each position of the first example, by position only.
        probe: of a classifier only.
    """

    name: str
    metric: Metric
    by_position: bool
    examples: Sequence[Example]
    size: int
    n_dropped: int
    about: str
    label: str | None = None
    tokens: tuple[str, ...] | None = None
    probe: ReadBy | None = None

    @property
    def digest(self) -> str:
        """Hash of what shapes a circuit: metric, positions and their names, examples, probe."""
        examples = [asdict(e) for e in self.examples]
        probe = [] if self.probe is None else [asdict(self.probe)]
        return digest([self.metric, self.by_position, self.tokens, examples, *probe])

    @property
    def held_out(self) -> bool:
        """Whether no example is used both to find a circuit and to judge it."""
        return not any(e.found and e.evaluated for e in self.examples)

    def chosen(self, side: Literal["found", "evaluated"]) -> list[Example]:
        """The examples that a circuit is found from, or those it is judged on."""
        return [e for e in self.examples if getattr(e, side)]

    def inputs(self, side: Literal["found", "evaluated"]) -> Inputs:
        """The same, as the core takes them."""
        import torch

        from core.inputs import Inputs, pad

        chosen = self.chosen(side)
        clean, mask = pad([e.clean for e in chosen])
        answer = torch.tensor([e.answer for e in chosen])
        if self.probe is not None:
            return self.probe.inputs(clean, answer, mask)
        if self.metric in SINGLE_METRICS:
            return Inputs.single(clean, answer, mask, self.metric)
        patch, _ = pad([e.patch or () for e in chosen])
        patch_answer = torch.tensor([e.patch_answer for e in chosen])
        return Inputs.pairs(clean, patch, answer, patch_answer, mask)


def behaviours_made(source: BehaviourSource, found: Iterable[Behaviour]) -> Made:
    """The tables of a source's behaviours."""
    every = list(found)
    heads = [
        {
            "name": b.name,
            "metric": b.metric,
            "by_position": b.by_position,
            "size": b.size,
            "n_found": len(b.chosen("found")),
            "n_evaluated": len(b.chosen("evaluated")),
            "n_dropped": b.n_dropped,
            "held_out": b.held_out,
            "about": b.about,
            "label": b.label,
            "tokens": b.tokens and list(b.tokens),
            **_probe_columns(b.probe),
            "digest": b.digest,
        }
        for b in every
    ]
    rows = [{"name": b.name, **_row(e)} for b in every for e in b.examples]
    return Made(
        TABLES["behaviours"].build(heads),
        beside={examples(source): TABLES["examples"].build(rows)},
    )


_PROBE = ("site", "pooling", "weight", "bias")


def _probe_columns(probe: ReadBy | None) -> Mapping[str, Any]:
    if probe is None:
        return dict.fromkeys(_PROBE)
    return {**asdict(probe), "weight": list(probe.weight)}


def _row(chosen: Example) -> dict[str, object]:
    patch = None if chosen.patch is None else list(chosen.patch)
    return {**asdict(chosen), "clean": list(chosen.clean), "patch": patch}


def read_behaviours(
    store: ArtifactStore, source: BehaviourSource, names: Iterable[str]
) -> dict[str, Behaviour]:
    """These behaviours of a source, by name."""
    wanted = set(names)
    of_behaviour: dict[str, list[Example]] = {name: [] for name in wanted}
    for row in _rows_of(store, examples(source), wanted):
        patch = None if row["patch"] is None else tuple(row["patch"])
        one = {**row, "clean": tuple(row["clean"]), "patch": patch}
        of_behaviour[one.pop("name")].append(Example(**one))
    return {
        head["name"]: Behaviour(
            name=head["name"],
            metric=head["metric"],
            by_position=head["by_position"],
            examples=of_behaviour[head["name"]],
            size=head["size"],
            n_dropped=head["n_dropped"],
            about=head["about"],
            label=head["label"],
            tokens=head["tokens"] and tuple(head["tokens"]),
            probe=None
            if head["site"] is None
            else ReadBy(head["site"], head["pooling"], tuple(head["weight"]), float(head["bias"])),
        )
        for head in _rows_of(store, behaviours(source), wanted)
    }


def _rows_of(store: ArtifactStore, key: Key, names: set[str]) -> list[dict[str, Any]]:
    """The rows of a table that are about these behaviours."""
    table = store.read(key)
    return table.filter(pa.array([n in names for n in table["name"].to_pylist()])).to_pylist()


def behaviour_digests(store: ArtifactStore, source: BehaviourSource) -> dict[str, Content]:
    """Hash of what shapes the circuit of each behaviour of a source, by name."""
    rows = store.read(behaviours(source), ["name", "digest"]).to_pylist()
    origin = store.origin(behaviours(source))
    return {row["name"]: Content(row["digest"], origin) for row in rows}


def show_behaviours(source: BehaviourSource, store: ArtifactStore) -> Metadata:
    """Sizes and examples of the first behaviours."""
    columns = ["name", "size", "n_found", "n_evaluated", "n_dropped", "label", "about"]
    return {"behaviours": records(store.read(behaviours(source), columns).slice(0, 25).to_pylist())}


# -- of clusters ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """How many samples of a cluster are taken; see `assets.settings.CircuitSettings`."""

    clusters: tuple[str, ...]
    metric: SingleMetric
    n_examples: int
    n_evaluated: int
    max_length: int | None


def _reads(experiment: Experiment) -> Drawing:
    circuits = experiment.settings.circuits
    return Drawing(
        tuple(experiment.clusters),
        circuits.metric,
        circuits.n_examples,
        circuits.n_evaluated,
        circuits.max_length,
    )


@dataclass(frozen=True)
class Split:
    """Samples of one cluster: those a circuit is found from and those it is judged on.

    They are the same where all samples are of one document, and a single one is not judged.
    `n_repeated` samples are left out, since another has the same context and answer. Samples are
    found from in this order, which says nothing of where they lie in the corpus.
    """

    found: Sequence[int]
    evaluated: Sequence[int]
    n_repeated: int


def split_samples(
    samples: Mapping[int, Sample], *, n_found: int, n_evaluated: int, max_length: int | None = None
) -> Split:
    """Split a cluster's samples so that no document, and no text, is on both sides.

    Which is in which part depends on the samples alone; at most a third is kept back.

    Args:
        samples: by number.
        n_found, n_evaluated: most samples of either part.
        max_length: tokens of context that are used, from its end.
    """
    distinct: dict[tuple[tuple[int, ...], int], int] = {}
    for number, sample in sorted(samples.items()):
        distinct.setdefault((sample.context[-(max_length or 0) :], sample.answer), number)
    # A checksum shuffles without a generator, and alike on every machine.
    shuffled = sorted(distinct.values(), key=lambda number: zlib.crc32(str(number).encode()))
    of_document: dict[int, list[int]] = {}
    for number in shuffled:
        of_document.setdefault(samples[number].document, []).append(number)
    n_back, kept_back = min(n_evaluated, len(shuffled) // 3), list[int]()
    for of_one in of_document.values():
        if len(of_one) <= n_back - len(kept_back):
            kept_back += of_one
    if n_back and not kept_back and len(of_document) > 1:
        kept_back = min(of_document.values(), key=len)
    apart = {samples[number].document for number in kept_back}
    found = [number for number in shuffled if samples[number].document not in apart][:n_found]
    evaluated = kept_back[:n_back] or (found if len(distinct) > 1 else [])
    return Split(found, sorted(evaluated), len(samples) - len(distinct))


def make_cluster_behaviours(work: Work, drawing: Drawing) -> Made:
    """Draw the examples of each cluster that gets a circuit."""
    _check_same_clustering(work.store)
    samples = read_samples(work.store.read(FILTERED_TOKENS))
    labels = work.store.read(assignments(), ["cluster"])["cluster"].to_numpy()
    of_cluster, summaries = members(labels), _summaries(work.store)
    found = []
    for name in drawing.clusters:
        number = int(name[1:])
        own = {i: samples[i] for i in of_cluster.get(number, [])}
        split = split_samples(
            own,
            n_found=drawing.n_examples,
            n_evaluated=drawing.n_evaluated,
            max_length=drawing.max_length,
        )
        if own and not split.evaluated:
            work.say(f"{name} holds one distinct sample: its circuit is found and not judged")
        found.append(
            Behaviour(
                name=name,
                metric=drawing.metric,
                by_position=False,
                examples=[
                    Example(
                        number=i,
                        found=i in split.found,
                        evaluated=i in split.evaluated,
                        clean=samples[i].context[-(drawing.max_length or 0) :],
                        answer=samples[i].answer,
                    )
                    for i in dict.fromkeys([*split.found, *split.evaluated])
                ],
                size=len(own),
                n_dropped=split.n_repeated,
                about=summaries[number]["example"] if own else "",
                label=summaries[number]["behaviour"] if own else None,
            )
        )
    return behaviours_made("clusters", found)


def _summaries(store: ArtifactStore) -> Mapping[int, Mapping[str, str]]:
    rows = store.read(clusters(), ["cluster", "example", "behaviour"]).to_pylist()
    return {row["cluster"]: row for row in rows}


def _check_same_clustering(store: ArtifactStore) -> None:
    """Raise if the summaries are of another clustering than the assignments."""
    made_from = store.notes(clusters())["inputs"].get(assignments().path)
    if made_from != store.content(assignments()):
        raise ExperimentError(
            "the clusters table is of an earlier clustering than cluster_assignments: cluster 3 "
            "of one is not cluster 3 of the other. Materialize clusters first."
        )


CLUSTER_BEHAVIOURS_STAGE = TableStage(
    name="cluster_behaviours",
    group="circuits",
    description="For each cluster, samples to find its circuit from and samples to judge it on.",
    kinds=frozenset({"parquet"}),
    key=behaviours("clusters"),
    beside=[examples("clusters")],
    deps=always("filtered_tokens", "cluster_assignments", "clusters"),
    reads=_reads,
    inputs=contents(FILTERED_TOKENS, assignments(), clusters()),
    make=make_cluster_behaviours,
    show=lambda work, _drawing: show_behaviours("clusters", work.store),
)


def classifier_settings(experiment: Experiment) -> ClassifierSettings:
    """The experiment's classifier, which stages of a classifier have."""
    classifier = experiment.settings.classifier
    assert classifier is not None, "stages of a classifier exist only with one"
    return classifier


def example_lines(behaviour: Behaviour, tokenizer: object, n: int = 5) -> str:
    """The first examples as Markdown, one line each, the answer or the class in brackets."""
    classes = ("class 0", "class 1") if behaviour.probe else None
    chosen = behaviour.examples[:n]
    said = (example(tokenizer, e.clean, classes[e.answer] if classes else e.answer) for e in chosen)
    return "\n".join(f"- `{one}`" for one in said)
