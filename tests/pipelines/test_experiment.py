"""What an experiment's file may say, and how it is told what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from assets.settings import CHOSEN, RENAMED, ExperimentError, ImportSettings
from pipelines.experiment import (
    ROOT,
    check_places,
    read_all,
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
        (
            {"comparisons": {"b": {"representation": "mlp_neurons", "submodules": ["attn_0"]}}},
            "comparisons.b.submodules[0]: no hidden neurons are at 'attn_0'",
        ),
        (
            {"dictionaries": {"kind": "jumprelu", "tuning_steps": 9}},
            "dictionaries.tuning_steps: only relu and topk dictionaries are tuned, not jumprelu",
        ),
        (
            {"dictionaries": {"kind": "topk", "n_features": 40, "k": 4, "ks": {"attn": 41}}},
            "dictionaries.ks.attn: there are only 40 features",
        ),
        (
            {"dictionaries": {"kind": "relu", "ks": {"attn": 4}}},
            "dictionaries.ks: only topk and batchtopk have k active features, not relu",
        ),
        (
            {"dictionaries": {"kind": "topk", "k": 4, "ks": {"atn_1": 4}}},
            "dictionaries.ks.atn_1: names no submodule with a dictionary, and no kind of one. "
            "Did you mean attn_0?",
        ),
        (
            {"dictionaries": {"kind": "topk", "k": 4, "ks": {"mlp": 4}}},
            "dictionaries.ks.mlp: names no submodule with a dictionary",
        ),
        (
            {"clustering": {"representation": "active_features", "submodules": ["mlp_0"]}},
            "no dictionary sits at 'mlp_0'",
        ),
        ({"comparisons": {"a b": {}}}, "comparisons.a b: a name is made of letters"),
        ({"comparisons": {CHOSEN: {}}}, f"and is not {CHOSEN}"),
        ({"comparisons": {"b": {"k": 99}}}, "comparisons.b.k: 99 clusters cannot be made of 24"),
        ({"comparisons": {"b": {"kk": 9}}}, "comparisons.b.kk: unknown key; did you mean k?"),
        ({"submodules": ["attn_0", "attn_7"]}, "submodules[1]: a model of 2 layers has no"),
        ({"submodules": ["embed", "embed"]}, "submodules[1]: 'embed' is there twice"),
        ({"model": {"device": "gpu"}}, "model.device: 'gpu' is none of auto"),
        (
            {"submodules": ["embed"]},
            "evaluations.start_layer: no dictionary sits there or after it",
        ),
        (
            {"submodules": ["attn_0"], "tasks": {"start_layer": 1}},
            "tasks.start_layer: no dictionary sits there or after it",
        ),
        (
            {"evaluations": {"ablation": "resample"}, "circuits": {"max_length": 5}},
            "evaluations.ablation: resample gives an example the values of another",
        ),
        ({"evaluations": {"start_layer": 2}}, "evaluations.start_layer: the model has layers 0"),
        (
            {"evaluations": {"other_start_layers": [1, 7]}},
            "evaluations.other_start_layers[1]: the model has layers 0 to 1",
        ),
        (
            {"evaluations": {"other_start_layers": [0]}},
            "evaluations.other_start_layers: name a layer twice, or that of start_layer",
        ),
        (
            {"evaluations": {"lowest_threshold": 1, "highest_threshold": 0.5}},
            "evaluations.highest_threshold: must be above lowest_threshold, 1",
        ),
        ({"evaluations": {"lowest_threshold": 1e-5}}, "evaluations.lowest_threshold: 1.0e-05 will"),
        (
            {"circuits": {"metric": "odds"}},
            "circuits.metric: odds will not do: input should be 'log_odds'",
        ),
        ({"circuits": {"stability": 1.5}}, "circuits.stability: 1.5 will not do"),
        ({"tasks": {"steps": 0}}, "tasks.steps: 0 will not do"),
        ({"circuits": {"max_length": 13}}, "circuits.max_length: contexts have at most 12"),
        ({"tasks": {"pairs": {"a": {"train": "./x"}}}}, "tasks.pairs.a.test: is missing"),
        ({"tasks": {"pairs": {"a": {"tran": "./x"}}}}, "did you mean train?"),
        ({"tasks": {"pairs": {}}}, "tasks.pairs: "),
        ({"tasks": {"pairs": {"../../x": {}}}}, "tasks.pairs.../../x: a name is made of letters"),
        ({"tasks": {"pairs": {"k00003": {}}}}, "tasks.pairs.k00003: is what a cluster is called"),
        ({"tasks": {"pairs": {"a" * 65: {}}}}, "at most 64 of them"),
        ({"comparisons": {"a": {}, "A": {}}}, "comparisons: names that differ in upper and lower"),
        (
            {"circuits": {"estimator": "exact", "rule": "adaptive", "tolerance": 1}},
            "circuits.tolerance: is met by adding points to an integral",
        ),
        ({"circuits": {"tolerance": 0}}, "circuits.tolerance: 0 will not do"),
        ({"evaluations": {"n_thresholds": 1}}, "evaluations.n_thresholds: 1 will not do"),
        ({"evaluations": [1]}, "evaluations: a list will not do: keys are needed here"),
        ({"model": {"memory_gb": float("inf")}}, "model.memory_gb: .inf will not do"),
        ({"model": {"memory_gb": "1e400"}}, "model.memory_gb: 1e400 will not do"),
        ({"filter": {"max_loss": float("nan")}}, "filter.max_loss: .nan will not do"),
        ({"dictionaries": {"lr": "inf"}}, "dictionaries.lr: inf will not do"),
        ({"dictionaries": {"seed": -5}}, "dictionaries.seed: -5 will not do"),
        ({"dictionaries": {"seed": 2**32}}, "dictionaries.seed: 4294967296 will not do"),
        ({"clustering": {"k": 10**9}}, "clustering.k[0]: 1000000000 will not do"),
        ({"clustering": {"k": []}}, "clustering.k: "),
        ({"circuits": {"steps": 2.5}}, "circuits.steps: 2.5 will not do"),
        ({"corpus": {"separator": ""}}, "corpus.separator: '' will not do"),
        ({"model": {"revision": "\0"}}, "model.revision: holds a character that no text can hold"),
        ({"model": {"x" * 2000: 1}}, "x ...: unknown key; here the keys are source"),
        ({"model": {"\x1b[2J": 1}}, "  model.\\x1b[2J: unknown key"),
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


def test_problems_of_one_section_hide_none_of_another(tmp_path: Path) -> None:
    message = _problems(
        tmp_path,
        model={"layers": 2},
        corpus={"n_positions": 12},
        circuits={"max_length": 13},
        dictionaries={"warmup": 40, "l1": 0.1},
        clustering={"k": 0},
    )
    assert "has 5 problems" in message
    for where in ("model.layers", "circuits.max_length", "clustering.k[0]"):
        assert f"\n  {where}: " in message
    assert "dictionaries.warmup: 40 steps" in message
    assert "dictionaries.sparsity: is given twice: dictionaries.l1 is what it was" in message


def test_a_file_in_the_old_words_reads_the_same(tmp_path: Path) -> None:
    new = {
        "dictionaries": {"sparsity": 0.25},
        "evaluations": {"error_nodes": ["keep"], "n_thresholds": 5},
        "tasks": {"n_examples": 7, "n_evaluated": 3},
    }
    expected = read_experiment(write_experiment(tmp_path, "new", **new)).settings
    content = yaml.safe_load((tmp_path / "new.yaml").read_text())
    tasks, evaluations = content.pop("tasks"), content["evaluations"]
    content["dictionaries"]["l1"] = content["dictionaries"].pop("sparsity")
    evaluations["errors"] = evaluations.pop("error_nodes")
    content["agreement"] = {
        "pairs": tasks["pairs"],
        "n_train": tasks["n_examples"],
        "n_test": tasks["n_evaluated"],
        "n_thresholds": evaluations.pop("n_thresholds"),
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(content))
    assert read_experiment(tmp_path / "old.yaml").settings == expected


@pytest.mark.parametrize(
    "both",
    [
        {"agreement": {}},
        {"tasks": {"n_train": 1, "n_examples": 1}},
        {"tasks": {"n_test": 1, "n_evaluated": 1}},
        {"tasks": {"n_thresholds": 3}},
        {"dictionaries": {"l1": 0.1}},
        {"evaluations": {"errors": ["keep"]}},
    ],
)
def test_an_old_word_beside_its_new_one_is_told(tmp_path: Path, both: dict[str, Any]) -> None:
    (section, keys), *_ = both.items()
    old = ".".join([section, *list(keys)[:1]])
    assert f"  {RENAMED[old]}: is given twice: {old} is what" in _problems(tmp_path, **both)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"options": {"l0": [1]}}, "dictionaries.options.l0: an option is text"),
        ({"options": {"l0": "1e400"}}, "a number up to 1e+09"),
        ({"options": {"path": "x"}}, "dictionaries.options.path: is no option"),
        ({"repositories": {"atn": "x"}}, "dictionaries.repositories.atn: names no submodule"),
        ({"pth": 1}, "dictionaries.pth: unknown key; did you mean path?"),
    ],
)
def test_what_an_import_cannot_be_is_refused(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    path = write_experiment(tmp_path, dictionaries=None)
    path.write_text(path.read_text() + yaml.safe_dump({"dictionaries": IMPORTED | changed}))
    with pytest.raises(ExperimentError) as caught:
        read_experiment(path)
    assert told in str(caught.value)
    assert "has 1 problem:" in str(caught.value)


def test_numbers_and_text_are_read_as_what_is_meant(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(
        "model: {source: ./m, n_layers: 1, revision: 0123456, memory_gb: 1e1, attn_input: yes}\n"
        "corpus: {source: 2020-01-02, revision: 12e5, n_documents: 2e3, text_column: on}\n"
        "submodules: [resid_0]\n"
        "dictionaries: {source: import, format: sfc, repository: ./r, path: a, options: "
        "{l0: 1e2, n: 3, a: true, b: no, c: '1e2', d: word}}\n"
    )
    settings = read_experiment(tmp_path / "e.yaml").settings
    assert settings.model.revision == "0123456"
    assert (settings.model.memory_gb, settings.model.attn_input) == (10.0, True)
    corpus = settings.corpus
    assert (corpus.source, corpus.revision, corpus.text_column) == ("2020-01-02", "12e5", "on")
    assert corpus.n_documents == 2000
    assert isinstance(settings.dictionaries, ImportSettings)
    options = {"l0": 100.0, "n": 3, "a": True, "b": False, "c": "1e2", "d": "word"}
    assert settings.dictionaries.options == options


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: {source: a}\nmodel: {}\n", "model: is given twice, in line 1 and in line 2"),
        ("model:\n  source: a\n  source: b\n", "model.source: is given twice, in line 2 and in"),
        ("1: 2\n", "1: unknown key"),
        ("? [a]\n: 2\n", "the file: line 1: a key must be text"),
        ("~: 2\n", "the file: line 1: a key must be text"),
        ("model: !!set {a}\n", "model: the tag tag:yaml.org,2002:set means nothing here"),
        ("model: {n_layers: !!int abc}\n", "model.n_layers: abc will not do"),
        ("model: {<<: 3}\n", "model.<<: brings no mapping"),
        ("model: &a {b: *a}\n", "nests too deeply"),
        ("a: " + "[" * 5000, "nests too deeply"),
        ("a: &a [x]\n" + "".join(f"{c}: &{c} [{', '.join(['*' + b] * 9)}]\n" for b, c in zip(
            "abcdefg", "bcdefgh", strict=True)), "aliases stand for too much"),
        ('a: "\\UFFFFFFFF"\n', "is not YAML"),
        ("a:\n\t- b\n", "is not YAML"),
        ("a: b\n---\na: c\n", "is not YAML"),
        ("", "must hold sections"),
        ("a: " + "x" * 1_000_000, "has more than 1,000,000 bytes"),
        ("\n".join(f"key{i}: 1" for i in range(90)), "and 43 more"),
    ],
)  # fmt: skip
def test_what_yaml_would_pass_over_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ExperimentError) as caught:
        read_experiment(tmp_path / "x.yaml")
    assert told in str(caught.value)


def test_merged_keys_count_less_than_own_ones(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, clustering=None)
    shared = "clustering: &c {k: 3, n_last: 2}\ncomparisons: {b: {<<: *c, n_last: 4}}\n"
    path.write_text(path.read_text() + shared)
    compared = read_experiment(path).settings.comparisons["b"]
    assert (compared.k, compared.n_last) == ((3,), 4)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    path = write_experiment(tmp_path)
    expected = read_experiment(path).settings
    path.write_bytes(path.read_text().encode(encoding))
    assert read_experiment(path).settings == expected


def test_another_encoding_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("description: Füße\n".encode("latin-1"))
    with pytest.raises(ExperimentError, match="save it as UTF-8"):
        read_experiment(tmp_path / "x.yaml")


def test_one_broken_file_hides_no_other(tmp_path: Path) -> None:
    names = ("good", "a-b", "a_b")
    paths = [write_experiment(tmp_path, name, artifacts=f"./made-{name}") for name in names]
    (tmp_path / "broken.yaml").write_text("a: [")
    experiments, errors = read_all([*paths, tmp_path / "broken.yaml"])
    assert [experiment.name for experiment in experiments] == ["good"]
    broken, twice = map(str, errors)
    assert "broken.yaml is not YAML" in broken
    assert str(tmp_path / "a-b.yaml") in twice
    assert str(tmp_path / "a_b.yaml") in twice


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


def test_two_experiments_do_not_write_to_one_folder(tmp_path: Path) -> None:
    paths = [write_experiment(tmp_path, name=name) for name in ("one", "two")]
    paths.append(write_experiment(tmp_path, name="three", artifacts="./elsewhere"))
    experiments, (error,) = read_all(paths)
    assert [experiment.name for experiment in experiments] == ["three"]
    assert f"one.yaml and {tmp_path}/two.yaml would both write to {tmp_path}/artifacts" in str(
        error
    )


@pytest.mark.parametrize("section", ["model", "corpus"])
def test_what_is_read_is_not_written_into(tmp_path: Path, section: str) -> None:
    for name in ("model", "train.json", "test.json", "corpus.jsonl"):
        (tmp_path / name).mkdir()
    path = write_experiment(tmp_path, artifacts="./place", **{section: {"source": "./place"}})
    (tmp_path / "place").mkdir()
    with pytest.raises(ExperimentError, match=rf"artifacts: .*place is also {section}\.source"):
        check_places(read_experiment(path))


def test_resampling_is_accepted_where_all_examples_are_of_one_length(tmp_path: Path) -> None:
    changed = {"evaluations": {"ablation": "resample"}, "circuits": {"max_length": 4}}
    assert read_experiment(write_experiment(tmp_path, **changed)).settings.circuits.max_length == 4
