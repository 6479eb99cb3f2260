"""Stage 2: a dictionary for each submodule, trained or imported, then the set of them, measured."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg
import pyarrow as pa

from assets.corpus.stages import held_out_contexts, training_contexts, uses_cache
from assets.dictionaries.imports import import_inputs, imported
from assets.engine.automation import rerun_on_new_data
from assets.engine.loading import load_model_of, model_identity
from assets.engine.partitions import submodule_partitions, train_together
from assets.engine.stage import (
    MODEL_POOL,
    Made,
    Metadata,
    PartitionedStage,
    Stage,
    TableStage,
    Work,
    the_model,
)
from assets.engine.store import ArtifactStore, Recipe, digest, hash_place
from assets.plots import bars, density_histogram, picture
from assets.settings import Experiment, ImportSettings, TrainSettings
from assets.tables.schemas import TABLES

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
)
_NOT_SHAPING = {"cache_gb", "checkpoint_every"}


def weights_file(submodule: str) -> tuple[str, str]:
    """Key and suffix of a dictionary's weights in the store."""
    return f"saes/{submodule}", ".safetensors"


def load_own(store: ArtifactStore, submodule: str) -> Dictionary:
    """The dictionary that the saes stage wrote for a submodule."""
    from core.dictionaries.files import load_dictionary

    return load_dictionary(store.path(*weights_file(submodule)))


# -- saes -----------------------------------------------------------------------------------------


def _sae_settings(experiment: Experiment) -> Mapping[str, object]:
    return experiment.settings.dictionaries.model_dump(mode="json", exclude=_NOT_SHAPING)


def _sae_inputs(work: Work, submodule: str) -> Mapping[str, str]:
    if isinstance(work.experiment.settings.dictionaries, ImportSettings):
        return import_inputs(work, submodule, _sae_settings(work.experiment))
    return {name: work.store.content(name) for name in _sae_deps(work.experiment)}


def _sae_deps(experiment: Experiment) -> tuple[str, ...]:
    if isinstance(experiment.settings.dictionaries, ImportSettings):
        return ()
    return ("activation_cache",) if uses_cache(experiment) else ("contexts",)


def _sae_source(experiment: Experiment) -> Mapping[str, str]:
    settings = experiment.settings.dictionaries
    if isinstance(settings, ImportSettings):
        places = {"repository": settings.repository, **settings.repositories}
        return {name: hash_place(experiment.resolve(place)) for name, place in places.items()}
    return the_model(experiment)


def make_saes(work: Work, recipes: Mapping[str, Recipe]) -> None:
    """Train or import the dictionaries of these submodules and write each as it is ready."""
    settings = work.experiment.settings.dictionaries
    if isinstance(settings, ImportSettings):
        found = imported(work, recipes)
    else:
        found = _trained(work, settings, recipes)
    for submodule, dictionary in found:
        _write(work, submodule, dictionary, recipes[submodule])
        work.say(f"{submodule}: {dictionary.n_features} features written")


def _trained(
    work: Work, settings: TrainSettings, recipes: Mapping[str, Recipe]
) -> Iterator[tuple[str, Dictionary]]:
    """All of these together, from one read of the activations; a killed training goes on."""
    from core.training import train_dictionaries

    model = load_model_of(work.experiment)
    which = digest({name: recipe.fingerprint for name, recipe in recipes.items()})
    state = work.store.path(f"saes/training-{which}", "")
    trained = train_dictionaries(
        _activations(work, settings, list(recipes)),
        _training_settings(settings, model.d_model),
        checkpoint=state,
        device=model.device,
        progress=work.say,
    )
    yield from trained.items()
    shutil.rmtree(state)


def _activations(work: Work, settings: TrainSettings, submodules: list[str]) -> RowSource:
    from assets.corpus.writing import open_cache
    from core.training import ModelRows

    if settings.activations == "cache":
        return open_cache(work.store.path("activation_cache", ""), submodules)
    return ModelRows(
        load_model_of(work.experiment),
        training_contexts(work).tokens,
        submodules,
        model_fingerprint=model_identity(work.experiment),
        progress=work.say,
    )


def _training_settings(settings: TrainSettings, d_model: int) -> TrainingSettings:
    from core.training import TrainingSettings

    return TrainingSettings(
        kind=settings.kind,
        n_features=settings.n_features or settings.expansion * d_model,
        n_steps=settings.steps,
        batch_size=settings.batch,
        learning_rate=settings.lr,
        sparsity=settings.l1,
        k=settings.k,
        warmup_steps=settings.warmup,
        decay_steps=settings.decay,
        sparsity_warmup_steps=settings.sparsity_warmup,
        resample_every=settings.resample_every,
        dead_after=settings.dead_after,
        buffer_bytes=int(settings.buffer_mb * 1e6),
        checkpoint_every=settings.checkpoint_every,
        seed=settings.seed,
    )


