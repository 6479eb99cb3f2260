"""The state of a training on disk: one safetensors file, replaced as a whole.

Weights, Adam's moments and counters are tensors; the step and the training's key are in the
header. The order of the data and all random draws are functions of the seed and the step, so
nothing else is needed to go on to the same weights.
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

FILE = "state.safetensors"
_HEADER = "sfc"


def write_checkpoint(folder: Path, key: str, step: int, learners: Mapping[str, Learner]) -> None:
    """Save the state after `step` steps."""
    tensors = {
        f"{name}/{part}": value
        for name, learner in learners.items()
        for part, value in learner.state.items()
    }
    header = {_HEADER: json.dumps({"key": key, "step": step}, sort_keys=True)}
    with replacing(folder / FILE) as file:
        save_file(tensors, file, metadata=header)


def read_checkpoint(folder: Path, key: str, learners: Mapping[str, Learner]) -> int:
    """Restore the state saved in `folder`, if there is one.

    Returns:
        The number of steps done; 0 without a checkpoint.

    Raises:
        InputError: the checkpoint is of a training with other settings or data.
        FormatError: the file is no checkpoint.
    """
    file = folder / FILE
    if not file.is_file():
        return 0
    sweep(folder)
    try:
        with safe_open(file, "pt") as saved:
            header = json.loads((saved.metadata() or {}).get(_HEADER, "{}"))
            _check_key(header, key, file)
            for name, learner in learners.items():
                learner.restore(
                    {part: saved.get_tensor(f"{name}/{part}") for part in learner.state}
                )
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
