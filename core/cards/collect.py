"""One pass over a corpus: how often, how strongly and in which contexts features are active.

Of each feature two sets of contexts are kept while the corpus streams by: those in which its
largest activation is strongest, and a uniform sample of all in which it is active (the contexts of
highest random priority, the same priorities for every feature). From the sample come contexts of
lower quantiles. Memory is bounded by the number of features, whatever the corpus holds.

A feature is active where it is positive; of neurons (`core.dictionaries.identity_dictionary`) the
positive side alone is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from core.dictionaries import Dictionary, check_widths
from core.errors import InputError
from core.inputs import pad
from core.models import LanguageModel

N_QUANTILES = 4
N_BINS = 32
_SPARE = 4  # contexts kept in addition, in case some turn out to be the same text
_CONTEXTS_AT_ONCE = 32
_BYTES_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class Units:
    """Features of one dictionary that get cards.

    Attributes:
        submodule: where the dictionary sits.
        dictionary: the dictionary; the identity for neurons.
        features: ``(n,)`` long, which of its features.
    """

    submodule: str
    dictionary: Dictionary
    features: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Their activations, ``(..., d)`` to ``(..., n)``."""
        is_all = len(self.features) == self.dictionary.n_features
        return self.dictionary.encode(x, None if is_all else self.features)


@dataclass(frozen=True)
class Active:
    """Where features are active: ``(n,)`` each, one entry for every unit and token, by unit.

    Attributes:
        unit: index into the units' features.
        place: of the token, counting those of all contexts one after the other.
        value: the activation, positive.
    """

    unit: np.ndarray
    place: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Showing:
    """How many contexts of a feature are kept, and how much of each.

    Attributes:
        n_strongest: contexts of the strongest activations.
        n_per_quantile: contexts of each quarter of those in which the feature is active.
        n_before, n_after: tokens around the strongest activation.
        seed: of the priorities.
    """

    n_strongest: int = 10
    n_per_quantile: int = 3
    n_before: int = 20
    n_after: int = 8
    seed: int = 0

    @property
    def width(self) -> int:
        """Tokens of each context that are shown, at most."""
        return self.n_before + 1 + self.n_after


@dataclass(frozen=True)
class Excerpts:
    """Pieces of contexts, one row for each.

    Attributes:
        unit: index into the units' features, ascending.
        quantile: 0 for the weakest quarter to 3; -1 for the strongest contexts of all.
        rank: from 0, within the unit and quantile.
        row: index of the context.
        pos: position of its largest activation.
        start: position of the first token that is shown.
        length: tokens shown.
        peak: the largest activation.
        share: ``(n, width)``, of it that each token has, in half precision; zero beyond `length`.
    """

    unit: Tensor
    quantile: Tensor
    rank: Tensor
    row: Tensor
    pos: Tensor
    start: Tensor
    length: Tensor
    peak: Tensor
    share: Tensor

    @property
    def activations(self) -> Tensor:
        """``(n, width)``; zero beyond `length`."""
        return self.share.float() * self.peak[:, None]

    def of(self, units: Tensor) -> Excerpts:
        """Those of some units, ``(m,)`` ascending, which are counted anew from 0."""
        number = torch.full((int(torch.cat([self.unit, units]).amax()) + 1,), -1)
        number[units] = torch.arange(len(units))
        some = number[self.unit] >= 0
        columns = {f.name: getattr(self, f.name)[some] for f in fields(self)}
        return Excerpts(**{**columns, "unit": number[columns["unit"]]})


@dataclass(frozen=True)
class Collected:
    """What one pass knows of the features of one `Units`, ``(n,)`` each.

    Attributes:
        n_tokens: tokens looked at.
        n_active: tokens on which the feature is active.
        total: sum of its activations.
        n_contexts: contexts in which it is active.
        largest: its largest activation.
        edges: ``(n, N_BINS + 1)``, edges of bins from 0 to a power of two that is not below
            `largest`.
        counts: ``(n, N_BINS)``, contexts by the largest activation in them, where it is not zero.
        excerpts: the contexts that are shown.
    """

    n_tokens: int
    n_active: Tensor
    total: Tensor
    n_contexts: Tensor
    largest: Tensor
    edges: Tensor
    counts: Tensor
    excerpts: Excerpts


