"""Finding and opening other projects' files: folder or hub, safetensors, torch or NumPy archive.

Nothing here unpickles an object: such a file can run any code while it is opened.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.dictionaries.formats.claims import refuse_transcoder
from core.errors import FormatError
from core.types import Submodule

FILE_SUFFIXES = (".pt", ".npz", ".safetensors")
NUMBER = r"\d+(?:\.\d+)?"
"""How a path says how many features are active."""
BESIDE = (
    "config.json",
    "cfg.json",
    "runner_cfg.json",
    "hyperparams.json",
    "activation_scaler.json",
    "activation_whitening.safetensors",
)
"""Files that say what a file of weights is, in its folder or the one above."""
_PICKLED = (
    "it can only be opened by unpickling objects, which may run any code in the file. Save its "
    "tensors as a state_dict, .safetensors or plain .npz in the environment that made it"
)


def placeholders(submodule: str | None) -> dict[str, Any]:
    """What stands for each placeholder of a path."""
    names: dict[str, Any] = {"l0": "{l0}"}
    if submodule is not None:
        kind, layer = Submodule.parse(submodule)
        site = kind if kind == "embed" else f"{kind}_out_layer{layer}"
        names |= {"submodule": submodule, "kind": kind, "layer": layer, "site": site}
    return names


def filled(path: str, submodule: str | None) -> str:
    """`path` with ``{submodule}``, ``{kind}``, ``{layer}`` and ``{site}`` filled in.

    ``{site}`` is the name of the paper's released dictionaries: embed, attn_out_layer3. ``{l0}``
    stays: what it stands for is chosen among what there is (`choose.resolved_path`).

    Raises:
        FormatError: an unknown placeholder, or one without a submodule to fill it from.
    """
    names = placeholders(submodule)
    try:
        return path.format(**names)
    except (KeyError, IndexError, ValueError) as error:
        raise FormatError(
            f"the path '{path}' has a placeholder that cannot be filled ({error}): use "
            "{submodule}, {kind}, {layer}, {site} or {l0}, and name the submodule."
        ) from error


def local_root(source: str) -> Path | None:
    """The folder or file that `source` names; None if it is a hub id."""
    root = Path(source).expanduser()
    return root if source.startswith((".", "/", "~")) or root.exists() else None


def unreachable(source: str, error: Exception) -> FormatError:
    """What to say when the hub does not give what was asked for."""
    return FormatError(
        f"'{source}' could not be fetched from the Hugging Face hub: {type(error).__name__}. "
        "Check the id and the network; without a network, download the repository elsewhere "
        "and give the folder."
    )


def _beside(path: str) -> list[str]:
    """What is needed beside a file that is given by itself."""
    if not path.endswith(FILE_SUFFIXES):
        return []
    folders = list(PurePosixPath(path).parents)[:2]
    return [(folder / name).as_posix() for folder in folders for name in BESIDE]


def also_read(place: Path) -> list[Path]:
    """What else a reader looks at: files beside weights or above them, checkpoints in a folder."""
    below = place / "checkpoints"
    folders = [place.parent, place.parent.parent] if place.is_file() else [place.parent, below]
    files = [folder / name for folder in folders for name in BESIDE]
    return [file for file in [*files, below / "final.safetensors"] if file.is_file()]


def fetch(source: str, path: str, revision: str | None) -> Path:
    """The folder (or file) `path` inside a local folder or a hub repository, downloaded if need be.

    Raises:
        FormatError: it does not exist, or the hub is out of reach.
    """
    root = local_root(source)
    if root is not None:
        place = root / path
        if not place.exists():
            raise FormatError(f"'{place}' does not exist.")
        return place
    from huggingface_hub import snapshot_download

    patterns = [path, f"{path}/*", *_beside(path)] if path else None
    try:
        place = Path(snapshot_download(source, revision=revision, allow_patterns=patterns)) / path
    except Exception as error:  # the hub's client raises its transport's errors as they come
        raise unreachable(source, error) from error
    if not place.exists():
        raise FormatError(f"the hub repository '{source}' has no '{path}'.")
    return place


def named_file(place: Path, names: tuple[str, ...]) -> Path:
    """`place` itself if it is a file, else the first of `names` in it."""
    if place.is_file():
        return place
    for name in names:
        if (place / name).is_file():
            return place / name
    raise FormatError(f"'{place}' has no {' or '.join(names)}.")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"'{file}' is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise FormatError(f"'{file}' is not a JSON object.")
    return value


def _read_torch(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _read_numpy(file: Path) -> dict[str, Tensor]:
    with np.load(file, allow_pickle=False) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def read_tensors(file: Path) -> Any:
    """What a weights file holds: for safetensors and NumPy archives, tensors by name.

    Raises:
        FormatError: it holds pickled objects, or is not what its name says.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": load_file,
        ".pt": _read_torch,
        ".npz": _read_numpy,
    }
    if file.suffix not in readers:
        raise FormatError(f"'{file}' ends in none of {', '.join(readers)}.")
    try:
        return readers[file.suffix](file)
    except pickle.UnpicklingError as error:
        raise FormatError(f"'{file}' is refused: {_PICKLED}.") from error
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise FormatError(f"'{file}' is refused: {_PICKLED}.") from error
        raise FormatError(f"'{file}' cannot be read: {error}.") from error
    except (SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(f"'{file}' cannot be read ({error}): is it truncated?") from error


def only_tensors(state: Any, file: Path) -> dict[str, Tensor]:
    """`state` if it is a mapping of names to tensors, in float32 where not integer.

    Raises:
        FormatError: it is not, or a tensor is that of a crosscoder: of several places.
    """
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FormatError(f"'{file}' holds no state_dict: tensors by name were expected.")
    for name, tensor in state.items():
        if tensor.ndim > 2:
            several = f"{tuple(tensor.shape)} numbers in {name}"
            refuse_transcoder(file, several, "several at once")
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def need(tensors: dict[str, Tensor], names: tuple[str, ...], file: Path) -> list[Tensor]:
    """The tensors called `names`, in that order.

    Raises:
        FormatError: one is missing; the message lists what there is.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        raise FormatError(
            f"'{file}' lacks {', '.join(missing)}: it holds {', '.join(sorted(tensors))}. Is it "
            "in another format?"
        )
    return [tensors[name] for name in names]
