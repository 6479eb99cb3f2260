"""Models, tokenizers and dictionaries of an experiment, loaded once in a process.

Stages of one run share them. What is kept is keyed by identity, so that a changed file is loaded
again. A stage gets a `Loader` that loads what the stage declares, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from assets.engine.code import Name
from assets.engine.recipe import digest, hash_place, plain
from assets.engine.store import ArtifactStore, Undeclared
from assets.settings import Experiment, ExperimentError
from assets.tables.places import DICTIONARY_SET, sae
from core.options import TokenizerReading

if TYPE_CHECKING:
    from core.dictionaries import Dictionary
    from core.models import LanguageModel

Need = Literal["model", "tokenizer", "dictionaries"]
"""What a stage may load; dictionaries are those of the `dictionary_set` that it reads."""

CODE: dict[Need, Name] = {
    "model": ("core.models.load", "load_model"),
    "tokenizer": ("core.models.load", "load_tokenizer"),
    "dictionaries": ("core.dictionaries.files", "load_dictionary"),
}
"""The code behind each, which counts for whoever loads it."""


class Loader:
    """Loads the model, the tokenizer and the dictionaries of one experiment.

    Args:
        experiment: which.
        needs: what may be loaded; everything where None.
    """

    def __init__(self, experiment: Experiment, needs: frozenset[Need] | None = None) -> None:
        self._experiment = experiment
        self._settings = experiment.settings.model
        self._source = experiment.resolve(self._settings.source)
        self._needs = needs

    def only(self, needs: Iterable[Need]) -> Loader:
        """The same, for a stage that declares these."""
        return Loader(self._experiment, frozenset(needs))

    def everything(self) -> None:
        """Load all that is declared, so that processes forked afterwards have it."""
        for need in self._needs or ():
            {"model": self.model, "tokenizer": self.tokenizer, "dictionaries": self.dictionaries}[
                need
            ]()

    def _declared(self, need: Need) -> None:
        if self._needs is not None and need not in self._needs:
            raise Undeclared(
                f"the stage loads the {need} without declaring it: its recipe would miss a change."
            )

    def identity(self, need: Need) -> str | None:
        """Hash of what is loaded; None for dictionaries, which the dictionary_set stands for."""
        if need == "model":
            return self._model_identity()
        return self._tokenizer_identity() if need == "tokenizer" else None

    def as_written(self, need: Need) -> object:
        """What the experiment's file says about it, without a look at any file."""
        if need == "dictionaries":
            return None
        names = _TOKENIZER if need == "tokenizer" else _IDENTITY
        return {name: plain(getattr(self._settings, name)) for name in names}

    def _model_identity(self) -> str:
        """Weights in a folder or id and revision, dtype and site.

        The device is not part of it: results differ there by rounding only.
        """
        rest = [getattr(self._settings, name) for name in _IDENTITY[1:]]
        return digest([hash_place(self._source), *rest])

    def _tokenizer_files(self) -> str:
        """The files of a folder that hold no weights, or the hub id; revision and reading.

        Which of them are the tokenizer's differs from one to another: vocab.json and merges.txt,
        spiece.model, and config.json where only that names its class.
        """
        folder = Path(self._source)
        files = sorted(f for f in folder.iterdir() if f.is_file()) if folder.is_dir() else []
        contents = [(f.name, hash_place(str(f))) for f in files if not _of_weights(f)]
        settings = self._settings
        return digest([settings.revision, settings.tokenizer, contents or settings.source])

    def _tokenizer_identity(self) -> str:
        """Its files, and what it makes of some texts: classes change with their library."""
        from core.models.load import probe_ids

        return digest([self._tokenizer_files(), probe_ids(self._read_tokenizer())])

    def _read_tokenizer(self) -> Any:
        settings = self._settings
        return _load_tokenizer(
            self._source, settings.revision, settings.tokenizer, self._tokenizer_files()
        )

    def model(self) -> LanguageModel:
        """The experiment's model.

        Raises:
            ExperimentError: it has another number of layers than the experiment says.
            ModelError, InputError: it cannot be loaded, or not on that device.
        """
        self._declared("model")
        settings = self._settings
        model = _load_model(
            self._source,
            settings.revision,
            settings.dtype,
            settings.device,
            settings.attn_input,
            self._model_identity(),
        )
        if model.n_layers != settings.n_layers:
            raise ExperimentError(
                f"{self._experiment.path}: model.n_layers is {settings.n_layers}, but "
                f"{settings.source} has {model.n_layers} layers. The number says which submodules "
                "there are: correct it."
            )
        return model

    def tokenizer(self) -> Any:
        """The tokenizer that belongs to the experiment's model; raises `ModelError`."""
        self._declared("tokenizer")
        return self._read_tokenizer()

    def dictionaries(self) -> dict[str, Dictionary]:
        """The dictionaries of the experiment's dictionary_set, in causal order, on its device."""
        self._declared("dictionaries")
        store = ArtifactStore(self._experiment.artifacts)
        rows = store.read(DICTIONARY_SET, ["submodule", "weights"]).to_pylist()
        weights = tuple((row["submodule"], row["weights"]) for row in rows)
        return dict(_load_dictionaries(store.root, weights, str(self.model().device)))


_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")


def _of_weights(file: Path) -> bool:
    aside = file.name.startswith(".") or file.name == "generation_config.json"
    return aside or file.name.endswith((*_WEIGHTS, ".index.json", ".md"))


_IDENTITY = ("source", "revision", "dtype", "attn_input")
_TOKENIZER = ("source", "revision", "tokenizer")


@lru_cache(maxsize=1)
def _load_model(
    source: str, revision: str | None, dtype: str, device: str, attn_input: bool, _identity: str
) -> LanguageModel:
    from transformers.utils import logging

    from core.models import load_model

    # One bar a file, in the middle of what stages say.
    logging.disable_progress_bar()
    return load_model(source, revision=revision, dtype=dtype, device=device, attn_input=attn_input)


@lru_cache(maxsize=2)
def _load_tokenizer(
    source: str, revision: str | None, reading: TokenizerReading | None, _identity: str
) -> Any:
    from core.models import load_tokenizer

    return load_tokenizer(source, revision=revision, reading=reading)


@lru_cache(maxsize=1)
def _load_dictionaries(
    root: Path, weights: tuple[tuple[str, str], ...], device: str
) -> dict[str, Dictionary]:
    from core.dictionaries.files import load_dictionary

    store, loaded = ArtifactStore(root), {}
    for submodule, expected in weights:
        dictionary = load_dictionary(store.here(sae(submodule), ".safetensors"))
        check_written(store, submodule, dictionary)
        if store.notes(sae(submodule))["weights"] != expected:
            raise ExperimentError(
                f"the dictionary of {submodule} in {store.at} is not the one that "
                "dictionary_set was made from: materialize dictionary_set again."
            )
        loaded[submodule] = dictionary.to(device)
    return loaded


def check_written(store: ArtifactStore, submodule: str, dictionary: Dictionary) -> None:
    """Raise if a dictionary is not what the saes stage wrote for this submodule."""
    from core.dictionaries.files import fingerprint

    if fingerprint(dictionary) != store.notes(sae(submodule))["weights"]:
        # A run that ended before it had put its weights leaves them in the copy.
        copy = store.path(sae(submodule), ".safetensors")
        first = f"remove its copy {copy}; if that does not help, " if store.remote else ""
        raise ExperimentError(
            f"{store.place(sae(submodule), '.safetensors')} is damaged (its weights are not those "
            f"that were written): {first}delete it and materialize saes again."
        )
