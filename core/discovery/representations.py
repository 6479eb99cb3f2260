"""What a sample is represented by before clustering: the inputs of App. H.2, and one more.

    activations       x                          of each submodule's output
    mlp_neurons       x                          of each MLP's hidden neurons
    features          f                          of each dictionary
    active_features   1 where f > 0              which are active, not how much (not in the paper)
    linear_effects    -x . dm/dx                 of each of its neurons, elementwise
    feature_effects   -f_i <W_d[i], dm/dx>       of each feature, and -<eps, dm/dx> of the error
    gradients         R^T dm/dparameters         see `core.discovery.projection`

with m = -log P(answer). Linear effects estimate what setting the neuron or feature to zero does
to m (attribution patching, eq. 3, to the zero patch): positive where the answer needs it. All but
the gradients are taken at the last n positions, concatenated, or summed over the context: a
function each, in `READINGS`, of what stands at the tokens of one submodule.

Submodules differ in the length of what they give by up to two orders of magnitude, and the longest
decide a cosine. `equal_submodules` scales what each gives to length 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from core.budget import Passes
from core.dictionaries.dictionary import Dictionary, check_widths
from core.discovery.batches import Batch, batches, check_contexts
from core.discovery.clustering import unit_rows
from core.discovery.filter import Sample
from core.discovery.projection import Projection, gradient_modules, projected_gradients
from core.effects import clean_gradients, feature_dots
from core.errors import InputError, MissingSubmodule, NotFinite, OutOfBudget
from core.models.language_model import LanguageModel
from core.options import (
    REDUCTIONS,
    WITH_DICTIONARIES,
    Reduction,
    Representation,
    check_list,
    check_option,
)
from core.types import SparseFeatures, causal_order

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_PROGRESS_EVERY = 500


# -- what is read at the tokens of one submodule --------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How a representation is read where a submodule puts out x.

    Attributes:
        of: gives ``(token, width)``, dense or sparse (`SparseFeatures` of one position). Called
            with x ``(token, d)``, then dm/dx of the same shape if `with_gradient`, then the
            submodule's dictionary if `core.options.WITH_DICTIONARIES` names the representation.
        with_gradient: whether it needs a backward pass.
        of_neurons: whether x is an MLP's hidden neurons, not the submodule's output.
    """

    of: Callable[..., Tensor | SparseFeatures]
    with_gradient: bool = False
    of_neurons: bool = False


def _activations(x: Tensor) -> Tensor:
    return x


def _features(x: Tensor, dictionary: Dictionary) -> SparseFeatures:
    return dictionary.encode_sparse(x[:, None])


def _active_features(x: Tensor, dictionary: Dictionary) -> SparseFeatures:
    features = _features(x, dictionary)
    return replace(features, value=torch.ones_like(features.value))


def _linear_effects(x: Tensor, gradient: Tensor) -> Tensor:
    return -x * gradient  # zero patch: the change is -x


def _feature_effects(x: Tensor, gradient: Tensor, dictionary: Dictionary) -> SparseFeatures:
    return _effects_of(dictionary.encode_sparse(x[:, None]), gradient, dictionary)


def _effects_of(
    features: SparseFeatures, gradient: Tensor, dictionary: Dictionary
) -> SparseFeatures:
    value = -features.value * feature_dots(dictionary, features, gradient[:, None])
    return replace(features, value=value)


def _feature_and_error_effects(
    x: Tensor, gradient: Tensor, dictionary: Dictionary
) -> SparseFeatures:
    features = dictionary.encode_sparse(x[:, None])
    effects = _effects_of(features, gradient, dictionary)
    error = x - dictionary.decode_sparse(features)[:, 0]
    n_tokens, _, n_features = effects.shape
    every = torch.arange(n_tokens, device=x.device)
    token = torch.cat([effects.token, every])
    order = token.argsort(stable=True)
    return SparseFeatures(
        token=token[order],
        feature=torch.cat([effects.feature, torch.full_like(every, n_features)])[order],
        value=torch.cat([effects.value, -torch.linalg.vecdot(error, gradient)])[order],
        shape=(n_tokens, 1, n_features + 1),
    )


READINGS: dict[str, Reading] = {
    "activations": Reading(_activations),
    "mlp_neurons": Reading(_activations, of_neurons=True),
    "features": Reading(_features),
    "active_features": Reading(_active_features),
    "linear_effects": Reading(_linear_effects, with_gradient=True),
    "feature_effects": Reading(_feature_effects, with_gradient=True),
}
"""Every representation but the gradients, by name."""


# -- vectors --------------------------------------------------------------------------------------


