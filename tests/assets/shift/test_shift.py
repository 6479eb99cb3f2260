"""The classifier and SHIFT on the tiny experiment: half of its texts are of cats, half of dogs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from assets.circuits.behaviours import read_behaviours
from assets.circuits.stages import load_circuit
from assets.engine.recipe import Recipe
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.report.classifier import Labelled
from assets.report.classifier import shift as shift_section
from assets.report.found import Found
from assets.settings import Experiment, ExperimentError
from assets.shift.edits import Edit
from assets.shift.probe import Score, TextSet, pooled_of, read_probe, read_sets, score
from assets.shift.shift import (
    CIRCUIT_EFFECTS,
    CIRCUIT_NODES,
    SHIFT_STAGE,
    _editing,
    _reads,
    make_shift,
    read_units,
)
from assets.tables.conversions import read_nodes
from assets.tables.places import (
    ABLATED_FEATURES,
    CLASSIFIER,
    JUDGEMENTS,
    PROBE,
    PROBE_GROUPS,
    SHIFT,
    SHIFT_SEEDS,
)
from assets.tables.schemas import TABLES
from core.probe import Probe
from pipelines.experiment import read_experiment
from pipelines.shift import table as printed_table
from pipelines.stages import stages_of
from tests.tiny_experiment import WORDS, write_experiment

CLASSIFIER_SECTION: dict[str, Any] = {
    "data": {
        "source": "./labelled.jsonl",
        "label_column": "animal",
        "attribute_column": "age",
        "labels": ["cat", "dog"],
        "attributes": ["old", "young"],
        "n_ambiguous": 24,
        "n_balanced_train": 16,
        "n_balanced_test": 16,
    },
    "probe": {"epochs": 100, "lr": 0.1, "site": "resid_0"},
    "circuit": {"n_examples": 8, "n_evaluated": 4, "steps": 2, "node_threshold": 0.001},
    "judgements": {"words": [["old"], ["runs"]]},
    "shift": {"n_seeds": 2, "n_draws": 2, "keywords": ["cat", "dog", "bird"]},
}


def write_labelled(file: Path, n: int = 160) -> None:
    """Texts about a cat or a dog, that are old or run, whatever the animal."""
    rng, lines = Random(0), []
    for i in range(n):
        animal, age = ("cat", "dog")[i % 2], ("old", "young")[i // 2 % 2]
        told = "old" if age == "old" else "runs"
        text = " ".join([rng.choice(WORDS), "the", animal, told, *rng.choices(WORDS, k=5)])
        lines.append(json.dumps({"text": text, "animal": animal, "age": age}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def classified(finished: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The finished experiment with a classifier whose circuit was found and judged by hand."""
    folder = tmp_path_factory.mktemp("classified") / "tiny"
    shutil.copytree(finished.path.parent, folder)
    write_labelled(folder / "labelled.jsonl")
    experiment = read_experiment(write_experiment(folder, classifier=CLASSIFIER_SECTION))
    stages: Mapping[str, Any] = {stage.name: stage for stage in stages_of(experiment)}
    for name in ("labelled_texts", "probe", "classifier_behaviours"):
        stages[name].run(experiment)
    for name in ("classifier_circuits", "classifier_evaluations"):
        stages[name].run(experiment, [CLASSIFIER])
    return experiment


def judge(experiment: Experiment, irrelevant: Mapping[tuple[str, int], bool]) -> None:
    rows = [
        {
            "submodule": submodule,
            "feature": feature,
            "judge": "person",
            "used": True,
            "irrelevant": said,
            "reason": "by hand",
        }
        for (submodule, feature), said in irrelevant.items()
    ]
    recipe = Recipe("judgements", {}, [], "")
    ArtifactStore(experiment.artifacts).write(JUDGEMENTS, TABLES["judgements"].build(rows), recipe)


def features_of(experiment: Experiment) -> list[tuple[str, int]]:
    found = load_circuit(ArtifactStore(experiment.artifacts), "classifiers", CLASSIFIER)
    assert found is not None
    return [(node.submodule, node.feature) for node in found.nodes if not node.is_error]


def test_the_probe_is_in_its_table_and_in_its_file(classified: Experiment) -> None:
    store = ArtifactStore(classified.artifacts)
    probe = read_probe(store)
    tensors = load_file(store.path(PROBE, ".safetensors"))
    assert tensors["weight"].tolist() == list(probe.weight)
    assert float(tensors["bias"]) == probe.bias
    assert (probe.site, probe.pooling) == ("resid_0", "mean")
    groups = store.read(PROBE_GROUPS).to_pylist()
    sizes = {(row["set"], row["label"], row["attribute"]): row["n"] for row in groups}
    assert sizes == {
        ("ambiguous", 0, 0): 12,
        ("ambiguous", 1, 1): 12,
        **{
            (name, label, attribute): 4
            for name in ("balanced_train", "balanced_test")
            for label in (0, 1)
            for attribute in (0, 1)
        },
    }
    learnt = [row["accuracy"] for row in groups if row["set"] == "ambiguous"]
    assert min(learnt) > 0.9


