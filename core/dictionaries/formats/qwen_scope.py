"""Qwen-Scope: one ``layer3.sae.pt`` for each layer's residual stream, TopK.

W_enc (feature, d), W_dec (d, feature), b_enc, b_dec, and nothing else: how many features of a token
are active stands in the repository's name alone, ``SAE-Res-Qwen3-1.7B-Base-W32K-L0_50``. Nothing is
subtracted from the input.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from core.dictionaries import Dictionary, TopK
from core.dictionaries.formats.claims import Claims, Published
from core.dictionaries.formats.places import need, only_tensors, read_tensors
from core.errors import FormatError

_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
_REPOSITORY = re.compile(r"(?:SAE-Res-([\w.-]+?)-W(\d+)K-)?L0_(\d+)")


def read(place: Path, *, k: int | None = None) -> Published:
    """A dictionary of Qwen-Scope.

    Args:
        place: the file.
        k: active features for each token, where no folder above is called by it (``L0_50``).

    Raises:
        FormatError: incomplete, k is not known, or the folder's name says another.
    """
    if not place.is_file():
        raise FormatError(f"'{place}' is no file: give path as layer{{layer}}.sae.pt.")
    tensors = only_tensors(read_tensors(place), place)
    encoder, encoder_bias, decoder, bias = need(
        tensors, ("W_enc", "b_enc", "W_dec", "b_dec"), place
    )
    named = _REPOSITORY.search(str(place.absolute()))
    said = int(named[3]) if named else None
    if k is None and said is None:
        raise FormatError(
            f"nothing says how many features of '{place}' are active: give the option k, the "
            "number after L0_ in the repository's name."
        )
    layer = re.match(r"layer_?(\d+)", place.name)
    claims = Claims(
        model=named[1] if named else None,
        hook=f"layers.{layer[1]}" if layer else None,
        n_features=1024 * int(named[2]) if named and named[2] else None,
        k=said,
        kind="topk",
    )
    activation = TopK(int(k or said or 0))
    return Published(
        Dictionary(encoder, encoder_bias, decoder.t(), bias, torch.zeros_like(bias), activation),
        claims,
    )
