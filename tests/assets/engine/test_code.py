"""Code is part of a recipe: a changed line makes stale exactly the stages that run it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assets.engine.code import ROOT, Tree
from assets.settings import Experiment, ExperimentError
from pipelines.stages import stages_of
from tests.tiny_experiment import tiny_experiment

COMPARED = {"other": {"representation": "gradients", "k": 2, "n_projected": 32}}


def _both(*names: str) -> set[str]:
    """Stages of clusters and of tasks."""
    return {f"{source}_{name}" for source in ("circuit", "task") for name in names}


CIRCUITS = {"circuits", "task_circuits", *_both("baselines", "approximations")}
EDGES = CIRCUITS | _both("edge_evaluations")
EVALUATIONS = {
    *_both("evaluations", "baselines", "approximations", "edge_evaluations"),
    "circuit_transfer",
}
CLUSTERED = {"cluster_assignments", "compared_clusterings"}
VECTORS = {"cluster_vectors", "compared_vectors"}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return tiny_experiment(tmp_path_factory.mktemp("code"), comparisons=COMPARED)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for package in ("core", "assets"):
        shutil.copytree(ROOT / package, root / package)
    return root


def codes(experiment: Experiment, root: Path) -> dict[str, str]:
    tree = Tree(root)
    found: dict[str, str] = {}
    for stage in stages_of(experiment):
        every: Any = stage._every(experiment)
        found[stage.name] = " ".join(stage.code(settings, tree) for settings in every)
    return found


@pytest.fixture(scope="module")
def stale(experiment: Experiment, copied: Path) -> Callable[[str, str, str], set[str]]:
    """Stages whose code changes when one place of one file of the copy does."""
    before = codes(experiment, copied)

    def changed(file: str, old: str, new: str) -> set[str]:
        path = copied / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        after = codes(experiment, copied)
        path.write_text(text, encoding="utf-8")
        return {name for name in before if before[name] != after[name]}

    return changed


ALGORITHMS = [
    ("core/edges.py", "none = up_nodes.keys[:0]", "none = up_nodes.keys[0:0]", EDGES),
    ("core/circuit.py", "flatten().abs() > threshold", "flatten().abs() >= threshold", CIRCUITS),
    ("core/endpoints.py", "value != 0", "value != 0.0", EDGES),
    ("core/evaluate.py", "> 1e-6 * scale", "> 1e-7 * scale", EVALUATIONS),
    ("core/discovery/filter.py", "if not self.max_loss > 0", "if not self.max_loss >= 0",
     {"filtered_tokens"}),
    ("core/discovery/clustering.py", "batch_size=4096", "batch_size=4095", CLUSTERED),
    ("core/discovery/projection.py", "{self.seed}/{name}", "{self.seed}:{name}", VECTORS),
    ("core/dictionaries/quality.py", "1 - _ratio(unex", "1.0 - _ratio(unex", {"dictionary_set"}),
    ("core/training/learner.py", "> self.settings.dead_after", ">= self.settings.dead_after",
     {"saes"}),
    ("assets/corpus/text.py", "_TOKENIZE_AT_ONCE = 256", "_TOKENIZE_AT_ONCE = 255", {"contexts"}),
    ("assets/circuits/behaviours.py", "len(shuffled) // 3", "len(shuffled) // 4",
     {"cluster_behaviours"}),
    ("assets/circuits/pairs.py", "most_common(1)", "most_common(2)", {"task_behaviours"}),
    ("assets/evaluations/summary.py", "[0.0, *heights", "[0, *heights", {"evaluation_summary"}),
    ("assets/discovery/templates/cluster.html", "<p>", "<p >",
     {"clusters", "compared_clusterings"}),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "which"), ALGORITHMS)
def test_a_changed_line_makes_exactly_the_stages_stale_that_run_it(
    stale: Callable[[str, str, str], set[str]], file: str, old: str, new: str, which: set[str]
) -> None:
    assert stale(file, old, new) == which


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("core/edges.py", "from __future__", "# A comment.\nfrom __future__"),
        ("core/edges.py", '"""', '"""Another docstring. '),
        ("core/edges.py", '    """', '    """Another docstring. '),
        ("core/circuit.py", "    def mean(", "    # A comment.\n\n    def mean("),
        ("assets/engine/store.py", "def read(", "def read_(self): ...\n\n    def read("),
        ("assets/tables/schemas.py", "token ids", "ids of tokens"),
        ("core/pictures/describe.py", "_WIDTH = 100", "_WIDTH = 101"),
    ],
)
def test_what_does_not_shape_a_result_makes_nothing_stale(
    stale: Callable[[str, str, str], set[str]], file: str, old: str, new: str
) -> None:
    assert stale(file, old, new) == set()


def test_a_kind_that_a_registry_finds_counts_for_whoever_looks_it_up(
    stale: Callable[[str, str, str], set[str]],
) -> None:
    users = stale("core/dictionaries/activations.py", "F.relu(pre)", "pre.clamp(min=0)")
    assert users >= CIRCUITS | EVALUATIONS | {"saes", "dictionary_set"}
    assert not users & {"contexts", "filtered_tokens", "cluster_assignments", "evaluation_summary"}


def test_a_name_that_is_nowhere_is_an_error_and_not_an_empty_digest() -> None:
    with pytest.raises(LookupError, match=r"core\.edges defines no nothing"):
        Tree().digest([("core.edges", "nothing")])


def test_code_that_changed_since_a_process_began_makes_nothing(copied: Path) -> None:
    tree = Tree(copied)
    tree.hold()
    path = copied / "core" / "edges.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}\n", encoding="utf-8")
    with pytest.raises(ExperimentError, match=r"core/edges\.py changed .* start again"):
        tree.hold()
    path.write_text(text, encoding="utf-8")
    tree.hold()
