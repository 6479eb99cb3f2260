"""Dictionaries that somebody else trained: where each lies, and how it gets here."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.engine.recipe import Source, digest, hash_place, plain
from assets.engine.stage import Made, Metadata, TableStage, Work, always
from assets.engine.store import ArtifactStore, Content
from assets.settings import Experiment, ImportSettings, is_path
from assets.tables.places import DICTIONARY_SET, IMPORT_CHECKS, Key, sae
from assets.tables.schemas import TABLES
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
    from core.dictionaries.formats.places import also_read, local_root

    place = settings.repository.place
    path = _path(work.store, settings)
    root = local_root(place)
    if root is None:
        return {"path": path, "repository": place}
    if settings.archive is not None:
        return {"path": path, "contents": hash_place(str(root / settings.archive))}
    contents = [hash_place(str(file)) for file in (root / path, *also_read(root / path))]
    return {"path": path, "contents": digest(contents)}


def import_dictionary(
    work: Work, settings: Imported, inputs: Mapping[str, str]
) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary of a submodule, from the path that its recipe names, and notes about it.

    Returns:
        The dictionary; ``claims``, what its file says of it, and ``findings``, how that compares
        with its weights and its place.

    Raises:
        FormatError: it cannot be read, or cannot be meant for this submodule.
        WidthMismatch: it does not fit there.
    """
    from core.dictionaries import check_widths
    from core.dictionaries.formats import read_from
    from core.dictionaries.formats.claims import Where, check_file, refuse

    options: dict[str, Any] = dict(settings.options)
    dictionary, claims = read_from(
        _repository(work.store, settings),
        settings.format,
        path=inputs["path"],
        submodule=settings.submodule,
        revision=settings.revision,
        **options,
    )
    model = work.load.model()
    learned_positions = model.family.position is not None
    where = Where(settings.submodule, model.attn_input, learned_positions)
    findings = check_file(claims, dictionary, where)
    refuse(findings, f"{settings.repository.written}/{inputs['path']}, for {settings.submodule},")
    check_widths({settings.submodule: dictionary}, model.width)
    return dictionary, {"claims": claims.made(), "findings": [f._asdict() for f in findings]}


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
        return resolved_path(
            source,
            settings.path,
            submodule=settings.submodule,
            revision=settings.revision,
            l0=l0,
        )
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


# -- what their files say of them ------------------------------------------------------------------


@dataclass(frozen=True)
class ImportChecks:
    """What imported dictionaries are held against; see `assets.settings.CheckSettings`."""

    submodules: tuple[str, ...]
    model: str
    on_hub: bool
    bos: bool
    l0_factor: float
    low_variance_explained: float


def _reads_checks(experiment: Experiment) -> ImportChecks:
    settings = experiment.settings
    source = experiment.resolve(settings.model.source)
    return ImportChecks(
        submodules=tuple(experiment.submodules),
        model=settings.model.source,
        on_hub=source == settings.model.source and not is_path(source),
        bos=settings.corpus.bos,
        l0_factor=settings.checks.l0_factor,
        low_variance_explained=settings.checks.low_variance_explained,
    )


def _check_inputs(work: Work, checks: ImportChecks) -> dict[str, str]:
    store = work.store
    said = digest([_said(store, name) for name in checks.submodules])
    claims = Content(said, *(store.origin(sae(name)) for name in checks.submodules))
    return {DICTIONARY_SET.path: store.content(DICTIONARY_SET), "claims": claims}


def _said(store: ArtifactStore, submodule: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Claims and findings noted when a dictionary was imported."""
    notes = store.notes(sae(submodule))
    return notes.get("claims", {}), notes.get("findings", [])


def make_import_checks(work: Work, checks: ImportChecks) -> Made:
    """What each file says of its dictionary, beside what is."""
    from core.dictionaries.formats.claims import Claims, check_experiment, check_measured

    columns = ["submodule", "l0", "variance_explained"]
    measured = {
        row["submodule"]: row for row in work.store.read(DICTIONARY_SET, columns).to_pylist()
    }
    rows = []
    for name in checks.submodules:
        said, findings = _said(work.store, name)
        claims = Claims(**said)
        later = [
            *check_experiment(claims, model=checks.model, on_hub=checks.on_hub, bos=checks.bos),
            *check_measured(
                claims,
                l0=measured[name]["l0"],
                variance_explained=measured[name]["variance_explained"],
                factor=checks.l0_factor,
                least=checks.low_variance_explained,
            ),
        ]
        every = [*findings, *(finding._asdict() for finding in later)]
        rows += [{"submodule": name, **finding} for finding in every]
        for finding in every:
            if finding["verdict"] == "warn":
                work.say("{claim} of {name}: {message}".format(name=name, **finding))
    return Made(TABLES["import_checks"].build(rows))


def _show_checks(work: Work, _checks: ImportChecks) -> Metadata:
    """What differs, as a table."""
    rows = work.store.read(IMPORT_CHECKS).to_pylist()
    differing = [dg.TableRecord(row) for row in rows if row["verdict"] != "ok"]
    shown: Metadata = {"claims": len(rows), "differing": len(differing)}
    return {**shown, "differences": dg.MetadataValue.table(differing)} if differing else shown


IMPORT_CHECKS_STAGE = TableStage(
    name="import_checks",
    group="dictionaries",
    description=(
        "What the files of imported dictionaries say of them (model, place, widths, k, L0, text), "
        "held against this experiment and what was measured."
    ),
    kinds=frozenset({"parquet"}),
    key=IMPORT_CHECKS,
    deps=always("saes", "dictionary_set"),
    reads=_reads_checks,
    inputs=_check_inputs,
    make=make_import_checks,
    show=_show_checks,
)
