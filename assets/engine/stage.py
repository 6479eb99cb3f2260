"""What every stage has in common: skip what is done, work, write, say what was written.

A stage is a value. `reads` takes from the experiment what shapes the stage's result, one frozen
settings value with every default resolved. The stage's function gets that value and a `Work` that
opens nothing but the tables of its deps and what it says it loads. So a change of anything that the
function can see changes the recipe of what it makes (`assets.engine.recipe`), and nothing else.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import dagster as dg
import pyarrow as pa

from assets.engine.code import Name, Tree, hold_code, installed, is_ours
from assets.engine.lineage import Reader
from assets.engine.loading import CODE, Loader, Need
from assets.engine.lock import alone
from assets.engine.recipe import Recipe, Source, digest, plain, sources
from assets.engine.records import circumstances
from assets.engine.store import ArtifactStore, Why
from assets.engine.workers import n_workers, spread
from assets.settings import Experiment
from assets.tables.places import Key
from assets.tables.schemas import TABLES

OWNERS = ["team:circuits"]
MODEL_POOL = "model"
"""Stages that hold a model in memory; dagster.yaml lets one run of them go at a time."""

GROUPS = (
    "files",
    "corpus",
    "dictionaries",
    "tokens",
    "clusters",
    "circuits",
    "evaluations",
    "features",
    "classifier",
    "report",
)
"""What is read, and then the steps of the method, in order."""


def group_of(experiment: Experiment, group: str) -> str:
    """The name of a step's group in the UI: numbered, so that groups stand in order."""
    return f"{experiment.group}_{GROUPS.index(group)}_{group}"


_BLOCKS = 64
"""Of the partitions of a stage, those that one run at a time works on."""

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
Say = Callable[[str], None]
Metadata = Mapping[str, Any]


