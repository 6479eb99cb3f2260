"""Stage 1: text to contexts, contexts to activations on disk."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from assets.corpus.contexts import Contexts, read_contexts, read_lengths, telling
from assets.engine.automation import rerun_on_new_data
from assets.engine.loading import (
    load_model_of,
    load_tokenizer_of,
    model_identity,
    tokenizer_identity,
)
from assets.engine.stage import MODEL_POOL, Made, Metadata, Stage, TableStage, Work, on, the_model
from assets.engine.store import hash_place
from assets.settings import Experiment, TrainSettings
from assets.tables.conversions import contexts_pieces
from assets.tables.schemas import TABLES


def _text_and_tokenizer(experiment: Experiment) -> Mapping[str, str]:
    return {
        "corpus": hash_place(experiment.resolve(experiment.settings.corpus.source)),
        "tokenizer": tokenizer_identity(experiment),
    }


def make_contexts(work: Work) -> Made:
    """Read the corpus and keep the first tokens of each document."""
    from assets.corpus.text import read_documents, tokenize_documents

    settings = work.experiment.settings.corpus
    documents = read_documents(
        work.experiment.resolve(settings.source),
        text_column=settings.text_column,
        label_column=settings.labels_column,
        split=settings.split,
        revision=settings.revision,
        n_documents=settings.n_documents,
        separator=settings.separator,
    )
    tokenizer = load_tokenizer_of(work.experiment)
    found = tokenize_documents(
        documents, tokenizer, n_positions=settings.n_positions, bos=settings.bos
    )
    return Made(contexts_pieces(telling(found, work.say)))


def show_contexts(work: Work) -> Metadata:
    """How much text there is, and the beginning of some of it."""
    tokenizer = load_tokenizer_of(work.experiment)
    beginnings = [tokenizer.decode(tokens) for tokens in read_contexts(work.store).tokens[:3]]
    return {
        "tokens": int(read_lengths(work.store).sum()),
        "text": dg.MetadataValue.md("\n\n".join(f"> {' '.join(t.split())}" for t in beginnings)),
    }


def n_held_out(work: Work) -> int:
    """How many contexts, the last of the table, nothing trains on."""
    n_contexts = work.store.n_rows("contexts")
    return min(work.experiment.settings.corpus.n_held_out, max(1, n_contexts // 10))


def training_contexts(work: Work) -> Contexts:
    """The contexts that dictionaries train on; all of a corpus of one."""
    contexts = read_contexts(work.store)
    return contexts[: -n_held_out(work)] or contexts


def held_out_contexts(work: Work) -> Contexts:
    """The contexts that dictionaries are measured on."""
    return read_contexts(work.store)[-n_held_out(work) :]


def make_activation_cache(work: Work) -> Made:
    """Run the model over all contexts once and write every submodule's output."""
    from assets.corpus.writing import write_cache

    settings = work.experiment.settings.dictionaries
    assert isinstance(settings, TrainSettings)
    manifest = write_cache(
        work.store.path("activation_cache", ""),
        load_model_of(work.experiment),
        training_contexts(work),
        work.experiment.submodules,
        model_fingerprint=model_identity(work.experiment),
        budget_bytes=int(settings.cache_gb * 1e9),
        progress=work.say,
    )
    rows = [
        {
            "submodule": submodule,
            "width": width,
            "n_rows": manifest.n_rows,
            "n_documents": manifest.n_documents,
            "n_shards": len(manifest.shards),
            "fingerprint": manifest.fingerprint,
        }
        for submodule, width in manifest.widths.items()
    ]
    return Made(TABLES["activation_cache"].build(rows))


def show_activation_cache(work: Work) -> Metadata:
    """How many rows there are and how much disk they take."""
    folder = work.store.path("activation_cache", "")
    n_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    rows = work.store.read("activation_cache").to_pylist()
    return {
        "tokens": rows[0]["n_rows"],
        "MiB on disk": n_bytes / 2**20,
        "folder": dg.MetadataValue.path(folder),
    }


CONTEXTS = TableStage(
    name="contexts",
    group="corpus",
    description="The corpus as token ids: the first tokens of each document.",
    kinds=frozenset({"huggingface", "parquet"}),
    deps=on(),
    settings=lambda experiment: experiment.settings.corpus.model_dump(mode="json"),
    outside=_text_and_tokenizer,
    make=make_contexts,
    show=show_contexts,
)

ACTIVATION_CACHE = TableStage(
    name="activation_cache",
    group="corpus",
    description=(
        "What every submodule of the model puts out at every token of the corpus, on disk, from "
        "one pass of the model. Dictionaries train from it."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    deps=on("contexts"),
    settings=lambda experiment: {
        "submodules": experiment.submodules,
        "n_held_out": experiment.settings.corpus.n_held_out,
    },
    outside=the_model,
    pool=MODEL_POOL,
    automation=rerun_on_new_data,
    make=make_activation_cache,
    show=show_activation_cache,
)


def uses_cache(experiment: Experiment) -> bool:
    """Whether the experiment trains dictionaries from activations on disk."""
    dictionaries = experiment.settings.dictionaries
    return isinstance(dictionaries, TrainSettings) and dictionaries.activations == "cache"


def corpus_stages(experiment: Experiment) -> list[Stage]:
    """The stages from text to activations."""
    return [CONTEXTS, ACTIVATION_CACHE] if uses_cache(experiment) else [CONTEXTS]
