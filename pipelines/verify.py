"""Whether a folder is what was written: `python -m pipelines.verify EXPERIMENT.yaml`.

Reads every byte of the experiment's artifacts and of what they were made from, and names what is
not right and what to do about it; nothing is computed and nothing changed. The exit code is 1 if
anything is wrong. It does not ask whether the code has changed since: `make run` does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assets.engine.lineage import Reader
from assets.engine.lock import is_running
from assets.engine.recipe import hash_file, plain, sources
from assets.engine.records import FILE
from assets.engine.stage import PartitionedStage, Stage, Work
from assets.engine.store import NO_TABLE, ArtifactStore, Flaw, Footer
from assets.settings import Experiment, ExperimentError
from assets.tables.places import Key
from core.errors import CircuitError
from pipelines.experiment import check_places, read_experiment
from pipelines.stages import stages_of

_SHOWN = 4
_OWN = (FILE, ".locks/", "saes/training-", "imported/")
"""Beginnings of what is neither a table nor written with one: records, locks, checkpoints and
archives that were unpacked."""
_NAMED = ("circuit", "circuit_evaluations")
"""Tables of one circuit whose rows say which."""


@dataclass(frozen=True)
class Fault:
    """Something that is not right: where, what, and what to do."""

    where: str
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.cure}."


@dataclass(frozen=True)
class Verified:
    """What was found, and how much was read."""

    faults: Sequence[Fault]
    n_tables: int
    n_bytes: int
    n_unrecorded: int


@dataclass(frozen=True)
class _Part:
    """What one recipe makes: a stage's table, or that of one of its partitions.

    Attributes:
        stage, partition: whose; no partition for a stage without.
        key: of the table that says that it is done.
        settings: what shapes it now.
    """

    stage: Stage
    partition: str
    key: Key
    settings: Any

    @property
    def again(self) -> str:
        """What makes it again."""
        partition = f", partition {self.partition}" if self.partition else ""
        return f"Materialize {self.stage.name}{partition}"


def parts_of(experiment: Experiment) -> dict[str, _Part]:
    """Everything that an experiment makes, by the path of its table."""
    parts = []
    for stage in stages_of(experiment):
        if isinstance(stage, PartitionedStage):
            parts += [
                _Part(stage, name, stage.key(name), stage.reads(experiment, name))
                for name in stage.partitions(experiment)
            ]
        else:
            parts.append(_Part(stage, "", stage.key, stage.reads(experiment)))
    return {part.key.path: part for part in parts}


def verify(experiment: Experiment) -> Verified:
    """Read everything and say what is not right."""
    store = ArtifactStore(experiment.artifacts)
    if not (experiment.artifacts.is_dir() if store.remote is None else store.remote.objects()):
        fault = Fault(store.at, "there is no such folder", "Run the experiment")
        return Verified([fault], 0, 0, 0)
    looker = _Looker(experiment)
    faults = [*looker.faults()]
    unrecorded = [path for path in looker.tables if looker.reader.of(path).made == {}]
    return Verified(faults, len(looker.tables), sum(looker.files.values()), len(unrecorded))


@dataclass
class _Looker:
    """Goes through one folder.

    Attributes:
        files: all of its files, with their sizes.
        tables: the whole tables among them.
        flaws: what is wrong with other Parquet files.
        owners: files that were written with a table, and that table's path.
        bad: files with a fault, so that nothing else is said of them.
    """

    experiment: Experiment
    files: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[Key, Footer]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    flaws: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = ArtifactStore(self.experiment.artifacts)
        self.parts = parts_of(self.experiment)
        self.reader = Reader(self.store)
        self.damaged = self.store.lineage.check()
        self.files = dict(_files_of(self.store))
        for file in sorted(self.files):
            path, suffix = os.path.splitext(file)
            if suffix == ".parquet":
                try:
                    self.tables[path] = self.store.table_at(path)
                except Flaw as flaw:
                    self.flaws[file] = str(flaw)
        for path, (_, footer) in self.tables.items():
            self.owners |= dict.fromkeys(footer.notes.get("files", {}), path)
        self.beside = {
            key.path: part
            for part in self.parts.values()
            if not isinstance(part.stage, PartitionedStage)
            for key in part.stage.beside
        }
        # What belongs to a table that is not whole cannot be told: its footer would say.
        self.unclear = tuple(
            prefix
            for path in self.parts.keys() - self.tables.keys()
            for prefix in (f"{path}.", f"{os.path.dirname(path) or path}/")
        )

    def faults(self) -> Iterator[Fault]:
        for fault in self._in_order():
            self.bad.add(fault.where)
            yield fault

    def _in_order(self) -> Iterator[Fault]:
        """What is damaged first, for that explains what follows."""
        yield from self._strange()
        yield from self._missing()
        for path, (key, footer) in self.tables.items():
            yield from self._values(key)
            yield from self._record(path, footer)
        for path, (_, footer) in self.tables.items():
            yield from self._written_with(path, footer)
            yield from self._inputs(path, footer)
        yield from self._outside()
        yield from self._others()
        for line in self.damaged:
            told = "is not as it was written: what was made from that table cannot be told any more"
            yield Fault(f"{FILE}, line {line}", told, "Take the file from a copy, or leave it so")

    def _again(self, file: str) -> str:
        """What makes a file again; empty where that cannot be told."""
        path = file.removesuffix(".parquet")
        part = self.parts.get(self.owners.get(file, path)) or self.beside.get(path)
        return part.again if part else ""

    def _delete(self, file: str) -> str:
        again = self._again(file)
        return f"Delete it. {again}" if again else "Remove it, or move it elsewhere"

    # -- files --

    def _strange(self) -> Iterator[Fault]:
        """What was not written by this experiment, or not to its end."""
        for file in sorted(self.files):
            path, suffix = os.path.splitext(file)
            if _is_unfinished(file):
                told = "was left half-written by a process that is gone"
                yield Fault(file, told, "`make run` removes it")
            elif file.startswith(_OWN) or self._is_shard(file):
                continue
            elif file in self.flaws:
                yield Fault(file, self.flaws[file], self._delete(file))
            elif file in self.owners or self._is_ours(path) or file.startswith(self.unclear):
                continue
            elif suffix == ".parquet":
                told = f"was made by {self.tables[path][0].stage}, and nothing reads it now"
                yield Fault(file, told, "Remove it when you no longer need it")
            else:
                yield Fault(file, "is no file of this pipeline", self._delete(file))

    def _is_ours(self, path: str) -> bool:
        return path in self.parts or path in self.beside

    def _is_shard(self, file: str) -> bool:
        """Whether a Parquet file is no table, but was written with one."""
        return file in self.owners and self.flaws.get(file) == NO_TABLE

    def _missing(self) -> Iterator[Fault]:
        """Tables that should be there; those of partitions together."""
        missing: dict[str, list[_Part]] = defaultdict(list)
        for path, part in self.parts.items():
            if f"{path}.parquet" not in self.files:
                missing[part.stage.name].append(part)
        for name, parts in missing.items():
            if not parts[0].partition:
                yield Fault(f"{parts[0].key.path}.parquet", "is missing", parts[0].again)
                continue
            n = sum(part.stage.name == name for part in self.parts.values())
            few = ", ".join(part.partition for part in parts[:_SHOWN])
            more = " and others" if len(parts) > _SHOWN else ""
            told = f"{len(parts)} of {n} partitions are missing: {few}{more}"
            yield Fault(name, told, f"Materialize {name} for them")

    # -- tables --

    def _values(self, key: Key) -> Iterator[Fault]:
        """Values against their hashes, and names against places."""
        file = f"{key.path}.parquet"
        try:
            self.store.check(key)
            names = self.store.read(key, ["name"])["name"].to_pylist() if _is_named(key) else []
        except ExperimentError as error:
            why = str(error).partition("(")[2].partition("):")[0]
            yield Fault(file, f"is damaged: {why}", self._delete(file))
            return
        expected = self.parts[key.path].partition if key.path in self.parts else None
        if expected and (other := sorted(set(names) - {expected})):
            yield Fault(file, f"is of {other[0]}, not of {expected}", self._delete(file))

    def _record(self, path: str, footer: Footer) -> Iterator[Fault]:
        """A table against the record of its making."""
        record = self.store.lineage.get(self.store.lineage.name(path, footer.fingerprint))
        if record is None or f"{path}.parquet" in self.bad:
            return
        if record["tables"][path] != footer.content:
            told = "holds other values than those that were recorded when it was made"
            yield Fault(f"{path}.parquet", told, self._delete(f"{path}.parquet"))

    def _written_with(self, path: str, footer: Footer) -> Iterator[Fault]:
        """Pictures, pages, weights, shards and tables beside a table."""
        hashes = footer.notes.get("hashes", {})
        for file, n_bytes in footer.notes.get("files", {}).items():
            if file in self.bad:
                continue
            wrong = ""
            if file not in self.files:
                wrong = "is missing"
            elif self.files[file] != n_bytes:
                wrong = f"has {self.files[file]:,} bytes, not the {n_bytes:,} that were written"
            elif file in hashes and hash_file(self.store.root / file) != hashes[file]:
                wrong = "is not the file that was written"
            if wrong:
                yield Fault(file, f"{wrong} (with {path})", self._again(file))

    def _inputs(self, path: str, footer: Footer) -> Iterator[Fault]:
        """What a table was made from, against what there is now."""
        part, file = self.parts.get(path), f"{path}.parquet"
        if part is None or file in self.bad:
            return
        told = []
        for one in self.reader.of(path).inputs:
            for making in one.makings:
                if making.since == "made again since":
                    told.append(f"an earlier {making.table}")
                elif making.since and not self._is_told(making.table):
                    told.append(f"a {making.table} that is gone")
                elif making.record is None and not making.since:
                    told.append(f"a {making.table} whose record is damaged or gone")
        if told:
            told = list(dict.fromkeys(told))
            more = f" and {len(told) - _SHOWN} others" if len(told) > _SHOWN else ""
            yield Fault(file, f"was made from {', '.join(told[:_SHOWN])}{more}", part.again)
        yield from self._settings(part, footer)

    def _is_told(self, path: str) -> bool:
        """Whether a table that is gone is named by itself already."""
        return f"{path}.parquet".startswith(self.unclear) or self._is_ours(path)

    def _settings(self, part: _Part, footer: Footer) -> Iterator[Fault]:
        now, then = json.loads(json.dumps(plain(part.settings))), footer.notes["settings"]
        if now != then:
            told = f"was made with other settings: {_difference(then, now)}"
            yield Fault(f"{part.key.path}.parquet", told, part.again)

    # -- outside the folder --

    def _outside(self) -> Iterator[Fault]:
        """The model, the text, the pairs and imported files, against what was read of them."""
        try:
            check_places(self.experiment)
        except ExperimentError as error:
            yield Fault(self.experiment.path.name, str(error), "Put it back, or correct the file")
            return
        changed: dict[str, list[_Part]] = defaultdict(list)
        for path, part in self.parts.items():
            if path not in self.tables or f"{path}.parquet" in self.bad:
                continue
            inputs = self.tables[path][1].notes["inputs"]
            try:
                now = self._now(part)
            except (ExperimentError, CircuitError) as error:
                yield Fault(f"{path}.parquet", f"what it was made from: {error}", part.again)
                continue
            for name, content in now.items():
                if name in inputs and inputs[name] != content:
                    changed[name].append(part)
        for name, parts in changed.items():
            stages = dict.fromkeys(part.stage.name for part in parts)
            told = f"has changed since {', '.join(stages)} read it"
            yield Fault(f"input {name}", told, f"Materialize {next(iter(stages))} and what follows")

    def _now(self, part: _Part) -> Mapping[str, str]:
        """Contents of what lies outside; of the tokenizer as part of the model's folder alone."""
        work = Work.on(self.experiment)
        now = {name: source.content for name, source in sources(part.settings) if source.whole}
        if "model" in part.stage.needs(part.settings):
            now["model"] = work.load.identity("model") or ""
        if not part.stage.deps(part.settings) and isinstance(part.stage, PartitionedStage):
            now |= part.stage.inputs(work, {part.partition: part.settings})[part.partition]
        return now

    def _others(self) -> Iterator[Fault]:
        """Tables that another experiment made."""
        of_other: dict[str, list[str]] = defaultdict(list)
        for path in self.tables:
            name = self.reader.of(path).made.get("experiment", self.experiment.name)
            if name != self.experiment.name:
                of_other[name].append(path)
        for name, paths in of_other.items():
            told = f"{len(paths)} tables were made by the experiment {name}, first {paths[0]}"
            cure = "Give each experiment a folder of its own with artifacts:"
            yield Fault(self.store.at, told, cure)


