"""This project's own file of a dictionary: one safetensors file, equal bytes for equal weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.atomic import replacing
from core.dictionaries.activations import activation_named
from core.dictionaries.dictionary import WEIGHTS, Dictionary
from core.errors import FormatError

_HEADER = "sfc"
_OF_ACTIVATION = "activation."


def _description(dictionary: Dictionary) -> dict[str, Any]:
    activation = dictionary.activation
    return {"kind": activation.name, "numbers": activation.numbers()}


def save_dictionary(
    dictionary: Dictionary, path: Path, metadata: Mapping[str, object] | None = None
) -> None:
    """Write a dictionary, whole or not at all.

    Args:
        dictionary: what to write.
        path: the file, usually ``.safetensors``.
        metadata: plain JSON values, read back by `read_metadata`.
    """
    header = {**_description(dictionary), "metadata": dict(metadata or {})}
    # Copies, for tensors that share memory (a bias also subtracted from the input) are refused.
    tensors = {name: tensor.contiguous().clone() for name, tensor in dictionary.tensors().items()}
    with replacing(path) as file:
        # One entry only: the order of several is not reproducible in the safetensors header.
        save_file(tensors, file, metadata={_HEADER: json.dumps(header, sort_keys=True)})


def load_dictionary(path: Path, *, device: torch.device | str = "cpu") -> Dictionary:
    """The dictionary that `save_dictionary` wrote.

    Raises:
        FormatError: any other file, or a kind that nothing imported so far defines.
    """
    header, tensors = _read(path, device)
    try:
        parameters = {
            name.removeprefix(_OF_ACTIVATION): value
            for name, value in tensors.items()
            if name.startswith(_OF_ACTIVATION)
        }
        activation = activation_named(header["kind"])(**parameters, **header["numbers"])
        weights = {name: tensors[name] for name in WEIGHTS}
    except (KeyError, TypeError) as error:
        raise FormatError(f"'{path}' is incomplete: {error} is missing or unknown.") from error
    return Dictionary(**weights, activation=activation)


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
