"""The metric as a function of one submodule's value: a run resumed from a recording.

Everything before the submodule is as recorded, everything after is computed again. ``attn_l`` and
``mlp_l`` enter the stream by addition, so nothing of their own layer is run again except what
reads them (the MLP of a sequential model, for ``attn_l``), and nothing behind the readout's site.
Of what comes after the last attention, only the last token is computed where no other is read, and
only the columns of the unembedding that the metric reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType

import torch
from torch import Tensor

from core.inputs import Inputs
from core.metrics import Metric, read
from core.models import LanguageModel, Recording
from core.models.hooks import Visit
from core.readout import LAST_LOGITS, LOGITS, Readout, at_last
from core.types import Submodule

_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


def stream_with(
    model: LanguageModel, recording: Recording, name: str, value: Tensor, visit: Visit | None = None
) -> tuple[Tensor, int]:
    """The stream of a recorded run with a submodule's value replaced, and the layer reading it.

    Args:
        value: ``(batch, pos, d)``, what the submodule puts out instead.
        visit: see `LanguageModel.layer`, in the submodule's own layer.
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
        return model.layer(layer, stream, context, visit, attn=attn, mlp=value), layer + 1
    # In parallel models the MLP does not read what attention writes.
    mlp = outputs[f"mlp_{layer}"] if model.parallel else None
    return model.layer(layer, stream, context, visit, attn=value, mlp=mlp), layer + 1


@dataclass(frozen=True)
class Resumed:
    """Runs that can be resumed at any submodule, for chosen examples of one recording.

    Attributes:
        model: the model that was recorded.
        recording: the recording, already narrowed to the examples of these runs (they may repeat).
        metric, last: ``(batch,)`` of the same examples.
        readout: what the metric is given.
    """

    model: LanguageModel
    recording: Recording
    metric: Metric
    last: Tensor
    readout: Readout = LAST_LOGITS

    @classmethod
    def record(cls, model: LanguageModel, inputs: Inputs) -> Resumed:
        """Runs of some inputs, recorded as far as their readout's site."""
        end = inputs.readout.end(model.n_layers)
        recording = model.record(inputs.clean, inputs.mask, until=max(0, end.layer))
        return cls(model, recording, inputs.metric, inputs.last, inputs.readout)

    def select(self, rows: Tensor) -> Resumed:
        """The same for the examples `rows`, which may repeat."""
        recording, metric = self.recording.select(rows), self.metric.select(rows)
        return replace(self, recording=recording, metric=metric, last=self.last[rows])

    @property
    def end(self) -> Submodule:
        """The submodule whose output is read."""
        return self.readout.end(self.model.n_layers)

    @property
    def narrow_layer(self) -> int | None:
        """The layer of which, after its attention, the last token alone is read; None if none."""
        end = self.end
        return end.layer if end.kind == "resid" and self.readout.pooling == "last" else None

    def as_recorded(self) -> Tensor:
        """The metric of the recorded run, ``(batch,)``."""
        return self.read(self.recording.outputs[self.end.name])

    def read(self, value: Tensor) -> Tensor:
        """The metric, ``(batch,)``, of what the submodule at the end puts out.

        Args:
            value: ``(batch, pos, d)``; of the last stream, before the final norm.
        """
        if self.readout.pooling == "last":
            return self.read_last(at_last(value, self.last))
        if self.readout.site == LOGITS:
            value = self.model.logits(value, self.metric.tokens)
        return read(self.metric, self.readout.pool(value, self.recording.mask))

    def read_last(self, vector: Tensor) -> Tensor:
        """The metric of the last token's vector, ``(batch, d)`` to ``(batch,)``."""
        if self.readout.site == LOGITS:
            vector = self.model.logits(vector, self.metric.tokens)
        return read(self.metric, vector)

    def stream_with(
        self, name: str, value: Tensor, visit: Visit | None = None
    ) -> tuple[Tensor, int]:
        """The stream with a submodule's value replaced, and the layer that reads it next."""
        return stream_with(self.model, self.recording, name, value, visit)

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
            visit: see `LanguageModel.layer`; in `narrow_layer` it sees ``(batch, d)``, the last
                token of each example alone.
            known: values of submodules that need not be computed, ``(batch, pos, d)``.
        """
        model, last = self.model, self.narrow_layer
        if last is None or layer > last:
            return self.read(self.value_at_end(stream, layer, visit, known))
        stream = self._through(stream, range(layer, last), visit, known)
        # After the last attention only the last token matters: its MLP runs there alone.
        attn, mlp = known.get(f"attn_{last}"), known.get(f"mlp_{last}")
        if attn is None:
            attn = model.attn(last, stream, self.recording.context[last])
        attn = at_last(attn, self.last)
        mlp = None if mlp is None else at_last(mlp, self.last)
        final = model.layer(last, at_last(stream, self.last), {}, visit, attn=attn, mlp=mlp)
        return self.read_last(final)

    def _through(
        self, stream: Tensor, layers: range, visit: Visit | None, known: Mapping[str, Tensor]
    ) -> Tensor:
        """The stream after these layers."""
        for i in layers:
            attn, mlp = known.get(f"attn_{i}"), known.get(f"mlp_{i}")
            context = self.recording.context[i]
            stream = self.model.layer(i, stream, context, visit, attn=attn, mlp=mlp)
        return stream

    def value_at_end(
        self,
        stream: Tensor,
        layer: int,
        visit: Visit | None = None,
        known: Mapping[str, Tensor] = _NOTHING,
    ) -> Tensor:
        """What the submodule at the end puts out, ``(batch, pos, d)``; arguments as of `finish`."""
        end = self.end
        if layer > end.layer:
            # `embed` is read without the positions that the first layer is given with it.
            return stream - self.recording.position if end.kind == "embed" else stream
        stream = self._through(stream, range(layer, end.layer), visit, known)
        values: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> Tensor:
            values[name] = value if visit is None else visit(name, value)
            return values[name]

        self._through(stream, range(end.layer, end.layer + 1), keep, known)
        return values[end.name]

    def metric_with(self, name: str, value: Tensor) -> Tensor:
        """The metric, ``(batch,)``, with submodule `name` putting out `value`."""
        end = self.end
        if name == end.name:
            return self.read(value)
        layer = Submodule.parse(name).layer
        if layer == end.layer and end.kind == "mlp":
            return self.finish(self.recording.stream_before(layer), layer, known={name: value})
        return self.finish(*self.stream_with(name, value))

    def together(self, names: Iterable[str]) -> list[list[str]]:
        """Names in causal order, grouped by where runs with one of them replaced go on.

        Those of a layer all end up in the stream that the next layer reads; what is read, and what
        leads to it inside its own layer, stands alone.
        """
        end = self.end

        def goes_on(name: str) -> tuple[int, str]:
            layer = Submodule.parse(name).layer
            return layer, name if layer == end.layer and end.kind != "resid" else ""

        return [list(group) for _, group in groupby(names, key=goes_on)]

    def metrics_with(self, values: Sequence[tuple[str, Tensor, Tensor]]) -> Tensor:
        """The metric, ``(n,)``, of runs with different submodules replaced, in one pass.

        Args:
            values: of each submodule its name, the examples ``(n,)`` and what it puts out in
                each, ``(n, pos, d)``; names are those of one group of `together`.
        """
        if len(values) == 1:
            ((name, rows, value),) = values
            return self.select(rows).metric_with(name, value)
        starts = [self.select(rows).stream_with(name, value) for name, rows, value in values]
        every = self.select(torch.cat([rows for _, rows, _ in values]))
        return every.finish(torch.cat([stream for stream, _ in starts]), starts[0][1])
