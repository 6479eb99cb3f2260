"""Per-sample parameter gradients through a sparse random projection, neither ever held whole (H.2).

A linear layer's gradient for one sample is a sum of outer products over positions,

    dm/dW = sum_t g_t (x) a_t        a_t its input, g_t the metric's gradient at its output

so one backward pass of a batch gives every sample's gradient. It is made in blocks small enough
for the processor's cache, and each block is added into the projection at once.

The projection matrix R ``(parameter, output)`` has entries +1 and -1 with the same probability
1 / (2 n_outputs) and zeros elsewhere, drawn so that every parameter has exactly one entry: the
squared length of a gradient then varies less under projection than with entries drawn one by one
(a parameter can neither be lost nor counted twice). E[(Rx).(Ry)] = x.y. Its entries are read off
a counter-based generator (Philox) with integer arithmetic, so a seed gives the same matrix on any
machine, any part of it at any time, and it needs no memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import InputError, ModelError
from core.models.language_model import LanguageModel
from core.models.replay import Resumed

_BLOCK_BYTES = 4 << 20
_PER_COUNTER = 8  # 32-bit draws from one 256-bit step of Philox


@dataclass(frozen=True)
class Projection:
    """A sparse random matrix from parameters to `n_outputs` numbers.

    Attributes:
        n_outputs: 30,000 in the paper.
        seed: the whole matrix follows from it.
    """

    n_outputs: int = 30_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.n_outputs < 2**31:
            raise InputError(f"cannot project to {self.n_outputs} dimensions: give 1 to 2^31.")

    def entries(self, name: str, start: int, stop: int) -> Tensor:
        """Where parameters start to stop of the tensor `name` go.

        Returns:
            ``(stop - start,)`` long: the output, plus n_outputs where the entry is -1.
        """
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        key = int.from_bytes(digest[:16], "little")
        first = start // _PER_COUNTER
        n_steps = -(-stop // _PER_COUNTER) - first
        raw = np.random.Philox(key=key, counter=first).random_raw(4 * n_steps)
        # The low half of each draw, then the high half, whatever the machine's byte order.
        draws = np.stack([raw & np.uint64(0xFFFFFFFF), raw >> np.uint64(32)], 1).reshape(-1)
        scaled = (draws * np.uint64(2 * self.n_outputs)) >> np.uint64(32)
        offset = start - first * _PER_COUNTER
        return torch.from_numpy(scaled.astype(np.int64)[offset : offset + stop - start])


class _Sums:
    """Projected gradients of one batch, being added up while the backward pass runs."""

    def __init__(self, projection: Projection, n_samples: int, device: torch.device) -> None:
        self.projection = projection
        self.signed = torch.zeros(n_samples, 2 * projection.n_outputs, device=device)

    def add(self, name: str, rows: Tensor, columns: Tensor) -> None:
        """Add the gradient sum_t rows_t (x) columns_t of the weight `name`, row by row.

        Args:
            rows: ``(batch, pos, n_rows)``; `columns`: ``(batch, pos, n_columns)``.
        """
        n_samples, _, n_rows = rows.shape
        n_columns = columns.shape[2]
        height = max(1, min(n_rows, _BLOCK_BYTES // (4 * n_columns)))
        size = max(1, _BLOCK_BYTES // (4 * n_columns * height))
        for top in range(0, n_rows, height):
            bottom = min(top + height, n_rows)
            where = self.projection.entries(name, top * n_columns, bottom * n_columns)
            where = where.to(rows.device)
            for i in range(0, n_samples, size):
                samples = slice(i, i + size)
                block = torch.bmm(rows[samples, :, top:bottom].transpose(1, 2), columns[samples])
                self.signed[samples].index_add_(1, where, block.flatten(1).float())

    def add_bias(self, name: str, gradient: Tensor) -> None:
        """Add the gradient of a bias, ``(batch, n)``."""
        where = self.projection.entries(name, 0, gradient.shape[1]).to(gradient.device)
        self.signed.index_add_(1, where, gradient.float())

    def total(self) -> Tensor:
        """``(batch, n_outputs)``."""
        positive, negative = self.signed.split(self.projection.n_outputs, dim=1)
        return positive - negative


def gradient_modules(model: LanguageModel) -> dict[str, nn.Module]:
    """Linear maps of the decoder layers, by name: all parameters but embeddings and norms.

    The unembedding counts as an embedding (in tied models it is one).

    Raises:
        ModelError: a layer has parameters in modules that are neither linear maps nor norms.
    """
    linear: dict[str, nn.Module] = {}
    for layer, block in enumerate(model.layers):
        for path, module in block.named_modules():
            if not list(module.parameters(recurse=False)):
                continue
            class_name = type(module).__name__
            if isinstance(module, nn.Linear) or class_name == "Conv1D":
                linear[f"{layer}.{path}"] = module
            elif "Norm" not in class_name:
                raise ModelError(
                    f"parameters of '{path}' in layer {layer} belong to a {class_name}, whose "
                    "per-sample gradients are not known here (linear maps and norms are): "
                    "represent samples by linear effects instead."
                )
    return linear


def _by_position(value: Tensor) -> Tensor:
    """``(batch, pos, d)``; a module that is run at the last token alone sees ``(batch, d)``."""
    return value.reshape(len(value), -1, value.shape[-1])


@contextmanager
def _adding_up(modules: dict[str, nn.Module], sums: _Sums) -> Iterator[None]:
    """Hooks that add each module's gradients to `sums` in the backward pass."""

    def watch(name: str, module: Any) -> Any:
        # Conv1D keeps its weight as (input, output), the transpose of Linear's.
        transposed = not isinstance(module, nn.Linear)
        has_bias = module.bias is not None

        def forward_hook(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs = _by_position(args[0].detach())

            def add(gradient: Tensor) -> None:
                gradient = _by_position(gradient)
                pair = (inputs, gradient) if transposed else (gradient, inputs)
                sums.add(f"{name}.weight", *pair)
                if has_bias:
                    sums.add_bias(f"{name}.bias", gradient.sum(1))

            output.register_hook(add)

        return forward_hook

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(watch(name, module)).remove)
        yield


def projected_gradients(runs: Resumed, projection: Projection) -> Tensor:
    """Gradients of each sample's metric with respect to the layers' weights, projected (H.2).

    Args:
        runs: a recorded batch and its metric.

    Returns:
        ``(batch, n_outputs)``, float32. One backward pass serves the batch: samples do not mix.

    Raises:
        ModelError: see `gradient_modules`.
    """
    model = runs.model
    stream = runs.recording.stream_before(0).detach().requires_grad_()
    sums = _Sums(projection, len(runs.last), model.device)
    with _adding_up(gradient_modules(model), sums):
        metric = runs.finish(stream, 0).sum()
        torch.autograd.grad(metric, stream)
    return sums.total()
