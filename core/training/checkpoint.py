"""The state of a training on disk: one safetensors file for each dictionary, replaced as a whole.

Weights, Adam's moments and counters are tensors; the step and the training's key are in the
header. The order of the data and all random draws are functions of the settings and the step, so
nothing else is needed to go on to the same weights. A dictionary's file says nothing of those it
was trained with, so it is of use with any others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from core.atomic import replacing, sweep
from core.errors import FormatError, InputError
from core.training.learner import Learner

_HEADER = "sfc"


def checkpoint_file(folder: Path, name: str) -> Path:
    """Where the state of the dictionary of submodule `name` lies."""
    return folder / f"{name}.safetensors"


def write_checkpoint(folder: Path, key: str, step: int, learner: Learner) -> None:
    """Save a learner's state after `step` steps."""
    header = {_HEADER: json.dumps({"key": key, "step": step}, sort_keys=True)}
    with replacing(checkpoint_file(folder, learner.name)) as file:
        save_file(learner.state, file, metadata=header)


def read_checkpoint(folder: Path, key: str, learner: Learner) -> int:
    """Restore a learner's state from `folder`, if it was saved there.

    Returns:
        The number of steps done; 0 without a checkpoint.

    Raises:
        InputError: the checkpoint is of a training with other settings or data.
        FormatError: the file is no checkpoint.
    """
    file = checkpoint_file(folder, learner.name)
    sweep(folder, file.name)
    if not file.is_file():
        return 0
    try:
        with safe_open(file, "pt") as saved:
            header = json.loads((saved.metadata() or {}).get(_HEADER, "{}"))
            _check_key(header, key, file)
            learner.restore({part: saved.get_tensor(part) for part in learner.state})
    except SafetensorError as error:
        raise FormatError(
            f"'{file}' is no checkpoint ({error}): delete it to start anew."
        ) from error
    return int(header["step"])


def _check_key(header: Mapping[str, object], key: str, file: Path) -> None:
    if header.get("key") != key:
        raise InputError(
            f"'{file}' is the checkpoint of a training with other settings or other data: going "
            "on from it would mix the two. Delete it, or choose another folder."
        )
