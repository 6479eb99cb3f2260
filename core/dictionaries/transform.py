"""Exact changes of a dictionary's units and scaling."""

from __future__ import annotations

from dataclasses import replace

import torch

from core.dictionaries.dictionary import Activation, Dictionary, Gated, JumpReLU, TopK


def scaled(dictionary: Dictionary, factor: float) -> Dictionary:
    """The dictionary for inputs `factor` times as large as those it was made for.

    Its features and reconstructions are `factor` times as large, too. Every activation here is
    homogeneous of degree one in the pre-activation and its own biases, so scaling all biases is
    exact and no row changes.
    """
    activation: Activation = dictionary.activation
    if isinstance(activation, JumpReLU):
        activation = JumpReLU(activation.threshold * factor)
    elif isinstance(activation, Gated):
        activation = replace(
            activation,
            gate_bias=activation.gate_bias * factor,
            magnitude_bias=activation.magnitude_bias * factor,
        )
    return replace(
        dictionary,
        encoder_bias=dictionary.encoder_bias * factor,
        bias=dictionary.bias * factor,
        input_bias=dictionary.input_bias * factor,
        activation=activation,
    )


def with_unit_decoder(dictionary: Dictionary, *, keep_choice: bool = False) -> Dictionary:
    """The same reconstructions from decoder rows of unit norm; features grow by the old norms.

    Args:
        dictionary: with any activation.
        keep_choice: scale TopK's pre-activations although that changes which are largest: for
            files that choose by the scaled pre-activations.

    Raises:
        ValueError: a TopK dictionary without `keep_choice`: scaling would change its choice.
    """
    norm = dictionary.decoder.norm(dim=1)
    norm = torch.where(norm > 0, norm, torch.ones_like(norm))
    activation: Activation = dictionary.activation
    if isinstance(activation, TopK) and not keep_choice:
        raise ValueError("scaling the features of a TopK dictionary would change which are kept.")
    if isinstance(activation, JumpReLU):
        activation = JumpReLU(activation.threshold * norm)
    elif isinstance(activation, Gated):
        activation = replace(
            activation,
            gate_bias=activation.gate_bias * norm,
            magnitude_bias=activation.magnitude_bias * norm,
        )
    return replace(
        dictionary,
        encoder=dictionary.encoder * norm[:, None],
        encoder_bias=dictionary.encoder_bias * norm,
        decoder=dictionary.decoder / norm[:, None],
        activation=activation,
    )
