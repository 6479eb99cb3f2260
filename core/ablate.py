"""Runs with some nodes replaced by their ablation value, in causal order (section 3.2).

At each submodule what the run so far produced, x, is encoded again; nodes outside the circuit are
set to their ablation value, the rest stays as this run computes it. Decoding is affine, so with
`base` the output of a wholly ablated submodule, a_i the ablation values and K the features kept

    error ablated   x' = base + sum over K     of (f_i(x) - a_i) W_d[i]
    error kept      x' = x    - sum over not K of (f_i(x) - a_i) W_d[i]

and only the features of that sum are encoded. The circuit's run keeps its nodes, its complement's
all others. Runs begin at the first submodule that is edited, or behind the last stream that is
ablated whole; a submodule that is ablated whole is not computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.dictionaries import Dictionary, check_widths
from core.dictionaries.dictionary import DENSE
from core.errors import InputError, MissingSubmodule
from core.inputs import Inputs
from core.models import LanguageModel
from core.models.hooks import Visit, visited
from core.models.replay import Resumed
from core.node_table import NodeTable
from core.options import ABLATIONS, Ablation, check_option
from core.readout import at_last
from core.sparse import add_at, count_true
from core.types import ERROR, Node, Submodule, causal_order


@dataclass(frozen=True)
class AblationValues:
    """What nodes of one submodule are replaced by; leading axes broadcast to ``(batch, pos)``.

    Attributes:
        base: ``(..., d)``, the output of the wholly ablated submodule.
        features: ``(..., feature)``; None stands for zero.
        error: ``(..., d)``; None stands for zero.
    """

    base: Tensor
    features: Tensor | None
    error: Tensor | None


@torch.no_grad()
def ablation_values(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    inputs: Inputs | None,
    ablation: Ablation,
    *,
    by_position: bool = True,
    seed: int = 0,
) -> dict[str, AblationValues]:
    """Ablation values of every submodule that has a dictionary.

    Args:
        inputs: the mean is taken over their patch side where they are pairs, else over their
            clean side; at each position where all are of one length, else over all tokens. Zero
            reads none.
        ablation: ``mean``, ``zero``, or ``resample`` (every example takes the values of another
            one's patch side, drawn by `seed`).
        by_position: False for means over all tokens whatever the lengths, as `ablated` needs.

    Raises:
        InputError: unknown ablation; or resampling of one example, or of unequal lengths.
    """
    check_option("ablation", ablation, ABLATIONS)
    if ablation == "zero":
        return {name: AblationValues(d.bias, None, None) for name, d in dictionaries.items()}
    if inputs is None:
        raise InputError(f"{ablation} ablation takes its values from inputs: give them.")
    inputs = inputs.to(model.device)
    same_length = bool(inputs.mask.all())
    if ablation == "resample" and not (same_length and inputs.n_examples > 1):
        raise InputError(
            "resample ablation gives each example the values of another at the same position: it "
            "needs two examples or more, all of one length. Use mean or zero."
        )
    tokens = inputs.clean if inputs.patch is None else inputs.patch
    outputs = model.record(tokens, inputs.mask).outputs
    values = {}
    for name, dictionary in dictionaries.items():
        x = outputs[name].to(dictionary.decoder.dtype)
        if ablation == "resample":
            generator = torch.Generator().manual_seed(seed)
            shift = 1 + int(torch.randint(inputs.n_examples - 1, (1,), generator=generator))
            x = x.roll(shift, 0)
            features = dictionary.encode(x)
        else:
            apart = same_length and by_position
            features = _mean_features(dictionary, x, inputs.mask, apart)
            x = x.mean(0) if apart else x[inputs.mask].mean(0)
        values[name] = AblationValues(x, features, x - dictionary.decode(features))
    return values


def _mean_features(dictionary: Dictionary, x: Tensor, mask: Tensor, same_length: bool) -> Tensor:
    """Mean features over examples at each position, or over all tokens, without holding them."""
    act = dictionary.encode_sparse(x)
    real = mask.flatten()[act.token]
    token, feature, value = act.token[real], act.feature[real], act.value[real]
    n_pos = x.shape[1] if same_length else 1
    pos = token % n_pos if same_length else torch.zeros_like(token)
    total = value.new_zeros(n_pos * act.shape[2])
    add_at(total, pos * act.shape[2] + feature, value)
    n = x.shape[0] if same_length else int(mask.sum())
    return (total / n).view(n_pos, -1) if same_length else total / n


@dataclass(frozen=True)
class Part:
    """The circuit's nodes at one submodule.

    Attributes:
        features: ``(k,)`` feature indices.
        where: ``(pos, k)``, 1 where a node is in the circuit; None for all positions.
        error: ``(pos, 1)`` likewise for the error, or a plain 0.0 or 1.0 for all positions.
    """

    features: Tensor
    where: Tensor | None
    error: Tensor | float


def parts_of(
    nodes: Sequence[Node],
    names: Iterable[str],
    n_pos: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Part]:
    """A circuit's nodes by submodule, laid out for ablated runs of `n_pos` positions."""
    table = NodeTable.of(nodes)
    return {name: _part(table.at(name), n_pos, device, dtype) for name in names}


def _part(nodes: NodeTable, n_pos: int, device: torch.device, dtype: torch.dtype) -> Part:
    """The nodes of one submodule."""
    features = np.unique(nodes.feature[~nodes.is_error])
    index = torch.from_numpy(features).to(device)
    placed = nodes.is_placed
    if not placed.any():
        return Part(index, None, float(nodes.is_error.any()))
    column = np.searchsorted(features, nodes.feature)
    column[nodes.is_error] = len(features)
    kept = np.zeros((n_pos, len(features) + 1), dtype=bool)
    kept[nodes.pos[placed], column[placed]] = True
    kept[:, column[~placed]] = True
    where = torch.from_numpy(kept).to(device, dtype)
    return Part(index, where[:, :-1], where[:, -1:])


def _at_last(values: Tensor, last: Tensor) -> Tensor:
    """Values that broadcast to ``(batch, pos, k)``, at each example's last token."""
    if values.ndim == 1:
        return values
    return values[last] if values.ndim == 2 else at_last(values, last)


@dataclass(frozen=True)
class Edit:
    """x' = error x + shift + f(x) rows, f being some features of x: one submodule's new output.

    Attributes:
        features: ``(k,)``, those that are encoded; None for all.
        rows: ``(k, d)``, their decoder rows, or each times the weight that it has everywhere.
        weight: ``(pos, k)``, what features weigh at each position, or ``(k,)``, everywhere; None
            where that is 1.
        error: ``(pos, 1)``, 1 where the error is kept, or a plain 0.0 or 1.0.
        shift: ``(..., d)``, what does not depend on x; broadcasts to ``(batch, pos, d)``.
    """

    dictionary: Dictionary
    features: Tensor | None
    rows: Tensor
    weight: Tensor | None
    error: Tensor | float
    shift: Tensor

    @property
    def is_whole(self) -> bool:
        """Whether every node is ablated: what comes out is `shift`, whatever x is."""
        return not len(self.rows) and isinstance(self.error, float) and self.error == 0

    @property
    def is_nothing(self) -> bool:
        """Whether every node is kept: x comes out."""
        return not len(self.rows) and isinstance(self.error, float) and self.error == 1

    def __call__(self, x: Tensor) -> Tensor:
        """The submodule's output edited, ``(batch, pos, d)``."""
        if self.is_nothing:
            return x
        if self.is_whole:
            return self.shift.to(x.dtype).expand_as(x)
        wide = x.to(self.rows.dtype)
        out = self._decoded(wide) + self.shift
        if isinstance(self.error, Tensor):
            out += self.error * wide
        elif self.error:
            out += wide
        return out.to(x.dtype)

    def _decoded(self, x: Tensor) -> Tensor:
        """f(x) rows, a block of examples at a time."""
        blocks = [x]
        if x.ndim == 3:
            blocks = x.split(max(1, DENSE // max(1, x.shape[1] * len(self.rows))))
        parts = []
        for block in blocks:
            features = self.dictionary.encode(block, self.features)
            if self.weight is not None:
                features = features * self.weight
            parts.append(features @ self.rows)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def select(self, rows: Tensor) -> Edit:
        """The same edit for the examples `rows`, which may repeat."""
        return replace(self, shift=self.shift[rows]) if self.shift.ndim == 3 else self

    def at_last(self, last: Tensor) -> Edit:
        """The same edit of each example's last token alone, ``(batch, d)``."""
        weight = self.weight
        if weight is not None and weight.ndim > 1:
            weight = weight[last]
        error = self.error[last] if isinstance(self.error, Tensor) else self.error
        return replace(self, weight=weight, error=error, shift=_at_last(self.shift, last))


def keep_edit(
    dictionary: Dictionary, values: AblationValues, part: Part, *, complement: bool
) -> Edit:
    """What a submodule's output becomes when only a circuit, or only its complement, is kept."""
    n_features = dictionary.n_features
    # By position where the part is: 1 for a kept feature where the error is ablated, -1 for an
    # ablated one where it is kept, 0 where the sum needs nothing.
    if isinstance(part.error, Tensor):
        assert part.where is not None
        weight = -part.error.repeat(1, n_features)
        weight[:, part.features] += part.where
    else:
        weight = dictionary.bias.new_full((n_features,), -part.error)
        weight[part.features] += 1
    error = part.error
    if complement:
        weight, error = -weight, 1 - error
    used = weight.view(-1, n_features).any(0)
    # To encode all features costs less than to pick more than half of them.
    few = 2 * count_true(used) <= n_features
    index = used.nonzero().flatten() if few else None
    rows, ablated = dictionary.decoder, values.features
    if index is not None:
        rows, weight = rows[index], weight[..., index]
        ablated = None if ablated is None else ablated[..., index]
    if weight.ndim == 1 and index is not None:
        # Of few rows; all of them would be a second decoder for every submodule.
        rows, weight = weight[:, None] * rows, None
    shift = (1 - error) * values.base
    if ablated is not None:
        shift = shift - (ablated if weight is None else ablated * weight) @ rows
    return Edit(dictionary, index, rows, weight, error, shift)


@torch.no_grad()
def run_edited(runs: Resumed, edits: Mapping[str, Edit]) -> Tensor:
    """The metric with submodules' outputs edited as the run meets them, ``(batch,)``.

    Args:
        runs: from a recording of the inputs. Of its outputs only those that `start_of` names for
            the first of the edits are read.
        edits: by submodule name, at least one.
    """
    stream, layer, known = begin(runs, edits)
    for name, edit in edits.items():
        if edit.is_whole and name not in known:
            known[name] = _everywhere(edit, runs)
    return runs.finish(stream, layer, visiting(runs, edits), known)


def visiting(runs: Resumed, edits: Mapping[str, Edit]) -> Visit:
    """What these edits do to the values that `Resumed.finish` of the runs meets."""
    narrow = runs.narrow_layer
    at = {
        name: edit.at_last(runs.last) if Submodule.parse(name).layer == narrow else edit
        for name, edit in edits.items()
    }
    return lambda name, x: at[name](x) if name in at else x


@contextmanager
def ablated(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    nodes: Sequence[Node],
    *,
    values: Mapping[str, AblationValues] | None = None,
) -> Iterator[Any]:
    """While this lasts, the Hugging Face model runs with some nodes ablated at every token.

    Whatever runs it: a forward pass, ``generate``, `LanguageModel.record`, whose streams are then
    those of the ablated run. At each submodule, in order, what the run so far produced is encoded
    again, the nodes are set to their ablation value, everything else stays.

        >>> with ablated(model, dictionaries, [Node("mlp_1", 7, None, 0.0)]) as hf:
        ...     hf.generate(tokens)

    Args:
        dictionaries: by submodule name.
        nodes: features and error nodes, at no position; their effects do not matter.
        values: from `ablation_values`, with `by_position` False; zero where None.

    Returns:
        The model, `LanguageModel.hf`.

    Raises:
        InputError: a node at a position, a feature that its dictionary does not have, or values by
            position: generated texts have no fixed positions.
        MissingSubmodule: a node where no dictionary sits.
        WidthMismatch: a dictionary does not fit the model.
    """
    check_widths(dictionaries, model.width)
    check_nodes(nodes, {name: d.n_features for name, d in dictionaries.items()})
    if placed := next((node for node in nodes if node.pos is not None), None):
        raise InputError(
            f"node {placed.name} is at position {placed.pos}, and texts of any length are run: "
            "ablate at every position, Node(..., pos=None, ...)."
        )
    if values is None:
        values = ablation_values(model, dictionaries, None, "zero")
    if apart := [name for name, at in values.items() if at.base.ndim > 1]:
        raise InputError(
            f"ablation values at {apart[0]} differ by position, and texts of any length are run: "
            "take ablation_values(..., by_position=False)."
        )
    names = {node.submodule for node in nodes}
    dtype = next(iter(dictionaries.values())).decoder.dtype
    edits = {
        name: keep_edit(dictionaries[name], values[name], part, complement=True)
        for name, part in parts_of(nodes, names, 1, model.device, dtype).items()
    }
    with visited(model, lambda name, x: edits[name](x), names):
        yield model.hf


def check_nodes(
    nodes: Sequence[Node], n_features: Mapping[str, int], n_pos: int | None = None
) -> None:
    """Raise unless every node is of one of some dictionaries, and within the inputs.

    Args:
        n_features: of each dictionary, by submodule name.
        n_pos: positions of the inputs; not looked at where None.

    Raises:
        InputError: no list of nodes, a feature that a dictionary does not have, or a position that
            the inputs do not have.
        MissingSubmodule: a node where no dictionary sits.
    """
    table = NodeTable.of(nodes)
    widths = np.array([n_features.get(name, -1) for name in table.names], dtype=int)
    width = widths[table.submodule]
    wrong = (width < 0) | (table.feature < ERROR) | (table.feature >= width)
    if n_pos is not None:
        wrong |= table.pos >= n_pos
    if not wrong.any():
        return
    node = table[int(wrong.argmax())]
    if node.submodule not in n_features:
        raise MissingSubmodule(
            f"the circuit has node {node.name}, but no dictionary sits at "
            f"'{node.submodule}': use the dictionaries it was found with."
        )
    if not ERROR <= node.feature < n_features[node.submodule]:
        raise InputError(
            f"the circuit has node {node.name}, but that dictionary has features 0 to "
            f"{n_features[node.submodule] - 1}: the circuit was found with other dictionaries."
        )
    raise InputError(
        f"the circuit has node {node.name} at position {node.pos}, but the inputs have {n_pos} "
        "positions: take inputs of the circuit's length."
    )


def start_of(names: Iterable[str], parallel: bool) -> list[str]:
    """Recorded outputs that a run needs whose edits are at `names`.

    Args:
        parallel: whether MLP and attention read the same stream, `LanguageModel.parallel`.
    """
    kind, layer = Submodule.parse(causal_order(names)[0])
    if kind == "embed":
        return ["embed"]
    before = "embed" if layer == 0 else f"resid_{layer - 1}"
    # As recorded, unless what it reads has been edited.
    mlp = [f"mlp_{layer}"] if parallel or kind != "attn" else []
    return [before, f"attn_{layer}", *mlp]


def _everywhere(edit: Edit, runs: Resumed) -> Tensor:
    """The value of a wholly ablated submodule, ``(batch, pos, d)``."""
    return edit.shift.to(runs.model.dtype).expand(*runs.recording.mask.shape, -1)


def begin(runs: Resumed, edits: Mapping[str, Edit]) -> tuple[Tensor, int, dict[str, Tensor]]:
    """The stream to begin with, the layer that reads it, and what else is known as recorded."""
    recording, names = runs.recording, causal_order(edits)
    for name in reversed(names):
        if name.startswith("resid") and edits[name].is_whole:
            # Whatever happens before this stream is not seen behind it.
            return _everywhere(edits[name], runs), Submodule.parse(name).layer + 1, {}
    if names[0] == "embed":
        return edits["embed"](recording.outputs["embed"]) + recording.position, 0, {}
    layer = Submodule.parse(names[0]).layer
    _, *known = start_of(names, runs.model.parallel)
    outputs = {name: recording.outputs[name] for name in known}
    return recording.stream_before(layer), layer, outputs
