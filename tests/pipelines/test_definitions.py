"""The asset graph of an experiment, and how cheaply it loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.settings import ExperimentError
from pipelines.definitions import build_definitions
from pipelines.experiment import read_experiment
from pipelines.stages import stages_of
from tests.tiny_experiment import write_experiment

ROOT = Path(__file__).resolve().parents[2]

GRAPH = {
    "vocabulary": ("corpus", set(), 0),
    "contexts": ("corpus", set(), 0),
    "activation_cache": ("corpus", {"contexts"}, 0),
    "saes": ("dictionaries", {"activation_cache"}, 4),
    "dictionary_set": ("dictionaries", {"contexts", "saes"}, 0),
    "filtered_tokens": ("tokens", {"contexts"}, 0),
    "cluster_vectors": ("clusters", {"filtered_tokens", "dictionary_set"}, 0),
    "cluster_assignments": ("clusters", {"filtered_tokens", "cluster_vectors"}, 0),
    "clusters": (
        "clusters",
        {"filtered_tokens", "cluster_vectors", "cluster_assignments"},
        0,
    ),
    "cluster_behaviours": ("circuits", {"filtered_tokens", "cluster_assignments", "clusters"}, 0),
    "circuits": ("circuits", {"cluster_behaviours", "dictionary_set"}, 3),
    "task_behaviours": ("circuits", set(), 0),
    "task_circuits": ("circuits", {"task_behaviours", "dictionary_set"}, 1),
    "circuit_evaluations": (
        "evaluations",
        {"cluster_behaviours", "circuits", "dictionary_set"},
        3,
    ),
    "task_evaluations": (
        "evaluations",
        {"task_behaviours", "task_circuits", "dictionary_set"},
        1,
    ),
    "circuit_baselines": (
        "evaluations",
        {"cluster_behaviours", "circuits", "circuit_evaluations", "dictionary_set"},
        3,
    ),
    "task_baselines": (
        "evaluations",
        {"task_behaviours", "task_circuits", "task_evaluations", "dictionary_set"},
        1,
    ),
    "circuit_approximations": ("evaluations", {"cluster_behaviours", "dictionary_set"}, 3),
    "task_approximations": ("evaluations", {"task_behaviours", "dictionary_set"}, 1),
    "evaluation_summary": (
        "evaluations",
        {
            *("circuit_baselines", "task_baselines"),
            *("dictionary_set", "cluster_behaviours", "circuits", "circuit_evaluations"),
            *("task_behaviours", "task_circuits", "task_evaluations"),
        },
        0,
    ),
    "circuit_edge_evaluations": (
        "evaluations",
        {"cluster_behaviours", "circuits", "dictionary_set"},
        3,
    ),
    "task_edge_evaluations": (
        "evaluations",
        {"task_behaviours", "task_circuits", "dictionary_set"},
        1,
    ),
    "circuit_overlap": (
        "evaluations",
        {
            *("dictionary_set", "cluster_behaviours", "circuits"),
            *("task_behaviours", "task_circuits"),
        },
        0,
    ),
    "circuit_transfer": (
        "evaluations",
        {
            *("dictionary_set", "cluster_behaviours", "circuits"),
            *("task_behaviours", "task_circuits"),
        },
        0,
    ),
    "feature_circuits": ("features", {"circuits", "task_circuits"}, 0),
    "cards": (
        "features",
        {"contexts", "vocabulary", "dictionary_set", "feature_circuits"},
        4,
    ),
    "rule_labels": ("features", {"contexts", "vocabulary", "dictionary_set", "cards"}, 0),
    "labels": ("features", {"rule_labels", "dictionary_set"}, 0),
}
GRAPH["report"] = ("report", set(GRAPH), 0)
FILES = {
    "model_files": {
        *("contexts", "activation_cache", "saes", "dictionary_set", "filtered_tokens"),
        *("cluster_vectors", "clusters", "circuits", "task_behaviours", "task_circuits"),
        *("circuit_evaluations", "task_evaluations", "vocabulary", "cards", "rule_labels"),
        *("circuit_baselines", "task_baselines"),
        "circuit_transfer",
        *("circuit_edge_evaluations", "task_edge_evaluations"),
        *("circuit_approximations", "task_approximations"),
    },
    "corpus_files": {"contexts"},
    "pair_files": {"task_behaviours"},
    "annotation_files": {"labels"},
}
"""What is read from outside, and by which stages."""
BLOCKING = {"contexts", "activation_cache", "dictionary_set", "cluster_assignments"}


@pytest.fixture
def definitions(tmp_path: Path) -> dg.Definitions:
    return build_definitions([write_experiment(tmp_path)])


def _keys(definitions: dg.Definitions) -> set[str]:
    return {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}


def test_pairs_and_labelled_texts_are_read_before_anything_is_trained(tmp_path: Path) -> None:
    data = {"source": "./texts.jsonl", "label_column": "a", "attribute_column": "b"}
    classifier = {"data": {**data, "labels": [0, 1]}}
    experiment = read_experiment(write_experiment(tmp_path, classifier=classifier))
    names = [stage.name for stage in stages_of(experiment)]
    assert {*names[:2]} == {"task_behaviours", "labelled_texts"}


def test_definitions_are_loadable(definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)
    assert len(_keys(definitions)) == len(GRAPH) + len(FILES)


def test_the_graph_is_this(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    found = {}
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        partitions = node.partitions_def
        n_partitions = 0 if partitions is None else len(partitions.get_partition_keys())
        deps = {parent.path[-1] for parent in node.parent_keys} - FILES.keys()
        found[key.path[-1]] = ((node.group_name or "").split("_")[-1], deps, n_partitions)
    assert found == GRAPH


def test_one_run_takes_a_range_of_partitions(definitions: dg.Definitions) -> None:
    """What `dg launch --partition-range` and backfills need to start one run."""
    graph = definitions.resolve_asset_graph()
    partitioned = [k for k in graph.materializable_asset_keys if graph.get(k).is_partitioned]
    assert len(partitioned) == sum(n_partitions > 0 for _, _, n_partitions in GRAPH.values())
    for key in partitioned:
        assert graph.get(key).backfill_policy == dg.BackfillPolicy.single_run()


def test_files_outside_are_nodes_that_are_observed(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    assert {key.path[-1] for key in graph.observable_asset_keys} == FILES.keys()
    for name, readers in FILES.items():
        children = graph.get(dg.AssetKey(["tiny", name])).child_keys
        assert {key.path[-1] for key in children} == readers


def test_groups_are_numbered_in_the_order_of_the_method(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    groups = {graph.get(key).group_name for key in graph.get_all_asset_keys()}
    assert sorted(map(str, groups)) == [
        "tiny_0_files",
        "tiny_1_corpus",
        "tiny_2_dictionaries",
        "tiny_3_tokens",
        "tiny_4_clusters",
        "tiny_5_circuits",
        "tiny_6_evaluations",
        "tiny_7_features",
        "tiny_9_report",
    ]


def test_comparisons_add_three_assets_and_change_no_other(tmp_path: Path) -> None:
    comparisons = {"dense": {"k": 3}, "gradients": {"k": 2}}
    graph = build_definitions(
        [write_experiment(tmp_path, comparisons=comparisons)]
    ).resolve_asset_graph()
    added = {key.path[-1] for key in graph.materializable_asset_keys} - set(GRAPH)
    assert added == {"compared_vectors", "compared_clusterings", "clustering_comparison"}
    for name in ("compared_vectors", "compared_clusterings"):
        compared = graph.get(dg.AssetKey(["tiny", name])).partitions_def
        assert compared is not None
        assert compared.get_partition_keys() == ["dense", "gradients"]


CLASSIFIER = {
    "labelled_texts": ("classifier", set(), 0),
    "probe": ("classifier", {"labelled_texts"}, 0),
    "classifier_behaviours": ("circuits", {"labelled_texts", "probe"}, 0),
    "classifier_circuits": ("circuits", {"classifier_behaviours", "dictionary_set"}, 1),
    "classifier_evaluations": (
        "evaluations",
        {"classifier_behaviours", "classifier_circuits", "dictionary_set"},
        1,
    ),
    "judgements": (
        "classifier",
        {"classifier_circuits", "dictionary_set", "labelled_texts", "vocabulary", "cards"},
        0,
    ),
    "shift": (
        "classifier",
        {
            *("labelled_texts", "probe", "judgements", "classifier_circuits", "dictionary_set"),
            *("cards", "labels"),
        },
        0,
    ),
}


def test_a_classifier_adds_these_and_is_read_where_circuits_are_gathered(tmp_path: Path) -> None:
    data = {
        "source": "./labelled.jsonl",
        "label_column": "label",
        "attribute_column": "sex",
        "labels": [0, 1],
    }
    definitions = build_definitions([write_experiment(tmp_path, classifier={"data": data})])
    graph, found, before = definitions.resolve_asset_graph(), {}, {}
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        partitions = node.partitions_def
        n_partitions = 0 if partitions is None else len(partitions.get_partition_keys())
        deps = {parent.path[-1] for parent in node.parent_keys} - FILES.keys() - {"labelled_files"}
        one = ((node.group_name or "").split("_")[-1], deps, n_partitions)
        (before if key.path[-1] in GRAPH else found)[key.path[-1]] = one
    assert found == CLASSIFIER
    changed = {name for name, one in before.items() if one != GRAPH[name]}
    gathered = {"evaluation_summary", "feature_circuits", "circuit_overlap", "report"}
    assert changed == gathered
    checked = {key.asset_key.path[-1] for key in graph.asset_check_keys}
    assert CLASSIFIER.keys() - checked == {"classifier_behaviours"}


def test_every_asset_says_what_it_is(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        assert len(node.description or "") > 30, key
        assert node.owners, key
        assert node.kinds, key
        assert node.code_version, key


def test_every_stage_of_numbers_has_a_check_and_the_right_ones_block(
    definitions: dg.Definitions,
) -> None:
    graph = definitions.resolve_asset_graph()
    checks = [(key.asset_key.path[-1], graph.get(key)) for key in graph.asset_check_keys]
    # Behaviours of clusters and the report hold no numbers of their own: what cannot be in
    # behaviours is refused while they are made.
    without = {"cluster_behaviours", "vocabulary", "feature_circuits", "report"}
    assert {name for name, _ in checks} == GRAPH.keys() - without
    assert {name for name, check in checks if check.blocking} == BLOCKING


def test_imported_dictionaries_need_no_corpus_and_no_cache(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, dictionaries=None)
    path.write_text(
        path.read_text() + "dictionaries: {source: import, format: sfc, repository: r, path: p}\n"
    )
    graph = build_definitions([path]).resolve_asset_graph()
    assert not graph.has(dg.AssetKey(["tiny", "activation_cache"]))
    parents = graph.get(dg.AssetKey(["tiny", "saes"])).parent_keys
    assert {key.path[-1] for key in parents} == {"model_files", "dictionary_files"}


def test_gradients_need_no_dictionaries_to_cluster(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, clustering={"representation": "gradients"})
    graph = build_definitions([path]).resolve_asset_graph()
    parents = graph.get(dg.AssetKey(["tiny", "cluster_vectors"])).parent_keys
    assert parents == {dg.AssetKey(["tiny", n]) for n in ("filtered_tokens", "model_files")}


def test_experiments_stand_side_by_side(tmp_path: Path) -> None:
    names = ("one", "two-b")
    paths = [write_experiment(tmp_path, name, artifacts=f"./made-{name}") for name in names]
    definitions = build_definitions(paths)
    dg.Definitions.validate_loadable(definitions)
    keys = _keys(definitions)
    assert {"one/circuits", "two-b/circuits"} <= keys
    assert len(keys) == 2 * (len(GRAPH) + len(FILES))


def test_a_broken_file_is_warned_about_and_hides_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = write_experiment(tmp_path, "broken", circuits={"steps": 0})
    definitions = build_definitions([broken, write_experiment(tmp_path, "good")])
    assert {key.split("/")[0] for key in _keys(definitions)} == {"good"}
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith(f"{broken} has 1 problem:\n  circuits.steps: 0 will not do")


def test_nothing_but_broken_files_is_an_error_with_all_they_say(tmp_path: Path) -> None:
    paths = [write_experiment(tmp_path, name, circuits={"steps": 0}) for name in ("one", "two")]
    with pytest.raises(ExperimentError) as caught:
        build_definitions(paths)
    assert all(f"{path} has 1 problem" in str(caught.value) for path in paths)


def test_two_experiments_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [write_experiment(tmp_path), write_experiment(tmp_path / "other")]
    with pytest.raises(ExperimentError, match="would both be the group tiny: rename one"):
        build_definitions(paths)


def _versions(tmp_path: Path, **changed: Any) -> dict[str, str | None]:
    graph = build_definitions([write_experiment(tmp_path, **changed)]).resolve_asset_graph()
    return {key.path[-1]: graph.get(key).code_version for key in graph.materializable_asset_keys}


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    return _versions(tmp_path_factory.mktemp("unchanged"))


@pytest.mark.parametrize(
    ("changed", "concerned"),
    [
        ({"circuits": {"node_threshold": 0.5}}, {"circuits"}),
        ({"filter": {"max_loss": 7.0}}, {"filtered_tokens", "report"}),
        ({"dictionaries": {"seed": 1}}, {"saes"}),
        ({"dictionaries": {"cache_gb": 3.0}}, set()),
        ({"evaluations": {"min_faithfulness": 0.9}}, {"report"}),
        ({"tasks": {"n_evaluated": 5}}, {"task_behaviours"}),
        (
            {"tasks": {"start_layer": 1}},
            {
                *("task_evaluations", "task_edge_evaluations", "task_baselines"),
                *("circuit_transfer", "task_approximations"),
            },
        ),
        (
            {"evaluations": {"start_layer": 1}},
            {
                *("circuit_evaluations", "circuit_edge_evaluations", "circuit_baselines"),
                *("circuit_transfer", "circuit_approximations"),
            },
        ),
        ({"evaluations": {"n_examined": 1}}, {"circuit_transfer", "evaluation_summary", "report"}),
    ],
)
def test_a_setting_is_part_of_the_version_of_just_what_it_shapes(
    unchanged: dict[str, str | None], tmp_path: Path, changed: dict[str, Any], concerned: set[str]
) -> None:
    after = _versions(tmp_path, **changed)
    assert {name for name in unchanged if unchanged[name] != after[name]} == concerned


def test_definitions_load_without_torch_in_seconds_of_work() -> None:
    code = (
        "import sys, time; import pipelines.definitions as d; "
        "d.defs.resolve_asset_graph(); "
        "heavy = [m for m in ('torch', 'transformers', 'sklearn', 'pandas') if m in sys.modules]; "
        "print(heavy, time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy, seconds = done.stdout.rsplit(" ", 1)
    assert heavy == "[]"
    # About 3 on a quiet machine; following the code again for every partition takes a minute.
    assert float(seconds) < 15


def test_our_packages_are_the_ones_of_this_checkout() -> None:
    import assets
    import core
    import pipelines

    for package in (assets, core, pipelines):
        assert Path(package.__file__ or "").parents[1] == ROOT
