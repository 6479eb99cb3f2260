"""What the judging of circuits is made from, and circuits that must be found again first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from assets.circuits.each import made_from
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.settings import ExperimentError
from assets.tables.places import DICTIONARY_SET, BehaviourSource, circuit


def judged_from(
    work: Work,
    source: BehaviourSource,
    names: Iterable[str],
    parts: Iterable[str] = ("nodes", "effects"),
) -> dict[str, dict[str, str]]:
    """By name, the contents that a circuit's evaluation depends on.

    Args:
        parts: tables of the circuit that it reads. Edges do not enter where nodes are judged: the
            same nodes and examples give the same numbers.

    Raises:
        ExperimentError: a circuit was found from other examples or dictionaries than there are now.
    """
    every = made_from(work, source, names)
    for name, inputs in every.items():
        inputs.update({part: work.store.content(circuit(source, name, part)) for part in parts})
    _check_fresh(work.store, source, every)
    return every


def _check_fresh(
    store: ArtifactStore, source: BehaviourSource, wanted: Mapping[str, Mapping[str, str]]
) -> None:
    """Raise if a circuit was found from other examples or dictionaries than there are now."""
    stale = []
    for name, inputs in wanted.items():
        made_from = store.notes(circuit(source, name))["inputs"]
        if any(made_from[key] != inputs[key] for key in ("behaviour", DICTIONARY_SET.path)):
            stale.append(name)
    if stale:
        stage = circuit(source, stale[0]).stage
        raise ExperimentError(
            f"{stage}: {', '.join(stale[:8])}{' and others' if len(stale) > 8 else ''} of "
            f"{len(wanted)} were found from earlier examples or dictionaries, so judging them now "
            f"would mix the two. Materialize {stage} first."
        )
