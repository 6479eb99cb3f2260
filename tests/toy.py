"""A model and dictionaries small enough to work out on paper, with the answers.

The stream has six coordinates. A noun's number is at NUMBER, +1 or -1; an adverb's tense at TENSE,
which nothing reads. Attention is uniform and moves twice the mean NUMBER so far to MOVED; after
"dog now" that is 2 (1 + 0) / 2 = 1. An MLP turns it into VERDICT = 3 relu(MOVED) - relu(-MOVED).
Logits are VERDICT for "is" and -VERDICT - MOVED for "are".

    example 1, dog now -> dogs then:  m = are - is = -2 VERDICT - MOVED
        clean MOVED  1, VERDICT  3, m = -7;   patch MOVED -1, VERDICT -1, m = 3
    example 2, dogs then -> dog now:  m = is - are =  2 VERDICT + MOVED
        clean MOVED -1, VERDICT -1, m = -3;   patch MOVED  1, VERDICT  3, m = 7

So m rises by 10 in both, dm/dMOVED is -7 on the singular side of example 1 and -3 on the plural
side, 3 and 7 in example 2: on average -5 and 5.

Layer norms do nothing: with eps = 2^80 and weight 2^40 they only subtract the mean, exactly, and
every reader subtracts coordinate ZERO, which is never written, so the mean drops out.

A dictionary has two features for each coordinate: 2c is relu(x_c), 2c + 1 is relu(-x_c). That of
`resid_0` in the parallel toy needs 1/4 to be active, so that its error holds 1/4 of every value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from core.dictionaries import Dictionary, ReLU
from core.inputs import Inputs
from core.models import LanguageModel
from core.types import ERROR

NUMBER, TENSE, MOVED, VERDICT, _SPARE, ZERO = range(6)
DOG, DOGS, NOW, THEN, IS, ARE = range(6)
D = 6

Weights = dict[tuple[tuple[str, int], tuple[str, int] | None], float]


def _axis(coordinate: int) -> Tensor:
    """Reads a coordinate from a normed stream."""
    axis = torch.zeros(D, dtype=torch.float64)
    axis[coordinate], axis[ZERO] = 1, -1
    return axis


def toy_model(*, parallel: bool) -> LanguageModel:
    """The model: attention in layer 0, the MLP in layer 1, or after it in layer 0 if sequential."""
    config = GPTNeoXConfig(
        vocab_size=6,
        hidden_size=D,
        num_hidden_layers=2 if parallel else 1,
        num_attention_heads=1,
        intermediate_size=2,
        hidden_act="relu",
        layer_norm_eps=2.0**80,
        max_position_embeddings=4,
        use_parallel_residual=parallel,
        bos_token_id=0,
        eos_token_id=0,
    )
    hf: Any = GPTNeoXForCausalLM(config).double()
    with torch.no_grad():
        for path, weight in hf.named_parameters():
            norm = "norm" in path and path.endswith("weight")
            weight.fill_(2.0**40 if norm else 0.0)
        words = hf.get_input_embeddings().weight
        words[DOG, NUMBER], words[DOGS, NUMBER] = 1, -1
        words[NOW, TENSE], words[THEN, TENSE] = 1, -1
        attention = hf.gpt_neox.layers[0].attention
        attention.query_key_value.weight[2 * D] = _axis(NUMBER)  # the first value's row
        attention.dense.weight[MOVED, 0] = 2
        mlp = hf.gpt_neox.layers[-1].mlp
        mlp.dense_h_to_4h.weight[:] = torch.stack([_axis(MOVED), -_axis(MOVED)])
        mlp.dense_4h_to_h.weight[VERDICT] = torch.tensor([3.0, -1.0], dtype=torch.float64)
        logits = hf.get_output_embeddings().weight
        logits[IS], logits[ARE] = _axis(VERDICT), -_axis(VERDICT) - _axis(MOVED)
    return LanguageModel(hf)


def toy_dictionaries(model: LanguageModel) -> dict[str, Dictionary]:
    """Signed coordinates at every submodule."""
    eye = torch.eye(D, dtype=torch.float64)[:ZERO]
    axes = torch.stack([eye, -eye], 1).flatten(0, 1)
    zero = torch.zeros(D, dtype=torch.float64)

    def signed(threshold: float) -> Dictionary:
        bias = torch.full((len(axes),), -threshold, dtype=torch.float64)
        return Dictionary(axes, bias, axes, zero, zero, ReLU())

    found = {name: signed(0.0) for name in model.submodules}
    if model.parallel:
        found["resid_0"] = signed(0.25)
    return found


def toy_inputs() -> Inputs:
    """Both examples."""
    singular, plural = [DOG, NOW], [DOGS, THEN]
    return Inputs.pairs(
        torch.tensor([singular, plural]),
        torch.tensor([plural, singular]),
        torch.tensor([IS, ARE]),
        torch.tensor([ARE, IS]),
    )


def plus(coordinate: int) -> int:
    """The feature that is active where a coordinate is positive."""
    return 2 * coordinate


def minus(coordinate: int) -> int:
    """The feature that is active where a coordinate is negative."""
    return 2 * coordinate + 1


N, M, V = NUMBER, MOVED, VERDICT
BOTH_N, BOTH_M = [plus(N), minus(N)], [plus(M), minus(M)]
M_CLEAN, M_PATCH = (-7.0, -3.0), (3.0, 7.0)

# A number that goes from 1 to -1 is a + feature that loses 1 and a - feature that gains 1; each
# moves m by 5 on average. In resid_0 either moves by 3/4, and the error by 1/2.
NODES_PARALLEL: dict[tuple[str, int], float] = {
    ("embed", plus(N)): 5,
    ("embed", minus(N)): 5,
    ("attn_0", plus(M)): 5,
    ("attn_0", minus(M)): 5,
    ("resid_0", plus(M)): 3.75,
    ("resid_0", minus(M)): 3.75,
    ("resid_0", ERROR): 2.5,
    # dm/dVERDICT is 2: 3 of the + feature, 1 of the - feature.
    ("mlp_1", plus(V)): 6,
    ("mlp_1", minus(V)): 2,
    # What is left of MOVED beside the MLP counts once.
    ("resid_1", plus(M)): 1,
    ("resid_1", minus(M)): 1,
    ("resid_1", plus(V)): 6,
    ("resid_1", minus(V)): 2,
}

# Only features active at clean have edges into them, + in example 1 and - in example 2, so the mean
# over both is half of what an edge is in its example: multiplier . path . change / 2.
# Upstream, downstream coordinate, and the weight into its + and into its - feature.
_TABLE_PARALLEL = [
    # 5 . 1 . 1 / 2: attention passes the noun's number to the last token as it is.
    ("embed", BOTH_N, "attn_0", M, 2.5, 2.5),
    ("attn_0", BOTH_M, "resid_0", M, 2.5, 2.5),
    # 1 . 1 . 3/4 / 2, and 1/2 for the error: the direct path beside the MLP.
    ("resid_0", BOTH_M, "resid_1", M, 0.375, 0.375),
    ("resid_0", [ERROR], "resid_1", M, 0.25, 0.25),
    # 2 . slope . 3/4 / 2, and 1/2 for the error; the MLP's slope at clean is 3, or 1.
    ("resid_0", BOTH_M, "mlp_1", V, 2.25, 0.75),
    ("resid_0", [ERROR], "mlp_1", V, 1.5, 0.5),
    # 2 . 1 . 3 / 2 and 2 . 1 . 1 / 2.
    ("mlp_1", [plus(V)], "resid_1", V, 3, 3),
    ("mlp_1", [minus(V)], "resid_1", V, 1, 1),
]


def _edges(table: list[tuple[str, list[int], str, int, float, float]], last: str) -> Weights:
    edges: Weights = {}
    for upstream, features, downstream, coordinate, into_plus, into_minus in table:
        for feature in features:
            edges[(upstream, feature), (downstream, plus(coordinate))] = into_plus
            edges[(upstream, feature), (downstream, minus(coordinate))] = into_minus
    # The last stream's nodes reach m with their own effects.
    into_metric = {plus(M): 1, minus(M): 1, plus(V): 6, minus(V): 2}
    return edges | {((last, feature), None): effect for feature, effect in into_metric.items()}


EDGES_PARALLEL = _edges(_TABLE_PARALLEL, "resid_1")

# One layer, in which the MLP reads what attention has just moved.
NODES_SEQUENTIAL: dict[tuple[str, int], float] = {
    ("embed", plus(N)): 5,
    ("embed", minus(N)): 5,
    ("attn_0", plus(M)): 5,
    ("attn_0", minus(M)): 5,
    ("mlp_0", plus(V)): 6,
    ("mlp_0", minus(V)): 2,
    ("resid_0", plus(M)): 1,
    ("resid_0", minus(M)): 1,
    ("resid_0", plus(V)): 6,
    ("resid_0", minus(V)): 2,
}
EDGES_SEQUENTIAL = _edges(
    [
        ("embed", BOTH_N, "attn_0", M, 2.5, 2.5),
        # 1 . 1 . 1 / 2 directly; 2 . 3 . 1 / 2 or 2 . 1 . 1 / 2 into the MLP.
        ("attn_0", BOTH_M, "resid_0", M, 0.5, 0.5),
        ("attn_0", BOTH_M, "mlp_0", V, 3, 1),
        ("mlp_0", [plus(V)], "resid_0", V, 3, 3),
        ("mlp_0", [minus(V)], "resid_0", V, 1, 1),
    ],
    "resid_0",
)
