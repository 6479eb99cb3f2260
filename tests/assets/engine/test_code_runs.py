"""What a stage runs while it works is what its digest covers: watched, not argued."""

from __future__ import annotations

import ast
import functools
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import core.effects  # noqa: F401 - default arguments are made when it is imported, not watched
from assets.engine.code import ROOT, Name, installed
from assets.engine.loading import CODE
from assets.engine.stage import Made, PartitionedStage, TableStage, code_of
from pipelines.stages import stages_of
from tests.tiny_experiment import tiny_experiment

COMPARED = {
    "gradients": {"representation": "gradients", "k": 2, "n_projected": 32},
    "linear": {"representation": "linear_effects", "algorithm": "spectral", "k": [2, 3]},
    "summed": {"representation": "feature_effects", "reduction": "sum", "k": 2},
    "dense": {"representation": "activations", "k": 2},
}
POLICIES = ["circuit", "drop", "drop_but_resid", "remove", "keep"]
WAYS: dict[str, dict[str, Any]] = {
    "relu": {"comparisons": COMPARED, "evaluations": {"error_nodes": POLICIES}},
    "topk": {
        "dictionaries": {"kind": "topk", "k": 4, "activations": "model"},
        "circuits": {"estimator": "exact"},
        "evaluations": {"ablation": "mean"},
    },
}


@cache
def _places(file: str) -> list[tuple[int, int, str]]:
    """First and last line of every top-level definition of a file."""
    return [
        (min(n.lineno, *(d.lineno for d in n.decorator_list), n.lineno), n.end_lineno or 0, n.name)
        for n in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(n, ast.FunctionDef | ast.ClassDef)
    ]


def _definition(file: str, line: int) -> Name | None:
    module = ".".join(Path(file).relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return next(((module, n) for first, last, n in _places(file) if first <= line <= last), None)


class Watch:
    """Notes the project's functions that run while it is on."""

    def __init__(self) -> None:
        self._codes: set[CodeType] = set()

    def _note(self, frame: FrameType, _event: str, _argument: Any) -> None:
        self._codes.add(frame.f_code)

    @property
    def seen(self) -> set[Name]:
        names: set[Name] = set()
        for code in self._codes:
            inside = code.co_filename.startswith((f"{ROOT}/core/", f"{ROOT}/assets/"))
            # The body of a class runs once, when its module is imported.
            body = "__qualname__" in code.co_names[:3] and "__module__" in code.co_names[:3]
            if inside and code.co_filename.endswith(".py") and not body:
                name = _definition(code.co_filename, code.co_firstlineno)
                if name is not None and not code.co_name.startswith("__init_subclass__"):
                    names.add(name)
        return names

    def call(self, function: Callable[..., Any], *given: Any) -> Any:
        # A tracer that returns nothing is told of calls alone, which a profiler is not.
        sys.settrace(self._note)
        try:
            return function(*given)
        finally:
            sys.settrace(None)

    def each(self, items: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(items)
        done = object()
        while (item := self.call(next, iterator, done)) is not done:
            yield item


def _watched(stage: Any, watch: Watch) -> Any:
    def of(made: Made) -> Made:
        table = watch.each(made.table) if isinstance(made.table, Iterator) else made.table
        return replace(made, table=table)

    @functools.wraps(getattr(stage.make, "func", stage.make))
    def watched(*given: Any) -> Any:
        made = watch.call(stage.make, *given)
        if isinstance(stage, TableStage):
            return of(made)
        return ((key, of(one)) for key, one in watch.each(made))

    return replace(stage, make=watched)


MACHINERY = ("assets.engine", "assets.settings", "assets.tables.schemas", "core.atomic")
# Dictionaries are held against the hashes in dictionary_set wherever they are loaded.
LOADING = {
    ("assets.tables.places", "sae"),
    ("core.dictionaries.files", "fingerprint"),
    ("core.dictionaries.files", "_description"),
}


@pytest.fixture
def collecting_little() -> Iterator[None]:
    """What there is before is not looked through at every collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("collecting_little")
@pytest.mark.parametrize("way", WAYS)
def test_whatever_a_stage_runs_is_in_its_digest(tmp_path: Path, way: str) -> None:
    experiment = tiny_experiment(tmp_path, **WAYS[way])
    missing: dict[str, set[Name]] = {}
    for stage in stages_of(experiment):
        if stage.name == "report" and way != "relu":
            continue  # charts of the same kinds, slow to watch
        gc.collect()  # else what stages before left unfinished is closed, and seen, here
        watch, every = Watch(), list[Any](stage._every(experiment))
        watched = _watched(stage, watch)
        if isinstance(stage, PartitionedStage):
            watched.run(experiment, list(stage.partitions(experiment)))
        else:
            watched.run(experiment)
        needs = [CODE[need] for settings in every for need in stage.needs(settings)]
        covered = installed().reached([*code_of(stage.make)[0], *needs])
        ran = {name for name in watch.seen if not name[0].startswith(MACHINERY)}
        assert ran, stage.name
        missing[stage.name] = ran - covered - LOADING
    assert {name: which for name, which in missing.items() if which} == {}
