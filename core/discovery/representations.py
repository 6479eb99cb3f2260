"""What a sample is represented by before clustering: the five inputs of App. H.2.

    activations       x                          of each submodule's output
    features          f                          of each dictionary
    linear_effects    -x . dm/dx                 of each of its neurons, elementwise
    feature_effects   -f_i <W_d[i], dm/dx>       of each feature, and -<eps, dm/dx> of the error
    gradients         R^T dm/dparameters         see `core.discovery.projection`

with m = -log P(answer). Linear effects estimate what setting the neuron or feature to zero does
to m (attribution patching, eq. 3, to the zero patch): positive where the answer needs it. All but
the gradients are taken at the last n positions, concatenated, or summed over the context.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from core.budget import Passes
from core.dictionaries.dictionary import Dictionary, check_widths
from core.discovery.batches import Batch, batches, check_contexts
from core.discovery.filter import Sample
from core.discovery.projection import Projection, gradient_modules, projected_gradients
from core.effects import clean_gradients, feature_dots
from core.errors import InputError, MissingSubmodule, NotFinite, OutOfBudget
from core.models.language_model import LanguageModel
from core.options import REDUCTIONS, REPRESENTATIONS, Reduction, Representation, check_option
from core.types import causal_order

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SPARSE = ("features", "feature_effects")
_WITHOUT_METRIC = ("activations", "features")
_PROGRESS_EVERY = 500


def represent(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    samples: Sequence[Sample],
    *,
    representation: Representation,
    reduction: Reduction = "last",
    n_last: int = 1,
    submodules: Sequence[str] | None = None,
    error_effects: bool = False,
    n_projected: int = 30_000,
    seed: int = 0,
    batch_tokens: int = 4096,
    budget_bytes: int = 4 << 30,
    progress: Callable[[str], None] | None = None,
) -> np.ndarray | csr_array:
    """One vector per sample, for clustering (App. H.2).

    Args:
        dictionaries: by submodule; read by ``features`` and ``feature_effects`` only.
        representation: one of `core.options.REPRESENTATIONS`.
        reduction: ``last``, the last `n_last` positions one after the other (zeros where the
            context is shorter), or ``sum`` over the context. Gradients have no positions.
        submodules: which to use; None for every dictionary's, or without dictionaries every
            submodule of the model.
        error_effects: with ``feature_effects``, a further column per position: the error's effect.
        n_projected, seed: dimensions of projected gradients, and the seed of their projection.
        batch_tokens: tokens of one batch.
        budget_bytes: for the result.
        progress: told now and then how many samples are done.

    Returns:
        ``(sample, width)`` float32; a sparse matrix for ``features`` and ``feature_effects``.
        Columns go by submodule in causal order, then position, then neuron or feature, error last.

    Raises:
        InputError: an unknown representation or reduction, no samples, a context that is too long.
        MissingSubmodule: the model has no such submodule, or no dictionary sits there.
        WidthMismatch: a dictionary does not fit its submodule.
        OutOfBudget: the result does not fit.
        NotFinite: NaN or infinity came out.
    """
    check_contexts(samples, model.max_positions)
    names = _check(
        model, dictionaries, representation, reduction, n_last, submodules, error_effects
    )
    vectors: Callable[[Batch], Tensor | csr_array]
    if representation == "gradients":
        gradient_modules(model)
        width = n_projected
        vectors = partial(_gradient_vectors, model, Projection(n_projected, seed))
    else:
        places = _Places(n_last if reduction == "last" else None)
        width = places.n_slots * sum(map(model.width, names))
        vectors = partial(_dense_vectors, model, representation, names, places)
        if representation in _SPARSE:
            those = {name: dictionaries[name] for name in names}
            vectors = partial(_sparse_vectors, model, representation, those, places, error_effects)
    if representation not in _SPARSE:
        _check_budget(len(samples), width, budget_bytes)
    # Sums over a context are as long as it is: a batch of those is bounded by its own tokens.
    share = representation in _WITHOUT_METRIC and reduction == "last"
    most = {"batch_tokens": batch_tokens, "max_positions": model.max_positions}
    todo = batches(samples, **most, share=share)
    return _run(todo, vectors, budget_bytes, _Progress(representation, len(samples), progress))


def _run(
    todo: Iterable[Batch],
    vectors: Callable[[Batch], Tensor | csr_array],
    budget_bytes: int,
    progress: _Progress,
) -> np.ndarray | csr_array:
    """Vectors of every sample, batch by batch, put in the samples' order."""
    rows, parts = [], []
    for batch in todo:
        rows.append(batch.rows)
        parts.append(_checked(vectors(batch), progress.representation))
        progress.add(len(batch.rows))
        if progress.representation in _SPARSE:
            _check_growth(parts, progress.n_done, progress.n_samples, budget_bytes)
    return _in_order(torch.cat(rows).numpy(), parts)


