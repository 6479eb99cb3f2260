"""Stage 2: a dictionary for each submodule, trained or imported, then the set of them, measured."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import dagster as dg
import pyarrow as pa

from assets.corpus.stages import held_out_tokens, training_contexts
from assets.dictionaries.imports import (
    IMPORT_CHECKS_STAGE,
    Imported,
    import_dictionary,
    import_inputs,
    reads_imported,
)
from assets.engine.loading import Need, check_written
from assets.engine.recipe import Recipe, aside
from assets.engine.stage import (
    Job,
    Made,
    Metadata,
    PartitionedStage,
    Stage,
    TableStage,
    Work,
    always,
)
from assets.engine.store import ArtifactStore, Content
from assets.plots import bars, density_histogram, picture, records, training_curves
from assets.settings import Experiment, ImportSettings
from assets.tables.conversions import frame
from assets.tables.places import (
    ACTIVATION_CACHE,
    CONTEXTS,
    DICTIONARY_SET,
    FEATURE_DENSITIES,
    Key,
    sae,
)
from assets.tables.schemas import TABLES
from core.options import CHOOSE_K, NEVER_RESAMPLE, WITHOUT_K

if TYPE_CHECKING:
    from core.dictionaries import Dictionary
    from core.training import RowSource, TrainingSettings

METRICS = (
    "variance_explained",
    "l1",
    "l0",
    "alive",
    "ce",
    "ce_hat",
    "ce_zero",
    "ce_difference",
    "ce_recovered",
    "error_norm",
    "in_series",
)
_WEIGHTS = ".safetensors"


def load_own(store: ArtifactStore, submodule: str) -> Dictionary:
    """The dictionary that the saes stage wrote for a submodule; raises where it is damaged."""
    from core.dictionaries.files import load_dictionary

    dictionary = load_dictionary(store.here(sae(submodule), _WEIGHTS))
    check_written(store, submodule, dictionary)
    return dictionary


# -- saes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """How dictionaries are trained; see `assets.settings.TrainSettings`.

    What the kind of dictionary makes no use of is None. `submodules` are all that train together:
    the memory of the shuffling buffer is shared out among them. Tuning trains them on together, so
    that what one becomes depends on the k of each; else `k` is this dictionary's. `ks` has all.
    """

    activations: str
    n_held_out: int | None
    submodules: tuple[str, ...]
    kind: str
    n_features: int | None
    expansion: int | None
    k: int | Mapping[str, int] | None
    steps: int
    batch: int
    lr: float
    sparsity: float | None
    warmup: int
    decay: int
    sparsity_warmup: int | None
    resample_every: int | None
    dead_after: int | None
    tuning_steps: int
    tuning_lr: float | None
    tuning_sparsity: float | None
    tuning_errors: bool | None
    seed: int
    buffer_mb: float
    checkpoint_every: int = aside(1)
    ks: Mapping[str, int] | None = aside(None)


def reads_dictionary(experiment: Experiment, submodule: str) -> Training | Imported:
    """How the dictionary of a submodule is made."""
    settings = experiment.settings.dictionaries
    if isinstance(settings, ImportSettings):
        return reads_imported(experiment, settings, submodule)
    has_k, penalised = settings.kind not in WITHOUT_K, settings.kind not in CHOOSE_K
    tuned = settings.tuning_steps > 0
    resamples = settings.kind not in NEVER_RESAMPLE
    ks = {name: settings.k_of(name) for name in experiment.submodules} if has_k else None
    reads_contexts = settings.activations == "model" or tuned
    return Training(
        activations=settings.activations,
        n_held_out=experiment.settings.corpus.n_held_out if reads_contexts else None,
        submodules=tuple(experiment.submodules),
        kind=settings.kind,
        n_features=settings.n_features,
        expansion=None if settings.n_features else settings.expansion,
        k=ks if ks is None or tuned else ks[submodule],
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        sparsity=settings.sparsity if penalised else None,
        warmup=settings.warmup,
        decay=settings.decay,
        sparsity_warmup=settings.sparsity_warmup if penalised else None,
        resample_every=settings.resample_every if resamples else None,
        # The top-k kinds revive dead features in their loss; the others only by resampling.
        dead_after=(
            settings.dead_after if has_k or (resamples and settings.resample_every) else None
        ),
        tuning_steps=settings.tuning_steps,
        tuning_lr=settings.tuning_lr if tuned else None,
        tuning_sparsity=settings.tuning_sparsity if tuned and penalised else None,
        tuning_errors=settings.tuning_errors if tuned else None,
        seed=settings.seed,
        buffer_mb=settings.buffer_mb,
        checkpoint_every=settings.checkpoint_every,
        ks=ks,
    )


def _dictionary_deps(settings: Training | Imported) -> Sequence[str]:
    return () if isinstance(settings, Imported) else [key.stage for key in _read_by(settings)]


def _read_by(settings: Training) -> list[Key]:
    """The tables that a training reads."""
    cached = settings.activations == "cache"
    keys = [ACTIVATION_CACHE] if cached else [CONTEXTS]
    return [CONTEXTS, *keys] if cached and settings.tuning_steps else keys


def _dictionary_needs(_settings: Training | Imported) -> Sequence[Need]:
    return ("model",)


def _dictionary_inputs(
    work: Work, settings: Mapping[str, Training | Imported]
) -> Mapping[str, Mapping[str, str]]:
    return {name: _one_input(work, one) for name, one in settings.items()}


def _one_input(work: Work, settings: Training | Imported) -> Mapping[str, str]:
    if isinstance(settings, Imported):
        return import_inputs(work, settings)
    return {key.path: work.store.content(key) for key in _read_by(settings)}


def make_saes(work: Work, jobs: Sequence[Job[Training | Imported]]) -> Iterator[tuple[str, Made]]:
    """Train or import the dictionaries of these submodules, each written as it is ready."""
    trained: list[Job[Training]] = []
    for job in jobs:
        if isinstance(job.settings, Imported):
            dictionary, notes = import_dictionary(work, job.settings, job.recipe.inputs)
            yield job.key, _written(work, job.key, dictionary, job.recipe.fingerprint, notes)
        else:
            trained.append(Job(job.key, job.settings, job.recipe))
    if trained:
        yield from _train(work, trained)


def _train(work: Work, jobs: Sequence[Job[Training]]) -> Iterator[tuple[str, Made]]:
    """All of these together, from one read of the activations; a killed training goes on.

    Where they are tuned, every dictionary of the experiment is trained, whichever are asked for:
    what one becomes then depends on all.
    """
    from core.training import train_dictionaries

    model, settings = work.load.model(), jobs[0].settings
    recipes = _recipes(jobs[0])
    states = {
        name: work.store.path(Key(f"saes/training-{recipe.fingerprint}", "saes", "saes"), "")
        for name, recipe in recipes.items()
    }
    wanted = [job.key for job in jobs]
    names = list(settings.submodules) if settings.tuning_steps else wanted
    trained = train_dictionaries(
        _activations(work, settings, names),
        training_settings(settings, model.d_model),
        ks=settings.ks,
        all_widths={name: model.width(name) for name in settings.submodules},
        checkpoint=states,
        device=model.device,
        progress=work.say,
    )
    dictionaries = {name: result.dictionary for name, result in trained.items()}
    if settings.tuning_steps:
        dictionaries = _tuned(work, dictionaries, settings)
    for name in wanted:
        # Tuning moves L0, which dictionary_set measures.
        l0 = {} if settings.tuning_steps else {"l0": trained[name].l0}
        notes = {**l0, "wanted_l0": trained[name].wanted_l0, "curve": trained[name].curve}
        yield name, _written(work, name, dictionaries[name], recipes[name].fingerprint, notes)
    # States of what is written, now or before, and of trainings by other settings are of no use.
    for folder in states[wanted[0]].parent.glob("training-*"):
        for file in folder.glob(f"*{_WEIGHTS}"):
            name = file.stem
            if states.get(name) != folder or work.store.is_current(sae(name), recipes[name]):
                file.unlink()
        if not any(folder.glob(f"*{_WEIGHTS}")):
            shutil.rmtree(folder)


def _recipes(job: Job[Training]) -> dict[str, Recipe]:
    """Those of all dictionaries of the experiment.

    What one becomes depends on its own k alone, whichever train with it, unless they are tuned.
    """
    settings, recipe = job.settings, job.recipe
    ks = {} if settings.tuning_steps else settings.ks or {}
    return {
        name: replace(recipe, settings={**recipe.settings, "k": ks[name]}) if ks else recipe
        for name in settings.submodules
    }


def _tuned(
    work: Work, dictionaries: Mapping[str, Dictionary], settings: Training
) -> dict[str, Dictionary]:
    """The set trained on in series, on the contexts it was trained on."""
    from core.training import TuningSettings, tune_in_series

    assert settings.tuning_lr is not None
    how = TuningSettings(
        n_steps=settings.tuning_steps,
        learning_rate=settings.tuning_lr,
        with_errors=TuningSettings.with_errors if settings.tuning_errors else 0.0,
        passes_on=not settings.tuning_errors,
        sparsity=settings.tuning_sparsity or 0.0,
        seed=settings.seed,
    )
    contexts = training_contexts(work.store, settings.n_held_out or 0).tokens
    return tune_in_series(
        work.load.model(), dictionaries, [c for c in contexts if len(c)], how, progress=work.say
    )


def _activations(work: Work, settings: Training, submodules: list[str]) -> RowSource:
    from assets.corpus.writing import open_cache
    from core.training import ModelRows

    if settings.activations == "cache":
        return open_cache(work.store.here(ACTIVATION_CACHE, ""), submodules)
    return ModelRows(
        work.load.model(),
        training_contexts(work.store, settings.n_held_out or 0).tokens,
        submodules,
        model_fingerprint=work.load.identity("model") or "",
        progress=work.say,
    )


def training_settings(settings: Training, d_model: int) -> TrainingSettings:
    """The same as `core.training` takes it."""
    from core.training import TrainingSettings

    unused = TrainingSettings()
    chosen = {
        name: getattr(unused, name) if value is None else value
        for name, value in {
            # Each has its own, from `ks`; this is any that is allowed.
            "k": max(settings.k.values()) if isinstance(settings.k, Mapping) else settings.k,
            "sparsity": settings.sparsity,
            "sparsity_warmup_steps": settings.sparsity_warmup,
            "dead_after": settings.dead_after,
            "resample_every": settings.resample_every,
        }.items()
    }
    return TrainingSettings(
        kind=settings.kind,
        n_features=settings.n_features or (settings.expansion or 1) * d_model,
        n_steps=settings.steps,
        batch_size=settings.batch,
        learning_rate=settings.lr,
        warmup_steps=settings.warmup,
        decay_steps=settings.decay,
        buffer_bytes=int(settings.buffer_mb * 1e6),
        checkpoint_every=settings.checkpoint_every,
        seed=settings.seed,
        **chosen,
    )


def _written(
    work: Work,
    submodule: str,
    dictionary: Dictionary,
    fingerprint: str,
    notes: Mapping[str, object],
) -> Made:
    """Weights first: the table beside them says that they are whole."""
    from core.dictionaries.files import fingerprint as hash_weights
    from core.dictionaries.files import save_dictionary

    path = work.store.path(sae(submodule), _WEIGHTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"submodule": submodule, "made_by": fingerprint, "k": notes.get("wanted_l0")}
    save_dictionary(dictionary, path, about)
    work.say(f"{submodule}: {dictionary.n_features} features written")
    return Made(
        features_table(dictionary),
        notes={**notes, "weights": hash_weights(dictionary), "d": dictionary.d},
        files=[path],
    )


def features_table(dictionary: Dictionary) -> pa.Table:
    """One row for each feature of a dictionary."""
    columns = (
        range(dictionary.n_features),
        dictionary.encoder.norm(dim=1).tolist(),
        dictionary.decoder.norm(dim=1).tolist(),
        dictionary.encoder_bias.tolist(),
    )
    names = TABLES["saes"].schema.names
    return TABLES["saes"].build(
        dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)
    )


def show_sae(work: Work, submodule: str) -> Metadata:
    """Where the weights lie, and where in the repository imported ones come from."""
    notes = work.store.notes(sae(submodule))
    path = notes["inputs"].get("path")
    return {
        **({} if path is None else {"imported from": path}),
        **({"L0 in training": notes["l0"]} if "l0" in notes else {}),
        **({"training": picture(training_curves(notes["curve"]))} if notes.get("curve") else {}),
        "settings": records(
            {"setting": name, "value": str(value)}
            for name, value in notes["settings"].items()
            if isinstance(value, str | int | float) and name != "is"
        ),
        "width": notes["d"],
        "weights": dg.MetadataValue.path(work.store.place(sae(submodule), _WEIGHTS)),
        "weights hash": notes["weights"],
    }


SAES = PartitionedStage(
    name="saes",
    group="dictionaries",
    description=(
        "A sparse autoencoder for each submodule: trained together from one read of the "
        "activations, or imported from a published set."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    key=sae,
    partitions=lambda experiment: experiment.submodules,
    deps=_dictionary_deps,
    needs=_dictionary_needs,
    on_request=lambda settings: isinstance(settings, Training),
    files="dictionary_files",
    reads=reads_dictionary,
    inputs=_dictionary_inputs,
    make=make_saes,
    show=show_sae,
)


# -- the set --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Which dictionaries are measured, and on how many contexts of the corpus's end."""

    submodules: tuple[str, ...]
    n_held_out: int