class _Slots:
    """The contexts of highest key, for each of `n` features: the strongest, or a sample.

    Activations are kept as shares of the largest of their context, in half precision.
    """

    def __init__(self, n: int, n_slots: int, showing: Showing) -> None:
        self._showing = showing
        self.key = torch.zeros(n, n_slots)
        self.value = torch.zeros(n, n_slots)
        self.row = torch.full((n, n_slots), -1, dtype=torch.int32)
        self.pos = torch.zeros(n, n_slots, dtype=torch.int32)
        self.share = torch.zeros(n, n_slots, showing.width, dtype=torch.float16)

    def offer(self, key: Tensor, active: Tensor, rows: Tensor, lengths: Tensor) -> None:
        """Take what has a higher key than what is kept.

        Args:
            key: ``(n, batch)``, positive where a context may be taken.
            active: ``(batch, pos, n)``, activations.
            rows, lengths: ``(batch,)`` of the contexts.
        """
        n_slots = self.key.shape[1]
        better = (key.amax(1) > self.key.amin(1)).nonzero().flatten()
        if not len(better):
            return
        both = torch.cat([self.key[better], key[better]], 1)
        best = both.topk(n_slots, 1).indices
        old = best < n_slots
        stays = torch.zeros(len(better), n_slots, dtype=torch.bool)
        stays[old.nonzero()[:, 0], best[old]] = True
        # As many are vacated as enter, and both lists go feature by feature.
        which, slot = (~stays).nonzero(as_tuple=True)
        new = (~old).nonzero()[:, 0]
        context = best[~old] - n_slots
        feature = better[which]
        assert torch.equal(which, new)
        self._take(feature, slot, key[feature, context], active, context, rows, lengths)

    def _take(
        self,
        feature: Tensor,
        slot: Tensor,
        key: Tensor,
        active: Tensor,
        context: Tensor,
        rows: Tensor,
        lengths: Tensor,
    ) -> None:
        entered = key > 0  # a context without activation may fill a slot that nothing else does
        feature, slot, context = feature[entered], slot[entered], context[entered]
        along = active[context, :, feature]
        value, pos = along.max(1)
        start = self.start(pos, lengths[context])
        places = start[:, None] + torch.arange(self._showing.width)
        outside = places >= lengths[context, None]
        share = along.gather(1, places.clamp(max=along.shape[1] - 1)) / value[:, None]
        self.key[feature, slot] = key[entered]
        self.value[feature, slot] = value
        self.row[feature, slot] = rows[context].int()
        self.pos[feature, slot] = pos.int()
        self.share[feature, slot] = share.masked_fill(outside, 0).half()

    def start(self, pos: Tensor, lengths: Tensor) -> Tensor:
        """Where what is shown begins: so that as much as can be is shown of a short context."""
        last = (lengths - self._showing.width).clamp(min=0)
        return torch.minimum((pos - self._showing.n_before).clamp(min=0), last)


