"""Models and tokenizers from a folder or the Hugging Face hub, with errors that say what to do."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from core.errors import InputError, ModelError, NotFinite
from core.models.families import family_of
from core.models.language_model import LanguageModel
from core.options import TOKENIZER_READINGS, TokenizerReading, check_option

_NOT_THERE = ("missing_entries", "connection_errors")
_OLD_MASK = re.compile(r"\.(attn|attention)\.(masked_)?bias$")
_POINTER = b"version https://git-lfs"
_TOKENIZER_FILES = ("*token*", "vocab.*", "merges.txt", "*.model")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        InputError: no such device, or a CUDA device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"'{name}' is no device: say auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda":
        n_devices = torch.cuda.device_count()
        if n_devices == 0 or (device.index or 0) >= n_devices:
            raise InputError(
                f"device '{name}' was asked for, but this machine has {n_devices} CUDA devices: "
                "say auto or cpu."
            )
    elif device.type != "cpu":
        raise InputError(f"device '{name}' is not supported: say auto, cpu or cuda.")
    return device


def _is_folder(source: str) -> bool:
    return source.startswith((".", "/", "~")) or Path(source).expanduser().is_dir()


def check_model_folder(source: str) -> None:
    """Raise at once if `source` is written as a folder but holds no model.

    Raises:
        ModelError: the folder is missing, or has no ``config.json`` or no safetensors.
    """
    if not _is_folder(source):
        return
    folder = _existing(source)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"'{source}' is no model folder: it has no config.json. Give the folder that "
            "save_pretrained wrote, or a hub id such as EleutherAI/pythia-70m-deduped."
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"'{source}' has no .safetensors weights. Save the model again with "
            "save_pretrained(safe_serialization=True): pickled weights are not read."
        )
    _check_pointers([*folder.glob("*.safetensors"), *folder.glob("*.json")])


def _existing(source: str) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ModelError(f"model folder '{source}' does not exist.")
    return folder


def tokenizer_files(folder: Path) -> list[Path]:
    """What a tokenizer is read from in a folder, by name."""
    return sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)})


def _check_tokenizer_folder(source: str) -> None:
    if not _is_folder(source):
        return
    files = tokenizer_files(_existing(source))
    if not files:
        raise ModelError(
            f"'{source}' holds no tokenizer: none of {', '.join(_TOKENIZER_FILES)}. Write the "
            f"model's own there, tokenizer.save_pretrained('{source}'), or give a hub id."
        )
    _check_pointers(files)


def _check_pointers(files: Iterable[Path]) -> None:
    """Raise where a file is what Git LFS leaves in the place of one that was not fetched."""
    for file in files:
        with file.open("rb") as data:
            pointer = data.read(len(_POINTER)) == _POINTER
        if pointer:
            raise ModelError(
                f"'{file}' is a Git LFS pointer, not the file itself: run `git lfs pull` in its "
                "repository, or download the file."
            )


def _from_hub_or_folder(loader: Any, source: str, what: str, **kwargs: Any) -> Any:
    place = str(Path(source).expanduser()) if _is_folder(source) else source
    try:
        return loader.from_pretrained(place, **kwargs)
    except MemoryError:
        raise
    except Exception as error:  # readers of files raise whatever they like
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if _is_folder(source) or not isinstance(error, OSError):
            raise ModelError(
                f"the {what} in '{source}' cannot be read ({type(error).__name__}: {error}). Is "
                "every file whole? Download or save it again, and compare the files' sizes."
            ) from error
        raise ModelError(
            f"the {what} '{source}' could not be fetched from the Hugging Face hub: "
            f"{type(error).__name__}. Check the id and the network; without a network, download "
            "the repository elsewhere and give the folder, or fill the hub's cache and set "
            "HF_HUB_OFFLINE=1."
        ) from error


def _listed(names: Iterable[str], n: int = 5) -> str:
    names = sorted(names)
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return f"{', '.join(names[:n]) or 'none'}{more}"


def _check_weights(hf: Any, report: Mapping[str, Any], source: str) -> None:
    """Refuse a model that is not wholly what its files hold.

    Args:
        report: transformers' account of the loading; what is tied to another weight is not missing.

    Raises:
        ModelError: weights are missing, of another shape, or left over inside the layers.
        NotFinite: a weight is NaN or infinite.
    """
    unfit = [
        f"{name} is {tuple(of_file)} in the file and {tuple(of_model)} in the model"
        for name, of_file, of_model in report["mismatched_keys"]
    ]
    if unfit:
        raise ModelError(
            f"weights in '{source}' do not have the shapes that config.json says: "
            f"{_listed(unfit)}. Use the config.json that belongs to the weights."
        )
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    # Old files hold rotary angles and causal masks, which are computed now.
    computed = {name for name, _ in hf.named_buffers()}
    unexpected = {name for name in unexpected - computed if not _OLD_MASK.search(name)}
    inside = f".{family_of(hf.config).layers.rpartition('.')[2]}."
    if missing or any(inside in f".{name}" for name in unexpected):
        raise ModelError(
            f"the weights in '{source}' are not those of a {type(hf).__name__} with this "
            f"config.json. Missing, and random if loaded: {_listed(missing)}. In the files but "
            f"not in the model: {_listed(unexpected)}. {_way_out(missing, unexpected)}"
        )
    if unexpected:
        warnings.warn(f"left out of '{source}': {_listed(unexpected)}.", stacklevel=3)
    for name, weight in hf.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise NotFinite(
                f"weight '{name}' in '{source}' holds NaN or infinity: the file is damaged, or "
                f"the training diverged. Download it again; if it was not stored as {weight.dtype}"
                ", try a wider dtype."
            )


def _way_out(missing: set[str], unexpected: set[str]) -> str:
    for prefix in sorted({name.partition(".")[0] + "." for name in unexpected}):
        if any(prefix + name in unexpected for name in missing):
            return (
                f"The names begin with '{prefix}': take it off, or save the model itself and not "
                "its wrapper."
            )
    if missing == {"lm_head.weight"}:
        return (
            "If the unembedding is the embedding's transpose, say tie_word_embeddings: true in "
            "config.json; otherwise save the model with its head (AutoModelForCausalLM)."
        )
    return "Save the whole model again with save_pretrained, or use the config.json it came with."


def load_model(
    source: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "auto",
    attn_input: bool = False,
) -> LanguageModel:
    """Load a causal language model and name its submodules.

    Args:
        source: a folder written by ``save_pretrained``, or a hub id.
        revision: branch, tag or commit on the hub.
        dtype: float32, float64 or bfloat16.
        device: auto, cpu, cuda, cuda:N.
        attn_input: see `LanguageModel`.

    Raises:
        ModelError: not a model, or out of reach, or not all of its weights are in the files.
        UnknownFamily, AdapterMismatch: its architecture cannot be read.
        NotFinite: a weight is NaN or infinite.
        InputError: unknown dtype or device.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}.")
        dtype = DTYPES[dtype]
    target = pick_device(device) if isinstance(device, str) else device
    check_model_folder(source)
    # What cannot be read is refused before its weights are fetched.
    family_of(_from_hub_or_folder(AutoConfig, source, "model", revision=revision))
    hf, report = _from_hub_or_folder(
        AutoModelForCausalLM,
        source,
        "model",
        revision=revision,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _check_weights(hf, report, source)
    return LanguageModel(hf.to(target), attn_input=attn_input)


PROBES = (
    "The cats near the door are here.",
    "  two spaces,\ta tab\n\nand a line",
    "naïve café: “quoted”, don't, e\u0301",
    "In 1999, 3.14 of 100000.",
    "HTTPServer x_y snake-case",
    "日本語 и русский 🙂",
)
"""Texts on which tokenizers tend to differ: spaces, marks, digits, cases, scripts."""


def probe_ids(tokenizer: Any) -> list[list[int]]:
    """What a tokenizer makes of `PROBES`: the same for two that read alike."""
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in PROBES]


