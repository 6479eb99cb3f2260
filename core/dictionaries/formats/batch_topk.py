"""The BatchTopK repository's own checkpoints: ``sae.pt`` and ``config.json``.

Matrices there are W_enc (d, feature) and W_dec (feature, d). No threshold is kept with a
dictionary of sae_type batchtopk, so it has no rule for single tokens: with the option `per_token`
the k largest of each are kept instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core.dictionaries import Dictionary, ReLU, TopK
from core.dictionaries.formats.claims import Claims, Published
from core.dictionaries.formats.places import (
    named_file,
    need,
    only_tensors,
    read_json,
    read_tensors,
)
from core.errors import FormatError


def read(place: Path, *, per_token: bool = False) -> Published:
    """A dictionary that the BatchTopK repository saved.

    Args:
        place: the file, or the folder with ``sae.pt``.
        per_token: read batchtopk as topk, with its k.

    Raises:
        FormatError: incomplete, of another type or activation, or it normalises each input by
            itself (input_unit_norm).
    """
    file = named_file(place, ("sae.pt",))
    config = read_json(file.with_name("config.json"))
    if not config:
        raise FormatError(f"'{file}' has no config.json beside it.")
    tensors = only_tensors(read_tensors(file), file)
    _refuse(config, file)
    encoder, decoder, bias = need(tensors, ("W_enc", "W_dec", "b_dec"), file)
    encoder_bias = tensors["b_enc"] if "b_enc" in tensors else torch.zeros(encoder.shape[1])
    if config.get("use_encoder_bias") is False:
        encoder_bias = torch.zeros_like(encoder_bias)
    if config.get("tied_weights"):
        decoder = encoder.t()
    claims = Claims(
        model=config.get("model_name"),
        hook=config.get("hook_point"),
        layer=config.get("layer"),
        d=config.get("act_size"),
        n_features=config.get("dict_size"),
        k=None if config["sae_type"] == "vanilla" else config.get("top_k"),
    )
    activation = _activation(config, per_token, file)
    return Published(Dictionary(encoder.t(), encoder_bias, decoder, bias, bias, activation), claims)


def _refuse(config: Mapping[str, Any], file: Path) -> None:
    if config.get("sae_type") not in ("vanilla", "topk", "batchtopk"):
        raise FormatError(
            f"'{file}' is of sae_type '{config.get('sae_type')}', none of vanilla, topk, batchtopk."
        )
    if config.get("input_unit_norm") and config["sae_type"] != "vanilla":
        raise FormatError(
            f"'{file}' normalises each input by itself (input_unit_norm), which is no affine map: "
            "it cannot stand for a submodule here."
        )
    if config.get("activation", "relu") != "relu" and config["sae_type"] != "vanilla":
        raise FormatError(
            f"'{file}' has the activation '{config['activation']}': only relu is read."
        )


def _activation(config: Mapping[str, Any], per_token: bool, file: Path) -> ReLU | TopK:
    if config["sae_type"] == "vanilla":
        return ReLU()
    if not config.get("top_k"):
        raise FormatError(f"the config.json beside '{file}' does not say how large top_k is.")
    if config["sae_type"] == "batchtopk" and not per_token:
        raise FormatError(
            f"'{file}' chooses among all tokens of a batch and has no threshold, so no rule for a "
            "single token: with the option per_token: true the top_k largest of each are kept."
        )
    return TopK(int(config["top_k"]))
