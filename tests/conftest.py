"""What every test starts from: one thread, one seed, quiet progress bars."""

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes in annotations are checked at every call; before any of these modules is imported.
install_import_hook(["core.types", "core.effects", "core.edges"], "beartype.beartype")


def pytest_configure() -> None:
    # With tensors this small, two threads spend seven times as long waiting for each other.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