def test_the_circuit_ends_where_the_probe_reads_and_explains_its_margin(
    classified: Experiment,
) -> None:
    store = ArtifactStore(classified.artifacts)
    behaviour = read_behaviours(store, "classifiers", [CLASSIFIER])[CLASSIFIER]
    found = load_circuit(store, "classifiers", CLASSIFIER)
    assert found is not None
    assert {node.submodule for node in found.nodes} <= {"embed", "attn_0", "resid_0"}
    assert found.settings["readout"] == "resid_0, mean over tokens"
    assert any(edge.downstream is None for edge in found.edges)
    # Both classes alike, and no text on both sides.
    chosen, judged = behaviour.chosen("found"), behaviour.chosen("evaluated")
    assert [e.answer for e in chosen] == [0, 1] * 4
    assert len(judged) == 4
    assert behaviour.held_out
    inputs = behaviour.inputs("found")
    pooled = torch.eye(16)[:8]
    sign = torch.tensor([1.0, -1.0] * 4)
    weight = torch.tensor(read_probe(store).weight)
    torch.testing.assert_close(inputs.metric(pooled), sign * (weight[:8] + read_probe(store).bias))


def test_every_way_is_scored_for_every_seed_and_summed_up(classified: Experiment) -> None:
    own = features_of(classified)
    judged = {unit: i % 2 == 0 for i, unit in enumerate(own)}
    judge(classified, judged)
    assert SHIFT_STAGE.run(classified)
    assert not SHIFT_STAGE.run(classified)
    store = ArtifactStore(classified.artifacts)
    seeds = store.read(SHIFT_SEEDS).to_pylist()
    edited = ("shift", "neuron_skyline", "feature_skyline", "embedding_only", "tokens_deleted")
    edited += ("random_active", "random_of_circuit", "permuted_judgements")
    ways = {(method, probe) for method in edited for probe in ("trained", "centred", "retrained")}
    ways |= {(method, "trained") for method in ("original", "oracle", "concept_bottleneck")}
    assert {(row["method"], row["probe"]) for row in seeds} == ways
    table = store.read(SHIFT).to_pylist()
    assert len(table) == len(ways)
    for row in table:
        of_seeds = [r for r in seeds if (r["method"], r["probe"]) == (row["method"], row["probe"])]
        assert [r["seed"] for r in of_seeds] == [0, 1]
        for name in ("label_accuracy", "attribute_accuracy", "worst_group"):
            values = [r[name] for r in of_seeds]
            assert row[name] == pytest.approx(mean(values))
            assert row[f"{name}_sd"] == pytest.approx(stdev(values))
        assert all(r["worst_group"] == min(r["groups"]) for r in of_seeds)
    counts = {row["method"]: row["n_ablated"] for row in table if row["probe"] != "centred"}
    n = sum(judged.values())
    assert counts["shift"] == counts["random_of_circuit"] == counts["permuted_judgements"] == n
    assert counts["original"] == 0
    assert 0 < counts["tokens_deleted"] < 3
    ablated = store.read(ABLATED_FEATURES).to_pylist()
    chosen = {(r["submodule"], r["feature"]) for r in ablated if r["method"] == "shift"}
    assert chosen == {unit for unit, said in judged.items() if said}
    page = store.path(SHIFT, ".html").read_text()
    assert all(f"{submodule}/{feature}" in page for submodule, feature in chosen)
    assert "by hand" in page
    printed = printed_table(classified)
    assert printed.count("\n| ") == len(ways)
    assert f"{len(own)} features in the circuit, {len(judged)} judged by person" in printed
    assert SHIFT_STAGE.shown(classified)["seeds"] == 2
    assert_the_report_says_it(classified, table, judged)


