"""Stage 1: text to contexts, contexts to activations on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg

from assets.corpus.contexts import (
    Contexts,
    contexts_pieces,
    read_contexts,
    read_lengths,
    telling,
)
from assets.corpus.vocabulary import VOCABULARY_STAGE
from assets.engine.recipe import Source, aside
from assets.engine.stage import Made, Metadata, Stage, TableStage, Work, always, contents
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, TrainSettings
from assets.tables.places import ACTIVATION_CACHE, CONTEXTS
from assets.tables.schemas import TABLES


@dataclass(frozen=True)
class Corpus:
    """Which text, and how it is cut into contexts; see `assets.settings.CorpusSettings`."""

    source: Source
    text_column: str
    label_column: str | None
    split: str
    revision: str | None
    n_documents: int | None
    separator: str | None
    n_positions: int
    bos: bool


def _reads_corpus(experiment: Experiment) -> Corpus:
    corpus = experiment.settings.corpus
    return Corpus(
        source=Source(corpus.source, experiment.resolve(corpus.source)),
        text_column=corpus.text_column,
        label_column=corpus.labels_column,
        split=corpus.split,
        revision=corpus.revision,
        n_documents=corpus.n_documents,
        separator=corpus.separator,
        n_positions=corpus.n_positions,
        bos=corpus.bos,
    )


def make_contexts(work: Work, corpus: Corpus) -> Made:
    """Read the corpus and keep the first tokens of each document."""
    from assets.corpus.text import Reading, read_documents, tokenize_documents

    reading = Reading(say=work.say)
    documents = read_documents(
        corpus.source.place,
        text_column=corpus.text_column,
        label_column=corpus.label_column,
        split=corpus.split,
        revision=corpus.revision,
        n_documents=corpus.n_documents,
        separator=corpus.separator,
        reading=reading,
    )
    contexts = tokenize_documents(
        documents,
        work.load.tokenizer(),
        n_positions=corpus.n_positions,
        bos=corpus.bos,
        reading=reading,
    )
    pieces = contexts_pieces(telling(contexts, work.say))
    return Made(pieces, lambda: {"read": reading.counts()})


def show_contexts(work: Work, _corpus: Corpus) -> Metadata:
    """How much text there is, and the beginning of some of it."""
    from assets.corpus.text import harmless

    tokenizer = work.load.tokenizer()
    beginnings = [
        harmless(tokenizer.decode(tokens), markdown=True)
        for tokens in read_contexts(work.store).tokens[:3]
    ]
    return {
        "tokens": int(read_lengths(work.store).sum()),
        "read": dg.MetadataValue.json(work.store.notes(CONTEXTS)["read"]),
        "text": dg.MetadataValue.md(
            "\n\n".join(f"> {harmless(t, markdown=True)}" for t in beginnings)
        ),
    }


def _n_kept_back(store: ArtifactStore, n_held_out: int) -> int:
    """How many contexts, the last of the table, nothing trains on: a tenth at most."""
    return min(n_held_out, max(1, store.n_rows(CONTEXTS) // 10))


def training_contexts(store: ArtifactStore, n_held_out: int) -> Contexts:
    """The contexts that dictionaries train on; all of a corpus of one."""
    every = read_contexts(store)
    return every[: -_n_kept_back(store, n_held_out)] or every


def held_out_tokens(store: ArtifactStore, n_held_out: int) -> tuple[list[list[int]], int]:
    """Token ids that dictionaries are measured on, and how many contexts were left out of them.

    Left out are contexts that are also trained on; where that is all of them, none is.
    """
    held_out = list(read_contexts(store)[-_n_kept_back(store, n_held_out) :].tokens)
    wanted, seen = {tuple(tokens) for tokens in held_out}, set()
    for tokens in training_contexts(store, n_held_out).tokens:
        if (same := tuple(tokens)) in wanted:
            seen.add(same)
    unseen = [tokens for tokens in held_out if tuple(tokens) not in seen]
    return (unseen, len(held_out) - len(unseen)) if unseen else (held_out, 0)


@dataclass(frozen=True)
class Cached:
    """Whose activations are kept, and how many contexts are kept back."""

    submodules: tuple[str, ...]
    n_held_out: int
    budget_gb: float = aside(0.0)


def _reads_cached(experiment: Experiment) -> Cached:
    dictionaries = experiment.settings.dictionaries
    assert isinstance(dictionaries, TrainSettings), "asked for by corpus_stages"
    n_held_out = experiment.settings.corpus.n_held_out
    return Cached(tuple(experiment.submodules), n_held_out, dictionaries.cache_gb)


def make_activation_cache(work: Work, cached: Cached) -> Made:
    """Run the model over all contexts once and write every submodule's output."""
    from assets.corpus.writing import write_cache

    folder = work.store.path(ACTIVATION_CACHE, "")
    manifest = write_cache(
        folder,
        work.load.model(),
        training_contexts(work.store, cached.n_held_out),
        cached.submodules,
        model_fingerprint=work.load.identity("model") or "",
        budget_bytes=int(cached.budget_gb * 1e9),
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
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return Made(TABLES["activation_cache"].build(rows), files=files)


def show_activation_cache(work: Work, _cached: Cached) -> Metadata:
    """How many rows there are and how much disk they take."""
    files: Mapping[str, int] = work.store.notes(ACTIVATION_CACHE)["files"]
    rows = work.store.read(ACTIVATION_CACHE, ["n_rows"]).to_pylist()
    return {
        "tokens": rows[0]["n_rows"],
        "MiB on disk": sum(files.values()) / 2**20,
        "folder": dg.MetadataValue.path(work.store.place(ACTIVATION_CACHE, "")),
    }


CONTEXTS_STAGE = TableStage(
    name="contexts",
    group="corpus",
    description="The corpus as token ids: the first tokens of each document.",
    kinds=frozenset({"huggingface", "parquet"}),
    key=CONTEXTS,
    deps=always(),
    needs=always("tokenizer"),
    files="corpus_files",
    reads=_reads_corpus,
    inputs=contents(),
    make=make_contexts,
    show=show_contexts,
)

ACTIVATION_CACHE_STAGE = TableStage(
    name="activation_cache",
    group="corpus",
    description=(
        "What every submodule of the model puts out at every token of the corpus, on disk, from "
        "one pass of the model. Dictionaries train from it."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    key=ACTIVATION_CACHE,
    deps=always("contexts"),
    needs=always("model"),
    reads=_reads_cached,
    inputs=contents(CONTEXTS),
    make=make_activation_cache,
    show=show_activation_cache,
)


def uses_cache(experiment: Experiment) -> bool:
    """Whether the experiment trains dictionaries from activations on disk."""
    dictionaries = experiment.settings.dictionaries
    return isinstance(dictionaries, TrainSettings) and dictionaries.activations == "cache"


def corpus_stages(experiment: Experiment) -> list[Stage]:
    """The stages from text to activations."""
    stages: list[Stage] = [CONTEXTS_STAGE, VOCABULARY_STAGE]
    return [*stages, ACTIVATION_CACHE_STAGE] if uses_cache(experiment) else stages
