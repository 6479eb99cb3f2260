"""SHIFT as a page to read: the table, a plot, and the card of every feature that is ablated."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from assets.corpus.text import harmless
from assets.corpus.vocabulary import TokenText, token_text
from assets.discovery.pages import templates_in
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.plots import BLUE, GRID, RED, figure_of, png_of
from assets.shift.scoring import in_percent
from assets.tables.conversions import label_texts
from assets.tables.places import LABELS, SHIFT, Key, card_contexts, cards

_N_CONTEXTS = 5
_N_TOKENS = 8
Row = Mapping[str, Any]


def write_page(
    work: Work, rows: Sequence[Row], ablated: Sequence[Row], judged: Sequence[Row], *, cards: bool
) -> Path:
    """Write the page beside the table of SHIFT, whole or not at all.

    Args:
        rows: of the table `shift`.
        ablated: of the table `ablated_features`.
        judged: of the table `judgements`, those of the judge that counts.
        cards: whether there are cards to show.
    """
    chosen = sorted(
        (row for row in ablated if row["method"] == "shift"), key=lambda row: -abs(row["effect"])
    )
    reasons = {(row["submodule"], row["feature"]): row["reason"] for row in judged}
    shown = _cards(work, chosen) if cards else {}
    labels = label_texts(work.store.read(LABELS)) if cards else {}
    features = [
        {
            "name": f"{row['submodule']}/{row['feature']}",
            "effect": row["effect"],
            "label": harmless(labels.get(f"{row['submodule']}/{row['feature']}", "")),
            "reason": harmless(reasons.get((row["submodule"], row["feature"])) or ""),
            "card": shown.get((row["submodule"], row["feature"])),
        }
        for row in chosen
    ]
    page = templates_in(Path(__file__).with_name("templates")).get_template("shift.html")
    plot = base64.b64encode(outcomes(rows)).decode()
    title = f"SHIFT: {work.about['experiment']}"
    table = [in_percent(row) for row in rows]
    text = page.render(title=title, first=rows[0], table=table, plot=plot, features=features)
    return work.store.write_text(SHIFT, ".html", text + "\n")


def _cards(work: Work, chosen: Sequence[Row]) -> dict[tuple[str, int], dict[str, Any]]:
    """What the cards of some features say, by submodule and feature."""
    text, found = token_text(work.load.tokenizer()), {}
    for submodule in dict.fromkeys(row["submodule"] for row in chosen):
        features = [row["feature"] for row in chosen if row["submodule"] == submodule]
        contexts: dict[int, list[Row]] = {}
        for row in _of(work.store, card_contexts(submodule), features):
            if row["quantile"] is None and row["rank"] < _N_CONTEXTS:
                contexts.setdefault(row["feature"], []).append(row)
        for row in _of(work.store, cards(submodule), features):
            own = sorted(contexts.get(row["feature"], []), key=lambda one: one["rank"])
            found[submodule, row["feature"]] = {
                "density": row["density"],
                "promoted": [harmless(text(token)) for token in row["promoted"][:_N_TOKENS]],
                "contexts": [list(_shaded(one, text, row["max_activation"])) for one in own],
            }
    return found


def _of(store: ArtifactStore, key: Key, features: Sequence[int]) -> list[Row]:
    of_features = (pc.field("basis") == "features") & pc.field("feature").isin(features)
    return store.read(key).filter(of_features).to_pylist()


def _shaded(row: Row, text: TokenText, largest: float) -> Iterator[tuple[str, float]]:
    """Each token and how active the feature is on it, from 0 to 1."""
    for token, activation in zip(row["tokens"], row["activations"], strict=True):
        yield harmless(text(token)), max(0.0, activation) / max(largest, 1e-12)


def outcomes(rows: Sequence[Row]) -> bytes:
    """Accuracy of the worst group for every way, with its spread over seeds: a PNG."""
    figure, axis = figure_of(7.0, 0.7 + 0.3 * len({row["method"] for row in rows}))
    names = list(dict.fromkeys(row["method"] for row in rows))
    marks = {"trained": ("o", BLUE), "centred": ("s", "#777777"), "retrained": ("D", RED)}
    for probe, (marker, colour) in marks.items():
        own = [row for row in rows if row["probe"] == probe]
        axis.errorbar(
            [row["worst_group"] for row in own],
            [names.index(row["method"]) for row in own],
            xerr=[row["worst_group_sd"] for row in own],
            fmt=marker,
            color=colour,
            markersize=5,
            label=f"probe {probe}",
        )
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.invert_yaxis()
    axis.set(xlabel="accuracy of the worst group", xlim=(-0.02, 1.02))
    axis.grid(axis="x", color=GRID, linewidth=0.8)
    axis.legend(fontsize=8)
    return png_of(figure)
