"""Stage 3: tokens worth explaining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from assets.corpus.contexts import read_contexts
from assets.corpus.text import harmless
from assets.engine.stage import Made, Metadata, TableStage, Work, always, contents
from assets.plots import records
from assets.settings import Experiment
from assets.tables.conversions import read_samples, samples_table
from assets.tables.places import CONTEXTS, FILTERED_TOKENS

_EXAMPLE_CHARACTERS = 60


@dataclass(frozen=True)
class Filter:
    """Which tokens are kept; see `assets.settings.FilterSettings`."""

    max_loss: float
    min_context: int
    stride: int
    max_per_document: int | None
    n_samples: int | None
    seed: int


def _reads(experiment: Experiment) -> Filter:
    return Filter(**experiment.settings.filter.model_dump())


def make_filtered_tokens(work: Work, settings: Filter) -> Made:
    """Keep the tokens that the model predicts well without copying them (section 5)."""
    from core.discovery import filter_tokens

    contexts = read_contexts(work.store)
    result = filter_tokens(
        work.load.model(),
        ((context.document, context.tokens) for context in contexts),
        max_loss=settings.max_loss,
        min_context=settings.min_context,
        stride=settings.stride,
        max_per_document=settings.max_per_document,
        n_samples=settings.n_samples,
        seed=settings.seed,
        budget_bytes=work.budget_bytes,
        progress=work.say,
    )
    notes = {"n_tokens": result.n_tokens, "n_windows": result.n_windows, "dropped": result.dropped}
    return Made(samples_table(result.samples, contexts.labels), notes)


def show_filtered_tokens(work: Work, _settings: Filter) -> Metadata:
    """What was kept, why the rest was not, and a few samples."""
    notes = work.store.notes(FILTERED_TOKENS)
    samples = read_samples(work.store.read(FILTERED_TOKENS))
    tokenizer = work.load.tokenizer()
    spread = samples[:: max(1, len(samples) // 8)][:8]
    counts = {"kept": len(samples), **notes["dropped"]}
    return {
        "tokens looked at": notes["n_tokens"],
        "share kept": len(samples) / notes["n_tokens"],
        "counts": records({"tokens": why, "n": n} for why, n in counts.items()),
        "examples": dg.MetadataValue.md(
            "\n".join(f"- `{example(tokenizer, s.context, s.answer)}`" for s in spread)
        ),
    }


def example(tokenizer: Any, context: Sequence[int], answer_id: int | str) -> str:
    """The end of a context and its answer in brackets, on one line, harmless wherever shown.

    An answer that is no token is given as text.
    """
    before = " ".join(tokenizer.decode(list(context)).split())[-_EXAMPLE_CHARACTERS:]
    answer = answer_id if isinstance(answer_id, str) else tokenizer.decode([answer_id])
    return harmless(f"…{before} [{answer.strip() or repr(answer)}]".replace("`", "'"))


FILTERED_TOKENS_STAGE = TableStage(
    name="filtered_tokens",
    group="tokens",
    description=(
        "Tokens worth explaining: those the model predicts with little loss and does not copy "
        "from the context."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    key=FILTERED_TOKENS,
    deps=always("contexts"),
    needs=always("model"),
    reads=_reads,
    inputs=contents(CONTEXTS),
    make=make_filtered_tokens,
    show=show_filtered_tokens,
)
