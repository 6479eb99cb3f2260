"""Rules and steps of integrated gradients, and the completeness gap that judges them."""

from typing import Any

import pytest
import torch

from core.effects import node_effects, quadrature
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients
from core.inputs import Inputs
from core.models import LanguageModel
from core.options import Rule
from tests.core.tiny import D, make_hf, make_model, make_pairs, random_dictionaries


def integral(rule: Rule, steps: int, power: int) -> float:
    points, weights = quadrature(rule, steps)
    return sum(w * t**power for t, w in zip(points, weights, strict=True))


@pytest.mark.parametrize("rule", ["left", "midpoint", "gauss"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_weights_sum_to_one_over_points_in_the_unit_interval(rule: Rule, steps: int) -> None:
    points, weights = quadrature(rule, steps)
    assert len(points) == len(weights) == steps
    assert sum(weights) == pytest.approx(1, abs=1e-14)
    assert all(0 <= point < 1 for point in points)
    assert points == sorted(points)


def test_the_left_rules_points_are_the_authors() -> None:
    points, weights = quadrature("left", 10)
    assert points == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert weights == [0.1] * 10


def test_each_rule_is_exact_up_to_its_degree() -> None:
    assert integral("midpoint", 3, 1) == pytest.approx(1 / 2, abs=1e-14)
    assert integral("midpoint", 3, 2) != pytest.approx(1 / 3, abs=1e-3)
    for power in range(6):
        assert integral("gauss", 3, power) == pytest.approx(1 / (power + 1), abs=1e-14)
    assert integral("gauss", 3, 6) != pytest.approx(1 / 7, abs=1e-4)
    assert integral("left", 3, 1) == pytest.approx(1 / 3, abs=1e-14)


def gaps(inputs: Inputs, **options: Any) -> torch.Tensor:
    """Absolute completeness gaps of every submodule and example, by integrated gradients."""
    model = make_model("gpt2")
    estimator = IntegratedGradients(**options)
    effects = node_effects(model, random_dictionaries(model), inputs, estimator=estimator)
    return torch.stack([at.gap for at in effects.submodules.values()]).abs()


def test_left_is_rougher_than_midpoint_is_rougher_than_gauss_on_a_smooth_model() -> None:
    inputs = make_pairs()
    left, midpoint, gauss = (
        float(gaps(inputs, rule=rule).median()) for rule in ("left", "midpoint", "gauss")
    )
    assert left > 10 * midpoint > 100 * gauss


def test_more_steps_leave_a_smaller_gap() -> None:
    few, many = gaps(make_pairs(), steps=5), gaps(make_pairs(), steps=40)
    assert float(few.median()) > 20 * float(many.median())


def test_a_tolerance_doubles_the_steps_of_the_examples_that_exceed_it() -> None:
    inputs, start = make_pairs(4), 2
    plain = gaps(inputs, steps=start)
    tolerance = float(plain.median())
    doubled = gaps(inputs, steps=start, tolerance=tolerance)
    # Those within the tolerance keep their two steps, to the last bit.
    assert torch.equal(doubled[plain <= tolerance], plain[plain <= tolerance])
    assert bool((doubled <= tolerance).all())


def test_doubling_stops_at_the_most_steps_allowed() -> None:
    inputs = make_pairs()
    capped = gaps(inputs, steps=2, tolerance=1e-300, max_steps=9)
    torch.testing.assert_close(capped, gaps(inputs, steps=8), rtol=0, atol=1e-12)


def test_a_linear_model_has_no_gap_with_any_rule() -> None:
    """Only the last norm is left between resid_1 and m; without it m is linear in resid_1."""
    hf = make_hf("gpt_neox", layer_norm_eps=2.0**80)
    with torch.no_grad():
        hf.gpt_neox.final_layer_norm.weight.fill_(2.0**40)
    model = LanguageModel(hf)
    dictionaries = random_dictionaries(model, names=["resid_1"])
    for estimator in (IntegratedGradients(rule="left", steps=1), Attribution()):
        effects = node_effects(model, dictionaries, make_pairs(), estimator=estimator)
        found = effects["resid_1"]
        assert float(found.gap.abs().max()) < 1e-10
        assert float(found.gradient.abs().max()) > 0.1
        assert found.gradient.shape == (3, 5, D)


def test_one_step_of_the_left_rule_is_attribution_patching() -> None:
    model, inputs = make_model("qwen3"), make_pairs()
    dictionaries = random_dictionaries(model)
    one = node_effects(
        model, dictionaries, inputs, estimator=IntegratedGradients(rule="left", steps=1)
    )
    attribution = node_effects(model, dictionaries, inputs, estimator=Attribution())
    for name in dictionaries:
        ours, theirs = one[name], attribution[name]
        torch.testing.assert_close(
            ours.features.to_dense(), theirs.features.to_dense(), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(ours.gap, theirs.gap, rtol=0, atol=1e-5)


def test_exact_effects_have_no_gap_and_no_gradient() -> None:
    model = make_model("gpt2")
    found = node_effects(model, random_dictionaries(model), make_pairs(), estimator=Exact())
    for at in found.submodules.values():
        assert bool(at.gap.isnan().all())
        assert not at.gradient.any()


@pytest.mark.parametrize(
    "estimator", [IntegratedGradients(rule="gauss", steps=3), Attribution(), Exact()]
)
def test_effects_say_what_estimated_them(estimator: Estimator) -> None:
    model = make_model("gpt2")
    dictionaries = random_dictionaries(model, names=["resid_1"])
    effects = node_effects(model, dictionaries, make_pairs(), estimator=estimator)
    assert effects.estimator == estimator
