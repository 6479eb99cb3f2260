"""What a table was made from, back to the model, the text and the dictionaries.

The tree is read from footers and `assets.engine.records` alone. It is of the making that the table
is of: an input that was made again since is shown as it was, and marked.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from assets.engine.records import Record
from assets.engine.store import ArtifactStore, Flaw, Footer
from assets.settings import ExperimentError
from assets.tables.places import Key

WIDTH = 100
_GLUE = "\N{NO-BREAK SPACE}"
"""Between words that stay on one line; a space when printed."""


@dataclass(frozen=True)
class Making:
    """One making of a table, and perhaps others beside it.

    Attributes:
        name: digest of its record, or the table's path and fingerprint where none was kept.
        table: path of the table in the artifacts folder.
        content: hash of its values.
        since: what became of the table since: "", "made again since" or "gone since".
        record: its recipe and, where that was kept, how it was ``made``; None if nothing was kept.
        inputs: what it was made from.
    """

    name: str
    table: str
    content: str
    since: str = ""
    record: Record | None = None
    inputs: Sequence[Input] = ()

    @property
    def made(self) -> Mapping[str, Any]:
        """When, where and with what; empty where it was not recorded."""
        return (self.record or {}).get("made", {})


@dataclass(frozen=True)
class Input:
    """One input of a making.

    Attributes:
        name, content: as the recipe has them.
        written: what the experiment's file said of an input outside the artifacts folder.
        makings: of the tables that it stands for; none for what lies outside.
    """

    name: str
    content: str
    written: Any = None
    makings: Sequence[Making] = ()


def lineage(store: ArtifactStore, path: str) -> Making:
    """What the table at this path was made from, all the way.

    Raises:
        ExperimentError: there is no such table.
    """
    return Reader(store).of(path)


@dataclass
class Reader:
    """Reads the makings of one folder, each once, as long as nothing is written there."""

    store: ArtifactStore
    known: dict[tuple[str, str, str], Making] = field(default_factory=dict)
    present: dict[str, tuple[Key, Footer] | None] = field(default_factory=dict)

    def of(self, path: str) -> Making:
        """The making of the table at this path; raises like `lineage`."""
        found = self._now(path)
        if found is None:
            raise ExperimentError(f"there is no whole table at {self.store.at}/{path}.parquet.")
        content = found[1].content
        name = self.store.lineage.name(path, found[1].fingerprint)
        return self.making(path, content, name, content)

    def _now(self, path: str) -> tuple[Key, Footer] | None:
        if path not in self.present:
            try:
                self.present[path] = self.store.table_at(path)
            except Flaw:
                self.present[path] = None
        return self.present[path]

    def making(self, path: str, content: str, name: str | None, wanted: str) -> Making:
        """The making of a table that had this content.

        Args:
            path, content: of the table.
            name: of its record, if there was one.
            wanted: the hash that counted to whoever read it: the content, or that of a part.
        """
        known = (path, name or content, wanted)
        if known in self.known:
            return self.known[known]
        now = self._now(path)
        since = "gone since" if now is None else ""
        if now is not None and content != now[1].content and not self._gives(*now, wanted):
            since = "made again since"
        record = self.store.lineage.get(name)
        if record is None and now is not None and content == now[1].content:
            record = self._as_it_says(path, now[1])
        inputs = () if record is None else tuple(self._inputs(record))
        self.known[known] = Making(
            name or f"{path} {content}", path, content, since, record, inputs
        )
        return self.known[known]

    def _gives(self, key: Key, now: Footer, wanted: str) -> bool:
        """Whether a table still has that part: weights, or the examples of one behaviour."""
        if key.table != "behaviours":
            return wanted == now.notes.get("weights")
        return wanted in self.store.read(key, ["digest"])["digest"].to_pylist()

    def _as_it_says(self, path: str, now: Footer) -> Record:
        """What a footer says by itself, where no record was kept; its inputs by their names."""
        recipe = {name: now.notes[name] for name in ("stage", "inputs", "settings", "code")}
        origins = {}
        for name, content in recipe["inputs"].items():
            if (present := self._now(name)) is not None:
                same = present[1].content == content
                record = self.store.lineage.name(name, present[1].fingerprint) if same else None
                origins[name] = [[name, content, record]]
        return {"path": path, "fingerprint": now.fingerprint, **recipe, "from": origins}

    def _inputs(self, record: Record) -> Iterator[Input]:
        written = record.get("made", {}).get("sources", {})
        for name, content in record["inputs"].items():
            origins = record["from"].get(name, [])
            several = len(origins) > 1
            makings = [self.making(p, c, n, c if several else content) for p, c, n in origins]
            yield Input(name, content, written.get(name), makings)


# -- as text ---------------------------------------------------------------------------------------


def describe_lineage(root: Making) -> str:
    """The tree for a terminal of 100 columns."""
    return "\n".join([*_Printer(root).lines(), ""])


@dataclass
class _Printer:
    """Writes each making once."""

    root: Making
    seen: set[tuple[str, str]] = field(default_factory=set)
    places: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for making in every_making(self.root):
            if making.made and _where(making) not in self.places:
                self.places.append(_where(making))

    def lines(self) -> Iterator[str]:
        yield from _wrapped(f"{self.root.table} {self.root.content}", "", "  ")
        yield from self._below([self.root], "")
        for number, place in enumerate(self.places, start=1):
            yield ""
            about = "made with" if len(self.places) == 1 else f"[{number}]"
            packages = {k: v for k, v in place["with"].items() if v is not None}
            told = [f"experiment {place['experiment']}", f"file {place['file']}"]
            told += [f"{name} {value}" for name, value in packages.items()]
            yield from _wrapped(f"{about} {', '.join(told)}", "", "  ")

    def _below(self, alike: Sequence[Making], prefix: str) -> Iterator[str]:
        """What these makings, alike in all but their table, have in common, and their inputs."""
        first = alike[0]
        if first.record is None:
            yield f"{prefix}   not recorded: neither a record nor that table is left"
            return
        bar = f"{prefix}│  " if first.inputs else f"{prefix}   "
        yield from _wrapped(self._how(alike), bar, bar)
        if said := _settings(first.record["settings"]):
            yield from _wrapped(said, bar, bar)
        groups = [list(group) for _, group in groupby(first.inputs, key=_likeness)]
        for i, group in enumerate(groups):
            last = i == len(groups) - 1
            branch = "└─ " if last else "├─ "
            yield from self._group(group, prefix, branch, prefix + ("   " if last else "│  "))

    def _group(self, group: Sequence[Input], prefix: str, branch: str, below: str) -> Iterator[str]:
        """One input, or several whose tables were made alike."""
        makings = [making for one in group for making in one.makings]
        fresh = [m for m in makings if (m.name, m.table) not in self.seen]
        self.seen |= {(m.name, m.table) for m in makings}
        again = " (as above)" if makings and not fresh else ""
        if len(group) == 1 and len(makings) > 1:
            yield from _wrapped(f"{_head(group[0])}{again}", prefix + branch, below)
            for stage, of_stage in groupby(sorted(makings, key=_stage), key=_stage):
                yield from _several(stage, list(of_stage), below)
            return
        heads = _head(group[0])
        if len(group) > 1:
            tables = [f"{m.table}{_GLUE}{one.content[:16]}" for one in group for m in one.makings]
            heads = f"{len(group)} of {_stage(makings[0])}: {', '.join(tables)}{_mark(makings[0])}"
        yield from _wrapped(f"{heads}{again}", prefix + branch, below)
        if fresh:
            yield from self._below(makings, below)

    def _how(self, alike: Sequence[Making]) -> str:
        first = alike[0]
        assert first.record is not None, "asked before"
        told = [f"{first.record['stage']}, code {first.record['code']}"]
        if "made_by" in first.record:
            told.append(f"adopted from code {first.record['made_by']}")
        if not first.made:
            return ", ".join([*told, "when and where not recorded"])
        when = _time(max(making.made["when"] for making in alike))
        seconds = sum(making.made["seconds"] for making in alike)
        told.append(f"{when} in{_GLUE}{seconds:.1f}{_GLUE}s")
        if "device" in first.made:
            threads = f"{first.made['threads']} thread{'s' * (first.made['threads'] != 1)}"
            told[-1] += f" on {first.made['device']} ({threads})".replace(" ", _GLUE)
        if len(self.places) > 1:
            told.append(f"[{self.places.index(_where(first)) + 1}]")
        return ", ".join(told)


def every_making(root: Making) -> Iterator[Making]:
    """A making and all that it was made from, each once."""
    seen, waiting = set[tuple[str, str]](), [root]
    while waiting:
        making = waiting.pop()
        if (making.name, making.table) not in seen:
            seen.add((making.name, making.table))
            yield making
            waiting += [m for one in reversed(making.inputs) for m in reversed(one.makings)]


def _where(making: Making) -> dict[str, Any]:
    """What the makings of one run have in common."""
    return {name: making.made[name] for name in ("experiment", "file", "with")}


def _likeness(one: Input) -> str:
    """The same for inputs whose tables were made alike; an input's own name otherwise."""
    if len(one.makings) != 1 or one.makings[0].record is None:
        return one.name
    making = one.makings[0]
    assert making.record is not None, "asked before"
    parts = [making.record[part] for part in ("stage", "settings", "code", "from")]
    return repr([making.since, *parts, making.made and _where(making)])