def _files_of(store: ArtifactStore) -> Iterator[tuple[str, int]]:
    """Every file of the folder with its size; fetched first where they lie elsewhere."""
    if store.remote is not None:
        # Records and locks are no files of the pipeline, and the copy has its own.
        every = store.remote.objects(now=True)
        there = {n: v for n, v in every.items() if not n.startswith(".") and n != FILE}
        store.remote.fetch(list(there))
        yield from ((name, version.n_bytes) for name, version in there.items())
        return
    for folder, _, names in os.walk(store.root):
        for name in names:
            file = Path(folder, name)
            yield file.relative_to(store.root).as_posix(), _size(file)


def _size(file: Path) -> int:
    """Bytes of a file; none where it is a broken link, or gone since it was listed."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _is_unfinished(file: str) -> bool:
    """Whether a file is one that `core.atomic` writes to, and its writer is gone."""
    name = os.path.basename(file)
    if not (name.startswith(".") and name.endswith(".tmp")):
        return False
    writer = name.split(".")[-2]
    return not (writer.isdigit() and is_running(int(writer)))


def _is_named(key: Key) -> bool:
    return key.table in _NAMED


def _difference(then: Any, now: Any, where: str = "") -> str:
    """The first value that differs, with its place."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in {**then, **now}:
            if then.get(name) != now.get(name):
                inner = f"{where}.{name}" if where else name
                return _difference(then.get(name), now.get(name), inner)
    return f"{where or 'they'} {then}, now {now}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.verify", description=__doc__)
    parser.add_argument("experiment", type=Path, help="a YAML file")
    options, began = parser.parse_args(arguments), time.perf_counter()
    try:
        experiment = read_experiment(options.experiment)
        found = verify(experiment)
    except ExperimentError as error:
        print(f"ExperimentError: {error}", file=sys.stderr)
        return 1
    for fault in found.faults:
        print(fault)
    n, seconds = len(found.faults), time.perf_counter() - began
    wrong = f"{n or 'nothing'}{' things are' if n > 1 else ' thing is' if n else ' is'} wrong"
    print(
        f"{experiment.name}: {found.n_tables} tables, {found.n_bytes / 1e6:,.0f} MB read in "
        f"{seconds:.1f} s; {wrong}."
    )
    if found.n_unrecorded:
        print(f"When and with what {found.n_unrecorded} of them were made is not recorded.")
    return 1 if n else 0


if __name__ == "__main__":
    sys.exit(main())