class _Sums:
    """Everything kept of one `Units` while the corpus streams by."""

    def __init__(self, units: Units, showing: Showing) -> None:
        n = len(units.features)
        n_sampled = N_QUANTILES * showing.n_per_quantile + showing.n_strongest + _SPARE
        self.units = units
        self.n_active = torch.zeros(n, dtype=torch.float64)
        self.total = torch.zeros(n, dtype=torch.float64)
        self.n_contexts = torch.zeros(n, dtype=torch.long)
        self.top = torch.zeros(n)  # the histogram's upper end: a power of two, or 0
        self.counts = torch.zeros(n, N_BINS, dtype=torch.long)
        self.strongest = _Slots(n, showing.n_strongest + _SPARE, showing)
        self.sample = _Slots(n, n_sampled, showing)

    def add(self, x: Tensor, mask: Tensor, rows: Tensor, priority: Tensor) -> None:
        """Add contexts.

        Args:
            x: ``(batch, pos, d)``, what the submodule puts out.
            mask: ``(batch, pos)``.
            rows, priority: ``(batch,)``.
        """
        n = max(1, len(self.units.features))
        n_at_once = max(1, _BYTES_AT_ONCE // (4 * n * x.shape[1]))
        for start in range(0, len(x), n_at_once):
            part = slice(start, start + n_at_once)
            self._add(x[part], mask[part], rows[part], priority[part])

    def _add(self, x: Tensor, mask: Tensor, rows: Tensor, priority: Tensor) -> None:
        active = self.units.encode(x).float().cpu()
        if self.units.dictionary.activation.acts_at_zero:
            active = active.clamp_(min=0)
        if not bool(mask.all()):
            active.masked_fill_(~mask[:, :, None], 0)
        lengths = mask.sum(1)
        largest = active.amax(1).T.contiguous()
        self.n_contexts += (largest > 0).sum(1)
        self._count(largest)
        self.strongest.offer(largest, active, rows, lengths)
        self.sample.offer((largest > 0) * priority, active, rows, lengths)
        flat = active.flatten(0, 1)
        ones = torch.ones(len(flat))
        self.total += (ones @ flat).double()
        self.n_active += (ones @ flat.sign_()).double()

    def _count(self, largest: Tensor) -> None:
        """Count contexts into bins, whose range doubles where it does not reach."""
        peak = largest.amax(1)
        higher = peak > self.top
        if bool(higher.any()):
            new = torch.where(higher, torch.exp2(peak.clamp(min=1e-30).log2().ceil()), self.top)
            # log2 rounds: what lies above by a hair belongs into the last bin.
            steps = (new / self.top).log2().round().nan_to_num(0, 0, 0).long()
            steps = torch.where(self.top > 0, steps, 0)
            for step in range(int(steps.max())):
                grow = steps > step
                halves = self.counts[grow].view(-1, N_BINS // 2, 2).sum(2)
                self.counts[grow] = torch.cat([halves, torch.zeros_like(halves)], 1)
            self.top = new
        some = largest > 0
        at = (largest / self.top.clamp(min=1e-30)[:, None] * N_BINS).long().clamp(max=N_BINS - 1)
        self.counts.scatter_add_(1, at, some.long())


@torch.no_grad()
def active_at(
    model: LanguageModel, wanted: Mapping[str, Units], contexts: Sequence[Sequence[int]]
) -> dict[str, Active]:
    """Where features are active in some contexts, from one run of the model over them.

    Args:
        wanted: features by any name; several may be of one submodule.
        contexts: token ids of each.
    """
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in wanted}
    n_before = 0
    for start in range(0, len(contexts), _CONTEXTS_AT_ONCE):
        tokens, mask = pad(contexts[start : start + _CONTEXTS_AT_ONCE])
        outputs = model.record(tokens, mask).outputs
        for name, units in wanted.items():
            x = outputs[units.submodule][mask.to(model.device)]
            n_at_once = max(1, _BYTES_AT_ONCE // (4 * max(1, len(units.features))))
            for first in range(0, len(x), n_at_once):
                active = units.encode(x[first : first + n_at_once])
                place, unit = (active > 0).nonzero(as_tuple=True)
                value = active[place, unit].float()
                parts[name].append((unit.cpu(), place.cpu() + first + n_before, value.cpu()))
        n_before += int(mask.sum())
    return {name: _active(found) for name, found in parts.items()}


def _active(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Active:
    if not parts:
        return Active(np.empty(0, int), np.empty(0, int), np.empty(0, np.float32))
    unit, place, value = (torch.cat(column) for column in zip(*parts, strict=True))
    by_unit = unit.argsort(stable=True)
    return Active(unit[by_unit].numpy(), place[by_unit].numpy(), value[by_unit].numpy())


def priorities(n: int, seed: int) -> Tensor:
    """A random number in (0, 1) for each of `n` contexts."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator).clamp(min=1e-6)


@torch.no_grad()
def collect(
    model: LanguageModel,
    wanted: Mapping[str, Units],
    contexts: Sequence[Sequence[int]],
    *,
    documents: Sequence[int] | None = None,
    showing: Showing | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Collected]:
    """When features are active, from one run of the model over a corpus.

    Of contexts that are the same text only the first counts. A feature's excerpts are of different
    documents, and no two of them are the same text.

    Args:
        model: the model.
        wanted: features by any name; several may be of one submodule.
        contexts: token ids of each.
        documents: document of each context; each a document of its own where None.
        showing: how much is kept of each.
        progress: told how far the work is.

    Raises:
        InputError: no context, or an empty one.
        WidthMismatch: a dictionary does not fit its submodule.
    """
    showing = showing or Showing()
    for units in wanted.values():
        check_widths({units.submodule: units.dictionary}, model.width)
    if not contexts:
        raise InputError("there is no context to look for activations in.")
    first: dict[tuple[int, ...], int] = {}
    for row, tokens in enumerate(contexts):
        first.setdefault(tuple(tokens), row)
    rows = torch.tensor(list(first.values()))
    priority = priorities(len(contexts), showing.seed)
    sums = {name: _Sums(units, showing) for name, units in wanted.items()}
    n_tokens = 0
    for n, part in enumerate(rows.split(_CONTEXTS_AT_ONCE)):
        tokens, mask = pad([contexts[row] for row in part.tolist()])
        n_tokens += int(mask.sum())
        outputs = model.record(tokens, mask).outputs
        for one in sums.values():
            one.add(outputs[one.units.submodule], mask, part, priority[part])
        if progress is not None:
            progress(f"cards: {min((n + 1) * _CONTEXTS_AT_ONCE, len(rows)):,} of {len(rows):,}")
    padded, _ = pad(contexts)
    lengths = torch.tensor([len(tokens) for tokens in contexts])
    source = torch.arange(len(contexts)) if documents is None else torch.tensor(documents)
    texts = _Texts(padded, lengths, source, priority)
    # One after the other: what is kept of each is let go when its excerpts are chosen.
    return {name: _collected(sums.pop(name), texts, showing, n_tokens) for name in list(sums)}


@dataclass(frozen=True)
class _Texts:
    """Every context: ``(n, pos)`` tokens, and ``(n,)`` length, document and priority."""

    tokens: Tensor
    lengths: Tensor
    documents: Tensor
    priority: Tensor


def _collected(sums: _Sums, texts: _Texts, showing: Showing, n_tokens: int) -> Collected:
    return Collected(
        n_tokens=n_tokens,
        n_active=sums.n_active.round().long(),
        total=sums.total,
        n_contexts=sums.n_contexts,
        largest=sums.strongest.value.amax(1),
        edges=sums.top[:, None] * torch.linspace(0, 1, N_BINS + 1),
        counts=sums.counts,
        excerpts=_excerpts(sums, texts, showing),
    )


def _excerpts(sums: _Sums, texts: _Texts, showing: Showing) -> Excerpts:
    """The strongest contexts, and some of each quarter of the sample that are not among them."""
    strongest = _candidates(sums.strongest, texts)
    strongest = strongest[_first_of_each(strongest, -strongest.value, texts, showing)]
    strongest = strongest[strongest.rank() < showing.n_strongest]
    sample = _candidates(sums.sample, texts)
    sample = replace(sample, quantile=_quarters(sample))
    both = strongest.joined(sample)
    # Of two alike the one among the strongest stays.
    order = torch.where(both.quantile < 0, -2.0, -texts.priority[both.row])
    both = both[_first_of_each(both, order, texts, showing)]
    rank = both.rank()
    most = torch.where(both.quantile < 0, showing.n_strongest, showing.n_per_quantile)
    both, rank = both[rank < most], rank[rank < most]
    return Excerpts(
        unit=both.unit,
        quantile=both.quantile,
        rank=rank,
        row=both.row,
        pos=both.pos,
        start=both.start,
        length=(texts.lengths[both.row] - both.start).clamp(max=showing.width),
        peak=both.value,
        share=both.share,
    )


@dataclass(frozen=True)
class _Candidates:
    """Contexts that may be shown, ``(n,)`` each; in order of unit and quantile where ranked."""

    unit: Tensor
    quantile: Tensor
    value: Tensor
    row: Tensor
    pos: Tensor
    start: Tensor
    share: Tensor

    def __getitem__(self, chosen: Tensor) -> _Candidates:
        return _Candidates(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def joined(self, other: _Candidates) -> _Candidates:
        """These and others."""
        return _Candidates(
            *(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self))
        )

    def rank(self) -> Tensor:
        """Place of each within its unit and quantile, from 0."""
        return _places(self.unit * (N_QUANTILES + 1) + self.quantile + 1)


def _candidates(slots: _Slots, texts: _Texts) -> _Candidates:
    """What a set of slots holds."""
    unit, slot = (slots.row >= 0).nonzero(as_tuple=True)
    row, pos = slots.row[unit, slot].long(), slots.pos[unit, slot].long()
    return _Candidates(
        unit=unit,
        quantile=torch.full_like(unit, -1),
        value=slots.value[unit, slot],
        row=row,
        pos=pos,
        start=slots.start(pos, texts.lengths[row]),
        share=slots.share[unit, slot],
    )


def _places(group: Tensor) -> Tensor:
    """Place of each entry within its group, from 0; entries of one group stand together."""
    if not len(group):
        return group
    begins = torch.cat([torch.ones(1, dtype=torch.bool), group[1:] != group[:-1]])
    first = begins.nonzero().flatten()
    return torch.arange(len(group)) - first[begins.cumsum(0) - 1]


def _quarters(sample: _Candidates) -> Tensor:
    """Which quarter of its unit's sample each is in by its activation, 0 for the weakest."""
    order = torch.from_numpy(np.lexsort((sample.value.numpy(), sample.unit.numpy())))
    place = torch.empty_like(order)
    place[order] = _places(sample.unit[order])
    n = torch.bincount(sample.unit, minlength=1)[sample.unit]
    return place * N_QUANTILES // n


def _first_of_each(
    candidates: _Candidates, order: Tensor, texts: _Texts, showing: Showing
) -> Tensor:
    """Indices that leave of each unit every document and every text once, the least `order` first.

    They come by unit, quantile and `order`.
    """
    by_order = torch.from_numpy(np.lexsort((order.numpy(), candidates.unit.numpy())))
    for name in (texts.documents[candidates.row], _hashes(candidates, texts, showing)):
        pairs = torch.stack([candidates.unit[by_order], name[by_order]], 1).numpy()
        _, first = np.unique(pairs, axis=0, return_index=True)
        by_order = by_order[np.sort(first)]
    left = candidates[by_order]
    keys = (order[by_order].numpy(), left.quantile.numpy(), left.unit.numpy())
    return by_order[np.lexsort(keys)]


def _hashes(candidates: _Candidates, texts: _Texts, showing: Showing) -> Tensor:
    """A number for the text that is shown of each: a polynomial of its token ids, modulo 2^64."""
    found = torch.zeros_like(candidates.unit)
    for i in range(showing.width):
        place = candidates.start + i
        inside = place < texts.lengths[candidates.row]
        token = texts.tokens[candidates.row, place.clamp(max=texts.tokens.shape[1] - 1)] + 1
        found = found * 6364136223846793005 + torch.where(inside, token, 0)
    return found