def load_tokenizer(
    source: str, *, revision: str | None = None, reading: TokenizerReading | None = None
) -> Any:
    """Load a tokenizer from a folder, with a model or without, or from a hub id.

    transformers builds some tokenizer classes anew from the vocabulary, with rules of their own for
    spaces, cases or digits, whatever ``tokenizer.json`` says. Both are tried on `PROBES`.

    Args:
        source: a folder that holds a tokenizer, or a hub id.
        revision: branch, tag or commit on the hub.
        reading: which to take where they differ: ``file`` for tokenizer.json as it is, ``class``
            for transformers' class.

    Raises:
        ModelError: out of reach, not readable, or the two differ and `reading` is None.
        InputError: no such reading.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    def load(loader: Any) -> Any:
        return _from_hub_or_folder(loader, source, "tokenizer", revision=revision)

    _check_tokenizer_folder(source)
    if reading is not None:
        check_option("reading", reading, TOKENIZER_READINGS)
    if reading == "file":
        return load(PreTrainedTokenizerFast)
    named = load(AutoTokenizer)
    as_it_is = type(named) is PreTrainedTokenizerFast
    if reading is None and not as_it_is and _has_tokenizer_json(source, revision):
        _check_alike(source, named, load(PreTrainedTokenizerFast))
    return named


def _has_tokenizer_json(source: str, revision: str | None) -> bool:
    from transformers.utils.hub import cached_file

    place = str(Path(source).expanduser()) if _is_folder(source) else source
    quiet = {f"_raise_exceptions_for_{what}": False for what in _NOT_THERE}
    return cached_file(place, "tokenizer.json", revision=revision, **quiet) is not None


def _check_alike(source: str, named: Any, plain: Any) -> None:
    for text, ours, theirs in zip(PROBES, probe_ids(named), probe_ids(plain), strict=True):
        if ours != theirs:
            raise ModelError(
                f"the tokenizer in '{source}' reads {text!r} in two ways: as {ours} by the class "
                f"{type(named).__name__} of transformers, and as {theirs} by its tokenizer.json. "
                "Say which one the model was trained with (model.tokenizer, or load_tokenizer's "
                "reading): file, the way of tokenizer.json, or class."
            )