def _head(one: Input) -> str:
    """An input in one line: its name, the table behind it and what became of that."""
    if not one.makings:
        return " ".join(filter(None, [one.name, one.content, _settings(one.written)]))
    if len(one.makings) > 1:
        return f"{one.name} {one.content} of {len(one.makings)} tables"
    making = one.makings[0]
    table = f"{making.table} {making.content}{_mark(making)}"
    if one.name == making.table or one.content == making.content:
        return table
    return f"{one.name} {one.content} of {table}"


def _mark(making: Making) -> str:
    return f"  << {making.since}".replace(" ", _GLUE) if making.since else ""


def _stage(making: Making) -> str:
    return "not recorded" if making.record is None else making.record["stage"]


def _several(stage: str, makings: Sequence[Making], prefix: str) -> list[str]:
    again = [making.table for making in makings if making.since]
    told = f"{len(makings)} of {stage}: {makings[0].table}"
    told += f" to {makings[-1].table}" if len(makings) > 1 else ""
    told += f"  << {len(again)} made again or gone since, first {again[0]}" if again else ""
    return _wrapped(told, f"{prefix}   ", f"{prefix}     ")


def _time(when: str) -> str:
    return when.replace("T", _GLUE).replace("+00:00", f"{_GLUE}UTC")


def _settings(value: Any) -> str:
    """Settings in one line: what is null, and what kind the whole is, left out."""
    if isinstance(value, Mapping):
        own = {k: v for k, v in value.items() if k != "is" and v is not None}
        return ", ".join(f"{name}{_GLUE}{_value(item)}" for name, item in own.items())
    return "" if value is None else _value(value)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = _settings(value)
        return " ".join(filter(None, [value.get("is"), inner and f"({inner})"]))
    if isinstance(value, list | tuple):
        return " ".join(map(_value, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wrapped(text: str, first: str, others: str) -> list[str]:
    lines = textwrap.wrap(
        text,
        max(WIDTH, len(others) + 40),
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_GLUE, " ") for line in lines]


# -- as data, and for the UI -----------------------------------------------------------------------


def plain_lineage(store: ArtifactStore, root: Making) -> dict[str, Any]:
    """The tree as JSON: makings by name, and the texts of the experiment's files by digest."""
    makings, files = {}, {}
    for making in every_making(root):
        record = making.record or {}
        kept = ("stage", "settings", "code", "made_by", "made")
        makings.setdefault(making.name, {name: record.get(name) for name in kept if name in record})
        makings[making.name]["inputs"] = [
            {
                "name": one.name,
                "content": one.content,
                "tables": [_reference(m) for m in one.makings],
                **({"written": one.written} if one.written is not None else {}),
            }
            for one in making.inputs
        ]
        if making.made:
            files[making.made["file"]] = store.lineage.text(making.made["file"])
    return {**_reference(root), "makings": makings, "files": files}


def _reference(making: Making) -> dict[str, Any]:
    now = making.since or "as it is now"
    return {"table": making.table, "content": making.content, "now": now, "making": making.name}


def lineage_markdown(root: Making) -> str:
    """The tree as nested points for the UI, one for each table, without settings."""
    return "\n".join(_points(root, "", set())).replace(_GLUE, " ")


def _points(making: Making, indent: str, seen: set[str]) -> Iterator[str]:
    for _, group in groupby(making.inputs, key=_likeness):
        alike = list(group)
        makings = [m for one in alike for m in one.makings]
        if not makings:
            yield f"{indent}- {_head(alike[0])}"
            continue
        first, tables = makings[0], f"`{makings[0].table}` {makings[0].content}"
        if len(makings) > 1:
            tables = f"{len(makings)} of {_stage(first)}, `{first.table}` to `{makings[-1].table}`"
        when = f", {_time(first.made['when'])}" if first.made else ""
        since = f", **{first.since}**" if first.since else ""
        again = first.table in seen
        yield f"{indent}- {tables}{when}{since}{', as above' if again else ''}"
        if not again and len(makings) == len(alike):
            yield from _points(first, f"{indent}  ", seen)
        seen |= {m.table for m in makings}
