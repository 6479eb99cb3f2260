"""Stages that do one thing for each behaviour of a source, several of them at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from assets.circuits.behaviours import Behaviour, behaviour_digests, read_behaviours
from assets.engine.stage import Job, Made, Metadata, PartitionedStage, Work, always
from assets.settings import Experiment
from assets.tables.places import DICTIONARY_SET, BehaviourSource, Key, behaviours

S = TypeVar("S")

SHOWN_WHOLE = 64
"""Clusters of which the UI shows more than figures: for thousands that would cost more than most
circuits do, and each of them stays in Dagster's log for good."""

_SAYS_EVERY = 2.0

One = Callable[[BehaviourSource, Mapping[str, Behaviour], Work, Job[S]], tuple[Made, str]]
"""What is made of one behaviour, given all by name, and what there is to say of it."""


def make_each(
    source: BehaviourSource, one: One[S], what: str, work: Work, jobs: Sequence[Job[S]]
) -> Iterator[tuple[str, Made]]:
    """`one` for each of these behaviours, in their order."""
    of_name = read_behaviours(work.store, source, [job.key for job in jobs])
    every = work.spread(partial(one, source, of_name), jobs)
    before = -math.inf  # each line is an event in Dagster's log
    for n, (job, (made, said)) in enumerate(zip(jobs, every, strict=True), start=1):
        if time.monotonic() - before >= _SAYS_EVERY or n == len(jobs):
            work.say(f"{what} {n} of {len(jobs)}: {job.key}, {said}")
            before = time.monotonic()
        yield job.key, made


def is_shown_whole(source: BehaviourSource, name: str) -> bool:
    """Whether the UI shows more of a behaviour than figures."""
    return source != "clusters" or int(name[1:]) < SHOWN_WHOLE


def made_from(
    work: Work, source: BehaviourSource, names: Iterable[str]
) -> dict[str, dict[str, str]]:
    """By name, the contents that whatever measures a behaviour depends on."""
    of_behaviour = behaviour_digests(work.store, source)
    dictionaries = work.store.content(DICTIONARY_SET)
    return {
        name: {"behaviour": of_behaviour[name], DICTIONARY_SET.path: dictionaries} for name in names
    }


def stage_of_each(
    source: BehaviourSource,
    key: Callable[[BehaviourSource, str], Key],
    one: One[S],
    what: str,
    *,
    description: str,
    partitions: Callable[[Experiment], Sequence[str]],
    reads: Callable[[Experiment, str], S],
    show: Callable[[BehaviourSource, Work, str], Metadata],
    group: str = "evaluations",
    deps: Sequence[str] = (),
    beside: Sequence[str] = (),
    inputs: Callable[
        [Work, BehaviourSource, Iterable[str]], Mapping[str, Mapping[str, str]]
    ] = made_from,
) -> PartitionedStage[S]:
    """The stage that makes `one` of each behaviour of a source, with model and dictionaries.

    Args:
        key: where what it makes of a behaviour lies; says which stage it is.
        what: what one is called while the stage works: ``circuit 3 of 40``.
        deps: stages that it reads besides those of behaviours and dictionaries.
        inputs: contents that it is made from, by name.
    """
    return PartitionedStage(
        name=key(source, "").stage,
        group=group,
        description=description,
        kinds=frozenset({"pytorch", "parquet"}),
        key=partial(key, source),
        beside=beside,
        partitions=partitions,
        deps=always(behaviours(source).stage, *deps, "dictionary_set"),
        needs=always("model", "dictionaries"),
        reads=reads,
        inputs=lambda work, settings: inputs(work, source, settings),
        make=partial(make_each, source, one, what),
        show=partial(show, source),
        apart=True,
    )
