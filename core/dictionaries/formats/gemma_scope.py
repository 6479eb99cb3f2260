"""Gemma Scope: ``params.npz``; Gemma Scope 2: ``params.safetensors`` with lower-case names.

W_enc is (d, feature), W_dec (feature, d); JumpReLU, and nothing is subtracted from the input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.dictionaries import Dictionary, JumpReLU
from core.dictionaries.formats.claims import Claims, Published, refuse_transcoder
from core.dictionaries.formats.places import (
    NUMBER,
    named_file,
    need,
    only_tensors,
    read_json,
    read_tensors,
)

_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def read(place: Path, *, scaled_embedding: bool = False) -> Published:
    """A dictionary of Gemma Scope; the second release says more of itself, in config.json.

    Args:
        place: the file, or the folder with ``params.npz`` or ``params.safetensors``.
        scaled_embedding: the dictionary explains raw token embeddings, but stands where the model
            has already multiplied them by sqrt(d), as Gemma does. `load_from` passes it on for the
            submodule ``embed`` only, or where none is named.

    Raises:
        FormatError: incomplete, a transcoder, or with pickled objects.
    """
    file = named_file(place, ("params.npz", "params.safetensors"))
    config = read_json(file.with_name("config.json"))
    tensors = only_tensors(read_tensors(file), file)
    _refuse_what_is_no_dictionary(config, tensors, file)
    lower = "w_enc" in tensors
    names = tuple(name.lower() for name in _NAMES) if lower else _NAMES
    encoder, encoder_bias, decoder, bias, threshold = need(tensors, names, file)
    if encoder.shape[0] != decoder.shape[1]:
        refuse_transcoder(file, f"width {encoder.shape[0]}", f"width {decoder.shape[1]}")
    dictionary = Dictionary(
        encoder.t(), encoder_bias, decoder, bias, torch.zeros_like(bias), JumpReLU(threshold)
    )
    if scaled_embedding:
        root = dictionary.d**0.5
        dictionary = replace(
            dictionary,
            encoder=dictionary.encoder / root,
            decoder=dictionary.decoder * root,
            bias=dictionary.bias * root,
        )
    return Published(dictionary, _claims(config, file))


def _refuse_what_is_no_dictionary(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path
) -> None:
    reads, writes = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    kind = config.get("type") or "sae"
    skips = config.get("affine_connection") or "affine_skip_connection" in tensors
    if skips or kind != "sae" or (writes or reads) != reads:
        refuse_transcoder(file, reads or "its input", writes or kind)


def _claims(config: Mapping[str, Any], file: Path) -> Claims:
    l0 = config.get("l0")
    if l0 is None and (in_path := re.search(rf"average_l0_({NUMBER})", str(file))):
        l0 = float(in_path[1])
    kind = config.get("architecture")
    return Claims(
        model=config.get("model_name"),
        hook=config.get("hf_hook_point_in"),
        n_features=config.get("width"),
        l0=l0,
        kind="jumprelu" if kind == "jump_relu" else kind,
    )