def _reads_measured(experiment: Experiment) -> Measured:
    return Measured(tuple(experiment.submodules), experiment.settings.corpus.n_held_out)


def _set_inputs(work: Work, measured: Measured) -> dict[str, str]:
    store = work.store
    weights = {
        name: Content(store.notes(sae(name))["weights"], store.origin(sae(name)))
        for name in measured.submodules
    }
    return {CONTEXTS.path: store.content(CONTEXTS), **weights}


def make_dictionary_set(work: Work, measured: Measured) -> Made:
    """Measure every dictionary on held-out text (App. B.3)."""
    from core.dictionaries import check_widths
    from core.dictionaries.quality import measure_dictionaries
    from core.inputs import pad

    model = work.load.model()
    dictionaries = {
        name: load_own(work.store, name).to(model.device) for name in measured.submodules
    }
    check_widths(dictionaries, model.width)
    held_out, n_trained_on = held_out_tokens(work.store, measured.n_held_out)
    if n_trained_on:
        work.say(f"{n_trained_on} contexts kept back also occur in training and are left out")
    tokens, mask = pad(held_out)
    metrics = measure_dictionaries(
        model, dictionaries, tokens, mask, budget_bytes=work.budget_bytes, progress=work.say
    )
    rows = [
        {
            "submodule": name,
            "activation": dictionary.activation.name,
            "n_features": dictionary.n_features,
            "width": dictionary.d,
            "weights": work.store.notes(sae(name))["weights"],
            "n_tokens": metrics[name].n_tokens,
            "n_confident": metrics[name].n_confident,
            **{metric: getattr(metrics[name], metric) for metric in METRICS},
        }
        for name, dictionary in dictionaries.items()
    ]
    densities = [
        {"submodule": name, "feature": feature, "density": density}
        for name, metric in metrics.items()
        for feature, density in enumerate(metric.density.tolist())
    ]
    return Made(
        TABLES["dictionary_set"].build(rows),
        {"n_trained_on": n_trained_on},
        beside={FEATURE_DENSITIES: TABLES["feature_densities"].build(densities)},
    )


