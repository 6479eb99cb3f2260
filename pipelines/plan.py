"""What has to be made again, why, and in which runs: the same answer for every way to start them.

A stage is stale by its recipe (`assets.engine.recipe`), not by what Dagster was told. What lies
below a stale stage is planned with it, since its inputs are about to change; a stage that finds
nothing new when its turn comes does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from assets.checks import broken_checks
from assets.engine.asset import PLANNED
from assets.engine.recipe import digest
from assets.engine.stage import PartitionedStage, Stage
from assets.settings import Experiment, ExperimentError
from core.errors import CircuitError
from pipelines.stages import stages_of

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
_SHOWN = 3


@dataclass(frozen=True)
class Todo:
    """A stage that has to run.

    Attributes:
        stage: which.
        why: in a few words.
        wanted: digest of what it would make, as far as that is known before its inputs are made.
    """

    stage: Stage
    why: str
    wanted: str


@dataclass(frozen=True)
class Run:
    """Stages that one run brings up to date, in order: of partitioned ones, all of one kind.

    Attributes:
        stages: in an order in which they can run.
        tags: of the run; they name the range of partitions.
    """

    stages: Sequence[Stage]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        todo: stages that have to run, in order.
        held: stages that are or may be stale and are left alone, and why.
    """

    todo: Sequence[Todo]
    held: Mapping[str, str]

    @property
    def wanted(self) -> str:
        """Digest of what the stages would make: the same plan asked for twice is one plan."""
        return digest([[todo.stage.name, todo.wanted] for todo in self.todo])


def make_plan(experiment: Experiment, *, by_itself: bool) -> Plan:
    """What is stale in this experiment.

    Args:
        experiment: which.
        by_itself: for a rerun that nobody asked for. What was never made, dear work
            (`reruns.training`), what a failed check blocks, and all below these are then held.
    """
    todo: dict[str, Todo] = {}
    held: dict[str, str] = {}
    for stage in stages_of(experiment):
        deps = stage.upstream(experiment)
        above = [name for name in deps if name in held]
        if above:
            held[stage.name] = f"waits for {above[0]}"
            continue
        first = next((name for name in deps if name in todo), None)
        try:
            found = None if first else _look(experiment, stage, by_itself=by_itself)
        except Exception as error:  # files are whoever's, and other libraries read them
            held[stage.name] = told(error)
            continue
        if first:
            found = Todo(stage, f"{first} is made again", "")
        if isinstance(found, str):
            held[stage.name] = found
        elif found is not None:
            waits = stage.waits_for_a_request(experiment)
            if by_itself and waits and not experiment.settings.reruns.training:
                held[stage.name] = f"{found.why}: training is dear and waits until it is asked for"
            else:
                todo[stage.name] = found
    return Plan(list(todo.values()), held)


def told(error: Exception) -> str:
    """An error in one line, with its kind where the message was not written here."""
    own = isinstance(error, ExperimentError | CircuitError | OSError)
    return " ".join(f"{'' if own else f'{type(error).__name__}: '}{error}".split())


def _look(experiment: Experiment, stage: Stage, *, by_itself: bool) -> Todo | str | None:
    """What to do for a stage whose inputs are current; a text says why it is held."""
    if by_itself:
        blocked = [b for dep in stage.upstream(experiment) for b in broken_checks(experiment, dep)]
        if blocked:
            return f"blocked by {blocked[0]}"
    state = stage.state(experiment)
    whys = [one.why for one in state.values() if one.why]
    if not whys:
        return None
    if by_itself and all(why.never_made for why in whys):
        return f"{len(whys)} never made: start them by hand once"
    reasons = list(dict.fromkeys(why.says for why in whys))
    n = f"{len(whys)} partition{'s' * (len(whys) > 1)}: "
    many = n if isinstance(stage, PartitionedStage) else ""
    return Todo(
        stage, many + "; ".join(reasons[:_SHOWN]), digest([one.wanted for one in state.values()])
    )


def runs_of(experiment: Experiment, stages: Sequence[Stage]) -> Iterator[Run]:
    """The runs that bring these stages up to date, one after the other, as few as can be.

    A run has one range of partitions. Each stage of it still makes only what is stale there.
    """
    left = list(stages)
    while left:
        together: list[Stage] = []
        later: list[Stage] = []
        keys: Sequence[str] | None = None
        for stage in left:
            own = _partitions(experiment, stage)
            waits = {one.name for one in later}
            if waits & set(stage.upstream(experiment)) or (own and keys and own != keys):
                later.append(stage)
            else:
                together.append(stage)
                keys = keys or own
        tags = {PLANNED: "yes"}
        if keys:
            tags |= {RANGE_START: keys[0], RANGE_END: keys[-1]}
        yield Run(together, tags)
        left = later


def _partitions(experiment: Experiment, stage: Stage) -> list[str] | None:
    return list(stage.partitions(experiment)) if isinstance(stage, PartitionedStage) else None
