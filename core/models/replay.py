"""The metric as a function of one submodule's value: a run resumed from a recording.

Everything before the submodule is as recorded, everything after is computed again. ``attn_l`` and
``mlp_l`` enter the stream by addition, so nothing of their own layer is run again except what
reads them (the MLP of a sequential model, for ``attn_l``). Of what comes after the last attention,
only the last token and the columns of the unembedding that the metric reads are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from core.metrics import Metric, read
from core.models import LanguageModel, Recording
from core.models.language_model import Visit
from core.types import Submodule

_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


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
    return read(metric, model.logits(at_last(stream, last), metric.tokens))


def next_layer(name: str) -> int:
    """The layer that reads the stream which a submodule's value ends up in: its own is done."""
    kind, layer = Submodule.parse(name)
    return 0 if kind == "embed" else layer + 1


def stream_with(
    model: LanguageModel, recording: Recording, name: str, value: Tensor
) -> tuple[Tensor, int]:
    """The stream of a recorded run with a submodule's value replaced, and the layer reading it.

    Args:
        value: ``(batch, pos, d)``, what the submodule puts out instead.
    """
    outputs = recording.outputs
    kind, layer = Submodule.parse(name)
    if kind == "embed":
        return value + recording.position, 0
    if kind == "resid":
        return value, layer + 1
    stream, context = recording.stream_before(layer), recording.context[layer]
    if kind == "mlp":
        attn = outputs[f"attn_{layer}"]
        return model.layer(layer, stream, context, attn=attn, mlp=value), layer + 1
    # In parallel models the MLP does not read what attention writes.
    mlp = outputs[f"mlp_{layer}"] if model.parallel else None
    return model.layer(layer, stream, context, attn=value, mlp=mlp), layer + 1


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
        """The stream with a submodule's value replaced, and the layer that reads it next."""
        return stream_with(self.model, self.recording, name, value)

    def finish(
        self,
        stream: Tensor,
        layer: int,
        visit: Visit | None = None,
        known: Mapping[str, Tensor] = _NOTHING,
    ) -> Tensor:
        """The metric, ``(batch,)``, of the stream entering `layer`.

        Args:
            stream: ``(batch, pos, d)``.
            visit: see `LanguageModel.layer`; in the last layer it sees ``(batch, d)``, the last
                token of each example alone.
            known: values of submodules that need not be computed, ``(batch, pos, d)``.
        """
        model, context = self.model, self.recording.context
        last = model.n_layers - 1
        for i in range(layer, last):
            attn, mlp = known.get(f"attn_{i}"), known.get(f"mlp_{i}")
            stream = model.layer(i, stream, context[i], visit, attn=attn, mlp=mlp)
        if layer > last:
            return read_metric(model, stream, self.last, self.metric)
        # After the last attention only the last token matters: its MLP runs there alone.
        attn, mlp = known.get(f"attn_{last}"), known.get(f"mlp_{last}")
        if attn is None:
            attn = model.attn(last, stream, context[last])
        attn = at_last(attn, self.last)
        mlp = None if mlp is None else at_last(mlp, self.last)
        final = model.layer(last, at_last(stream, self.last), {}, visit, attn=attn, mlp=mlp)
        return read(self.metric, model.logits(final, self.metric.tokens))

    def metric_with(self, name: str, value: Tensor) -> Tensor:
        """The metric, ``(batch,)``, with submodule `name` putting out `value`."""
        return self.finish(*self.stream_with(name, value))
