"""Node effects of every family against a second implementation: hooks on the whole model."""

import pytest
import torch
from torch import Tensor

from core.effects import Effects, feature_dots, node_effects
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients
from core.inputs import Inputs
from core.models import LanguageModel
from core.types import NodeEffects
from tests.core.reference import Reference, patch_values, splice
from tests.core.tiny import VARIANTS, make_model, make_pairs, make_single, random_dictionaries

INPUTS = {"pairs": make_pairs, "single": make_single}
# Every family with both kinds of inputs, each at another place of attn_l.
CASES = [(family, at, "single" if at else "pairs") for family, at in VARIANTS]
CASES += [("gpt_neox", False, "single"), ("gemma2", True, "pairs")]


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())


def spliced_gradients(
    model: LanguageModel, inputs: Inputs, dictionaries, *, detach_error: bool = True
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """dm/df and dm/d(error) at every submodule of one run spliced everywhere."""
    leaves = splice(dictionaries, detach_error=detach_error)
    metric = Reference(model).run(inputs, leaves).metric.sum()
    wanted = [leaf.features for leaf in leaves.values()]
    of_features = torch.autograd.grad(metric, wanted, retain_graph=True)
    if not detach_error:
        return {name: (g, None) for name, g in zip(leaves, of_features, strict=True)}
    of_errors = torch.autograd.grad(metric, [leaf.error for leaf in leaves.values()])
    return dict(zip(leaves, zip(of_features, of_errors, strict=True), strict=True))


@pytest.mark.parametrize(("family", "attn_input"), VARIANTS)
def test_a_run_spliced_at_every_submodule_keeps_its_logits(family: str, attn_input: bool) -> None:
    model, inputs = make_model(family, attn_input), make_pairs()
    plain = Reference(model).run(inputs)
    spliced = Reference(model).run(inputs, splice(random_dictionaries(model)))
    assert difference(plain.logits, spliced.logits) < 1e-12


@pytest.mark.parametrize(("family", "attn_input", "kind"), CASES)
def test_attribution_reads_the_spliced_runs_gradients(
    family: str, attn_input: bool, kind: str
) -> None:
    model, inputs = make_model(family, attn_input), INPUTS[kind]()
    dictionaries = random_dictionaries(model)
    effects = node_effects(model, dictionaries, inputs, estimator=Attribution())
    patched = patch_values(Reference(model), inputs, dictionaries)
    plain = Reference(model).run(inputs, {n: lambda x: x.requires_grad_() for n in ("embed",)})
    names = list(dictionaries)
    plain_gradients = torch.autograd.grad(plain.metric.sum(), [plain.values[n] for n in names])
    spliced = spliced_gradients(model, inputs, dictionaries)
    for name, plain_gradient in zip(names, plain_gradients, strict=True):
        found, dictionary = effects[name], dictionaries[name]
        of_features, of_error = spliced[name]
        assert of_error is not None
        assert difference(of_error, plain_gradient) < 1e-10
        assert difference(found.gradient, plain_gradient) < 1e-10
        assert difference(of_features, plain_gradient @ dictionary.decoder.T) < 1e-10
        change = patched[name][0] - found.clean.features.to_dense()
        assert difference(found.change.features.to_dense(), change) < 1e-12
        assert difference(found.features.to_dense(), of_features * change) < 1e-10
        error_change = patched[name][1] - found.clean.error
        assert difference(found.error, (of_error * error_change).sum(-1)) < 1e-10


def total_effect(effects: NodeEffects, name: str) -> Tensor:
    return effects[name].features.total() + effects[name].error.sum(1)


@pytest.mark.parametrize(("family", "attn_input"), VARIANTS)
def test_attribution_effects_sum_to_the_gradient_along_the_whole_change(
    family: str, attn_input: bool
) -> None:
    model, inputs = make_model(family, attn_input), make_pairs()
    effects = node_effects(model, random_dictionaries(model), inputs, estimator=Attribution())
    reference = Reference(model)
    assert inputs.patch is not None
    clean = reference.run(inputs).values
    patch = reference.run_tokens(inputs.patch, inputs, {}).values
    for name, found in effects.submodules.items():
        along = (found.gradient * (patch[name] - clean[name])).sum((1, 2))
        assert difference(total_effect(effects, name), along) < 1e-10


def walked_effects(model: LanguageModel, inputs: Inputs, dictionaries, name: str, alphas):
    """Eq. 4 word for word at one submodule: decode every step, all of the model run each time."""
    reference, dictionary = Reference(model), dictionaries[name]
    x = reference.run(inputs).values[name].detach()
    clean = dictionary.encode(x)
    clean = (clean, x - dictionary.decode(clean))
    patch = patch_values(reference, inputs, {name: dictionary})[name]
    total = [torch.zeros_like(part) for part in clean]
    for alpha in alphas:
        at = [
            ((1 - alpha) * c + alpha * p).requires_grad_()
            for c, p in zip(clean, patch, strict=True)
        ]
        value = dictionary.decode(at[0]) + at[1]
        metric = reference.run(inputs, {name: lambda _x, value=value: value}).metric
        for sum_, gradient in zip(total, torch.autograd.grad(metric.sum(), at), strict=True):
            sum_ += gradient / len(alphas)
    features = total[0] * (patch[0] - clean[0])
    return features, (total[1] * (patch[1] - clean[1])).sum(-1)


@pytest.mark.parametrize(("family", "attn_input", "kind"), CASES)
def test_integrated_gradients_match_decoding_at_every_step(
    family: str, attn_input: bool, kind: str
) -> None:
    model, inputs = make_model(family, attn_input), INPUTS[kind]()
    dictionaries = random_dictionaries(model)
    effects = node_effects(
        model, dictionaries, inputs, estimator=IntegratedGradients(rule="left", steps=2)
    )
    for name in dictionaries:
        features, error = walked_effects(model, inputs, dictionaries, name, (0, 0.5))
        assert difference(effects[name].features.to_dense(), features) < 1e-10
        assert difference(effects[name].error, error) < 1e-10


@pytest.mark.parametrize(("family", "attn_input", "kind"), CASES)
def test_an_exact_effect_is_what_patching_that_node_by_hand_does(
    family: str, attn_input: bool, kind: str
) -> None:
    model, inputs = make_model(family, attn_input), INPUTS[kind]()
    dictionaries = random_dictionaries(model)
    effects = node_effects(model, dictionaries, inputs, estimator=Exact())
    reference = Reference(model)
    clean = reference.run(inputs).metric
    for name, dictionary in dictionaries.items():
        found = effects[name]
        feature = found.features
        # One node of each example: in the first its error, in the others a feature.
        chosen = [int((feature.example == i).nonzero()[3 * i]) for i in range(1, 3)]
        moves = torch.zeros_like(found.change.error)
        moves[0, -2] = found.change.error[0, -2]
        for i in chosen:
            at = int(feature.example[i]), int(feature.pos[i])
            moves[at] = found.change.features.value[i] * dictionary.decoder[feature.feature[i]]
        by_hand = reference.run(inputs, {name: moves.add}).metric - clean
        expected = torch.stack([found.error[0, -2], *feature.value[chosen]])
        assert difference(by_hand, expected) < 1e-10


@pytest.mark.parametrize("estimator", [IntegratedGradients(steps=3), Attribution()])
@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
def test_the_gap_is_what_the_effects_miss_of_patching_the_whole_submodule(
    family: str, estimator: Estimator
) -> None:
    model, inputs = make_model(family, True), make_single()
    dictionaries = random_dictionaries(model)
    effects = node_effects(model, dictionaries, inputs, estimator=estimator)
    reference = Reference(model)
    for name, dictionary in dictionaries.items():
        # Zero ablation of all features and the error leaves the decoder's bias.
        patched = reference.run(inputs, {name: dictionary.bias.expand_as})
        change = patched.metric - effects.metric_clean
        assert difference(effects[name].gap, total_effect(effects, name) - change) < 1e-10


# -- negative controls ---------------------------------------------------------------------------


def test_without_the_stop_on_the_error_features_have_no_gradient_at_all() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs()
    dictionaries = random_dictionaries(model)
    wrong = spliced_gradients(model, inputs, dictionaries, detach_error=False)
    right = spliced_gradients(model, inputs, dictionaries)
    for name in dictionaries:
        assert difference(wrong[name][0], torch.zeros_like(wrong[name][0])) < 1e-12
        assert float(right[name][0].abs().max()) > 1e-3


def max_difference(a: Effects, b: Effects) -> float:
    return max(
        difference(a[name].features.to_dense(), b[name].features.to_dense())
        for name in a.submodules
    )


@pytest.mark.parametrize("kind", INPUTS)
def test_integrated_gradients_are_not_attribution_in_disguise(kind: str) -> None:
    """A metric that read the wrong rows of the stacked steps would make them equal."""
    model, inputs = make_model("gpt_neox"), INPUTS[kind]()
    dictionaries = random_dictionaries(model)
    ig = node_effects(
        model, dictionaries, inputs, estimator=IntegratedGradients(rule="left", steps=4)
    )
    one = node_effects(
        model, dictionaries, inputs, estimator=IntegratedGradients(rule="left", steps=1)
    )
    attribution = node_effects(model, dictionaries, inputs, estimator=Attribution())
    assert max_difference(one, attribution) < 1e-12
    assert max_difference(ig, attribution) > 1e-2
    gradients = [ig[name].gradient - attribution[name].gradient for name in dictionaries]
    # Not in one example only, either: each has its own metric.
    assert all(float(g.abs().amax((1, 2)).min()) > 1e-4 for g in gradients)


def test_feature_dots_are_the_dense_product_at_the_features_asked_for() -> None:
    model, inputs = make_model("gpt2"), make_pairs()
    dictionaries = random_dictionaries(model)
    found = node_effects(model, dictionaries, inputs, estimator=Attribution())["mlp_1"]
    dense = found.gradient @ dictionaries["mlp_1"].decoder.T
    at = found.change.features
    dots = feature_dots(dictionaries["mlp_1"], at, found.gradient)
    assert difference(dots, dense.flatten(0, 1)[at.token, at.feature]) < 1e-13
