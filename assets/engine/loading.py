"""Models, tokenizers and dictionaries of an experiment, loaded once in a process.

Stages of one run share them. What is kept is keyed by identity, so that a changed file is loaded
again.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.engine.store import ArtifactStore, digest, hash_place
from assets.settings import Experiment, ExperimentError

if TYPE_CHECKING:
    from core.dictionaries import Dictionary
    from core.models import LanguageModel


def model_identity(experiment: Experiment) -> str:
    """Hash of what the model computes: weights in a folder or id and revision, dtype, site.

    The device is not part of it: results differ there by rounding only.
    """
    model = experiment.settings.model
    source = hash_place(experiment.resolve(model.source))
    return digest([source, model.revision, model.dtype, model.attn_input])


def tokenizer_identity(experiment: Experiment) -> str:
    """Hash of the tokenizer's files in a model folder, or of the hub id and revision."""
    model = experiment.settings.model
    folder = Path(experiment.resolve(model.source))
    files = sorted(folder.glob("*token*")) if folder.is_dir() else []
    return digest([model.revision, [hash_place(str(p)) for p in files] or model.source])


def load_model_of(experiment: Experiment) -> LanguageModel:
    """The experiment's model.

    Raises:
        ExperimentError: it has another number of layers than the experiment says.
        ModelError, InputError: it cannot be loaded, or not on that device.
    """
    settings = experiment.settings.model
    source = experiment.resolve(settings.source)
    where = (settings.revision, settings.dtype, settings.device, settings.attn_input)
    model = _load_model(source, *where, model_identity(experiment))
    if model.n_layers != settings.n_layers:
        raise ExperimentError(
            f"{experiment.path}: model.n_layers is {settings.n_layers}, but {settings.source} has "
            f"{model.n_layers} layers. The number says which submodules there are: correct it."
        )
    return model


@lru_cache(maxsize=1)
def _load_model(
    source: str, revision: str | None, dtype: str, device: str, attn_input: bool, _identity: str
) -> LanguageModel:
    from transformers.utils import logging

    from core.models import load_model

    # One bar a file, in the middle of what stages say.
    logging.disable_progress_bar()
    return load_model(source, revision=revision, dtype=dtype, device=device, attn_input=attn_input)


def load_tokenizer_of(experiment: Experiment) -> Any:
    """The tokenizer that belongs to the experiment's model; raises `ModelError`."""
    settings = experiment.settings.model
    source = experiment.resolve(settings.source)
    return _load_tokenizer(source, settings.revision, tokenizer_identity(experiment))


@lru_cache(maxsize=2)
def _load_tokenizer(source: str, revision: str | None, _identity: str) -> Any:
    from core.models import load_tokenizer

    return load_tokenizer(source, revision=revision)


def load_dictionaries_of(experiment: Experiment, store: ArtifactStore) -> dict[str, Dictionary]:
    """The dictionaries of the experiment's dictionary_set, in causal order, on its device."""
    rows = store.read("dictionary_set", ["submodule", "weights"]).to_pylist()
    weights = tuple((row["submodule"], row["weights"]) for row in rows)
    device = str(load_model_of(experiment).device)
    return dict(_load_dictionaries(store.root, weights, device))


@lru_cache(maxsize=1)
def _load_dictionaries(
    root: Path, weights: tuple[tuple[str, str], ...], device: str
) -> dict[str, Dictionary]:
    from core.dictionaries.files import fingerprint, load_dictionary

    loaded = {}
    for submodule, expected in weights:
        path = ArtifactStore(root).path(f"saes/{submodule}", ".safetensors")
        dictionary = load_dictionary(path)
        if fingerprint(dictionary) != expected:
            raise ExperimentError(
                f"{path} is not the dictionary that dictionary_set was made from: materialize "
                "dictionary_set again."
            )
        loaded[submodule] = dictionary.to(device)
    return loaded