@dataclass
class _Progress:
    """How many samples are done, told now and then."""

    representation: str
    n_samples: int
    say: Callable[[str], None] | None
    n_done: int = 0
    n_said: int = 0

    def add(self, n: int) -> None:
        self.n_done += n
        due = self.n_done >= self.n_said + _PROGRESS_EVERY or self.n_done == self.n_samples
        if self.say is not None and due:
            self.n_said = self.n_done
            self.say(f"{self.representation}: {self.n_done} of {self.n_samples} samples")


def _check(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    representation: str,
    reduction: str,
    n_last: int,
    submodules: Sequence[str] | None,
    error_effects: bool,
) -> list[str]:
    """Raise if the arguments make no sense; the submodules to read, in causal order."""
    check_option("representation", representation, REPRESENTATIONS)
    check_option("reduction", reduction, REDUCTIONS)
    if n_last < 1:
        raise InputError(f"n_last is {n_last}, but at least one position is needed.")
    if error_effects and representation != "feature_effects":
        raise InputError(f"error_effects go with feature_effects, not with {representation}.")
    names = causal_order(submodules or dictionaries or model.submodules)
    for name in names:
        model.width(name)
    if representation in _SPARSE:
        check_widths(dictionaries, model.width)
        missing = [name for name in names if name not in dictionaries]
        if missing:
            raise MissingSubmodule(
                f"{representation} need a dictionary at each submodule, but there is none at "
                f"{', '.join(missing)}: train or import them, or name other submodules."
            )
    return names


@dataclass(frozen=True)
class _Tokens:
    """Tokens that are read: for which sample of the batch, in which run, at which position, and
    into which slot of the vector."""

    example: Tensor
    run: Tensor
    pos: Tensor
    slot: Tensor


@dataclass(frozen=True)
class _Places:
    """Which positions are read: the last n, or (None) all, into one slot."""

    n_last: int | None

    @property
    def n_slots(self) -> int:
        return self.n_last or 1

    def of(self, run: Tensor, last: Tensor, n_pos: int) -> _Tokens:
        """The tokens to read, given the run and last position of each context, ``(sample,)``."""
        if self.n_last is None:
            real = torch.arange(n_pos, device=last.device) <= last[:, None]
            example, pos = real.nonzero(as_tuple=True)
            return _Tokens(example, run[example], pos, torch.zeros_like(pos))
        back = torch.arange(1 - self.n_last, 1, device=last.device)
        pos = last[:, None] + back
        example, slot = (pos >= 0).nonzero(as_tuple=True)
        return _Tokens(example, run[example], pos[example, slot], slot)


def _gradient_vectors(model: LanguageModel, projection: Projection, batch: Batch) -> Tensor:
    return projected_gradients(batch.record(model), projection)