def _quiet(_text: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Work:
    """What a stage works with besides its settings; nothing here shapes a result.

    Attributes:
        store: the experiment's tables.
        load: its model, tokenizer and dictionaries.
        budget_bytes: memory for what one step of the work holds.
        workers: how many pieces of it may be done at once; None for one on each core.
        about: names for people: experiment, model, corpus.
        explorer: address of the explorer's pages of the experiment.
        say: told how far the work is.
    """

    store: ArtifactStore
    load: Loader
    budget_bytes: int
    about: Mapping[str, str]
    explorer: str = ""
    say: Say = _quiet
    workers: int | None = 1

    @classmethod
    def on(cls, experiment: Experiment, say: Say = _quiet) -> Self:
        """Work on an experiment's own artifacts, with everything open."""
        settings = experiment.settings
        return cls(
            store=ArtifactStore(experiment.artifacts),
            load=Loader(experiment),
            budget_bytes=int(settings.model.memory_gb * 1e9),
            about={
                "experiment": experiment.name,
                "model": settings.model.source,
                "corpus": settings.corpus.source,
            },
            explorer=f"{settings.explorer}/{experiment.name}",
            say=say,
            workers=settings.model.workers,
        )

    def only(self, stages: Iterable[str], needs: Iterable[Need]) -> "Work":
        """The same work with nothing open but the tables of these stages and what is needed."""
        return replace(self, store=self.store.only(stages), load=self.load.only(needs))

    @cached_property
    def makings(self) -> Reader:
        """What tables were made from, each read once: ask while none but the last is written."""
        return Reader(self.store)

    def spread(self, function: Callable[["Work", T], R], items: Sequence[T]) -> Iterator[R]:
        """`function(work, item)` for each item, in their order, several at once.

        Each piece has its share of the memory. What it would say is lost where it is another
        process that does it: let it return what there is to say.
        """
        self.load.everything()  # once, for all of them
        workers = n_workers(self.workers)
        share = replace(self, budget_bytes=self.budget_bytes // workers)
        return spread(partial(function, share), items, workers)


@dataclass(frozen=True)
class Made:
    """What a stage made.

    Attributes:
        table: its table, or the pieces of one too large for memory, made while it is written.
        notes: what the table's footer should note, known at the latest when it is written.
        beside: what goes beside it, written before it.
        files: what else was written with it; the table is current while these are there.
    """

    table: pa.Table | Iterator[pa.Table]
    notes: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(default_factory=dict)
    beside: Mapping[Key, "pa.Table | Made"] = field(default_factory=dict)
    files: Sequence[Path] = ()


class State(NamedTuple):
    """How a table stands.

    Attributes:
        wanted: fingerprint of what it would be made from now.
        why: why it has to be made; None if it is current.
    """

    wanted: str
    why: Why | None


class Job(NamedTuple, Generic[S]):
    """One partition to make: its key, its settings, and the recipe it is made by."""

    key: str
    settings: S
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class _Stage(Generic[S]):
    """What all stages say about themselves.

    Attributes:
        name: the asset's name.
        group: the step of the method it belongs to, one of `GROUPS`.
        description: what a person reads in the UI.
        kinds: icons in the UI.
        deps: stages whose tables it reads, given its settings.
        needs: what it loads, given its settings.
        on_request: whether it is dear work that nothing starts by itself, given its settings.
        files: name of the node that stands for the files outside which its settings name.
    """

    name: str
    group: str
    description: str
    kinds: frozenset[str]
    deps: Callable[[S], Sequence[str]]
    needs: Callable[[S], Sequence[Need]] = lambda _settings: ()
    on_request: Callable[[S], bool] = lambda _settings: False
    files: str | None = None

    def _work(self, work: Work, settings: S) -> Work:
        return work.only({self.name, *self.deps(settings)}, self.needs(settings))

    def _recipe(
        self, identity: Callable[[Need], str | None], settings: S, inputs: Mapping[str, str]
    ) -> Recipe:
        loaded = {need: identity(need) for need in self.needs(settings)}
        contents = {name: source.content for name, source in sources(settings) if source.whole}
        known = {name: value for name, value in loaded.items() if value is not None}
        return Recipe(
            self.name, {**inputs, **known, **contents}, plain(settings), self.code(settings)
        )

    def _how(
        self, work: Work, experiment: Experiment, settings: S, began: float
    ) -> Callable[[], Metadata]:
        """How a table is made whose making began then."""
        work.store.lineage.keep_text(experiment)
        needs = self.needs(settings)
        outside = {name: source.written for name, source in sources(settings)}
        loaded = {need: work.load.as_written(need) for need in needs if need != "dictionaries"}
        device = experiment.settings.model.device if "model" in needs else None
        return circumstances(experiment, {**outside, **loaded}, device, began)

    def code(self, settings: S, tree: Tree | None = None) -> str:
        """Digest of the code that makes the result, as it runs here or lies in another tree."""
        entries, filled_in = code_of(self._make())
        entries += [CODE[need] for need in self.needs(settings)]
        entries += dict.fromkeys(_kinds_of(settings))
        schemas = [
            [(column.name, str(column.type)) for column in TABLES[table].schema]
            for table in sorted(self._tables())
        ]
        return digest([(tree or installed()).digest(entries), filled_in, schemas])

    def _as_written(self, experiment: Experiment, settings: S) -> object:
        """What shapes the result as far as the experiment's file tells, without a look at files."""
        loader = Loader(experiment)
        return [
            plain(settings),
            {name: source.written for name, source in sources(settings)},
            {need: loader.as_written(need) for need in self.needs(settings)},
            self.code(settings),
        ]

    def _make(self) -> Callable[..., Any]:
        """The function that does the work."""
        raise NotImplementedError

    def _tables(self) -> Iterable[str]:
        raise NotImplementedError

    def _every(self, experiment: Experiment) -> Sequence[S]:
        """The settings of everything it makes."""
        raise NotImplementedError

    def version(self, experiment: Experiment) -> str:
        """Changes with every setting and line of code that shapes the result."""
        written = {digest(self._as_written(experiment, s)) for s in self._every(experiment)}
        return digest(sorted(written))

    def upstream(self, experiment: Experiment) -> list[str]:
        """The stages it reads, in this experiment."""
        return list(dict.fromkeys(d for s in self._every(experiment) for d in self.deps(s)))

    def outside(self, experiment: Experiment) -> list[str]:
        """The nodes of files outside the artifacts folder that it reads."""
        every = self._every(experiment)
        loads = {need for settings in every for need in self.needs(settings)}
        return [
            *(["model_files"] if loads & {"model", "tokenizer"} else []),
            *([self.files] if self.files and any(any(sources(s)) for s in every) else []),
        ]

    def places_of(self, experiment: Experiment) -> Iterator[Source]:
        """The files outside the artifacts folder that its settings name."""
        for settings in self._every(experiment):
            yield from (place for _, place in sources(settings))

    def waits_for_a_request(self, experiment: Experiment) -> bool:
        """Whether it is dear work that nothing starts by itself."""
        return any(self.on_request(settings) for settings in self._every(experiment))

    def declaration(self, experiment: Experiment) -> dict[str, Any]:
        """Arguments of `dg.asset` that do not depend on how it is partitioned."""
        loads_model = any("model" in self.needs(s) for s in self._every(experiment))
        read = [*self.upstream(experiment), *self.outside(experiment)]
        return {
            "key": [experiment.name, self.name],
            "deps": [dg.AssetKey([experiment.name, name]) for name in read],
            "group_name": group_of(experiment, self.group),
            "description": self.description,
            "kinds": set(self.kinds),
            "owners": OWNERS,
            "metadata": {
                "experiment": experiment.settings.description or "no description",
                "experiment file": dg.MetadataValue.path(str(experiment.path)),
            },
            "tags": {"experiment": experiment.group, "stage": self.group},
            # Dagster then marks exactly what a changed setting or algorithm concerns.
            "code_version": self.version(experiment),
            "pool": MODEL_POOL if loads_model else None,
        }


def code_of(make: Any) -> tuple[list[Name], list[Any]]:
    """Where a function is defined, and what is filled into it: definitions, and plain values."""
    if not isinstance(make, partial):
        return [(make.__module__, make.__qualname__)], []
    entries, values = code_of(make.func)
    for place, value in [*enumerate(make.args), *sorted(make.keywords.items())]:
        if callable(value):
            inner, filled_in = code_of(value)
            entries += inner
            values.append([place, inner, filled_in])
        else:
            entries += _kinds_of(value)
            values.append([place, plain(value)])
    return entries, values


def _kinds_of(value: Any) -> Iterator[Name]:
    """The classes of a settings value and of what it holds, whose methods a stage may run."""
    kind = type(value)
    if is_ours(kind.__module__):
        yield kind.__module__, kind.__qualname__
    if is_dataclass(value):
        for f in fields(value):
            yield from _kinds_of(getattr(value, f.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _kinds_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _kinds_of(item)


def _write(
    store: ArtifactStore, key: Key, made: Made, recipe: Recipe, how: Callable[[], Metadata]
) -> None:
    """What was made, the table that says so last, and how it was made."""
    files, tables = _write_beside(store, made, recipe)
    store.write(
        key,
        made.table,
        recipe,
        notes=made.notes,
        files=files,
        made=lambda: {"tables": tables, "made": how()},
    )


def _write_beside(
    store: ArtifactStore, made: Made, recipe: Recipe
) -> tuple[list[Path], dict[str, str]]:
    """What goes beside a table: where all of it lies, and the contents of the tables among it."""
    files, tables = list(made.files), dict[str, str]()
    for key, beside in made.beside.items():
        whole = Made(beside) if isinstance(beside, pa.Table) else beside
        inner, inner_tables = _write_beside(store, whole, recipe)
        content = store.write(key, whole.table, recipe, notes=whole.notes, files=inner)
        files += [*inner, store.path(key)]
        tables |= {**inner_tables, key.path: content}
    return files, tables


def _says(why: Why | None) -> str:
    return "it was asked for again" if why is None else why.says


class Pace:
    """Says now and then how many items are done, how fast, and how long the rest takes."""

    def __init__(self, name: str, n_items: int, say: Say, every: float = 10.0) -> None:
        self._name, self._n_items, self._say, self._every = name, n_items, say, every
        self._done = 0
        self._began = self._said = time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        if now - self._said >= self._every or self._done == self._n_items:
            self._said = now
            each = (now - self._began) / self._done
            left = each * (self._n_items - self._done)
            self._say(
                f"{self._name}: {self._done} of {self._n_items} done, {each:.2g} s each, "
                f"about {left:.0f} s left"
            )


@dataclass(frozen=True, kw_only=True)
class TableStage(_Stage[S]):
    """A stage that writes one table, and perhaps others beside it.

    Attributes:
        key: where its table lies.
        beside: where the others lie.
        reads: what shapes the result.
        make: does the work.
        show: metadata for the UI, from what lies in the store.
        inputs: contents of what it is made from, by name; `contents` gives those of tables.
    """

    key: Key
    beside: Sequence[Key] = ()
    reads: Callable[[Experiment], S]
    make: Callable[[Work, S], Made]
    inputs: Callable[[Work, S], Mapping[str, str]]
    show: Callable[[Work, S], Metadata] = lambda _work, _settings: {}

    def _make(self) -> Callable[..., Any]:
        return self.make

    def _tables(self) -> Iterable[str]:
        return [key.table for key in (self.key, *self.beside)]

    def _every(self, experiment: Experiment) -> Sequence[S]:
        return [self.reads(experiment)]

    def recipe(self, experiment: Experiment) -> Recipe:
        """What the table would be made from now; raises where an input is missing."""
        settings = self.reads(experiment)
        work = self._work(Work.on(experiment), settings)
        return self._recipe(work.load.identity, settings, self.inputs(work, settings))

    def inputs_of(self, experiment: Experiment) -> Mapping[str, Any]:
        """Contents of what it is made from, by name; raises where an input is missing."""
        settings = self.reads(experiment)
        return self.inputs(self._work(Work.on(experiment), settings), settings)

    def state(self, experiment: Experiment) -> Mapping[str, State]:
        """How its table stands, under its name; raises where an input is missing."""
        recipe, store = self.recipe(experiment), ArtifactStore(experiment.artifacts)
        return {self.name: State(recipe.fingerprint, store.why_stale(self.key, recipe))}

    def run(self, experiment: Experiment, say: Say = _quiet, *, force: bool = False) -> bool:
        """Bring the table up to date, or make it again; whether there was anything to do."""
        settings = self.reads(experiment)
        work = self._work(Work.on(experiment, say), settings)
        work.store.check_writable()
        with alone(work.store.root, self.name, say):
            recipe = self._recipe(work.load.identity, settings, self.inputs(work, settings))
            why = work.store.why_stale(self.key, recipe)
            if why is None and not force:
                say(f"{self.name} is up to date")
                return False
            say(f"{self.name}: {_says(why)}")
            hold_code()
            how = self._how(work, experiment, settings, time.perf_counter())
            _write(work.store, self.key, self.make(work, settings), recipe, how)
            return True

    def adopt(self, experiment: Experiment) -> list[str]:
        """Take what other code made as it is, where nothing but the code changed; what was."""
        store, recipe = ArtifactStore(experiment.artifacts), self.recipe(experiment)
        return [key.path for key in (*self.beside, self.key) if store.adopt(key, recipe)]

    def shown(self, experiment: Experiment) -> Metadata:
        """What the UI shows of the table."""
        settings = self.reads(experiment)
        # What is only shown may be read from anywhere.
        return self.show(Work.on(experiment), settings)


@dataclass(frozen=True, kw_only=True)
class PartitionedStage(_Stage[S]):
    """A stage that writes a table, and perhaps others beside it, for each partition.

    Attributes:
        partitions: names of its partitions.
        key: where the table that says that a partition is done lies.
        beside: names of the other tables' schemas.
        reads: what shapes a partition's result.
        make: does the work for those partitions that need it; gives each as it is ready.
        inputs: contents of what each partition is made from.
        show: metadata of one partition, from what lies in the store.
        apart: several runs may make different partitions at once: nothing is shared but what was
            there before.
    """

    partitions: Callable[[Experiment], Sequence[str]]
    key: Callable[[str], Key]
    beside: Sequence[str] = ()
    reads: Callable[[Experiment, str], S]
    make: Callable[[Work, Sequence[Job[S]]], Iterator[tuple[str, Made]]]
    inputs: Callable[[Work, Mapping[str, S]], Mapping[str, Mapping[str, str]]]
    show: Callable[[Work, str], Metadata] = lambda _work, _key: {}
    apart: bool = False

    def _make(self) -> Callable[..., Any]:
        return self.make

    def _tables(self) -> Iterable[str]:
        return [self.key("").table, *self.beside]

    def _every(self, experiment: Experiment) -> Sequence[S]:
        return [self.reads(experiment, key) for key in self.partitions(experiment)]

    def recipes(self, experiment: Experiment, keys: Sequence[str]) -> dict[str, Recipe]:
        """What these partitions would be made from now; raises where an input is missing."""
        return {job.key: job.recipe for job in self._jobs(Work.on(experiment), experiment, keys)}

    def _jobs(self, work: Work, experiment: Experiment, keys: Sequence[str]) -> list[Job[S]]:
        settings = {key: self.reads(experiment, key) for key in keys}
        inputs = self.inputs(self._open(work, settings.values()), settings)
        identity = cache(work.load.identity)  # looks at every file of a model
        return [
            Job(key, value, self._recipe(identity, value, inputs[key]))
            for key, value in settings.items()
        ]

    def _open(self, work: Work, settings: Iterable[S]) -> Work:
        """The work with what any of these partitions declares."""
        every = list(settings)
        deps = {dep for value in every for dep in self.deps(value)}
        return work.only({self.name, *deps}, {need for v in every for need in self.needs(v)})

    def adopt(self, experiment: Experiment) -> list[str]:
        """Take what other code made as it is, where nothing but the code changed; what was."""
        store = ArtifactStore(experiment.artifacts)
        recipes = self.recipes(experiment, self.partitions(experiment))
        return [key for key, recipe in recipes.items() if store.adopt(self.key(key), recipe)]

    def inputs_of(self, experiment: Experiment) -> Mapping[str, Any]:
        """Contents of what each partition is made from; raises where an input is missing."""
        settings = {key: self.reads(experiment, key) for key in self.partitions(experiment)}
        return self.inputs(self._open(Work.on(experiment), settings.values()), settings)

    def state(self, experiment: Experiment) -> Mapping[str, State]:
        """How each partition stands; raises where an input is missing."""
        store = ArtifactStore(experiment.artifacts)
        store.ahead(map(self.key, self.partitions(experiment)))
        return {
            key: State(recipe.fingerprint, store.why_stale(self.key(key), recipe))
            for key, recipe in self.recipes(experiment, self.partitions(experiment)).items()
        }

    def locks(self, experiment: Experiment, keys: Sequence[str]) -> list[str]:
        """What a run that makes these partitions holds, in the order in which it takes them.

        Where partitions are made apart these are blocks of them, so that a run of thousands does
        not hold thousands of files open.
        """
        if not self.apart:
            return [self.name]
        every = self.partitions(experiment)
        block = {key: i * _BLOCKS // max(_BLOCKS, len(every)) for i, key in enumerate(every)}
        return [f"{self.name}-{n:02d}" for n in sorted({block[key] for key in keys})]

    def run(
        self,
        experiment: Experiment,
        keys: Sequence[str],
        say: Say = _quiet,
        *,
        force: bool = False,
    ) -> int:
        """Bring these partitions up to date; how many had anything to do."""
        return sum(1 for _ in self.bring_up_to_date(experiment, keys, say, force=force))

    def bring_up_to_date(
        self,
        experiment: Experiment,
        keys: Sequence[str],
        say: Say = _quiet,
        *,
        force: bool = False,
    ) -> Iterator[str]:
        """Make those of these partitions that are not current, or all; each key when it is done."""
        work = Work.on(experiment, say)
        work.store.check_writable()
        with ExitStack() as locks:
            for name in self.locks(experiment, keys):
                locks.enter_context(alone(work.store.root, name, say))
            jobs = self._jobs(work, experiment, keys)
            work.store.ahead(map(self.key, keys))
            whys = {job.key: work.store.why_stale(self.key(job.key), job.recipe) for job in jobs}
            wanted = [job for job in jobs if force or whys[job.key]]
            say(f"{self.name}: {len(wanted)} to do, {len(keys) - len(wanted)} up to date")
            if not wanted:
                return
            for reason, n in Counter(_says(whys[job.key]) for job in wanted).most_common(3):
                say(f"{self.name}: {n} because {reason}")
            hold_code()
            of_key, pace = {job.key: job for job in wanted}, Pace(self.name, len(wanted), say)
            began = time.perf_counter()
            for key, made in self.make(self._open(work, [job.settings for job in wanted]), wanted):
                job = of_key[key]
                how = self._how(work, experiment, job.settings, began)
                _write(work.store, self.key(key), made, job.recipe, how)
                pace.step()
                yield key
                began = time.perf_counter()


def always(*names: Any) -> Callable[[Any], Sequence[Any]]:
    """Deps or needs that are the same whatever the settings."""
    return lambda _settings: names


def contents(*keys: Key) -> Callable[[Work, Any], Mapping[str, str]]:
    """Inputs of a stage that is made from these tables."""
    return lambda work, _settings: {key.path: work.store.content(key) for key in keys}


Stage = TableStage[Any] | PartitionedStage[Any]
