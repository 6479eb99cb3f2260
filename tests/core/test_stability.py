"""How nodes stand: planted ones in the toy, and the rule by hand."""

from __future__ import annotations

import pytest
import torch

from core.circuit import find_circuit
from core.inputs import Inputs
from core.stability import count_standings, inclusion, standing, standing_of, standings
from core.types import Circuit, Node
from tests.toy import ARE, DOG, DOGS, IS, NOW, THEN, toy_dictionaries, toy_model


def _planted(n_changed: int, threshold: float, n: int = 16) -> Circuit:
    """The toy's circuit from pairs of which so many change the noun's number, the others nothing.

    Singular and plural nouns take turns, whose effects differ (7 and 3).
    """
    clean = [[DOG, NOW] if i % 2 else [DOGS, NOW] for i in range(n)]
    other = [[DOGS, NOW] if i % 2 else [DOG, NOW] for i in range(n)]
    same = [[noun, THEN] for noun, _ in clean]
    patch = [other[i] if i < n_changed else same[i] for i in range(n)]
    inputs = Inputs.pairs(
        torch.tensor(clean),
        torch.tensor(patch),
        torch.tensor([IS if i % 2 else ARE for i in range(n)]),
        torch.tensor([ARE if i % 2 else IS for i in range(n)]),
    )
    model = toy_model(parallel=True)
    return find_circuit(
        model, toy_dictionaries(model), inputs, node_threshold=threshold, edge_threshold=threshold
    )


def test_a_node_that_one_example_in_sixteen_plants_above_the_threshold_is_noise() -> None:
    once = _planted(1, 0.01)
    # What one example gives has a mean of one standard error.
    weakest = min(once.nodes, key=lambda node: abs(node.effect))
    assert weakest.stderr == pytest.approx(abs(weakest.effect))
    barely = _planted(1, 0.6 * abs(weakest.effect))
    stands = {n[:3]: s for n, s in zip(barely.nodes, standing_of(barely), strict=True)}
    assert stands[weakest[:3]] == "noise"
    assert "core" not in stands.values()


def test_the_same_nodes_are_core_where_every_example_has_them() -> None:
    once, always = _planted(1, 0.05), _planted(16, 0.05)
    core = {n[:3] for n, s in zip(always.nodes, standing_of(always), strict=True) if s == "core"}
    assert {node[:3] for node in once.nodes} <= core


def test_a_node_stands_by_its_margin_over_the_threshold() -> None:
    effects = (0.1, 0.14, 0.16, 0.22, 0.23, -0.23)
    assert [standing(effect, 0.1, 0.1) for effect in effects] == [
        *("noise", "noise", "contingent", "contingent", "core", "core"),
    ]
    assert standing(0.11, 0.0, 0.1) == "core"


@pytest.mark.parametrize("stderr", [1.0, 100.0])
def test_no_error_is_large_enough_to_make_a_node_core(stderr: float) -> None:
    assert standing(0.3, stderr, 0.0) == "noise"


def test_nothing_is_said_of_one_example_or_an_unknown_threshold() -> None:
    assert inclusion(1.0, None, 0.1) is standing(1.0, None, 0.1) is None
    nodes = [Node("embed", 1, None, 1.0, 0.1), Node("embed", 2, None, 1.0)]
    assert standings(nodes, {"node_threshold": 0.1}) == ("core", None)
    assert standings(nodes, {}) == (None, None)


def test_standings_are_counted_where_any_is_known() -> None:
    assert count_standings(["core", "noise", "core", None]) == {
        "core": 2,
        "contingent": 0,
        "noise": 1,
    }
    assert set(count_standings([None, None]).values()) == {None}
    assert set(count_standings([]).values()) == {None}


def test_inclusion_is_the_share_of_normal_draws_above_the_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(400_000, generator=generator, dtype=torch.float64)
    for effect, stderr, threshold in ((0.3, 0.2, 0.1), (-0.3, 0.2, 0.5), (0.0, 1.0, 0.7)):
        share = float(((effect + stderr * draws).abs() > threshold).double().mean())
        assert inclusion(effect, stderr, threshold) == pytest.approx(share, abs=0.003)
    assert [inclusion(-0.2, 0.0, threshold) for threshold in (0.1, 0.2)] == [1, 0]
