"""What an experiment reads from outside its artifacts folder, as nodes of the asset graph.

Dagster makes none of these files. A node is observed: its data version is a hash of what lies
there, so that whatever was made from other files shows as stale.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from assets.engine.recipe import Source, digest
from assets.engine.stage import Stage, group_of
from assets.settings import Experiment, is_path

_SAYS = {
    "model_files": "The model and its tokenizer",
    "corpus_files": "The text",
    "pair_files": "The contrastive pairs of the tasks",
    "dictionary_files": "The dictionaries that are imported",
    "annotation_files": "People's descriptions of features",
    "labelled_files": "The labelled texts of the classifier",
}


@dataclass(frozen=True)
class Outside:
    """One node: files that stages read and nothing here writes.

    Attributes:
        name: the node's.
        places: where they lie.
        readers: the stages that say where.
    """

    name: str
    places: tuple[Source, ...]
    readers: Sequence[Stage] = field(compare=False)

    @property
    def written(self) -> str:
        """The places as the experiment's file says them."""
        return ", ".join(dict.fromkeys(place.written for place in self.places))

    def version(self, experiment: Experiment, commits: Mapping[str, str] | None = None) -> str:
        """Hash of what lies there; of ids for the hub, with commits where those are known."""
        known = commits or {}
        whole = {p.written: known.get(p.place, p.content) for p in self.places if p.whole}
        read = {
            stage.name: stage.inputs_of(experiment)
            for stage in self.readers
            if any(not place.whole for place in self.places)
        }
        return digest([sorted(whole.items()), read])


def outside_of(experiment: Experiment, stages: Iterable[Stage]) -> list[Outside]:
    """The nodes of what these stages read from outside."""
    readers: dict[str, list[Stage]] = {}
    for stage in stages:
        for name in stage.outside(experiment):
            readers.setdefault(name, []).append(stage)
    return [
        Outside(name, tuple(_places(experiment, name, members)), members)
        for name, members in readers.items()
    ]


def _places(experiment: Experiment, name: str, stages: Sequence[Stage]) -> Iterator[Source]:
    if name == "model_files":
        written = experiment.settings.model.source
        yield Source(written, experiment.resolve(written))
        return
    found = (place for stage in stages for place in stage.places_of(experiment))
    yield from dict.fromkeys(found)


def files_of(place: str) -> list[tuple[str, int, int]]:
    """Path, size and time of change of every file of a place; empty for the hub."""
    if os.path.isfile(place):
        return [stat_of(Path(place))]
    if not os.path.isdir(place):
        return []
    found = [
        stat_of(Path(folder) / name)
        for folder, folders, names in os.walk(place)
        if not folders.sort()
        for name in sorted(names)
        if not name.startswith(".")
    ]
    return [file for file in found if file[1] >= 0]


def stat_of(file: Path) -> tuple[str, int, int]:
    """Path, size and time of change of a file; a size of -1 where it is gone, or a broken link."""
    try:
        status = file.stat()
    except OSError:  # gone since it was listed
        return str(file), -1, 0
    return str(file), status.st_size, status.st_mtime_ns


def hub_commits(experiment: Experiment) -> dict[str, str]:
    """The commits that the hub's model and data sets are at now, by id.

    Raises:
        OSError, HfHubHTTPError: the hub cannot be reached, or knows no such id.
    """
    from huggingface_hub import HfApi

    settings, hub = experiment.settings, HfApi()
    model, classifier = settings.model, settings.classifier
    asked: dict[str, Callable[[], Any]] = {
        model.source: partial(hub.model_info, model.source, revision=model.revision)
    }
    for data in (settings.corpus, *([classifier.data] if classifier else [])):
        asked[data.source] = partial(hub.dataset_info, data.source, revision=data.revision)
    return {
        source: ask().sha or ""
        for source, ask in asked.items()
        if experiment.resolve(source) == source and not is_path(source)
    }


def outside_asset(node: Outside, experiment: Experiment) -> Any:
    """The node, to be observed by hand in the UI; the sensor of reruns observes it too."""

    @dg.observable_source_asset(
        key=[experiment.name, node.name],
        group_name=group_of(experiment, "files"),
        description=f"{_SAYS[node.name]}: {node.written}. Observed, never written.",
        tags={"experiment": experiment.group},
        metadata={"place": dg.MetadataValue.path(", ".join(p.place for p in node.places))},
    )
    def observe() -> dg.DataVersion:
        return dg.DataVersion(node.version(experiment))

    return observe
