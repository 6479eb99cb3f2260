"""Exact changes of a dictionary's units and scaling."""

from __future__ import annotations

from dataclasses import replace

import torch

from core.dictionaries.dictionary import Dictionary


def scaled(dictionary: Dictionary, factor: float) -> Dictionary:
    """The dictionary for inputs `factor` times as large as those it was made for.

    Its features and reconstructions are `factor` times as large, too. Every activation is
    homogeneous, so scaling all biases is exact and no row changes.
    """
    return replace(
        dictionary,
        encoder_bias=dictionary.encoder_bias * factor,
        bias=dictionary.bias * factor,
        input_bias=dictionary.input_bias * factor,
        activation=dictionary.activation.scaled(factor),
    )


def with_unit_decoder(dictionary: Dictionary, *, keep_choice: bool = False) -> Dictionary:
    """The same reconstructions from decoder rows of unit norm; features grow by the old norms.

    Args:
        dictionary: with any activation.
        keep_choice: scale pre-activations although the activation chooses among them (TopK), which
            scaling changes: for files that choose by the scaled pre-activations.

    Raises:
        ValueError: an activation that chooses among features, without `keep_choice`.
    """
    if not (dictionary.activation.elementwise or keep_choice):
        raise ValueError(
            f"scaling the features of a {dictionary.activation.name} dictionary would change which "
            "are kept."
        )
    norm = dictionary.decoder.norm(dim=1)
    norm = torch.where(norm > 0, norm, torch.ones_like(norm))
    return replace(
        dictionary,
        encoder=dictionary.encoder * norm[:, None],
        encoder_bias=dictionary.encoder_bias * norm,
        decoder=dictionary.decoder / norm[:, None],
        activation=dictionary.activation.scaled(norm),
    )
