"""Dictionaries of features: sparse autoencoders of every kind, and the identity."""

from core.dictionaries.activations import Activation, Gated, JumpReLU, Linear, ReLU, TopK
from core.dictionaries.dictionary import Dictionary, check_widths, identity_dictionary

__all__ = [
    "Activation",
    "Dictionary",
    "Gated",
    "JumpReLU",
    "Linear",
    "ReLU",
    "TopK",
    "check_widths",
    "identity_dictionary",
]
