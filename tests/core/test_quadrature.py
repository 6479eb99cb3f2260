"""Rules and steps of integrated gradients, and the completeness gap that judges them."""

from typing import Any

import pytest
import torch

import core.lines
from core.budget import Passes
from core.circuit import attribute
from core.effects import node_effects
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients
from core.inputs import Inputs
from core.lines import Line, mean_gradients, quadrature
from core.models import LanguageModel
from core.models.replay import Resumed
from core.options import Rule
from tests.core.tiny import D, make_hf, make_model, make_pairs, make_single, random_dictionaries


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


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """(example, place) of every point that is evaluated from now on."""
    seen: list[tuple[int, float]] = []
    plain = core.lines._metrics

    def counting(runs: Any, lines: Any, places: Any, **options: Any) -> Any:
        for _name, example, place in places:
            seen.extend(zip(example.tolist(), place.tolist(), strict=True))
        return plain(runs, lines, places, **options)

    monkeypatch.setattr("core.lines._metrics", counting)
    return seen


@pytest.mark.parametrize("tolerance", [0.3, 0.01, 1e-4])
def test_a_tolerance_is_met_by_every_example_of_every_submodule(tolerance: float) -> None:
    model, inputs = make_model("gpt2"), make_pairs(4)
    dictionaries = random_dictionaries(model)
    estimator = IntegratedGradients(2, "adaptive", tolerance, max_steps=4096)
    effects = node_effects(model, dictionaries, inputs, estimator=estimator)
    for at in effects.submodules.values():
        assert bool((at.gap.abs() <= tolerance * at.total.abs().clamp(min=1)).all())
    assert (
        attribute(model, random_dictionaries(model), inputs, estimator=estimator).effects.unmet == 0
    )


def test_adaptive_effects_are_those_of_many_fixed_steps() -> None:
    model, inputs = make_model("gpt2"), make_single(3)
    dictionaries = random_dictionaries(model)
    fine = IntegratedGradients(2, "adaptive", 1e-6, max_steps=1 << 14)
    adaptive = node_effects(model, dictionaries, inputs, estimator=fine)
    fixed = node_effects(model, dictionaries, inputs, estimator=IntegratedGradients(400))
    for name in dictionaries:
        ours, theirs = adaptive[name].features.to_dense(), fixed[name].features.to_dense()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_points_are_added_where_the_metric_bends_and_none_is_wasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """x passes a cliff of width .002 at .3, on a line from 0 to 1 in one dimension."""

    class Cliff(Resumed):
        def __init__(self) -> None:
            pass

        def select(self, rows: torch.Tensor) -> "Cliff":
            return self

        def metric_with(self, name: str, value: torch.Tensor) -> torch.Tensor:
            return 10 * torch.sigmoid((value.flatten() - 0.3) / 0.002)

    seen = counted(monkeypatch)
    zero = torch.zeros(1, 1, 1, dtype=torch.double)
    estimator = IntegratedGradients(4, "adaptive", 0.01)
    passes = Passes(100, torch.device("cpu"))
    line = Line(zero, zero + 1, zero[0, 0], gradient_clean=zero)
    ((mean, metric),) = mean_gradients(Cliff(), {"x": line}, estimator, passes).values()
    assert float(mean) == pytest.approx(10, abs=0.1)
    assert float(metric) == pytest.approx(10, abs=1e-9)
    assert len(seen) == len(set(seen)) < 40
    assert sum(abs(at - 0.3) < 0.05 for _, at in seen) > len(seen) / 2


def test_an_example_that_meets_the_tolerance_gets_no_more_points(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loose = IntegratedGradients(8, "adaptive", 1e9)
    seen = counted(monkeypatch)
    model = make_model("gpt2")
    dictionaries = random_dictionaries(model, names=["resid_0"])
    effects = node_effects(model, dictionaries, make_pairs(2), estimator=loose)
    # The clean end is known from the one backward pass of all submodules.
    assert sorted(seen) == [(i, k / 8) for i in range(2) for k in range(1, 9)]
    assert float(effects["resid_0"].gradient.abs().max()) > 0


def test_halving_stops_at_the_most_steps_and_says_what_was_not_met() -> None:
    model, inputs = make_model("gpt2"), make_pairs()
    impossible = IntegratedGradients(2, "adaptive", 1e-300, max_steps=9)
    found = attribute(model, random_dictionaries(model), inputs, estimator=impossible).effects
    assert found.unmet == 1
    few = gaps(inputs, steps=2, rule="adaptive", tolerance=1e300)
    assert 0 < sum(found.gaps.values()) < float(few.mean(1).sum()) / 4


def test_a_tolerance_does_not_depend_on_the_memory_for_it() -> None:
    model, inputs = make_model("gpt2"), make_pairs(3)
    dictionaries = random_dictionaries(model)
    estimator = IntegratedGradients(2, "adaptive", 0.01)
    whole, parts = (
        node_effects(model, dictionaries, inputs, estimator=estimator, budget_bytes=budget)
        for budget in (1 << 30, 150_000)
    )
    for name in dictionaries:
        torch.testing.assert_close(whole[name].gradient, parts[name].gradient, rtol=0, atol=1e-10)


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
