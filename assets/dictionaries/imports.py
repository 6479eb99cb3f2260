"""Dictionaries that somebody else trained: where each lies, and how it gets here."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assets.engine.recipe import Source, hash_place, plain
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, ImportSettings
from assets.tables.places import Key, sae
from core.options import Format

if TYPE_CHECKING:
    from core.dictionaries import Dictionary


@dataclass(frozen=True)
class Imported:
    """Where the dictionary of one submodule comes from; see `assets.settings.ImportSettings`."""

    submodule: str
    format: Format
    repository: Source
    revision: str | None
    archive: str | None
    path: str
    options: Mapping[str, Any]


def reads_imported(experiment: Experiment, settings: ImportSettings, submodule: str) -> Imported:
    """What the experiment says about the dictionary of a submodule."""
    repository = settings.repository_of(submodule)
    return Imported(
        submodule=submodule,
        format=settings.format,
        repository=Source(repository, experiment.resolve(repository), whole=False),
        revision=settings.revision,
        archive=settings.archive,
        path=settings.path_of(submodule) or "",
        options=settings.options,
    )


def import_inputs(work: Work, settings: Imported) -> dict[str, str]:
    """What a dictionary is made from: its path with nothing left open, and what lies there.

    Raises:
        FormatError: the path leaves open which file is meant, and that cannot be decided.
    """
    from core.dictionaries.formats.places import local_root

    place = settings.repository.place
    path = _path(work.store, settings)
    root = local_root(place)
    if root is None:
        return {"path": path, "repository": place}
    if settings.archive is not None:
        return {"path": path, "contents": hash_place(str(root / settings.archive))}
    return {"path": path, "contents": hash_place(str(root / path))}


def import_dictionary(work: Work, settings: Imported, inputs: Mapping[str, str]) -> Dictionary:
    """The dictionary of a submodule, from the path that its recipe names."""
    from core.dictionaries import check_widths
    from core.dictionaries.formats import load_from

    options: dict[str, Any] = dict(settings.options)
    dictionary = load_from(
        _repository(work.store, settings),
        settings.format,
        path=inputs["path"],
        submodule=settings.submodule,
        revision=settings.revision,
        **options,
    )
    check_widths({settings.submodule: dictionary}, work.load.model().width)
    return dictionary


def _path(store: ArtifactStore, settings: Imported) -> str:
    """Where the dictionary lies in its repository or archive, nothing left open."""
    from core.dictionaries.formats import is_open, resolved_path
    from core.dictionaries.formats.places import filled
    from core.errors import FormatError

    path = filled(settings.path, settings.submodule)
    if not is_open(path):
        return path
    l0: Any = settings.options.get("l0")
    try:
        source = _repository(store, settings)
        return resolved_path(source, path, revision=settings.revision, l0=l0)
    except FormatError:
        # A hub out of reach changes nothing about what was made with the same settings.
        before = store.footer(sae(settings.submodule))
        if before is None or before.notes.get("settings") != plain(settings):
            raise
        return before.notes["inputs"]["path"]


def _repository(store: ArtifactStore, settings: Imported) -> str:
    """Where a dictionary is read from: folder, hub id, or what an archive was unpacked to.

    Raises:
        FormatError: the archive is missing, or is no archive.
    """
    from core.dictionaries.formats.places import fetch
    from core.errors import FormatError

    if settings.archive is None:
        return settings.repository.place
    archive = fetch(settings.repository.place, settings.archive, settings.revision)
    unpacked = store.path(Key(f"imported/{hash_place(str(archive))}", "saes", "saes"), "")
    if not unpacked.is_dir():
        partial = unpacked.with_name(f".{unpacked.name}.partial")
        try:
            with zipfile.ZipFile(archive) as file:
                file.extractall(partial)
        except zipfile.BadZipFile as error:
            raise FormatError(f"'{archive}' is not a zip archive: {error}.") from error
        partial.replace(unpacked)
    return str(unpacked)
