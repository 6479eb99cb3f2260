"""SHIFT: the judged features are ablated, and compared with everything that it should beat.

Every probe learns from ambiguous texts (the oracle's from balanced ones) and is scored on balanced
ones. For each edit of the model there are three: the probe as trained before anything was ablated,
the same with its bias moved (no label is needed for that), and one trained anew on the edited
model. Each seed draws its training texts with replacement, its initial weights, and the controls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from assets.circuits.behaviours import classifier_settings
from assets.engine.stage import Made, Metadata, TableStage, Work, always
from assets.engine.store import ArtifactStore, together
from assets.plots import picture, records
from assets.settings import Experiment, ExperimentError, Judge
from assets.shift.edits import (
    Basis,
    Edit,
    Editing,
    Unit,
    Units,
    edits_of,
    effects_of_zeroing,
    skyline,
    strongest,
    without_attribute,
)
from assets.shift.pages import outcomes, write_page
from assets.shift.probe import (
    Reading,
    TextSet,
    Training,
    pooled_of,
    read_probe,
    read_sets,
    reading_of,
    training_of,
)
from assets.shift.scoring import Probes, seed_row, summary
from assets.shift.texts import AMBIGUOUS, TEST, TRAIN
from assets.tables.conversions import read_nodes
from assets.tables.places import (
    ABLATED_FEATURES,
    CLASSIFIER,
    DICTIONARY_SET,
    JUDGEMENTS,
    LABELLED_TEXTS,
    LABELS,
    PROBE,
    SHIFT,
    SHIFT_SEEDS,
    card_contexts,
    cards,
    circuit,
)
from assets.tables.schemas import TABLES

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from core.ablate import AblationValues

_SKYLINE_TEXTS = 100
"""Balanced texts that say which units are most responsible for the attribute."""
CIRCUIT_NODES = circuit("classifiers", CLASSIFIER, "nodes")
CIRCUIT_EFFECTS = circuit("classifiers", CLASSIFIER, "effects")


@dataclass(frozen=True)
class Shifting:
    """What is ablated and compared; see `assets.settings.ShiftSettings`."""

    reading: Reading
    training: Training
    judge: Judge
    submodules: tuple[str, ...]
    ablation: Literal["zero", "mean"]
    error_nodes: bool
    keywords: tuple[str, ...]
    words: tuple[str, ...]
    n_seeds: int
    n_draws: int
    bos: bool
    cards: bool


def _reads(experiment: Experiment) -> Shifting:
    classifier = classifier_settings(experiment)
    shift, judgements = classifier.shift, classifier.judgements
    return Shifting(
        reading=reading_of(experiment),
        training=training_of(experiment),
        judge=judgements.judge,
        submodules=tuple(experiment.submodules),
        ablation=shift.ablation,
        error_nodes=shift.error_nodes,
        keywords=shift.keywords,
        words=tuple(word for of_value in judgements.words for word in of_value),
        n_seeds=shift.n_seeds,
        n_draws=shift.n_draws,
        bos=experiment.settings.corpus.bos,
        cards=experiment.settings.cards is not None,
    )


def read_units(store: ArtifactStore, judge: Judge) -> tuple[Units, dict[Unit, float], int]:
    """What is to be ablated, the effects of the circuit's features, and how many were judged.

    Raises:
        ExperimentError: the circuit has no feature; the judge judged none of its features, or none
            irrelevant, or a feature that is not in the circuit.
    """
    nodes = [node for node in read_nodes(store.read(CIRCUIT_NODES)) if not node.is_error]
    every = read_nodes(store.read(CIRCUIT_EFFECTS))
    effects = {(node.submodule, node.feature): node.effect for node in nodes}
    active = {(n.submodule, n.feature): n.effect for n in every if not n.is_error}
    if not effects:
        largest = max(map(abs, active.values()), default=0.0)
        raise ExperimentError(
            "the classifier's circuit has no feature, so that nothing can be judged or ablated: "
            f"the largest effect is {largest:.3g}; set classifier.circuit.node_threshold below it."
        )
    columns = ["submodule", "feature", "irrelevant", "judge"]
    rows = [r for r in store.read(JUDGEMENTS, columns).to_pylist() if r["judge"] == judge]
    said = {(row["submodule"], row["feature"]): row["irrelevant"] for row in rows}
    if strange := said.keys() - effects.keys():
        submodule, feature = min(strange)
        raise ExperimentError(
            f"{len(strange)} judgements, such as that of {submodule}/{feature}, are of no feature "
            "of the classifier's circuit as it is now: materialize judgements again."
        )
    irrelevant = [unit for unit in effects if said.get(unit)]
    if not irrelevant:
        raise ExperimentError(
            f"the judge {judge} says of {len(said)} of the {len(effects)} features of the "
            "classifier's circuit whether they are about the attribute, and of none that it is: "
            "there is nothing to ablate. Judge more of them, take another judge "
            "(classifier.judgements.judge), or lower classifier.circuit.node_threshold."
        )
    return Units(list(effects), list(active), irrelevant), effects, len(said)


def make_shift(work: Work, how: Shifting) -> Made:
    """Edit the model in every way, and score every probe for every seed."""
    import torch

    units, effects, n_judged = read_units(work.store, how.judge)
    readout, sets, seeds = how.reading.readout, read_sets(work.store), range(how.n_seeds)
    pooled = {name: pooled_of(work, of.tokens, readout) for name, of in sets.items()}
    probes = Probes(how.training, sets, pooled, {})
    of_seed = {seed: probes.train(pooled[AMBIGUOUS], AMBIGUOUS, seed) for seed in seeds}
    probes = Probes(how.training, sets, pooled, of_seed)
    found = list(probes.unedited(_concepts(work, how)))
    editing = _editing(work, how, sets)
    skylines = _skylines(work, editing, sets[TRAIN], how, len(units.irrelevant))
    edits = list(edits_of(units, skylines, seeds, n_draws=how.n_draws, errors=how.error_nodes))
    every = work.spread(partial(_read_edited, editing, sets, how), edits)
    for n, (edit, (read, n_ablated)) in enumerate(zip(edits, every, strict=True), start=1):
        if not read:
            work.say(f"shift: {edit.method} is left out: nothing says which tokens to delete")
            continue
        learnt, judged = (torch.from_numpy(read[name]) for name in (AMBIGUOUS, TEST))
        found += probes.edited(edit, learnt, judged, n_ablated)
        if n % 5 == 0 or n == len(edits):
            work.say(f"shift: {n} of {len(edits)} edits of the model scored")
    counted = {"n_circuit": len(units.circuit), "n_judged": n_judged, "judge": how.judge}
    rows = list(summary(found, counted))
    shifted = [(unit, effects[unit]) for unit in units.irrelevant]
    ablated = list(_ablated_rows("shift", "features", shifted))
    for basis, strongest_units in skylines.items():
        ablated += _ablated_rows(skyline(basis), basis, strongest_units)
    return Made(
        TABLES["shift"].build(rows),
        beside={
            SHIFT_SEEDS: TABLES["shift_seeds"].build(map(seed_row, found)),
            ABLATED_FEATURES: TABLES["ablated_features"].build(ablated),
        },
        files=[_page(work, how, rows, ablated)],
    )


def _read_edited(
    editing: Editing, sets: Mapping[str, TextSet], how: Shifting, work: Work, edit: Edit
) -> tuple[dict[str, np.ndarray], float]:
    """What a probe of the edited model reads of the texts to learn from and to judge on, and how
    many units, or tokens of a text, are gone; nothing where no token is known to be deleted."""
    texts, n_ablated = _texts(work, edit, sets, how.words)
    if texts is None:
        return {}, 0
    with editing(edit):
        read = {name: pooled_of(work, own, how.reading.readout) for name, own in texts.items()}
    return {name: pooled.numpy() for name, pooled in read.items()}, n_ablated


def _concepts(work: Work, how: Shifting) -> Tensor | None:
    """What the probe would read of each keyword alone; None where none is given."""
    if not how.keywords:
        return None
    tokenizer = work.load.tokenizer()
    # As inside of a text, behind a space.
    texts = tokenizer([f" {word}" for word in how.keywords], add_special_tokens=False)["input_ids"]
    prefix = [tokenizer.bos_token_id] if how.bos else []
    return pooled_of(work, [prefix + list(ids) for ids in texts], how.reading.readout)


def _editing(work: Work, how: Shifting, sets: Mapping[str, TextSet]) -> Editing:
    """What edits the model: dictionaries and neurons as far as the probe reads."""
    from core.dictionaries import identity_dictionary
    from core.types import Node

    model, dictionaries = work.load.model(), work.load.dictionaries()
    seen = how.reading.readout.reached_by(dictionaries, model)
    own = {name: dictionaries[name] for name in seen}
    neurons = {
        name: identity_dictionary(model.width(name), device=model.device, dtype=d.decoder.dtype)
        for name, d in own.items()
    }
    errors: list[Node] = []
    if how.error_nodes:
        errors = [node for node in read_nodes(work.store.read(CIRCUIT_NODES)) if node.is_error]
    values = _means(work, own, sets[AMBIGUOUS]) if how.ablation == "mean" else None
    return Editing(model, own, neurons, values, errors)


def _means(work: Work, dictionaries: Any, texts: TextSet) -> dict[str, AblationValues]:
    """Mean features over all tokens of the ambiguous texts."""
    from core.ablate import ablation_values
    from core.inputs import pad

    tokens, mask = pad(texts.tokens)
    inputs = read_probe(work.store).inputs(tokens, texts.label, mask)
    model = work.load.model()
    return ablation_values(model, dictionaries, inputs, "mean", by_position=False)


def _skylines(
    work: Work, editing: Editing, texts: TextSet, how: Shifting, n: int
) -> dict[Basis, list[tuple[Unit, float]]]:
    """The n neurons, and features, by which the probe tells the attribute most, and their effects.

    Zeroing them lowers the margin of the attribute on balanced texts, where nothing else goes with
    it.
    """
    from core.inputs import pad

    tokens, mask = pad(texts.tokens[:_SKYLINE_TEXTS])
    probe = read_probe(work.store)
    inputs = probe.inputs(tokens, texts.attribute[:_SKYLINE_TEXTS], mask)
    bases: dict[Basis, Any] = {"neurons": editing.neurons, "features": editing.dictionaries}
    effects = effects_of_zeroing(editing.model, bases, inputs, work.budget_bytes)
    return {basis: strongest(of_basis, n) for basis, of_basis in effects.items()}


def _texts(
    work: Work, edit: Edit, sets: Mapping[str, TextSet], words: Sequence[str]
) -> tuple[Mapping[str, Sequence[Sequence[int]]] | None, float]:
    """The texts that an edited model reads, and how many units, or tokens of a text, are gone."""
    whole = {name: sets[name].tokens for name in (AMBIGUOUS, TEST)}
    if not edit.deletes_tokens:
        return whole, len(edit.units)
    left = {name: without_attribute(work, sets[name], words) for name in whole}
    if any(texts is None for texts in left.values()):
        return None, 0
    kept = {name: texts for name, texts in left.items() if texts is not None}
    n_texts = sum(map(len, whole.values()))
    n_deleted = sum(
        len(a) - len(b) for name in whole for a, b in zip(whole[name], kept[name], strict=True)
    )
    return kept, n_deleted / n_texts


def _ablated_rows(
    method: str, basis: Basis, units: Sequence[tuple[Unit, float]]
) -> Iterator[dict[str, Any]]:
    for (submodule, feature), effect in units:
        unit = {"submodule": submodule, "basis": basis, "feature": feature}
        yield {"method": method, **unit, "effect": effect}


# -- the stage ------------------------------------------------------------------------------------


def _page(work: Work, how: Shifting, rows: Sequence[Any], ablated: Sequence[Any]) -> Any:
    said = work.store.read(JUDGEMENTS).to_pylist()
    judged = [row for row in said if row["judge"] == how.judge]
    return write_page(work, rows, ablated, judged, cards=how.cards)


def _inputs(work: Work, how: Shifting) -> Mapping[str, str]:
    read = (LABELLED_TEXTS, PROBE, JUDGEMENTS, CIRCUIT_NODES, CIRCUIT_EFFECTS, DICTIONARY_SET)
    inputs = {key.path: work.store.content(key) for key in read}
    if how.cards:
        inputs[LABELS.path] = work.store.content(LABELS)
        inputs["cards"] = together(
            work.store.content(key(name))
            for name in how.submodules
            for key in (cards, card_contexts)
        )
    return inputs


def show_shift(work: Work, _how: Shifting) -> Metadata:
    """The table, a plot, and where the page is."""
    rows = work.store.read(SHIFT).to_pylist()
    columns = ["label_accuracy", "attribute_accuracy", "worst_group"]
    table = [
        {
            "method": row["method"],
            "probe": row["probe"],
            **{name: f"{row[name]:.1%} \u00b1 {row[f'{name}_sd']:.1%}" for name in columns},
            "ablated": row["n_ablated"],
        }
        for row in rows
    ]
    first = rows[0]
    return {
        "table": records(table),
        "worst group": picture(outcomes(rows)),
        "features of the circuit": first["n_circuit"],
        "judged": first["n_judged"],
        "judge": first["judge"],
        "seeds": first["n_seeds"],
        "page": dg.MetadataValue.path(work.store.place(SHIFT, ".html")),
    }


def _deps(how: Shifting) -> Sequence[str]:
    made = ("labelled_texts", "probe", "judgements", "classifier_circuits", "dictionary_set")
    return (*made, "cards", "labels") if how.cards else made


SHIFT_STAGE = TableStage(
    name="shift",
    group="classifier",
    description=(
        "What becomes of the classifier when the features judged to be about the attribute are "
        "ablated, beside every baseline and control, over seeds (Table 2 of the paper)."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    key=SHIFT,
    beside=[SHIFT_SEEDS, ABLATED_FEATURES],
    deps=_deps,
    needs=always("model", "tokenizer", "dictionaries"),
    reads=_reads,
    inputs=_inputs,
    make=make_shift,
    show=show_shift,
)