def represent(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    samples: Sequence[Sample],
    *,
    representation: Representation,
    reduction: Reduction = "last",
    n_last: int = 1,
    submodules: Sequence[str] | None = None,
    equal_submodules: bool = False,
    error_effects: bool = False,
    n_projected: int = 30_000,
    seed: int = 0,
    batch_tokens: int = 4096,
    budget_bytes: int = 4 << 30,
    progress: Callable[[str], None] | None = None,
) -> np.ndarray | csr_array:
    """One vector per sample, for clustering (App. H.2).

    Args:
        dictionaries: by submodule; read by the representations in `WITH_DICTIONARIES` only.
        representation: one of `READINGS`, or ``gradients``.
        reduction: ``last``, the last `n_last` positions one after the other (zeros where the
            context is shorter), or ``sum`` over the context. Gradients have no positions.
        submodules: which to use; None for every dictionary's, or without dictionaries every
            submodule of the model; of ``mlp_neurons`` every MLP.
        equal_submodules: scale what each submodule gives to length 1 (gradients have none).
        error_effects: with ``feature_effects``, a further column per position: the error's effect.
        n_projected, seed: dimensions of projected gradients, and the seed of their projection.
        batch_tokens: tokens of one batch.
        budget_bytes: for the result.
        progress: told now and then how many samples are done.

    Returns:
        ``(sample, width)`` float32; a sparse matrix where dictionaries are read.
        Columns go by submodule in causal order, then position, then neuron or feature, error last.

    Raises:
        InputError: an unknown representation or reduction, no samples, a context that is too long.
        MissingSubmodule: the model has no such submodule, no dictionary sits there, or it is no
            MLP whose neurons could be read.
        WidthMismatch: a dictionary does not fit its submodule.
        OutOfBudget: the result does not fit.
        NotFinite: NaN or infinity came out.
    """
    check_contexts(samples, model.max_positions)
    names = _check(
        model, dictionaries, representation, reduction, n_last, submodules, error_effects
    )
    vectors: Callable[[Batch], Tensor | csr_array]
    reading = None
    if representation == "gradients":
        gradient_modules(model)
        width = n_projected
        vectors = partial(_gradient_vectors, model, Projection(n_projected, seed))
    else:
        reading = READINGS[representation]
        if error_effects:
            reading = replace(reading, of=_feature_and_error_effects)
        places = _Places(n_last if reduction == "last" else None)
        of_one = model.n_neurons if reading.of_neurons else model.width
        width = places.n_slots * sum(map(of_one, names))
        read_with = dictionaries if representation in WITH_DICTIONARIES else {}
        vectors = partial(
            _read_vectors, model, reading, names, read_with, places, equal=equal_submodules
        )
    if representation not in WITH_DICTIONARIES:
        _check_budget(len(samples), width, budget_bytes)
    # Sums over a context are as long as it is: a batch of those is bounded by its own tokens.
    share = reading is not None and not reading.with_gradient and reduction == "last"
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
        if isinstance(parts[-1], np.ndarray):
            _check_budget(progress.n_samples, parts[-1].shape[1], budget_bytes)
        else:
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
    check_option("representation", representation, (*READINGS, "gradients"))
    check_option("reduction", reduction, REDUCTIONS)
    if n_last < 1:
        raise InputError(f"n_last is {n_last}, but at least one position is needed.")
    if error_effects and representation != "feature_effects":
        raise InputError(f"error_effects go with feature_effects, not with {representation}.")
    if submodules is not None:
        check_list("submodules", submodules, str)
    every = submodules or dictionaries or model.submodules
    if representation == "mlp_neurons" and submodules is None:
        every = [name for name in model.submodules if name.startswith("mlp")]
    names = causal_order(every)
    for name in names:
        model.width(name)
    if representation in WITH_DICTIONARIES:
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


def _read_vectors(
    model: LanguageModel,
    reading: Reading,
    names: Sequence[str],
    dictionaries: Mapping[str, Dictionary],
    places: _Places,
    batch: Batch,
    *,
    equal: bool,
) -> Tensor | csr_array:
    """What is read at the chosen tokens of each submodule, ``(sample, width)``."""
    outputs, gradients = _outputs(model, reading, names, batch)
    n_samples, n_pos = len(batch.rows), batch.tokens.shape[1]
    at = places.of(batch.run.to(model.device), batch.last.to(model.device), n_pos)
    dense: list[Tensor] = []
    blocks: list[Any] = []
    for name in names:
        arguments: list[Any] = [outputs[name][at.run, at.pos]]
        if reading.with_gradient:
            arguments.append(gradients[name][at.run, at.pos])
        if dictionaries:
            arguments.append(dictionaries[name])
        read = reading.of(*arguments)
        if isinstance(read, SparseFeatures):
            block = _sparse_block(read, at, n_samples, places.n_slots)
            blocks.append(unit_rows(block) if equal else block)
        else:
            part = read.new_zeros(n_samples * places.n_slots, read.shape[-1])
            part.index_add_(0, at.example * places.n_slots + at.slot, read)
            part = part.reshape(n_samples, -1)
            dense.append(normalize(part) if equal else part)
    if dense:
        return torch.cat(dense, 1)
    from scipy import sparse

    joined: Any = sparse.hstack(blocks, format="csr")
    return joined


def _outputs(
    model: LanguageModel, reading: Reading, names: Sequence[str], batch: Batch
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """What submodules put out, ``(run, pos, d)``, and dm/dx of the same shape where it is read."""
    if reading.of_neurons:
        return model.neurons(batch.tokens, names), {}
    if not reading.with_gradient:
        return model.record(batch.tokens).outputs, {}
    runs = batch.record(model)
    passes = Passes(len(runs.last), model.device)
    return runs.recording.outputs, clean_gradients(runs, list(names), passes)


def _sparse_block(read: SparseFeatures, at: _Tokens, n_samples: int, n_slots: int) -> Any:
    from scipy import sparse

    width = read.shape[-1]
    column = at.slot[read.token] * width + read.feature
    entries = [v.cpu().numpy() for v in (read.value.float(), at.example[read.token], column)]
    shape = (n_samples, n_slots * width)
    # Converting adds up the entries of one place: the sum over positions.
    return sparse.coo_array((entries[0], (entries[1], entries[2])), shape).tocsr()


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
