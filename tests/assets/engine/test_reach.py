"""Which setting makes what again: every leaf of the schema changed in turn, against a table.

The table is `settings_reach.yaml`; `python -m tests.assets.engine.test_reach` prints it anew.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from assets.engine.stage import PartitionedStage, Stage, TableStage
from assets.settings import ImportSettings, Section, Settings, TrainSettings
from pipelines.experiment import read_experiment
from pipelines.stages import stages_of
from tests.tiny_experiment import tiny_experiment

TABLE = Path(__file__).with_name("settings_reach.yaml")
IMPORT: dict[str, Any] = {
    "source": "import",
    "format": "sfc",
    "repository": "./saes",
    "path": "{submodule}.safetensors",
}
BASE: dict[str, Any] = {
    "model": {"source": "./model", "n_layers": 2, "device": "cpu"},
    "corpus": {"source": "./corpus.jsonl"},
    "dictionaries": {"source": "train", "n_features": 32, "warmup": 10},
    "clustering": {"k": 4},
    "comparisons": {"other": {"k": 3}},
    "tasks": {"pairs": {"simple": {"train": "./train.json", "test": "./test.json"}}},
    "classifier": {
        "data": {
            "source": "./labelled.jsonl",
            "label_column": "label",
            "attribute_column": "attribute",
            "labels": [0, 1],
        },
        "judgements": {"words": [["he"], ["she"]]},
    },
}
CONTEXT: Mapping[str, dict[str, Any]] = {
    # What must hold beside a leaf for it to mean anything.
    "dictionaries.expansion": {"dictionaries": {"n_features": None}},
    "dictionaries.k": {"dictionaries": {"kind": "topk"}},
    "dictionaries.ks": {"dictionaries": {"kind": "topk"}},
    "dictionaries.tuning_lr": {"dictionaries": {"tuning_steps": 5}},
    "dictionaries.tuning_sparsity": {"dictionaries": {"tuning_steps": 5}},
    "dictionaries.tuning_errors": {"dictionaries": {"tuning_steps": 5}},
    "checks.l0_factor": {"dictionaries": None, "import": IMPORT},
    "checks.low_variance_explained": {"dictionaries": None, "import": IMPORT},
    "circuits.tolerance": {"circuits": {"rule": "adaptive"}},
    "classifier.circuit.start_layer": {"classifier": {"probe": {"site": "resid_1"}}},
    "clustering.n_projected": {"clustering": {"representation": "gradients"}},
    "comparisons.other.n_projected": {"comparisons": {"other": {"representation": "gradients"}}},
    **{
        f"labels.endpoint.{name}": {"labels": {"endpoint": {"url": "http://a/v1", "model": "m"}}}
        for name in ("url", "model", "key_variable", "timeout", "n_features")
    },
}
OTHER: Mapping[str, Any] = {
    "artifacts": "./elsewhere",
    "explorer": "http://127.0.0.1:4000",
    "model.n_layers": 3,
    "model.device": "auto",
    "corpus.labels_column": "labels",
    "corpus.n_positions": 64,
    "corpus.split": "test",
    "submodules": ["embed", "resid_0"],
    "dictionaries.warmup": 11,
    "dictionaries.k": 16,
    "dictionaries.ks": {"attn": 16},
    "clustering.submodules": ["resid_1"],
    "comparisons.other.submodules": ["resid_1"],
    "clustering.k": 5,
    "comparisons.other.k": 5,
    "clustering.max_clusters": 2,
    "circuits.max_length": 32,
    "circuits.tolerance": 0.1,
    "checks.low_variance_explained": 0.6,
    "evaluations.error_nodes": ["keep"],
    "circuits.stability": 0.7,
    "evaluations.max_overlap": 0.5,
    "evaluations.start_layer": 1,
    "evaluations.n_examined": 3,
    "evaluations.approximations.sizes": [3, 9],
    "evaluations.approximations.min_correlation": 0.4,
    "evaluations.variants": ["neurons"],
    "evaluations.edge_shares": [0.5],
    "evaluations.min_edge_correlation": 0.5,
    "evaluations.other_start_layers": [1],
    "tasks.start_layer": 1,
    "classifier.data.labels": [0, 2],
    "classifier.data.attributes": [0, 2],
    "classifier.probe.site": "resid_1",
    "classifier.judgements.words": [["him"], ["her"]],
    "classifier.shift.keywords": ["hospital"],
    "classifier.shift.n_draws": 3,
    "reruns.schedule": "0 4 * * *",
    "labels.annotations": ["./other.jsonl"],
    "labels.endpoint.url": "http://b/v1",
    "import.format": "saelens",
    "import.repositories": {"resid": "./others"},
    "import.path": "other_{submodule}.safetensors",
    "import.paths": {"resid": "resid_{layer}.safetensors"},
    "import.options": {"normalize_decoder": False},
}
ALONE = {
    "dictionaries.source": "says which of the two sections it is",
    "import.source": "says which of the two sections it is",
}


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, annotation and default of everything that a file may say."""
    inside = {
        "dictionaries": TrainSettings,
        "comparisons": Settings.model_fields["clustering"].annotation.__mro__[1],  # type: ignore
    }
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        kinds = [field.annotation, *get_args(field.annotation)]
        nested = next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), None)
        if path == "dictionaries":
            yield from leaves(TrainSettings, "dictionaries.")
            yield from leaves(ImportSettings, "import.")
        elif path == "comparisons":
            yield from leaves(inside["comparisons"], "comparisons.other.")
        elif path == "tasks.pairs":
            yield from leaves(next(k for k in kinds if _is_section(k)), "tasks.pairs.simple.")
        elif nested is not None:
            yield from leaves(nested, f"{path}.")
        else:
            yield path, field.annotation, field.default


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def other_value(path: str, annotation: Any, default: Any) -> Any:
    """Another value that the leaf may have."""
    if path in OTHER:
        return OTHER[path]
    literal = next((a for a in _flat(annotation) if str(get_origin(a)) == "typing.Literal"), None)
    if literal is not None:
        return next(value for value in get_args(literal) if value != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    if default is None or isinstance(default, str):
        return 7 if int in _flat(annotation) else "another"
    return "./another.json"  # a place that has no default


def _flat(annotation: Any) -> list[Any]:
    parts = [annotation]
    for argument in get_args(annotation):
        parts += _flat(argument)
    return parts


def merged(base: dict[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in changed.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if both else value
    return {name: value for name, value in result.items() if value is not None}


def versions(folder: Path, content: dict[str, Any]) -> dict[str, str]:
    path = folder / "reach.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    experiment = read_experiment(path)
    return {stage.name: stage.version(experiment) for stage in stages_of(experiment)}


def reach(folder: Path) -> dict[str, list[str]]:
    """The stages whose recipe changes with each leaf."""
    table = {}
    known: dict[str, dict[str, str]] = {}
    for path, annotation, default in leaves(Settings):
        if path in ALONE:
            continue
        base = merged(BASE, CONTEXT.get(path, {}))
        keys = path.split(".")
        if keys[0] == "import" or "import" in base:
            base = {**{k: v for k, v in base.items() if k != "import"}, "dictionaries": IMPORT}
        if keys[0] == "import":
            keys[0] = "dictionaries"
        change: Any = other_value(path, annotation, default)
        for key in reversed(keys):
            change = {key: change}
        if (text := yaml.safe_dump(base)) not in known:
            known[text] = versions(folder, base)
        before, after = known[text], versions(folder, merged(base, change))
        table[path] = sorted(name for name in before if before[name] != after.get(name))
    return table


def test_every_setting_makes_again_what_the_table_says(tmp_path: Path) -> None:
    written = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    assert reach(tmp_path) == written


def test_the_top_level_submodules_reach_vectors_that_read_them() -> None:
    written = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    assert {"cluster_vectors", "compared_vectors"} <= set(written["submodules"])


def test_contexts_kept_back_reach_dictionaries_that_train_without_a_cache(tmp_path: Path) -> None:
    base = merged(BASE, {"dictionaries": {"activations": "model"}})
    before = versions(tmp_path, base)
    after = versions(tmp_path, merged(base, {"corpus": {"n_held_out": 7}}))
    assert {n for n in before if before[n] != after[n]} == {"saes", "dictionary_set"}


def test_what_a_kind_makes_no_use_of_makes_nothing_again(tmp_path: Path) -> None:
    before = versions(tmp_path, BASE)  # ReLU, with n_features given
    for unused in ({"k": 7}, {"expansion": 9}):
        assert versions(tmp_path, merged(BASE, {"dictionaries": unused})) == before
    topk = merged(BASE, {"dictionaries": {"kind": "topk"}})
    before = versions(tmp_path, topk)
    assert versions(tmp_path, merged(topk, {"dictionaries": {"sparsity": 9.0}})) == before


# -- what a stage reads is what it declares --------------------------------------------------------


def _recording(value: Any, seen: set[str]) -> Any:
    """The same settings value, which notes the names that are read of it."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    kind = type(value)
    names = {f.name for f in fields(value)}

    class Recorded(kind):
        def __getattribute__(self, name: str) -> Any:
            if name in names:
                seen.add(name)
            return super().__getattribute__(name)

    recorded = object.__new__(Recorded)
    for name in names:
        object.__setattr__(recorded, name, getattr(value, name))
    return recorded


def _watched(stage: Any, seen: set[str]) -> Any:
    """The same stage, whose function gets settings that note what is read of them."""
    make: Callable[..., Any] = stage.make
    inner = getattr(make, "func", make)

    @functools.wraps(inner)
    def watched(*given: Any) -> Any:
        *before, last = given
        if isinstance(stage, TableStage):
            return make(*before, _recording(last, seen))
        jobs = [job._replace(settings=_recording(job.settings, seen)) for job in last]
        return make(*before, jobs)

    return replace(stage, make=watched)


@pytest.fixture(scope="module")
def reads(
    tmp_path_factory: pytest.TempPathFactory, undrawn: None
) -> dict[str, tuple[set[str], set[str]]]:
    """Names read by each stage's function, and names that it declares."""
    compared = {"other": {"representation": "gradients", "k": 2, "n_projected": 32}}
    experiment = tiny_experiment(
        tmp_path_factory.mktemp("reads"), comparisons=compared, dictionaries={"tuning_steps": 2}
    )
    found: dict[str, tuple[set[str], set[str]]] = {}
    for stage in stages_of(experiment):
        seen: set[str] = set()
        watched = _watched(stage, seen)
        if isinstance(stage, TableStage):
            watched.run(experiment)
        else:
            assert isinstance(stage, PartitionedStage)
            watched.run(experiment, list(stage.partitions(experiment)))
        every: Any = stage._every(experiment)
        declared = {f.name for s in every if is_dataclass(s) for f in fields(s)}  # type: ignore
        found[stage.name] = (seen, declared)
    return found


USED_ELSEWHERE = {
    # Names a stage declares and its function leaves to others: `inputs` and partitions read them.
    "saes": {"activations", "n_held_out", "expansion"},
    "report": {"limits"},  # of the checks, which look at the experiment
}


def test_a_stage_reads_no_setting_that_it_does_not_declare(
    reads: dict[str, tuple[set[str], set[str]]],
) -> None:
    assert all(seen <= declared for seen, declared in reads.values())


def test_a_stage_declares_no_setting_that_it_never_reads(
    reads: dict[str, tuple[set[str], set[str]]],
) -> None:
    idle = {
        name: declared - seen - USED_ELSEWHERE.get(name, set())
        for name, (seen, declared) in reads.items()
    }
    assert {name: names for name, names in idle.items() if names} == {}


@pytest.mark.usefixtures("undrawn")
def test_no_stage_sees_the_experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While a stage's function runs, only what loads the model looks at the experiment's file."""
    experiment = tiny_experiment(tmp_path)
    looking: list[str] = []
    seen: set[tuple[str, str]] = set()
    plain = Section.__getattribute__

    def watched_get(self: Section, name: str) -> Any:
        if looking and name in type(self).model_fields:
            seen.add((type(self).__name__, name))
        return plain(self, name)

    monkeypatch.setattr(Section, "__getattribute__", watched_get)

    def while_looking(stage: Stage) -> Any:
        make: Callable[..., Any] = stage.make

        @functools.wraps(getattr(make, "func", make))
        def watched(*given: Any) -> Any:
            looking.append(stage.name)
            made = make(*given)
            made = list(made) if isinstance(stage, PartitionedStage) else made
            looking.pop()
            return iter(made) if isinstance(made, list) else made

        return replace(stage, make=watched)  # type: ignore

    for stage in stages_of(experiment):
        if stage.name == "report":
            # It shows what checks say, whose limits are the experiment's: `Reporting.limits`.
            continue
        if stage.name in ("saes", "circuits", "task_circuits"):
            # These write while they go on; their settings values are watched above.
            stage.run(experiment, list(stage.partitions(experiment)))  # type: ignore
            continue
        watched = while_looking(stage)
        if isinstance(stage, TableStage):
            watched.run(experiment)
        else:
            watched.run(experiment, list(stage.partitions(experiment)))
    loading = {"source", "revision", "tokenizer", "dtype", "device", "attn_input", "n_layers"}
    assert seen <= {("ModelSettings", name) for name in loading}
    assert seen  # the watch works


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(yaml.safe_dump(reach(Path(folder)), sort_keys=False, width=100))