def assert_the_report_says_it(
    experiment: Experiment, table: Sequence[Any], judged: Mapping[tuple[str, int], bool]
) -> None:
    names: Any = {"classifiers": (CLASSIFIER,)}
    stages = {key.stage: (key,) for key in (SHIFT, JUDGEMENTS, PROBE_GROUPS)}
    store = ArtifactStore(experiment.artifacts)
    labelled = Labelled.of(experiment)
    assert labelled == Labelled("animal", "age", ("cat", "dog"), ("old", "young"))
    (section,) = shift_section(Found("tiny", store, stages, names, names), labelled)
    of_ways, of_groups, of_features, *_ = (b for b in section.blocks if b.kind == "table")
    assert list(of_ways.head)[2:4] == ["animal, %", "age, %"]
    for row, shown in zip(table, of_ways.rows, strict=True):
        assert shown[0] == row["method"].replace("_", " ") + " (control)" * row["is_control"]
        assert shown[4].split("\u00a0±\u00a0")[0] == f"{100 * row['worst_group']:.1f}"
        assert shown[5] == pytest.approx(row["n_ablated"], abs=0.01)
    assert [row[:3] for row in of_groups.rows] == [
        ["cat", "old", 4], ["cat", "young", 4], ["dog", "old", 4], ["dog", "young", 4]
    ]  # fmt: skip
    said = {row[0]: row[2] for row in of_features.rows}
    yes = {
        f"{submodule}/{feature}": ("no", "yes")[on] for (submodule, feature), on in judged.items()
    }
    assert said == {name: yes[name] for name in said}
    assert len(said) == min(40, len(judged))
    (plot,) = (block for block in section.blocks if block.kind == "charts")
    assert all("worst group" in svg and "embedding only" in svg for svg in plot.charts.values())
    assert not list(shift_section(Found("tiny", store, {}, names, names), labelled))


def test_a_score_tells_what_a_probe_goes_by(classified: Experiment) -> None:
    sets = read_sets(ArtifactStore(classified.artifacts))
    test = sets["balanced_test"]
    by_label = Probe(torch.tensor([1.0, 0.0]), -0.5)
    pooled = torch.stack([test.label, test.attribute], 1).float()
    perfect = score(by_label, pooled, test)
    assert perfect == Score((1.0, 1.0, 1.0, 1.0), 0.5)
    by_attribute = score(Probe(torch.tensor([0.0, 1.0]), -0.5), pooled, test)
    assert by_attribute == Score((1.0, 0.0, 0.0, 1.0), 1.0)
    assert (by_attribute.label, by_attribute.worst_group) == (0.5, 0.0)


def test_groups_are_counted_alike_however_large() -> None:
    label, attribute = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 0, 1])
    texts = TextSet(range(6), [[1]] * 6, [None] * 6, label, attribute)
    always = score(Probe(torch.zeros(1), 1.0), torch.zeros(6, 1), texts)
    assert always == Score((0.0, 0.0, 1.0, 1.0), pytest.approx(2 / 6))
    assert always.label == 0.5


@pytest.mark.parametrize(
    ("irrelevant", "message"),
    [
        (lambda own: dict.fromkeys(own, False), "of none that it is"),
        (lambda own: {}, "says of 0 of the"),
        (lambda own: {("resid_1", 0): True}, "of no feature"),
    ],
)
def test_judgements_that_leave_nothing_to_ablate_are_refused(
    classified: Experiment, irrelevant: Any, message: str
) -> None:
    own = features_of(classified)
    assert ("resid_1", 0) not in own
    judge(classified, irrelevant(own))
    with pytest.raises(ExperimentError, match=message):
        make_shift(Work.on(classified), _reads(classified))


def test_a_circuit_without_features_is_refused_with_the_threshold_that_would_do(
    classified: Experiment, tmp_path: Path
) -> None:
    shutil.copytree(classified.path.parent, tmp_path / "tiny")
    one = read_experiment(tmp_path / "tiny" / classified.path.name)
    store = ArtifactStore(one.artifacts)
    store.write(CIRCUIT_NODES, TABLES["nodes"].build([]), Recipe(CIRCUIT_NODES.stage, {}, {}, ""))
    effects = read_nodes(store.read(CIRCUIT_EFFECTS))
    largest = max(abs(node.effect) for node in effects if not node.is_error)
    with pytest.raises(ExperimentError, match=f"is {largest:.3g}; set .*node_threshold below it"):
        read_units(store, "person")


def test_features_are_set_to_their_mean_and_errors_go_too_where_that_is_asked(
    classified: Experiment,
) -> None:
    own = features_of(classified)
    judge(classified, dict.fromkeys(own[:3], True))
    work, how = Work.on(classified), _reads(classified)
    sets, readout = read_sets(work.store), how.reading.readout
    texts = sets["balanced_test"].tokens
    read = {"plain": pooled_of(work, texts, readout)}
    for ablation, errors in (("zero", False), ("mean", False), ("mean", True)):
        changed = replace(how, ablation=ablation, error_nodes=errors)
        editing = _editing(work, changed, sets)
        assert bool(editing.errors) == errors
        with editing(Edit("shift", False, own[:3], with_errors=errors)):
            read[f"{ablation} {errors}"] = pooled_of(work, texts, readout)
    # What all texts have in common is kept by the mean: the vectors stay nearer.
    moved = {name: float((own - read["plain"]).norm()) for name, own in read.items()}
    assert 0 < moved["mean False"] < moved["zero False"]
    assert moved["mean True"] > moved["mean False"]
