"""What must not matter, for every family: padding, batches, order, how attention is computed."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from core.edges import edge_effects
from core.effects import node_effects
from core.estimators import IntegratedGradients
from core.inputs import Inputs
from core.models import LanguageModel
from tests.core.tiny import (
    FAMILY_NAMES,
    VARIANTS,
    make_hf,
    make_model,
    make_pairs,
    random_dictionaries,
    random_tokens,
)

LENGTHS = (5, 3, 4)
Everything = dict[Any, Tensor]


def everything(model: LanguageModel, inputs: Inputs) -> Everything:
    """Effects of all nodes and edges, dense, summed over positions and examples."""
    dictionaries = random_dictionaries(model)
    effects = node_effects(model, dictionaries, inputs, estimator=IntegratedGradients(steps=3))
    found: Everything = {"metric": effects.metric_clean.sum()}
    for name, at in effects.submodules.items():
        found[name] = torch.cat([at.features.to_dense().sum((0, 1)), at.error.sum()[None]])
    for kind, edges in edge_effects(model, dictionaries, effects).items():
        found[kind] = torch.zeros(25, 25, dtype=torch.float64)
        found[kind][edges.downstream, edges.upstream] = edges.weight
    return found


def assert_same(ours: Everything, theirs: Everything, tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        atol = tolerance * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=atol, msg=str(key))


def rows() -> list[tuple[Tensor, Tensor]]:
    """Clean and patch tokens of examples of unequal lengths."""
    return [
        (random_tokens(1, n_pos, 10 + n_pos)[0], random_tokens(1, n_pos, 20 + n_pos)[0])
        for n_pos in LENGTHS
    ]


def answers(chosen: list[int]) -> tuple[Tensor, Tensor]:
    drawn = random_tokens(2, len(LENGTHS), 3)
    return drawn[0, chosen], drawn[1, chosen]


@cache
def one_at_a_time(family: str, attn_input: bool) -> Everything:
    """Each example alone, without padding, added up."""
    model = make_model(family, attn_input)
    total: Everything = {}
    for i, (clean, patch) in enumerate(rows()):
        inputs = Inputs.pairs(clean[None], patch[None], *answers([i]))
        for key, value in everything(model, inputs).items():
            total[key] = total[key] + value if key in total else value
    return total


def padded(n_pos: int, side: str, order: tuple[int, ...] = (0, 1, 2)) -> Inputs:
    clean, patch = torch.zeros(2, len(order), n_pos, dtype=torch.long)
    mask = torch.zeros(len(order), n_pos, dtype=torch.bool)
    for at, i in enumerate(order):
        length = LENGTHS[i]
        where = slice(0, length) if side == "right" else slice(n_pos - length, n_pos)
        clean[at, where], patch[at, where] = rows()[i]
        mask[at, where] = True
    # What is at padding must not matter either.
    clean[~mask], patch[~mask] = 7, 9
    return Inputs.pairs(clean, patch, *answers(list(order)), mask=mask)


ARRANGEMENTS: dict[str, Callable[[], Inputs]] = {
    "padded on the right": lambda: padded(5, "right"),
    "padded more, on the left, in another order": lambda: padded(8, "left", (2, 0, 1)),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize(
    ("family", "attn_input"),
    # Every family in one of its variants, the two most unlike in both.
    [v for i, v in enumerate(VARIANTS) if i % 4 in (0, 3) or v[0] in ("gpt_neox", "gemma2")],
)
def test_effects_and_edges_are_those_of_each_example_alone(
    family: str, attn_input: bool, arrangement: str
) -> None:
    model = make_model(family, attn_input)
    together = everything(model, ARRANGEMENTS[arrangement]())
    assert_same(together, one_at_a_time(family, attn_input), 1e-10)


def test_nothing_is_kept_of_padding() -> None:
    model, inputs = make_model("gpt2"), padded(6, "left")
    effects = node_effects(
        model, random_dictionaries(model), inputs, estimator=IntegratedGradients(steps=2)
    )
    off = ~effects.mask
    for at in effects.submodules.values():
        for features in (at.features, at.clean.features, at.change.features):
            assert bool(effects.mask.flatten()[features.token].all())
        for error in (at.error, at.clean.error, at.change.error):
            assert not error[off].any()


def test_results_are_the_same_to_the_last_bit_when_computed_again() -> None:
    model = make_model("gemma3_text")
    first, second = everything(model, make_pairs()), everything(model, make_pairs())
    assert_same(first, second, 0.0)


# Gemma 2 caps the attention's logits, GPT-J and GPT-Neo come with eager attention alone, and
# Falcon's eager attention adds ALiBi twice (transformers 5.23).
_UNLIKE = ("gemma2", "gptj", "gpt_neo", "falcon_rw")


@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if name not in _UNLIKE])
def test_sdpa_and_eager_attention_agree(family: str) -> None:
    fast = make_model(family)
    slow = LanguageModel(make_hf(family, attention="eager"))
    assert (fast.config._attn_implementation, slow.config._attn_implementation) == ("sdpa", "eager")
    # Eager attention in transformers takes its softmax in float32.
    assert_same(everything(fast, padded(5, "left")), everything(slow, padded(5, "left")), 1e-5)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_layer_that_puts_out_a_tuple_is_recorded_as_one_that_puts_out_a_tensor(
    family: str,
) -> None:
    """As in other versions of transformers: indexing a tensor [0] would pick the first example."""
    inputs = make_pairs()
    plain = make_model(family).record(inputs.clean)
    model = LanguageModel(make_hf(family))

    def unwrapped(_module: Any, args: Any) -> Any:
        return (args[0][0] if isinstance(args[0], tuple) else args[0], *args[1:])

    for layer in model.layers:
        layer.register_forward_hook(
            lambda _module, _args, output: output if isinstance(output, tuple) else (output,)
        )
    for reader in [*model.layers[1:], model.final_norm]:
        reader.register_forward_pre_hook(unwrapped)
    tupled = model.record(inputs.clean)
    for name in model.submodules:
        assert tupled.outputs[name].shape == (3, 5, model.width(name))
        torch.testing.assert_close(tupled.outputs[name], plain.outputs[name], rtol=0, atol=0)
