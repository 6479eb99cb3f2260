"""This project's own file of a dictionary: one safetensors file, equal bytes for equal weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.atomic import replacing
from core.dictionaries.dictionary import (
    Activation,
    Dictionary,
    Gated,
    JumpReLU,
    Linear,
    ReLU,
    TopK,
)
from core.errors import FormatError

_HEADER = "sfc"
_ACTIVATIONS: Mapping[str, type] = {
    "relu": ReLU,
    "linear": Linear,
    "jumprelu": JumpReLU,
    "topk": TopK,
    "gated": Gated,
}


def kind_name(activation: Activation) -> str:
    """The name of an activation in files: relu, linear, jumprelu, topk, gated."""
    for name, kind in _ACTIVATIONS.items():
        if type(activation) is kind:
            return name
    raise FormatError(
        f"a dictionary with the activation {type(activation).__name__} cannot be saved: only "
        f"{', '.join(_ACTIVATIONS)} can."
    )


def _numbers(activation: Activation) -> dict[str, Any]:
    """What an activation holds besides tensors."""
    return {k: v for k, v in vars(activation).items() if not isinstance(v, Tensor)}


def _description(dictionary: Dictionary) -> dict[str, Any]:
    activation = dictionary.activation
    return {"kind": kind_name(activation), "numbers": _numbers(activation)}


def save_dictionary(
    dictionary: Dictionary, path: Path, metadata: Mapping[str, object] | None = None
) -> None:
    """Write a dictionary, whole or not at all.

    Args:
        dictionary: what to write.
        path: the file, usually ``.safetensors``.
        metadata: plain JSON values, read back by `read_metadata`.

    Raises:
        FormatError: an activation that has no name in the file.
    """
    header = {**_description(dictionary), "metadata": dict(metadata or {})}
    # Copies, for tensors that share memory (a bias also subtracted from the input) are refused.
    tensors = {name: tensor.contiguous().clone() for name, tensor in dictionary.tensors().items()}
    with replacing(path) as file:
        # One entry only: the order of several is not reproducible in the safetensors header.
        save_file(tensors, file, metadata={_HEADER: json.dumps(header, sort_keys=True)})


def load_dictionary(path: Path, *, device: torch.device | str = "cpu") -> Dictionary:
    """The dictionary that `save_dictionary` wrote; raises `FormatError` for any other file."""
    header, tensors = _read(path, device)
    try:
        inner = {k.split(".")[1]: v for k, v in tensors.items() if k.startswith("activation.")}
        activation = _ACTIVATIONS[header["kind"]](**inner, **header["numbers"])
        own = {f.name: tensors[f.name] for f in fields(Dictionary) if f.name != "activation"}
    except (KeyError, TypeError) as error:
        raise FormatError(f"'{path}' is incomplete: {error} is missing or unknown.") from error
    return Dictionary(**own, activation=activation)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata given to `save_dictionary`."""
    header, _ = _read(path, None)
    return header["metadata"]


def _read(path: Path, device: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FormatError(f"dictionary '{path}' does not exist.")
    try:
        with safe_open(path, "pt", device=str(device or "cpu")) as file:
            text = (file.metadata() or {}).get(_HEADER)
            if text is None:
                raise FormatError(
                    f"'{path}' was not written by save_dictionary: import files of other projects "
                    "with core.dictionaries.formats."
                )
            names = [] if device is None else list(file.keys())
            return json.loads(text), {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise FormatError(f"'{path}' is not a safetensors file: {error}.") from error


def fingerprint(dictionary: Dictionary) -> str:
    """Hex digest of a dictionary's kind and every bit of its weights."""
    digest = hashlib.sha256(json.dumps(_description(dictionary), sort_keys=True).encode())
    for name, tensor in sorted(dictionary.tensors().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        bits = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(bits.numpy().tobytes())
    return digest.hexdigest()
