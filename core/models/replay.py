"""The metric as a function of one submodule's value: a run resumed from a recording.

Everything before the submodule is as recorded, everything after is computed again. ``attn_l`` and
``mlp_l`` enter the stream by addition, so nothing of their own layer is run again except what
reads them (the MLP of a sequential model, for ``attn_l``). Of what comes after the last attention,
only the last token and the columns of the unembedding that the metric reads are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.metrics import Metric
from core.models import LanguageModel, Recording
from core.types import Submodule


def at_last(stream: Tensor, last: Tensor) -> Tensor:
    """The vector at each example's last token, ``(batch, pos, d)`` to ``(batch, d)``."""
    return stream[torch.arange(len(last), device=stream.device), last]


def read_metric(model: LanguageModel, stream: Tensor, last: Tensor, metric: Metric) -> Tensor:
    """The metric of a final residual stream.

    Args:
        stream: ``(batch, pos, d)``, the last layer's output, before the final norm.
        last: ``(batch,)``, the position that is read.

    Returns:
        ``(batch,)`` in the metric's units.
    """
    return metric(model.logits(at_last(stream, last), metric.tokens))


@dataclass(frozen=True)
class Resumed:
    """Runs that can be resumed at any submodule, for chosen examples of one recording.

    Attributes:
        model: the model that was recorded.
        recording: the recording, already narrowed to the examples of these runs (they may repeat).
        metric, last: ``(batch,)`` of the same examples.
    """

    model: LanguageModel
    recording: Recording
    metric: Metric
    last: Tensor

    def select(self, rows: Tensor) -> Resumed:
        """The same for the examples `rows`, which may repeat."""
        return Resumed(
            self.model, self.recording.select(rows), self.metric.select(rows), self.last[rows]
        )

    def stream_with(self, name: str, value: Tensor) -> tuple[Tensor, int]:
        """The stream with a submodule's value replaced, and the layer that reads it next.

        Args:
            value: ``(batch, pos, d)``, what the submodule puts out instead.
        """
        outputs, model = self.recording.outputs, self.model
        kind, layer = Submodule.parse(name)
        if kind == "embed":
            return value + self.recording.position, 0
        if kind == "resid":
            return value, layer + 1
        before = self.recording.stream_before(layer)
        if kind == "mlp":
            return before + model.write(
                f"attn_{layer}", outputs[f"attn_{layer}"]
            ) + value, layer + 1
        middle = before + model.write(name, value)
        if model.parallel:
            return middle + outputs[f"mlp_{layer}"], layer + 1
        return middle + model.mlp(layer, middle), layer + 1

    def finish(self, stream: Tensor, layer: int) -> Tensor:
        """The metric, ``(batch,)``, of the stream entering `layer`."""
        model = self.model
        context: tuple[Mapping[str, Any], ...] = self.recording.context
        for i in range(layer, model.n_layers - 1):
            stream = model.layer(i, stream, context[i])
        if layer == model.n_layers:
            return read_metric(model, stream, self.last, self.metric)
        # After the last attention only the last token matters: its MLP runs there alone.
        i = model.n_layers - 1
        attn = at_last(model.attn(i, stream, context[i]), self.last)
        before = at_last(stream, self.last)
        middle = before + model.write(f"attn_{i}", attn)
        final = middle + model.mlp(i, before if model.parallel else middle)
        return self.metric(model.logits(final, self.metric.tokens))

    def metric_with(self, name: str, value: Tensor) -> Tensor:
        """The metric, ``(batch,)``, with submodule `name` putting out `value`."""
        stream, layer = self.stream_with(name, value)
        return self.finish(stream, layer)
