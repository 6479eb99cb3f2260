"""What SHIFT and what it is compared with take out of a model: some of its nodes, or tokens."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from assets.corpus.vocabulary import token_text
from assets.engine.stage import Work
from assets.shift.probe import TextSet

if TYPE_CHECKING:
    from torch import Tensor

    from core.ablate import AblationValues
    from core.dictionaries import Dictionary
    from core.inputs import Inputs
    from core.models import LanguageModel
    from core.types import Node

Basis = Literal["features", "neurons"]
Unit = tuple[str, int]
"""Submodule and number of a feature or neuron."""


@dataclass(frozen=True)
class Edit:
    """One way to edit the model.

    Attributes:
        method: its name in tables.
        is_control: it should not do as well as shift.
        units: features, or neurons, that are ablated.
        basis: which of them.
        with_errors: the circuit's error nodes are ablated too.
        deletes_tokens: the tokens that tell the attribute are taken out of the text instead.
        seeds: the seeds that it is for; all where it does not depend on one.
    """

    method: str
    is_control: bool
    units: Sequence[Unit] = ()
    basis: Basis = "features"
    with_errors: bool = False
    deletes_tokens: bool = False
    seeds: Sequence[int] = field(default=())


@dataclass(frozen=True)
class Units:
    """What edits are made from.

    Attributes:
        circuit: the circuit's features.
        active: all features with an effect, however small.
        irrelevant: the features of the circuit that are judged to be about the attribute.
    """

    circuit: Sequence[Unit]
    active: Sequence[Unit]
    irrelevant: Sequence[Unit]


def edits_of(
    units: Units,
    skylines: Mapping[Basis, Sequence[tuple[Unit, float]]],
    seeds: Sequence[int],
    *,
    n_draws: int,
    errors: bool,
) -> Iterator[Edit]:
    """Shift, both skylines, deleting what tells the attribute, and the controls.

    Args:
        skylines: the units most responsible for the attribute, and their effects.
        seeds: all of them.
        n_draws: how often controls by chance are drawn; seeds take the draws in turn.
        errors: shift ablates the circuit's error nodes too, and so do its controls.
    """
    judged, n = units.irrelevant, len(units.irrelevant)
    yield Edit("shift", False, judged, with_errors=errors, seeds=seeds)
    for basis, strongest_units in skylines.items():
        chosen = [unit for unit, _ in strongest_units]
        yield Edit(skyline(basis), False, chosen, basis, seeds=seeds)
    embedded = [unit for unit in judged if unit[0] == "embed"]
    # Where the data say which tokens tell the attribute, no edit of the model could do better.
    yield Edit("tokens_deleted", False, deletes_tokens=True, seeds=seeds)
    yield Edit("embedding_only", True, embedded, with_errors=errors, seeds=seeds)
    for draw in range(n_draws):
        rng = random.Random(draw)
        others = [unit for unit in units.active if unit not in set(units.circuit)]
        drawn = {
            "random_active": rng.sample(others, min(n, len(others))),
            "random_of_circuit": rng.sample(list(units.circuit), n),
            "permuted_judgements": list(_permuted(units, rng)),
        }
        for method, chosen in drawn.items():
            yield Edit(method, True, chosen, with_errors=errors, seeds=seeds[draw::n_draws])


def skyline(basis: Basis) -> str:
    """What ablating the units most responsible for the attribute is called."""
    return f"{basis.removesuffix('s')}_skyline"


def _permuted(units: Units, rng: random.Random) -> Iterator[Unit]:
    """As many features of the circuit at each submodule as are judged irrelevant there."""
    judged = set(units.irrelevant)
    for _, own in groupby(units.circuit, key=lambda unit: unit[0]):
        of_submodule = list(own)
        yield from rng.sample(of_submodule, sum(unit in judged for unit in of_submodule))


@dataclass(frozen=True)
class Editing:
    """How edits are made.

    Attributes:
        model: the model that is edited.
        dictionaries: of every submodule as far as the probe reads.
        neurons: identities at the same submodules.
        values: what ablated features are set to; None for zero.
        errors: the circuit's error nodes.
    """

    model: LanguageModel
    dictionaries: Mapping[str, Dictionary]
    neurons: Mapping[str, Dictionary]
    values: Mapping[str, AblationValues] | None
    errors: Sequence[Node]

    def __call__(self, edit: Edit) -> AbstractContextManager[object]:
        """While this lasts, the model runs edited."""
        from core.ablate import ablated
        from core.types import Node

        nodes = [Node(*unit, None, 0.0) for unit in edit.units]
        if edit.basis == "neurons":
            # Always to zero, as in the paper.
            return ablated(self.model, self.neurons, nodes)
        nodes += self.errors if edit.with_errors else ()
        if not nodes:
            return nullcontext()
        return ablated(self.model, self.dictionaries, nodes, values=self.values)


# -- tokens ---------------------------------------------------------------------------------------


def without_attribute(
    work: Work, texts: TextSet, words: Sequence[str]
) -> list[Sequence[int]] | None:
    """The texts without the tokens that tell the attribute.

    By what the data say of each token; else tokens of these words. None where neither is known.
    A text of which nothing would be left keeps its first token.
    """
    if all(tells is not None for tells in texts.tells):
        return [
            [t for t, told in zip(tokens, tells or (), strict=True) if told != "attribute"]
            or list(tokens[:1])
            for tokens, tells in zip(texts.tokens, texts.tells, strict=True)
        ]
    if not words:
        return None
    text = token_text(work.load.tokenizer())
    words = [word.lower() for word in words]
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
    return [_without(tokens, [text(t) for t in tokens], words, pattern) for tokens in texts.tokens]


def _without(
    tokens: Sequence[int], pieces: Sequence[str], words: Collection[str], pattern: re.Pattern[str]
) -> list[int]:
    """Tokens that are neither one of the words nor part of one in the text that they make."""
    found = [match.span() for match in pattern.finditer("".join(pieces))]
    left, start = [], 0
    for token, piece in zip(tokens, pieces, strict=True):
        stop = start + len(piece)
        is_word = piece.strip().lower() in words
        if not is_word and not any(first < stop and start < last for first, last in found):
            left.append(token)
        start = stop
    return left or list(tokens[:1])


# -- skylines -------------------------------------------------------------------------------------


def effects_of_zeroing(
    model: LanguageModel,
    bases: Mapping[Basis, Mapping[str, Dictionary]],
    inputs: Inputs,
    budget_bytes: int,
) -> dict[Basis, dict[str, Tensor]]:
    """What setting each feature, and each neuron, to zero does to the metric, to first order.

    Of both from one backward pass of each batch (eq. 3); summed over positions, mean over examples.

    Returns:
        By basis and submodule, ``(unit,)``.
    """
    from core.budget import plan_passes
    from core.circuit import examples_per_batch
    from core.effects import clean_gradients, feature_dots
    from core.endpoints import endpoints
    from core.models.replay import Resumed
    from core.sparse import add_at

    any_of = next(iter(bases.values()))
    total: dict[Basis, dict[str, Tensor]] = {
        basis: {name: d.bias.new_zeros(d.n_features) for name, d in dictionaries.items()}
        for basis, dictionaries in bases.items()
    }
    n_pos = inputs.clean.shape[1]
    passes = plan_passes(model, n_pos, budget_bytes)
    size = examples_per_batch(model, any_of, n_pos, budget_bytes)
    for batch in inputs.to(model.device).batches(size):
        runs = Resumed.record(model, batch)
        gradients = clean_gradients(runs, list(any_of), passes)
        for basis, dictionaries in bases.items():
            for name, dictionary in dictionaries.items():
                ends = endpoints(dictionary, runs.recording.outputs[name], None, batch.mask)
                change = ends.change.features
                effect = change.value * feature_dots(dictionary, change, gradients[name])
                add_at(total[basis][name], change.feature, effect / inputs.n_examples)
    return total


def strongest(effects: Mapping[str, Tensor], n: int) -> list[tuple[Unit, float]]:
    """The n units whose zeroing raises the metric most, with their effects."""
    found = [
        ((name, unit), float(of_submodule[unit]))
        for name, of_submodule in effects.items()
        for unit in (of_submodule > 0).nonzero().flatten().tolist()
    ]
    return sorted(found, key=lambda one: -one[1])[:n]
