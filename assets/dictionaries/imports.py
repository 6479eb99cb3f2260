"""Dictionaries that somebody else trained: where each lies, and how it gets here."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from assets.engine.loading import load_model_of
from assets.engine.stage import Work
from assets.engine.store import Recipe, hash_place
from assets.settings import ImportSettings

if TYPE_CHECKING:
    from core.dictionaries import Dictionary


def import_inputs(work: Work, submodule: str, shaping: Mapping[str, object]) -> dict[str, str]:
    """What the dictionary of a submodule is made from: its path, and its contents in a folder.

    Args:
        work: of an experiment that imports its dictionaries.
        submodule: whose.
        shaping: the settings in the recipe of the table, to know one made by the same.

    Raises:
        FormatError: the path leaves open which file is meant, and that cannot be decided.
    """
    from core.dictionaries.formats.places import local_root

    settings = _settings(work)
    path = _path(work, settings, submodule, shaping)
    inputs = {"path": path}
    root = local_root(work.experiment.resolve(settings.repository_of(submodule)))
    if settings.archive is None and root is not None and (root / path).exists():
        inputs["contents"] = hash_place(str(root / path))
    return inputs


def imported(work: Work, recipes: Mapping[str, Recipe]) -> Iterator[tuple[str, Dictionary]]:
    """The dictionaries of these submodules, each from the path that its recipe names."""
    from core.dictionaries import check_widths
    from core.dictionaries.formats import load_from

    settings, model = _settings(work), load_model_of(work.experiment)
    options: dict[str, Any] = {**settings.options}
    for submodule, recipe in recipes.items():
        dictionary = load_from(
            _repository(work, settings, submodule),
            settings.format,
            path=recipe.inputs["path"],
            submodule=submodule,
            revision=settings.revision,
            **options,
        )
        check_widths({submodule: dictionary}, model.width)
        yield submodule, dictionary


def _settings(work: Work) -> ImportSettings:
    settings = work.experiment.settings.dictionaries
    assert isinstance(settings, ImportSettings)
    return settings


def _path(
    work: Work, settings: ImportSettings, submodule: str, shaping: Mapping[str, object]
) -> str:
    """Where the dictionary lies in its repository or archive, nothing left open."""
    from core.dictionaries.formats import is_open, resolved_path
    from core.dictionaries.formats.places import filled
    from core.errors import FormatError

    path = filled(settings.path_of(submodule) or "", submodule)
    if not is_open(path):
        return path
    l0: Any = settings.options.get("l0")
    try:
        source = _repository(work, settings, submodule)
        return resolved_path(source, path, revision=settings.revision, l0=l0)
    except FormatError:
        # A hub out of reach changes nothing about what was made with the same settings.
        before = work.store.footer(f"saes/{submodule}")
        if before is None or before.notes.get("settings") != shaping:
            raise
        return before.notes["inputs"]["path"]


def _repository(work: Work, settings: ImportSettings, submodule: str) -> str:
    """Where a dictionary is read from: folder, hub id, or what an archive was unpacked to.

    Raises:
        FormatError: the archive is missing, or is no archive.
    """
    from core.dictionaries.formats.places import fetch
    from core.errors import FormatError

    repository = work.experiment.resolve(settings.repository_of(submodule))
    if settings.archive is None:
        return repository
    archive = fetch(repository, settings.archive, settings.revision)
    unpacked = work.store.path(f"imported/{hash_place(str(archive))}", "")
    if not unpacked.is_dir():
        partial = unpacked.with_name(f".{unpacked.name}.partial")
        try:
            with zipfile.ZipFile(archive) as file:
                file.extractall(partial)
        except zipfile.BadZipFile as error:
            raise FormatError(f"'{archive}' is not a zip archive: {error}.") from error
        partial.replace(unpacked)
    return str(unpacked)
