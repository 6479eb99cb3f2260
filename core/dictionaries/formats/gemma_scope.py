"""Gemma Scope: ``params.npz``; Gemma Scope 2: ``params.safetensors`` with lower-case names.

W_enc is (d, feature), W_dec (feature, d); JumpReLU, and nothing is subtracted from the input.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from core.dictionaries import Dictionary, JumpReLU
from core.dictionaries.formats.places import named_file, need, only_tensors, read_tensors
from core.errors import FormatError

_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def read(place: Path, *, scaled_embedding: bool = False) -> Dictionary:
    """A dictionary of Gemma Scope.

    Args:
        place: the file, or the folder with ``params.npz`` or ``params.safetensors``.
        scaled_embedding: the dictionary explains raw token embeddings, but stands where the model
            has already multiplied them by sqrt(d), as Gemma does. `load_from` passes it on for the
            submodule ``embed`` only, or where none is named.

    Raises:
        FormatError: incomplete, a transcoder, or with pickled objects.
    """
    file = named_file(place, ("params.npz", "params.safetensors"))
    tensors = only_tensors(read_tensors(file), file)
    if "affine_skip_connection" in tensors:
        raise FormatError(f"'{file}' is a transcoder with a skip connection, no dictionary.")
    lower = "w_enc" in tensors
    names = tuple(name.lower() for name in _NAMES) if lower else _NAMES
    encoder, encoder_bias, decoder, bias, threshold = need(tensors, names, file)
    if encoder.shape[0] != decoder.shape[1]:
        raise FormatError(
            f"'{file}' reads vectors of width {encoder.shape[0]} but writes {decoder.shape[1]}: "
            "a transcoder, no dictionary."
        )
    dictionary = Dictionary(
        encoder.t(), encoder_bias, decoder, bias, torch.zeros_like(bias), JumpReLU(threshold)
    )
    if not scaled_embedding:
        return dictionary
    root = dictionary.d**0.5
    return replace(
        dictionary,
        encoder=dictionary.encoder / root,
        decoder=dictionary.decoder * root,
        bias=dictionary.bias * root,
    )
