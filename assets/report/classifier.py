"""The section on SHIFT: what becomes of a classifier, and what is ablated of it (Table 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from assets.corpus.vocabulary import read_texts
from assets.report import charts
from assets.report.blocks import Cell, Charts, Facts, Section, Table, Text, number
from assets.report.found import Found
from assets.settings import Experiment, Value
from assets.shift.judgements import agreement, by_judge
from assets.shift.scoring import in_percent
from assets.shift.texts import TEST
from assets.tables.conversions import Frame
from assets.tables.places import JUDGEMENTS, PROBE_GROUPS, SHIFT, card_contexts

_WORDS = {True: "yes", False: "no"}
_LISTED = 40
_BEFORE = 10  # tokens of a context before the one that is marked


@dataclass(frozen=True)
class Labelled:
    """What the classifier's texts are labelled with, by the names that the data have for it."""

    label: str
    attribute: str
    labels: tuple[Value, Value]
    attributes: tuple[Value, Value]

    @classmethod
    def of(cls, experiment: Experiment) -> Labelled | None:
        """None where the experiment has no classifier."""
        classifier = experiment.settings.classifier
        if classifier is None:
            return None
        data = classifier.data
        return cls(data.label_column, data.attribute_column, data.labels, data.attributes)


def shift(found: Found, labelled: Labelled) -> Iterator[Section]:
    """The table of SHIFT, its plot, and the features that are judged."""
    if not (found.has(SHIFT) and found.has(JUDGEMENTS)):
        return
    rows, judgements = found.read(SHIFT), found.read(JUDGEMENTS)
    pictures = {"Accuracy of the worst group, and its spread over seeds": _outcomes(rows)}
    blocks = [
        Text(_introduction(labelled)),
        Facts(_in_short(rows, judgements)),
        _table(rows, labelled),
        Charts(pictures),
        *_groups(found, labelled),
        *_judged(found, judgements),
    ]
    yield Section("shift", "Removing a signal from the classifier (SHIFT)", blocks)


def _introduction(of: Labelled) -> str:
    (first, second), (one, other) = of.labels, of.attributes
    return (
        f"A probe learns to tell {of.label} ({first} or {second}) from texts in which "
        f"{of.attribute} goes with it: {first} with {one}, {second} with {other}. It is judged on "
        f"texts in which it does not. Features of its circuit that are judged to be about "
        f"{of.attribute} are ablated; controls should do worse than that. Trained: the probe as it "
        "was before anything was ablated. Centred: its bias moved, for which no label is needed. "
        "Retrained: on the same texts as the edited model reads them."
    )


def _in_short(rows: Frame, judgements: Frame) -> dict[str, str]:
    first, facts = rows.iloc[0], {}
    for method, probe in (("original", "trained"), ("shift", "retrained"), ("oracle", "trained")):
        of = rows[(rows["method"] == method) & (rows["probe"] == probe)]
        for value in of["worst_group"]:
            facts[f"worst group, {method}"] = f"{value:.1%}"
    used = judgements[judgements["used"]]
    return {
        **facts,
        "features in the circuit": number(int(first["n_circuit"])),
        f"judged by {first['judge']}": number(int(first["n_judged"])),
        "ablated": number(int(used["irrelevant"].sum())),
        "seeds": number(int(first["n_seeds"])),
    }


def _table(rows: Frame, of: Labelled) -> Table:
    shown: list[list[Cell]] = []
    for row in rows.to_dict("records"):
        *words, _ = (cell.replace(" ± ", "\u00a0±\u00a0") for cell in in_percent(row))
        n = row["n_ablated"]
        shown.append([*words, int(n) if n.is_integer() else n])
    head = ["", "probe", f"{of.label}, %", f"{of.attribute}, %", "worst group, %", "ablated"]
    said = (
        "Accuracy on balanced texts, mean and standard deviation over seeds; that on "
        f"{of.attribute} is the share of texts that are given the class their {of.attribute} goes "
        "with, half where the probe does not see it. Of deleted tokens the number is the mean of a "
        "text."
    )
    return Table(head, shown, said)


def _outcomes(rows: Frame) -> str:
    spans = {
        str(probe): {
            row["method"].replace("_", " "): (row["worst_group"], row["worst_group_sd"])
            for row in of.to_dict("records")
        }
        for probe, of in rows.groupby("probe", sort=False)
    }
    return charts.spans("shift", spans, "accuracy of the worst group")


def _groups(found: Found, of: Labelled) -> Iterator[Table]:
    """Whom the probe is wrong about before anything is ablated."""
    if not found.has(PROBE_GROUPS):
        return
    groups = found.read(PROBE_GROUPS)
    rows = [
        [
            str(of.labels[row["label"]]),
            str(of.attributes[row["attribute"]]),
            row["n"],
            row["accuracy"],
        ]
        for row in groups[groups["set"] == TEST].to_dict("records")
    ]
    said = "The probe as it was trained, by group of the balanced texts to judge on"
    yield Table([of.label, of.attribute, "texts", "accuracy"], rows, said)


# -- who says which features are about the attribute ----------------------------------------------


def _judged(found: Found, judgements: Frame) -> Iterator[Table]:
    """The features with the largest effects and what each judge says; how far judges agree."""
    one = found.circuit("classifiers", found.names["classifiers"][0])
    if one is None:
        return
    nodes = [node for node in one.nodes if not node.is_error]
    nodes.sort(key=lambda node: -abs(node.effect))
    strongest = {(node.submodule, node.feature): node for node in nodes[:_LISTED]}
    said, used = by_judge(judgements), judgements[judgements["used"]]
    reasons = used.set_index(["submodule", "feature"])["reason"]
    contexts = _contexts(found, list(strongest))
    rows = [
        [
            node.name,
            node.effect,
            *(_WORDS.get(said[judge].get(unit), "") for judge in said),
            reasons.get(unit, ""),
            found.labels.get(node.name, ""),
            contexts.get(unit, ""),
        ]
        for unit, node in strongest.items()
    ]
    judge = ", ".join(used["judge"].unique())
    yield Table(
        ["feature", "effect", *said, "because", "label", "most active in"],
        rows,
        f"The {len(strongest)} features of {len(nodes)} with the largest effects on the probe's "
        f"margin: whether each judge finds them to be about the attribute alone. Those of which "
        f"{judge} says yes are ablated, and that is what the reason is of.",
    )
    shown = {"judge": "judge", "other": "and", "both": "judged by both", "same": "alike"}
    pairs = list(agreement(judgements))
    if pairs:
        rows = [[pair[column] for column in shown] for pair in pairs]
        yield Table(list(shown.values()), rows, "How far judges agree")


def _contexts(found: Found, features: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
    """The context in which each feature is most active, up to where it is, in brackets."""
    contexts: dict[tuple[str, int], str] = {}
    if "cards" not in found.tables:
        return contexts
    texts = read_texts(found.store)
    for submodule in dict.fromkeys(submodule for submodule, _ in features):
        wanted = [feature for name, feature in features if name == submodule]
        strongest = (
            (pc.field("basis") == "features")
            & pc.field("feature").isin(wanted)
            & pc.field("quantile").is_null()
            & (pc.field("rank") == 0)
        )
        for row in found.store.read(card_contexts(submodule)).filter(strongest).to_pylist():
            at = row["pos"] - row["start"]
            pieces = [texts[token] for token in row["tokens"][max(0, at - _BEFORE) : at + 1]]
            contexts[submodule, row["feature"]] = f"{''.join(pieces[:-1])} [{pieces[-1].strip()}]"
    return contexts