def _outputs(
    model: LanguageModel, representation: str, names: Collection[str], batch: Batch
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """What submodules put out, ``(run, pos, d)``, and for effects dm/dx of the same shape."""
    if representation in _WITHOUT_METRIC:
        return model.record(batch.tokens).outputs, {}
    runs = batch.record(model)
    passes = Passes(len(runs.last), model.device)
    return runs.recording.outputs, clean_gradients(runs, list(names), passes)


def _dense_vectors(
    model: LanguageModel,
    representation: str,
    names: Collection[str],
    places: _Places,
    batch: Batch,
) -> Tensor:
    """Activations or linear effects, ``(sample, width)``."""
    outputs, gradients = _outputs(model, representation, names, batch)
    n_samples, n_pos = len(batch.rows), batch.tokens.shape[1]
    at = places.of(batch.run.to(model.device), batch.last.to(model.device), n_pos)
    parts = []
    for name in names:
        value = outputs[name][at.run, at.pos]
        if gradients:
            # Zero patch: the change is -x.
            value = -value * gradients[name][at.run, at.pos]
        part = value.new_zeros(n_samples * places.n_slots, value.shape[-1])
        part.index_add_(0, at.example * places.n_slots + at.slot, value)
        parts.append(part.reshape(n_samples, -1))
    return torch.cat(parts, 1)


def _sparse_vectors(
    model: LanguageModel,
    representation: str,
    dictionaries: Mapping[str, Dictionary],
    places: _Places,
    error_effects: bool,
    batch: Batch,
) -> csr_array:
    """Features or feature effects, ``(sample, width)``."""
    from scipy import sparse

    outputs, gradients = _outputs(model, representation, dictionaries, batch)
    n_samples, n_pos = len(batch.rows), batch.tokens.shape[1]
    at = places.of(batch.run.to(model.device), batch.last.to(model.device), n_pos)
    blocks: list[Any] = []
    for name, dictionary in dictionaries.items():
        x = outputs[name][at.run, at.pos][:, None]
        width = dictionary.n_features + error_effects
        features = dictionary.encode_sparse(x)
        token, column, value = features.token, features.feature, features.value
        if gradients:
            gradient = gradients[name][at.run, at.pos][:, None]
            value = -value * feature_dots(dictionary, features, gradient)
            if error_effects:
                error = x - dictionary.decode_sparse(features)
                effect = -torch.linalg.vecdot(error, gradient).flatten()
                token = torch.cat([token, torch.arange(len(effect), device=token.device)])
                column = torch.cat([column, torch.full_like(at.pos, width - 1)])
                value = torch.cat([value, effect])
        column = at.slot[token] * width + column
        entries = [v.cpu().numpy() for v in (value.float(), at.example[token], column)]
        shape = (n_samples, places.n_slots * width)
        # Converting adds up the entries of one place: the sum over positions.
        blocks.append(sparse.coo_array((entries[0], (entries[1], entries[2])), shape).tocsr())
    joined: Any = sparse.hstack(blocks, format="csr")
    return joined


def _checked(part: Tensor | csr_array, representation: str) -> np.ndarray | csr_array:
    """A batch's vectors as numpy or scipy has them; raises `NotFinite` if one has no number."""
    out = part.float().cpu().numpy() if isinstance(part, Tensor) else part
    values: Any = out if isinstance(out, np.ndarray) else out.data
    if not np.isfinite(values).all():
        raise NotFinite(
            f"{representation} hold NaN or infinity, so similarities between them would mean "
            "nothing. Run the model in a wider dtype."
        )
    return out


def _check_budget(n_samples: int, width: int, budget_bytes: int) -> None:
    """Raise `OutOfBudget` if dense vectors do not fit."""
    needed = 4 * n_samples * width
    if needed > budget_bytes:
        raise OutOfBudget(
            f"{n_samples} vectors of {width} numbers need {needed / 2**30:.2f} GiB, more than the "
            f"budget of {budget_bytes / 2**30:.2f} GiB: take at most "
            f"{budget_bytes // (4 * width)} samples, fewer submodules, positions or projected "
            "dimensions, or raise the budget."
        )


def _check_growth(parts: list[Any], n_done: int, n_samples: int, budget_bytes: int) -> None:
    """Raise `OutOfBudget` if sparse vectors as full as those made so far will not fit."""
    n_entries = sum(part.nnz for part in parts)
    needed = 8 * n_entries * n_samples // n_done
    if needed > budget_bytes:
        raise OutOfBudget(
            f"the first {n_done} vectors have {n_entries // n_done} entries each; all {n_samples} "
            f"would need {needed / 2**30:.2f} GiB, more than the budget of "
            f"{budget_bytes / 2**30:.2f} GiB: take fewer samples, submodules or positions, "
            "sparser dictionaries, or raise the budget."
        )


def _in_order(rows: np.ndarray, parts: list[Any]) -> np.ndarray | csr_array:
    """The batches' vectors put together, sample by sample."""
    if isinstance(parts[0], np.ndarray):
        out = np.empty((len(rows), parts[0].shape[1]), dtype=np.float32)
        start = 0
        while parts:
            part = parts.pop(0)
            out[rows[start : start + len(part)]] = part
            start += len(part)
        return out
    from scipy import sparse

    joined: Any = sparse.vstack(parts, format="csr")
    return joined[np.argsort(rows)]