def _write(work: Work, submodule: str, dictionary: Dictionary, recipe: Recipe) -> None:
    """Weights first: the table beside them says that they are whole."""
    from core.dictionaries.files import fingerprint, save_dictionary

    weights = fingerprint(dictionary)
    path = work.store.path(*weights_file(submodule))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_dictionary(dictionary, path, {"submodule": submodule, "made_by": recipe.fingerprint})
    work.store.write(
        f"saes/{submodule}",
        features_table(dictionary),
        recipe,
        like="saes",
        notes={"weights": weights, "submodule": submodule, "d": dictionary.d},
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
    notes = work.store.notes(f"saes/{submodule}")
    path = notes["inputs"].get("path")
    return {
        **({} if path is None else {"imported from": path}),
        "width": notes["d"],
        "weights": dg.MetadataValue.path(work.store.path(*weights_file(submodule))),
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
    deps=_sae_deps,
    settings=_sae_settings,
    outside=_sae_source,
    pool=MODEL_POOL,
    partitions=submodule_partitions,
    backfill=train_together,
    table="saes",
    key=lambda submodule: f"saes/{submodule}",
    inputs=_sae_inputs,
    make=make_saes,
    show=show_sae,
)


# -- the set --------------------------------------------------------------------------------------


def _set_inputs(work: Work) -> dict[str, str]:
    weights = {
        name: work.store.notes(f"saes/{name}")["weights"] for name in work.experiment.submodules
    }
    return {"contexts": work.store.content("contexts"), **weights}


def make_dictionary_set(work: Work) -> Made:
    """Measure every dictionary on held-out text (App. B.3)."""
    from core.dictionaries import check_widths
    from core.dictionaries.quality import measure_dictionaries
    from core.inputs import pad

    model = load_model_of(work.experiment)
    dictionaries = {
        name: load_own(work.store, name).to(model.device) for name in work.experiment.submodules
    }
    check_widths(dictionaries, model.width)
    tokens, mask = pad(list(held_out_contexts(work).tokens))
    measured = measure_dictionaries(model, dictionaries, tokens, mask, progress=work.say)
    rows = [
        {
            "submodule": name,
            "activation": type(dictionary.activation).__name__,
            "n_features": dictionary.n_features,
            "width": dictionary.d,
            "weights": work.store.notes(f"saes/{name}")["weights"],
            "n_tokens": measured[name].n_tokens,
            **{metric: getattr(measured[name], metric) for metric in METRICS},
        }
        for name, dictionary in dictionaries.items()
    ]
    densities = [
        {"submodule": name, "feature": feature, "density": density}
        for name, found in measured.items()
        for feature, density in enumerate(found.density.tolist())
    ]
    return Made(
        TABLES["dictionary_set"].build(rows),
        beside={"feature_densities": TABLES["feature_densities"].build(densities)},
    )


def show_dictionary_set(work: Work) -> Metadata:
    """The metrics as a table, and two of them as a picture."""
    rows = work.store.read("dictionary_set").to_pylist()
    shown = ("submodule", "variance_explained", "l0", "alive", "ce_difference", "ce_recovered")
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in shown[1:]}
    names = [row["submodule"] for row in rows]
    figures = {name: [row[name] for row in rows] for name in ("variance_explained", "l0")}
    densities = work.store.read("feature_densities", ["density"])["density"].to_numpy()
    return {
        "metrics": dg.MetadataValue.table(
            [dg.TableRecord({name: row[name] for name in shown}) for row in rows]
        ),
        **{f"mean {name}": value for name, value in mean.items()},
        "plot": picture(bars(names, figures)),
        "densities": picture(density_histogram(densities)),
    }


DICTIONARY_SET = TableStage(
    name="dictionary_set",
    group="dictionaries",
    description=(
        "The dictionaries in use, with their metrics on text that none was trained on. "
        "Everything after this reads the whole set."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    deps=lambda _experiment: ("contexts", "saes"),
    settings=lambda experiment: {"n_held_out": experiment.settings.corpus.n_held_out},
    outside=the_model,
    pool=MODEL_POOL,
    automation=rerun_on_new_data,
    inputs=_set_inputs,
    make=make_dictionary_set,
    show=show_dictionary_set,
)


def dictionary_stages(_experiment: Experiment) -> list[Stage]:
    """The stages from activations to a measured set of dictionaries."""
    return [SAES, DICTIONARY_SET]
