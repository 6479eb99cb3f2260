"""Tiny random models of every family, in float64, with random dictionaries and inputs for them.

Weights, biases and norms are all random and large, so that no term is too small to be noticed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from core.dictionaries import Dictionary, Gated, JumpReLU, ReLU, TopK
from core.inputs import Inputs
from core.models import LanguageModel

D, N_VOCAB, N_FEATURES = 12, 40, 24
KINDS = ("relu", "topk", "jumprelu", "gated")

_SIZES: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# Heads grouped in pairs, and wider in all than the stream.
_GROUPED: dict[str, Any] = _SIZES | {"num_key_value_heads": 2, "head_dim": 4}
# One layer sees four tokens, the other all.
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {
    "num_local_experts": 3,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
    "shared_expert_intermediate_size": 10,
}
_ROTARY: dict[str, Any] = _GROUPED | {"hidden_size": 16, "partial_rotary_factor": 0.5}
_FALCON: dict[str, Any] = _SIZES | {"model_type": "falcon", "hidden_size": 16, "bias": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neox": _SIZES | {"model_type": "gpt_neox", "use_parallel_residual": True},
    "gpt_neox_sequential": _SIZES | {"model_type": "gpt_neox", "use_parallel_residual": False},
    "gpt2": _SIZES | {"model_type": "gpt2"},
    "llama": _GROUPED | {"model_type": "llama"},
    "mistral": _GROUPED | {"model_type": "mistral", "sliding_window": 4},
    "qwen2": _GROUPED
    | {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}
    | _SLIDING,
    "qwen3": _GROUPED | {"model_type": "qwen3"},
    "gemma2": _GROUPED
    | {"model_type": "gemma2", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    | _SLIDING,
    "gemma3_text": _GROUPED | {"model_type": "gemma3_text"} | _SLIDING,
    "gemma": _GROUPED | {"model_type": "gemma"},
    "phi3": _GROUPED | {"model_type": "phi3", "sliding_window": 4, "hidden_size": 16},
    "mixtral": _GROUPED | {"model_type": "mixtral"} | _EXPERTS,
    "qwen2_moe": _GROUPED | {"model_type": "qwen2_moe"} | _EXPERTS,
    # The first layer's MLP is one network, the second's a mixture.
    "qwen3_moe": _GROUPED | {"model_type": "qwen3_moe", "decoder_sparse_step": 2} | _EXPERTS,
    "stablelm": _ROTARY | {"model_type": "stablelm", "use_parallel_residual": False},
    "stablelm_parallel": _ROTARY | {"model_type": "stablelm", "use_parallel_residual": True},
    "phi": _ROTARY | {"model_type": "phi"},
    "gptj": _SIZES | {"model_type": "gptj", "rotary_dim": 2, "n_inner": 20},
    "gpt_neo": _SIZES
    | {"model_type": "gpt_neo", "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "falcon_40b": _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_7b": _FALCON | {"parallel_attn": True},
    "falcon_rw": _FALCON | {"parallel_attn": False, "multi_query": False, "alibi": True},
}
FAMILY_NAMES = tuple(CONFIGS)
PARALLEL = ("gpt_neox", "stablelm_parallel", "phi", "gptj", "falcon_40b", "falcon_7b")
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
# Their layer norms are computed in the model's own dtype; RMS norms, and soft-capped attention,
# go through float32 in transformers, whatever the model is in.
_EXACT = ("gpt_neox", "gpt_neox_sequential", "gpt2")
# Every family with dictionaries on what attention adds, and on its projection's input.
VARIANTS = [(name, attn_input) for name in FAMILY_NAMES for attn_input in (False, True)]


def rounding(name: str) -> float:
    """How far two routes to one number may differ when they round differently on the way."""
    return 1e-10 if name in _EXACT else 2e-5


def make_hf(name: str, *, attention: str | None = None, **changes: Any) -> Any:
    """A Hugging Face model with weights drawn afresh from the name's own seed, in float64."""
    settings = dict(CONFIGS[name] | changes)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    if attention is not None:
        config._attn_implementation = attention
    model = AutoModelForCausalLM.from_config(config).double().eval()
    generator = torch.Generator().manual_seed(FAMILY_NAMES.index(name))
    with torch.no_grad():
        for path, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            if weight.ndim > 1:
                weight.copy_(0.35 * noise)
            else:
                # Gemma's norms scale by 1 + weight; everyone else's by the weight.
                scale = path.endswith("weight") and "gemma" not in name
                weight.copy_(0.2 * noise + (1.0 if scale else 0.0))
    return model


@cache
def make_model(name: str, attn_input: bool = False) -> LanguageModel:
    """The `LanguageModel` of `make_hf`; one for all tests."""
    return LanguageModel(make_hf(name), attn_input=attn_input)


def random_dictionary(d: int, seed: int, *, kind: str = "relu", n: int = N_FEATURES) -> Dictionary:
    """A random dictionary with unit decoder rows, unrelated to its encoder, and a real bias."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    decoder = draw(n, d)
    decoder = decoder / decoder.norm(dim=1, keepdim=True)
    bias = draw(d, scale=0.1)
    activation = {
        "relu": ReLU(),
        "topk": TopK(5),
        "jumprelu": JumpReLU(draw(n, scale=0.3).abs()),
        "gated": Gated(draw(n, scale=0.3), draw(n, scale=0.3).exp(), draw(n, scale=0.3)),
    }[kind]
    encoder, encoder_bias = draw(n, d, scale=d**-0.5), draw(n, scale=0.2) - 0.4
    return Dictionary(encoder, encoder_bias, decoder, bias, bias.clone(), activation)


def random_dictionaries(
    model: LanguageModel, *, kind: str = "relu", names: Iterable[str] | None = None
) -> dict[str, Dictionary]:
    """A random dictionary at every submodule of a model, or at `names`."""
    chosen = model.submodules if names is None else list(names)
    return {
        name: random_dictionary(model.width(name), seed, kind=kind)
        for seed, name in enumerate(chosen)
    }


def random_tokens(n_examples: int, n_pos: int, seed: int) -> Tensor:
    """Token ids, none of which is the padding's."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, N_VOCAB, (n_examples, n_pos), generator=generator)


def make_pairs(n_examples: int = 3, n_pos: int = 5) -> Inputs:
    """Contrastive pairs that differ at every position."""
    answers = random_tokens(2, n_examples, 3)
    clean, patch = random_tokens(n_examples, n_pos, 1), random_tokens(n_examples, n_pos, 2)
    return Inputs.pairs(clean, patch, answers[0], answers[1])


def make_single(n_examples: int = 3, n_pos: int = 5) -> Inputs:
    """Single inputs: zero ablation, -log P(answer)."""
    tokens, answers = random_tokens(n_examples, n_pos, 1), random_tokens(1, n_examples, 3)[0]
    return Inputs.single(tokens, answers, metric="log_prob")
