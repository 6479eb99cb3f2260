"""Language models: one description per family, one class that reads and writes any of them."""

from core.models.families import FAMILIES, Family
from core.models.language_model import LanguageModel, Recording
from core.models.load import load_model, load_tokenizer, pick_device

__all__ = [
    "FAMILIES",
    "Family",
    "LanguageModel",
    "Recording",
    "load_model",
    "load_tokenizer",
    "pick_device",
]
