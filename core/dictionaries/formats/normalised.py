"""Dictionaries that SAELens trained on normalised activations, turned to read raw ones.

Both normalisations are affine, so the change is exact and features keep their values. SAELens does
the same at the end of training; a checkpoint has the numbers in files beside the weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from core.dictionaries import Dictionary
from core.dictionaries.formats.places import need, read_json, read_tensors
from core.errors import FormatError

SCALER = "activation_scaler.json"
WHITENING = "activation_whitening.safetensors"


def scaling_factor(file: Path, given: float | None) -> float:
    """By how much training multiplied inputs: as `given`, or from the file beside the weights.

    Raises:
        FormatError: neither says, or it is not positive.
    """
    factor: Any = given
    if factor is None:
        factor = read_json(file.with_name(SCALER)).get("scaling_factor")
    if factor is None:
        raise FormatError(
            f"'{file}' was trained on inputs normalised by 'expected_average_only_in', and no "
            f"{SCALER} beside it says by how much: give the option norm_scaling_factor, or fold it "
            "with SAELens (fold_activation_norm_scaling_factor) and save again."
        )
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 0:
        raise FormatError(f"the norm_scaling_factor of '{file}' is {factor!r}: not above zero.")
    return float(factor)


def for_raw_inputs(dictionary: Dictionary, factor: float) -> Dictionary:
    """The same features of x that `dictionary` has of ``factor * x``, decoded to x's scale."""
    return replace(
        dictionary,
        encoder=dictionary.encoder * factor,
        decoder=dictionary.decoder / factor,
        bias=dictionary.bias / factor,
        input_bias=dictionary.input_bias / factor,
    )


def unwhitened(dictionary: Dictionary, file: Path) -> Dictionary:
    """The same features of x that `dictionary` has of ``z = (x - mean) @ matrix``.

    Raises:
        FormatError: the file with mean and matrix is not beside the weights, or incomplete.
    """
    statistics = file.with_name(WHITENING)
    if not statistics.is_file():
        raise FormatError(
            f"'{file}' was trained on whitened inputs, and there is no {WHITENING} beside it: fold "
            "the whitening with SAELens (fold_activation_whitening) and save again."
        )
    mean, matrix, inverse = need(
        read_tensors(statistics), ("mean", "matrix", "inverse_matrix"), statistics
    )
    wide = {key: value.double() for key, value in dictionary.weights().items()}
    raw = {
        "encoder": wide["encoder"] @ matrix.double().t(),
        "decoder": wide["decoder"] @ inverse.double(),
        "bias": wide["bias"] @ inverse.double() + mean.double(),
        "input_bias": wide["input_bias"] @ inverse.double() + mean.double(),
    }
    return replace(dictionary, **{key: value.float() for key, value in raw.items()})
