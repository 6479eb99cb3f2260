"""Llama Scope: ``checkpoints/final.safetensors`` and ``hyperparams.json``; JumpReLU.

Matrices are ``torch.nn.Linear``'s. Training multiplied inputs by s = sqrt(d) / their mean norm; one
threshold for all features, given before that scaling, is compared with pre-activations after it,
so it is multiplied by s as well (what SAELens does since its issue 482).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from core.dictionaries import Dictionary, JumpReLU
from core.dictionaries.formats.claims import Claims, Published, refuse_transcoder
from core.dictionaries.formats.normalised import for_raw_inputs
from core.dictionaries.formats.places import (
    named_file,
    need,
    only_tensors,
    read_json,
    read_tensors,
)
from core.errors import FormatError

_NAMES = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def read(place: Path) -> Published:
    """A dictionary of Llama Scope.

    Args:
        place: the folder with ``hyperparams.json``, or the file below it.

    Raises:
        FormatError: incomplete, a transcoder, or of another activation.
    """
    file = named_file(place, ("checkpoints/final.safetensors", "final.safetensors"))
    folders = (file.parent.parent, file.parent)
    said = next((s for f in folders if (s := read_json(f / "hyperparams.json"))), {})
    if not said:
        raise FormatError(f"'{file}' has no hyperparams.json in the folder above it.")
    reads, writes = said.get("hook_point_in"), said.get("hook_point_out")
    if (writes or reads) != reads:
        refuse_transcoder(file, reads, writes)
    if said.get("act_fn", "jumprelu") != "jumprelu":
        raise FormatError(f"'{file}' has the activation '{said['act_fn']}': only jumprelu is read.")
    tensors = only_tensors(read_tensors(file), file)
    encoder, encoder_bias, decoder, bias = need(tensors, _NAMES, file)
    factor = encoder.shape[1] ** 0.5 / _number(said, "dataset_average_activation_norm", file)
    threshold = torch.full_like(encoder_bias, _number(said, "jump_relu_threshold", file) * factor)
    subtracts = said.get("apply_decoder_bias_to_pre_encoder", False)
    input_bias = bias if subtracts else torch.zeros_like(bias)
    dictionary = Dictionary(
        encoder, encoder_bias, decoder.t(), bias, input_bias, JumpReLU(threshold)
    )
    claims = Claims(
        hook=reads,
        d=said.get("d_model"),
        n_features=said.get("d_sae"),
        k=said.get("top_k"),
        kind="jumprelu",
    )
    return Published(for_raw_inputs(dictionary, factor), claims)


def _number(said: Mapping[str, Any], name: str, file: Path) -> float:
    """A positive number of hyperparams.json; of two, that of the input."""
    value = said.get(name)
    value = value.get("in") if isinstance(value, Mapping) else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise FormatError(f"the hyperparams.json of '{file}' says {name} is {value!r}.")
    return float(value)
