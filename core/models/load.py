"""Models and tokenizers from a folder or the Hugging Face hub, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.errors import InputError, ModelError
from core.models.language_model import LanguageModel

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
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ModelError(f"model folder '{source}' does not exist.")
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


def _from_hub_or_folder(loader: Any, source: str, what: str, **kwargs: Any) -> Any:
    check_model_folder(source)
    place = str(Path(source).expanduser()) if _is_folder(source) else source
    try:
        return loader.from_pretrained(place, **kwargs)
    except (OSError, ValueError) as error:
        if _is_folder(source):
            raise ModelError(f"the {what} in '{source}' cannot be read: {error}") from error
        raise ModelError(
            f"the {what} '{source}' could not be fetched from the Hugging Face hub: "
            f"{type(error).__name__}. Check the id and the network; without a network, download "
            "the repository elsewhere and give the folder, or fill the hub's cache and set "
            "HF_HUB_OFFLINE=1."
        ) from error


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
        ModelError: not a model, or out of reach.
        InputError: unknown dtype or device.
    """
    from transformers import AutoModelForCausalLM

    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}.")
        dtype = DTYPES[dtype]
    target = pick_device(device) if isinstance(device, str) else device
    hf = _from_hub_or_folder(
        AutoModelForCausalLM,
        source,
        "model",
        revision=revision,
        dtype=dtype,
        use_safetensors=True,
    )
    return LanguageModel(hf.to(target), attn_input=attn_input)


def load_tokenizer(source: str, *, revision: str | None = None) -> Any:
    """Load a tokenizer from a model folder or a hub id; raises `ModelError` when out of reach."""
    from transformers import AutoTokenizer

    return _from_hub_or_folder(AutoTokenizer, source, "tokenizer", revision=revision)
