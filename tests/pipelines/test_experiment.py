"""What an experiment's file may say, and how it is told what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from assets.settings import ExperimentError, ImportSettings
from pipelines.experiment import (
    ROOT,
    check_places,
    read_experiment,
    shipped_experiments,
)
from tests.tiny_experiment import write_experiment

IMPORTED = {
    "source": "import",
    "format": "sfc",
    "repository": "./saes",
    "path": "{submodule}.safetensors",
}


def _problems(tmp_path: Path, **changed: Any) -> str:
    with pytest.raises(ExperimentError) as caught:
        read_experiment(write_experiment(tmp_path, **changed))
    return str(caught.value)


def test_all_problems_are_listed_at_once_with_file_and_key(tmp_path: Path) -> None:
    message = _problems(tmp_path, model={"layers": 2}, circuits={"steps": 0})
    assert message.startswith(f"{tmp_path / 'tiny.yaml'} has 2 problems:")
    assert "  model.layers: unknown key; did you mean n_layers?" in message
    assert "  circuits.steps: 0 will not do" in message


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"modle": {}}, "modle: unknown key; did you mean model?"),
        ({"model": None}, "model: is missing."),
        ({"dictionaries": {"n_featurs": 3}}, "dictionaries.n_featurs: unknown key; did you mean"),
        ({"dictionaries": {"kind": "top-k"}}, "Did you mean topk?"),
        ({"dictionaries": {"source": "download"}}, "source: train or source: import"),
        ({"dictionaries": {"warmup": 40}}, "dictionaries.warmup: 40 steps of warm-up leave none"),
        ({"dictionaries": {"kind": "topk", "k": 64}}, "dictionaries.k: there are only 32"),
        ({"clustering": {"k": [3, 0]}}, "clustering.k[1]: 0 will not do"),
        ({"clustering": {"k": 99}}, "clustering.k: 99 clusters cannot be made of 24 samples"),
        (
            {"filter": {"n_samples": None}, "clustering": {"algorithm": "spectral"}},
            "spectral clustering compares every sample",
        ),
        ({"clustering": {"submodules": ["mlp_0"]}}, "no dictionary sits at 'mlp_0'"),
        (
            {"clustering": {"submodules": ["embed", "embed"]}},
            "clustering.submodules[1]: 'embed' is",
        ),
        (
            {"comparisons": {"b": {"representation": "gradients", "submodules": ["embed"]}}},
            "comparisons.b.submodules: gradients are those of all layers",
        ),
        (
            {"comparisons": {"b": {"representation": "activations", "submodules": ["mlp_2"]}}},
            "a model of 2 layers has no 'mlp_2'",
        ),
        ({"comparisons": {"a b": {}}}, "comparisons.a b: a name is made of letters"),
        ({"comparisons": {"clustering": {}}}, "and is not clustering"),
        ({"comparisons": {"b": {"k": 99}}}, "comparisons.b.k: 99 clusters cannot be made of 24"),
        ({"comparisons": {"b": {"kk": 9}}}, "comparisons.b.kk: unknown key; did you mean k?"),
        ({"submodules": ["attn_0", "attn_7"]}, "submodules[1]: a model of 2 layers has no"),
        ({"submodules": ["embed", "embed"]}, "submodules[1]: 'embed' is there twice"),
        ({"model": {"device": "gpu"}}, "model.device: 'gpu' is none of auto"),
        ({"evaluations": {"start_layer": 2}}, "evaluations.start_layer: the model has layers 0"),
        ({"circuits": {"max_length": 13}}, "circuits.max_length: contexts have at most 12"),
        ({"tasks": {"pairs": {"a": {"train": "./x"}}}}, "tasks.pairs.a.test: is missing"),
        ({"tasks": {"pairs": {"a": {"tran": "./x"}}}}, "did you mean train?"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    assert told in _problems(tmp_path, **changed)


def test_an_imported_set_needs_a_path_for_every_submodule(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(
        "model: {source: ./m, n_layers: 1}\ncorpus: {source: ./c.txt}\n"
        "dictionaries: {source: import, format: sfc, repository: ./r, paths: {atn: a, mlp: b}}\n"
    )
    with pytest.raises(ExperimentError) as caught:
        read_experiment(tmp_path / "e.yaml")
    message = str(caught.value)
    assert "dictionaries.paths.atn: names no submodule and no kind. Did you mean attn?" in message
    assert "paths has none for embed" in message
    assert "paths has none for mlp_0" not in message


def test_a_path_for_one_submodule_wins_over_its_kind() -> None:
    paths = {"attn": "a", "attn_1": "b"}
    settings = ImportSettings(source="import", format="sfc", repository="r", path="c", paths=paths)
    assert [settings.path_of(name) for name in ("attn_0", "attn_1", "embed")] == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "just words"])
def test_a_file_that_is_not_sections_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ExperimentError, match=r"x\.yaml"):
        read_experiment(tmp_path / "x.yaml")


def test_a_missing_file_names_the_nearest_shipped_one(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"Did you mean experiments/testbed\.yaml"):
        read_experiment(tmp_path / "testbd.yaml")


def test_a_name_that_is_no_asset_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="letters, digits"):
        read_experiment(tmp_path / "my experiment.yaml")


def test_missing_places_are_all_named(tmp_path: Path) -> None:
    experiment = read_experiment(write_experiment(tmp_path))
    with pytest.raises(ExperimentError) as caught:
        check_places(experiment)
    for where in ("model.source", "corpus.source", "tasks.pairs.simple.train"):
        assert f"  {where}: {tmp_path}" in str(caught.value)


def test_relative_paths_are_taken_from_the_file(tmp_path: Path) -> None:
    experiment = read_experiment(write_experiment(tmp_path))
    assert experiment.resolve("./model") == str(tmp_path / "model")
    assert experiment.artifacts == tmp_path / "artifacts"
    assert experiment.resolve("EleutherAI/pythia-70m-deduped") == "EleutherAI/pythia-70m-deduped"


def test_artifacts_go_to_the_checkout_where_the_file_does_not_say(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, artifacts=None)
    assert read_experiment(path).artifacts == ROOT / "artifacts" / "tiny"


def test_partitions_come_from_the_file_alone(tmp_path: Path) -> None:
    experiment = read_experiment(write_experiment(tmp_path, submodules="all"))
    layer = ["attn_0", "mlp_0", "resid_0"]
    assert experiment.submodules == ["embed", *layer, *(f"{n[:-1]}1" for n in layer)]
    assert experiment.clusters == ["k00000", "k00001", "k00002"]


def test_the_largest_number_of_clusters_bounds_the_partitions(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, clustering={"k": [5, 9], "max_clusters": 7})
    assert len(read_experiment(path).clusters) == 7


@pytest.mark.parametrize("path", shipped_experiments(), ids=lambda path: path.stem)
def test_shipped_experiments_are_sound(path: Path) -> None:
    assert read_experiment(path).settings.description
