"""What the report is made of: the tables that are there, each read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from assets.circuits.stages import load_circuit, read_labels
from assets.engine.store import ArtifactStore
from assets.evaluations.overlap import current_names
from assets.evaluations.summary import Names
from assets.tables.conversions import Frame, frame
from assets.tables.places import EVALUATION_SUMMARY, BehaviourSource, Key, behaviours

if TYPE_CHECKING:
    from core.types import Circuit


@dataclass(frozen=True)
class Found:
    """An experiment's tables.

    Attributes:
        name: of the experiment.
        store: opens its tables.
        tables: every stage, and where its tables lie.
        names: behaviours that have a circuit, by source.
        examined: those of them whose circuits are drawn.
    """

    name: str
    store: ArtifactStore
    tables: Mapping[str, Sequence[Key]]
    names: Names
    examined: Names

    def has(self, key: Key) -> bool:
        """Whether the experiment has a stage that makes this table, and it is there."""
        return key.stage in self.tables and self.store.footer(key) is not None

    def read(self, key: Key) -> Frame:
        """A table, as a data frame."""
        return frame(self.store.read(key))

    def notes(self, key: Key) -> Mapping[str, Any]:
        """What a table's footer notes."""
        return self.store.notes(key)

    def every(self, source: BehaviourSource, key: Callable[[str], Key]) -> Frame | None:
        """The tables of all behaviours of a source as one; None where there is none."""
        import pandas as pd

        frames = [self.read(key(name)) for name in self.names[source] if self.has(key(name))]
        frames = [one for one in frames if len(one)]
        return pd.concat(frames, ignore_index=True) if frames else None

    @cached_property
    def current(self) -> Names:
        """The behaviours whose circuit is of the examples and dictionaries there are now."""
        return current_names(self.store, self.names)

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """What features are called, by name; nothing while there are no labels."""
        return read_labels(self.store) if "labels" in self.tables else {}

    @cached_property
    def summary(self) -> Frame:
        """All circuits and how they were judged."""
        return self.read(EVALUATION_SUMMARY)

    @cached_property
    def first(self) -> Frame:
        """Of the summary, each circuit under the first policy and from the first start layer."""
        return self.summary.drop_duplicates(["source", "name"])

    def heads(self, source: BehaviourSource) -> Mapping[str, Mapping[str, Any]]:
        """The behaviours of a source by name."""
        rows = self.store.read(behaviours(source)).to_pylist()
        return {row["name"]: row for row in rows}

    def circuit(self, source: BehaviourSource, name: str) -> Circuit | None:
        """A circuit; None for an empty cluster."""
        return load_circuit(self.store, source, name)


_WORDS: dict[BehaviourSource, str] = {
    "tasks": "tasks",
    "clusters": "clusters",
    "classifiers": "classifiers",
}
WHAT: Mapping[str, str] = {str(source): words for source, words in _WORDS.items()}
"""What behaviours of a source are called. Tasks come first: they are few and keep positions."""


def each(found: Found) -> list[BehaviourSource]:
    """The sources that the experiment has, in the order of the page."""
    return [source for source in _WORDS if found.names.get(source)]