def show_dictionary_set(work: Work, _measured: Measured) -> Metadata:
    """The metrics as a table, and two of them as a picture."""
    shown = ["variance_explained", "l0", "alive", "ce_difference", "ce_recovered", "error_norm"]
    metrics = frame(work.store.read(DICTIONARY_SET, ["submodule", *shown, "in_series"]))
    figures = {name: metrics[name].tolist() for name in shown[:2]}
    densities = work.store.read(FEATURE_DENSITIES, ["density"])["density"].to_numpy()
    return {
        "metrics": records(metrics.to_dict("records")),
        **{f"mean {name}": value for name, value in metrics[shown].mean().items()},
        "all in series": float(metrics["in_series"].iloc[-1]),
        "plot": picture(bars(metrics["submodule"].tolist(), figures)),
        "densities": picture(density_histogram(densities)),
    }


DICTIONARY_SET_STAGE = TableStage(
    name="dictionary_set",
    group="dictionaries",
    description=(
        "The dictionaries in use, with their metrics on text that none was trained on. "
        "Everything after this reads the whole set."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    key=DICTIONARY_SET,
    beside=[FEATURE_DENSITIES],
    deps=always("contexts", "saes"),
    needs=always("model"),
    reads=_reads_measured,
    inputs=_set_inputs,
    make=make_dictionary_set,
    show=show_dictionary_set,
)


def dictionary_stages(experiment: Experiment) -> list[Stage]:
    """The stages from activations to a measured set of dictionaries."""
    imported = isinstance(experiment.settings.dictionaries, ImportSettings)
    return [SAES, DICTIONARY_SET_STAGE, *([IMPORT_CHECKS_STAGE] if imported else [])]
