"""What every test starts from: one thread, one seed, quiet progress bars; a finished experiment."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from inspect import isfunction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from jaxtyping import install_import_hook

from tests.elsewhere import Elsewhere, pretended

if TYPE_CHECKING:
    from assets.settings import Experiment

# Shapes in annotations are checked at every call; before any of these modules is imported.
install_import_hook(["core.types", "core.effects", "core.lines", "core.edges"], "beartype.beartype")


def pytest_configure() -> None:
    # With tensors this small, two threads spend seven times as long waiting for each other.
    torch.set_num_threads(1)


LONG = (
    "test_reruns.py",
    "test_end_to_end.py",
    "test_code_runs.py",
    "test_docs.py",
    "test_reach.py",
)
"""Files that take longest: they go first, so that no worker has one left when the others end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: names.get(item.path.name, len(names)))


_seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
"""For the CPU alone where there is nothing else: this is called four thousand times."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    _seed(0)


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """What tests write need not outlive the machine: Dagster's databases, and our tables."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def loosen(connection: Any, _record: object) -> None:
        if type(connection).__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous=OFF")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _file: None)
        yield
    event.remove(Engine, "connect", loosen)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A copy of what `make` puts into an empty folder, for which one worker works for all."""
    own = factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"once-{name}"
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.with_suffix(".done").exists():
            shared.mkdir()
            make(shared)
            shared.with_suffix(".done").touch()
    return shutil.copytree(shared, factory.mktemp(name) / name)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The tiny experiment with everything made; not to be changed."""
    from pipelines.experiment import read_experiment
    from tests.tiny_experiment import brought_up_to_date, tiny_experiment

    def make(folder: Path) -> None:
        brought_up_to_date(tiny_experiment(folder), "labels")

    return read_experiment(made_once(tmp_path_factory, "finished", make) / "tiny.yaml")


@pytest.fixture
def copied(finished: Experiment, tmp_path: Path) -> Experiment:
    """The same in another folder, to change."""
    from pipelines.experiment import read_experiment

    shutil.copytree(finished.path.parent, tmp_path / "copied")
    return read_experiment(tmp_path / "copied" / finished.path.name)


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Charts are empty, for tests of what runs when: they are half of a tiny experiment's time."""
    from assets import plots
    from assets.engine.code import hold_code
    from assets.report import charts

    hold_code()  # so that every module that draws is there
    empty: dict[Any, Any] = {
        made: b"" if made.__annotations__["return"] == "bytes" else "<svg></svg>"
        for module in (plots, charts)
        for name, made in vars(module).items()
        if isfunction(made) and not name.startswith("_") and made.__module__ == module.__name__
        if made.__annotations__["return"] in ("bytes", "str")
    }
    ours = [module for name, module in sys.modules.items() if name.startswith("assets.")]
    with pytest.MonkeyPatch.context() as patch:
        for module in ours:
            for name, value in list(vars(module).items()):
                if isfunction(value) and value in empty:
                    patch.setattr(module, name, lambda *_, drawn=empty[value], **__: drawn)
        yield


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=pytest.mark.gpu)])
def elsewhere(request: pytest.FixtureRequest) -> Elsewhere:
    """A device that is not the CPU: one that only pretends to be there, and a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return pretended() if request.param == "pretended" else nullcontext(torch.device("cuda"))
