"""An experiment's tables as pages need them, read once and again only when a file has changed."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from sys import intern
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.circuits.stages import load_circuit
from assets.corpus.vocabulary import read_texts, token_text, unknown
from assets.engine.loading import Loader
from assets.engine.store import ArtifactStore
from assets.evaluations.summary import names_of
from assets.settings import Experiment, ExperimentError
from assets.tables.places import (
    DICTIONARY_SET,
    EVALUATION_SUMMARY,
    LABELS,
    VOCABULARY,
    BehaviourSource,
    Key,
    behaviours,
    card_contexts,
    cards,
    circuit,
    clusters,
    evaluation,
    examples,
    sae,
)
from core.errors import CircuitError
from explorer.texts import TokenTexts

if TYPE_CHECKING:
    from core.types import Circuit

T = TypeVar("T")
Basis = Literal["features", "neurons"]
Row = Mapping[str, Any]

_KEPT = 256
_REST = 0.5
_IN_MEMORY = 100_000  # rows of a table of cards, or of the texts on them


@dataclass(frozen=True, eq=False)
class Held:
    """The nodes of one circuit, as the index of features holds them.

    Attributes:
        nodes: ``(n,)`` names without positions, ``attn_3/1234``; errors end in ``/error``.
        effects: ``(n,)``, in the metric's units.
    """

    nodes: Sequence[str]
    effects: np.ndarray

    @cached_property
    def is_error(self) -> np.ndarray:
        """``(n,)``: which of them are error nodes."""
        return np.array([name.endswith("/error") for name in self.nodes], bool)

    @cached_property
    def total(self) -> float:
        """Sum of |effect|."""
        return float(np.abs(self.effects).sum())

    @property
    def error_share(self) -> float:
        """Share of error nodes in the sum of |effect|; NaN without nodes."""
        errors = float(np.abs(self.effects[self.is_error]).sum())
        return errors / self.total if self.total else math.nan

    @property
    def largest_share(self) -> float:
        """Share of the strongest feature, its positions together; NaN without nodes."""
        largest = max(map(abs, self.by_feature.values()), default=0.0)
        return largest / self.total if self.total else math.nan

    @cached_property
    def by_feature(self) -> dict[str, float]:
        """Effect of each feature, summed over positions."""
        sums: dict[str, float] = {}
        for name, effect, error in zip(self.nodes, self.effects, self.is_error, strict=True):
            if not error:
                sums[name] = sums.get(name, 0.0) + float(effect)
        return sums


class Holding(NamedTuple):
    """A circuit that holds a feature.

    Attributes:
        source, name: the circuit.
        effect: the feature's effect there, summed over positions.
        share: of the sum of |effect|.
    """

    source: BehaviourSource
    name: str
    effect: float
    share: float


class Reader:
    """One experiment, read only.

    Whatever it gives is kept until the files it came from change. Every method raises
    `ExperimentError` where a table is missing, cut short or damaged, with the table's name.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.store = ArtifactStore(experiment.artifacts)
        self._kept: OrderedDict[Hashable, tuple[object, Any]] = OrderedDict()
        self._held: dict[tuple[str, str], tuple[object, Held | None]] = {}
        self._index: dict[str, tuple[float, dict[str, Held]]] = {}
        self._keys: dict[tuple[str, str], Key] = {}
        self._lock = RLock()

    # -- what there is --------------------------------------------------------------------------

    @cached_property
    def names(self) -> Mapping[BehaviourSource, tuple[str, ...]]:
        """Every circuit that the experiment's file asks for, by source."""
        return names_of(self.experiment)

    def source(self, name: str) -> BehaviourSource:
        """The source called `name`.

        Raises:
            LookupError: there is none.
        """
        if name not in self.names:
            raise LookupError(f"{self.experiment.name} has {' and '.join(self.names)}, no {name!r}")
        return cast("BehaviourSource", name)

    def check_name(self, source: BehaviourSource, name: str) -> None:
        """Raise `LookupError` where the source has no circuit of that name."""
        if name not in self.names[source]:
            raise LookupError(f"{self.experiment.name} has no {name!r} among its {source}")

    def check_feature(self, name: str, *, neuron: bool = False) -> tuple[str, int]:
        """Submodule and number of the feature (or neuron) called `name`, ``mlp_2/59``.

        Raises:
            LookupError: it is of no submodule of the experiment, or of no such number.
        """
        submodule, _, number = name.partition("/")
        if submodule not in self.experiment.submodules or not _is_number(number):
            raise LookupError(f"{self.experiment.name} has no feature {name!r}")
        basis: Basis = "neurons" if neuron else "features"
        n = self.n_of(submodule, basis)
        if n is not None and int(number) >= n:
            raise LookupError(f"{submodule} has {n} {basis}, from 0: no {number}")
        return submodule, int(number)

    def n_of(self, submodule: str, basis: Basis) -> int | None:
        """How many features or neurons there are; None where the dictionary set is missing."""
        column = "width" if basis == "neurons" else "n_features"
        return self.dictionaries().get(submodule, {}).get(column)

    def is_made(self, source: BehaviourSource, name: str) -> bool:
        """Whether there is a file of that circuit, sound or not."""
        return self.store.stamp(circuit(source, name)) is not None

    # -- tables ---------------------------------------------------------------------------------

    def rows(self, key: Key) -> list[dict[str, Any]]:
        """All rows of a table."""
        return self._fresh([key], ("rows", key.path), lambda: self.store.read(key).to_pylist())

    def circuit(self, source: BehaviourSource, name: str) -> Circuit | None:
        """A circuit; None for an empty cluster."""
        keys = [circuit(source, name, table) for table in ("circuit", "nodes", "edges")]
        return self._fresh(
            keys, ("circuit", source, name), lambda: load_circuit(self.store, source, name)
        )

    def behaviours(self, source: BehaviourSource) -> dict[str, Row]:
        """The behaviours of a source, by name."""
        key = behaviours(source)
        return self._fresh(
            [key],
            ("behaviours", source),
            lambda: {row["name"]: row for row in self.store.read(key).to_pylist()},
        )

    def examples(self, source: BehaviourSource) -> dict[str, list[Row]]:
        """The examples of each behaviour of a source."""
        key = examples(source)

        def grouped() -> dict[str, list[Row]]:
            of_name: dict[str, list[Row]] = {}
            for row in self.store.read(key).to_pylist():
                if source == "classifiers":
                    row["answer"] = f" class {row['answer']}"
                of_name.setdefault(row["name"], []).append(row)
            return of_name

        return self._fresh([key], ("examples", source), grouped)

    def evaluation(self, source: BehaviourSource, name: str) -> list[dict[str, Any]]:
        """How a circuit was judged, at every size and under every policy.

        From the first start layer on: from others it was judged at its own size alone.
        """
        rows = self.rows(evaluation(source, name))
        return [row for row in rows if row["start_layer"] == rows[0]["start_layer"]]

    def summary(self) -> dict[tuple[str, str, str], Row]:
        """Rows of the evaluation summary by (source, name, policy for error nodes).

        Those of the first start layer, which come first.
        """
        return self._fresh(
            [EVALUATION_SUMMARY],
            "summary",
            lambda: {
                (row["source"], row["name"], row["error_nodes"]): row
                for row in reversed(self.store.read(EVALUATION_SUMMARY).to_pylist())
            },
        )

    def coherence(self) -> dict[str, float | None]:
        """Coherence of each cluster, by name."""
        return self._fresh(
            [clusters()],
            "coherence",
            lambda: {
                f"k{row['cluster']:05d}": row["coherence"]
                for row in self.store.read(clusters(), ["cluster", "coherence"]).to_pylist()
            },
        )

    def dictionaries(self) -> dict[str, Row]:
        """What the dictionary set says of each submodule's dictionary; empty where missing."""
        try:
            return {row["submodule"]: row for row in self.rows(DICTIONARY_SET)}
        except ExperimentError:
            return {}

    def weights(self, submodule: str) -> str | None:
        """Hash of a submodule's dictionary, to which annotations belong; None where unknown."""
        return self.dictionaries().get(submodule, {}).get("weights")

    def decoder(self, submodule: str) -> Any:
        """Decoder directions ``(feature, d)`` of unit length; None where not in the store."""

        def read() -> Any:
            from core.dictionaries.files import load_dictionary

            file = self.store.here(sae(submodule), ".safetensors")
            try:
                rows = load_dictionary(file).decoder.float().numpy()
            except (CircuitError, OSError):
                return None
            return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

        return self._fresh([sae(submodule)], ("decoder", submodule), read)

    # -- cards and labels -----------------------------------------------------------------------

    def card(self, basis: Basis, submodule: str, feature: int) -> Row | None:
        """The card of a feature or a neuron, the texts on it under ``contexts``; None where
        there is none."""
        found = self._where(cards(submodule), basis, feature)
        if not found:
            return None
        return {**found[0], "contexts": self._where(card_contexts(submodule), basis, feature)}

    def _where(self, key: Key, basis: Basis, feature: int) -> list[dict[str, Any]]:
        """Rows of a feature or neuron."""
        # Raises where there is no such table.
        n_rows = self._fresh([key], ("n_rows", key.path), lambda: self.store.n_rows(key))
        if n_rows > _IN_MEMORY:
            return self._read(key, [("basis", "==", basis), ("feature", "==", feature)]).to_pylist()

        def read() -> tuple[pa.Table, dict[tuple[str, int], list[int]]]:
            table, places = self._read(key), dict[tuple[str, int], list[int]]()
            of_rows = zip(table["basis"].to_pylist(), table["feature"].to_pylist(), strict=True)
            for row, place in enumerate(of_rows):
                places.setdefault(place, []).append(row)
            return table, places

        table, places = self._fresh([key], ("table", key.path), read)
        return table.take(pa.array(places.get((basis, feature), []), pa.int64())).to_pylist()

    def _read(self, key: Key, filters: list[tuple[str, str, Any]] | None = None) -> pa.Table:
        """A table, or those rows of one too large for memory that pass the filters."""
        file = self.store.here(key)
        try:
            return pq.read_table(file, filters=filters, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise ExperimentError(
                f"{self.store.place(key)} is damaged ({error}): delete it and materialize "
                f"{key.stage} again."
            ) from None

    def with_card(self, submodule: str) -> list[Row]:
        """Which features and neurons of a submodule have a card, and why; none where missing."""
        columns = ["basis", "feature", "chosen"]
        key = cards(submodule)
        if self.store.footer(key) is None:
            return []
        return self._fresh(
            [key], ("with_card", submodule), lambda: self.store.read(key, columns).to_pylist()
        )

    def labels(self) -> dict[tuple[str, str], Row]:
        """The label that is shown of each feature or neuron, by basis and name."""

        def read() -> dict[tuple[str, str], Row]:
            if self.store.footer(LABELS) is None:
                return {}
            return {
                (row["basis"], f"{row['submodule']}/{row['feature']}"): row
                for row in self.store.read(LABELS).to_pylist()
                if row["shown"]
            }

        return self._fresh([LABELS], "labels", read)

    # -- tokens ---------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> TokenTexts:
        """What tokens look like; their numbers where the tokenizer cannot be loaded."""

        def load() -> Callable[[int], str]:
            if self.store.footer(VOCABULARY) is not None:
                texts = read_texts(self.store)
                return lambda token: texts[token] if token < len(texts) else unknown(token)
            return token_text(Loader(self.experiment).tokenizer())

        return TokenTexts(load)

    def searchable(self, source: BehaviourSource) -> dict[str, str]:
        """All text of each behaviour's contexts, in lower case."""

        def joined() -> dict[str, str]:
            heads, of_name = self.behaviours(source), self.examples(source)
            return {
                name: "\n".join(
                    [
                        f"{name} {head['label'] or ''} {head['about']}",
                        *(self.texts.plain(row) for row in of_name.get(name, ())),
                    ]
                ).lower()
                for name, head in heads.items()
            }

        return self._fresh([behaviours(source), examples(source)], ("texts", source), joined)

    # -- which circuits hold which features -----------------------------------------------------

    def held(self, source: BehaviourSource) -> dict[str, Held]:
        """The nodes of every circuit that was made, by name; those of changed files read again.

        Thousands of files are looked at, so not more often than every half second.
        """
        with self._lock:
            at, found = self._index.get(source, (-math.inf, {}))
            if time.monotonic() - at > _REST:
                self.store.ahead(circuit(source, name, "nodes") for name in self.names[source])
                found = {
                    name: held
                    for name in self.names[source]
                    if (held := self._held_by(source, name)) is not None
                }
                self._index[source] = time.monotonic(), found
            return found

    def held_by(self, source: BehaviourSource, name: str) -> Held | None:
        """The nodes of one circuit; None where it is not made, or damaged."""
        with self._lock:
            return self._held_by(source, name)

    def _held_by(self, source: BehaviourSource, name: str) -> Held | None:
        place = source, name
        if place not in self._keys:
            self._keys[place] = circuit(source, name, "nodes")
        stamp = self.store.stamp(self._keys[place])
        if stamp is None:
            return None
        if place not in self._held or self._held[place][0] != stamp:
            self._held[place] = stamp, self._read_held(source, name)
        return self._held[place][1]

    def _read_held(self, source: BehaviourSource, name: str) -> Held | None:
        key = circuit(source, name, "nodes")
        try:
            table = self.store.read(key, ["submodule", "feature", "effect"])
        except ExperimentError:  # the circuit's own page says what is wrong with it
            return None
        names = [
            intern(f"{submodule}/{'error' if feature < 0 else feature}")
            for submodule, feature in zip(
                table["submodule"].to_pylist(), table["feature"].to_pylist(), strict=True
            )
        ]
        return Held(names, table["effect"].to_numpy())

    def holders(self, feature: str) -> list[Holding]:
        """Every circuit that holds a feature, the largest share of its circuit first."""
        found = [
            Holding(source, name, effect, abs(effect) / held.total if held.total else math.nan)
            for source in self.names
            for name, held in self.held(source).items()
            if (effect := held.by_feature.get(feature)) is not None
        ]
        return sorted(found, key=lambda holding: -holding.share)

    def warm(self) -> None:
        """Read what the first pages would wait for; what is missing is left to them to say."""
        self.texts.raw(0)  # brings the tokenizer, which takes seconds, before anything is locked
        for source in self.names:
            self.held(source)
            for read in (self.searchable, self.behaviours):
                try:
                    read(source)
                except ExperimentError:
                    break

    # -- kept until changed ---------------------------------------------------------------------

    def _stamp(self, keys: Iterable[Key]) -> tuple[object, ...]:
        return tuple(map(self.store.stamp, keys))

    def _fresh(self, keys: Sequence[Key], place: Hashable, read: Callable[[], T]) -> T:
        with self._lock:
            stamp = self._stamp(keys)
            kept = self._kept.get(place)
            if kept is None or kept[0] != stamp:
                kept = self._kept[place] = stamp, read()
            self._kept.move_to_end(place)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return kept[1]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
