"""Shapes in annotations are checked in tests, and not needed outside of them."""

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from core.edges import EdgeEffects, node_keys
from core.effects import feature_dots
from core.types import SparseFeatures
from tests.core.tiny import D, random_dictionary


def test_a_dataclass_whose_axes_disagree_is_refused() -> None:
    three, two = torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    zeros = torch.zeros(3)
    assert len(EdgeEffects(three, three, zeros, zeros).weight) == 3
    with pytest.raises(TypeCheckError, match="weight"):
        EdgeEffects(three, three, zeros[:2], zeros)
    with pytest.raises(TypeCheckError, match="feature"):
        SparseFeatures(three, two, torch.zeros(3), (1, 3, 2))


def test_a_call_whose_axes_disagree_is_refused() -> None:
    three, two = torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    with pytest.raises(TypeCheckError, match="node_keys"):
        node_keys(three, two, 4, by_position=True)
    at = SparseFeatures(three, three, torch.zeros(3, dtype=torch.double), (1, 3, 24))
    with pytest.raises(TypeCheckError, match="gradient"):
        feature_dots(random_dictionary(D, 0), at, torch.zeros(3, D, dtype=torch.double))


def test_core_runs_without_jaxtyping() -> None:
    code = "import sys; sys.modules['jaxtyping'] = None; import core.circuit, core.evaluate"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
