"""Clusters as pages to read: contexts with the answer highlighted, an overview, and plots.

Every page is one HTML file that needs nothing else, so that a folder of them can be opened,
mailed or attached to a run; `templates` holds what they look like. Text of the corpus is shown
as it is, with nothing in it taken for markup and what cannot be seen made visible. The answer's
background follows feature-circuits.xyz.
"""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from assets.corpus.text import harmless
from assets.corpus.vocabulary import TokenText
from assets.plots import BLUE, GRID, RED, figure_of, png_of
from core.atomic import replacing

if TYPE_CHECKING:
    import numpy as np

    from core.discovery import Clustering, ClusterSummary, Sample

_N_TOKENS = 80  # of a context's end that a page shows
_N_TOKENS_BRIEF = 12  # of it that the overview shows
_N_ANSWERS = 12
_DPI = 110


def page_name(cluster: int) -> str:
    """File name of a cluster's page."""
    return f"k{cluster:05d}.html"


def write_cluster_pages(
    folder: Path,
    samples: Sequence[Sample],
    clustering: Clustering,
    summaries: Sequence[ClusterSummary],
    text: TokenText,
    *,
    title: str,
    plots: Mapping[str, bytes] | None = None,
    truth: Sequence[str] | None = None,
    n_contexts: int = 40,
) -> Path:
    """Write a page per cluster and an overview, each whole or not at all.

    Args:
        folder: made if it is missing; pages in it are replaced, and those of clusters that are
            no more are removed when all others are written.
        samples: those that were clustered, in the same order.
        text: what a token looks like, such as `token_text(tokenizer)`.
        title: of the overview.
        plots: PNG images for the overview, by caption.
        truth: the behaviour that generated each sample, where it is known.
        n_contexts: contexts on a page, the most typical first.

    Returns:
        The overview, ``index.html``.
    """
    templates = templates_in()
    behaviours = None if truth is None else [harmless(behaviour) for behaviour in truth]
    # From page to page one goes down the overview's table.
    ordered = sorted(summaries, key=lambda s: (-s.size, -_sortable(s.coherence)))
    names = [page_name(summary.cluster) for summary in ordered]
    rows = []
    for place, summary in enumerate(ordered):
        members: list[int] = (clustering.labels == summary.cluster).nonzero()[0].tolist()
        # A lone sample has no similarity; any order will do.
        members.sort(key=lambda i: (-_sortable(clustering.similarity[i]), i))
        shown = {
            "cluster": summary,
            "answers": _shares(f"\u201c{harmless(text(samples[i].answer))}\u201d" for i in members),
            "behaviours": None if behaviours is None else _shares(behaviours[i] for i in members),
        }
        contexts = [
            {
                "number": i,
                "sample": samples[i],
                "similarity": clustering.similarity[i],
                "behaviour": None if behaviours is None else behaviours[i],
                **_context(samples[i], text, _N_TOKENS),
            }
            for i in members[:n_contexts]
        ]
        page = templates.get_template("cluster.html").render(
            title=f"Cluster {summary.cluster}",
            previous=names[place - 1] if place else None,
            next=names[place + 1] if place + 1 < len(names) else None,
            contexts=contexts,
            **shown,
        )
        _write(folder / names[place], page)
        rows.append(
            {
                "name": Path(names[place]).stem,
                "page": names[place],
                "typical": _context(samples[summary.typical[0]], text, _N_TOKENS_BRIEF),
                **shown,
            }
        )
    index = folder / "index.html"
    overview = templates.get_template("overview.html").render(
        title=title,
        n_samples=len(samples),
        n_shared=sum(summary.n_documents > 1 for summary in summaries),
        clustering=clustering,
        plots={name: base64.b64encode(png).decode() for name, png in (plots or {}).items()},
        has_behaviours=behaviours is not None,
        rows=rows,
    )
    _write(index, overview)
    for old in folder.glob("k*.html"):
        if re.fullmatch(r"k\d{5,}\.html", old.name) and old.name not in names:
            old.unlink()
    return index


def templates_in(*folders: Path) -> jinja2.Environment:
    """Templates of these folders, and of the one beside this file with what pages share."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).with_name("templates")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["figures"] = lambda value: "\u2013" if math.isnan(value) else f"{value:.2f}"
    templates.filters["percent"] = lambda part: f"{part:.0%}"
    templates.filters["sortable"] = _sortable
    return templates


def _sortable(value: float) -> float:
    return 0.0 if math.isnan(value) else float(value)


def _write(path: Path, page: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(page + "\n", encoding="utf-8")


def _context(sample: Sample, text: TokenText, n_tokens: int) -> dict[str, Any]:
    """The end of a sample's context and its answer, line ends both seen and kept."""
    before = "".join(text(token) for token in sample.context[-n_tokens:])
    return {
        "cut": len(sample.context) > n_tokens,
        "before": "\u21b5\n".join(map(harmless, before.split("\n"))),
        "answer": harmless(text(sample.answer)),
    }


def _shares(names: Iterable[str]) -> dict[str, Any]:
    """How often each name occurs, the commonest first."""
    counts = Counter(names)
    commonest = [
        {"name": name, "n": n, "part": n / counts.total()}
        for name, n in counts.most_common(_N_ANSWERS)
    ]
    return {"commonest": commonest, "n_more": len(counts) - len(commonest)}


def plot_sizes(clustering: Clustering) -> bytes:
    """Samples in each cluster, from the largest to the smallest: a PNG."""
    figure, axes = figure_of(6.0, 3.2, dpi=_DPI)
    sizes = Counter(clustering.labels.tolist())
    numbers = sorted(sizes)
    axes.bar(numbers, [sizes[n] for n in numbers], width=0.9, color=BLUE)
    axes.set(xlabel="cluster", ylabel="samples")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    return png_of(figure)


def plot_curve(clustering: Clustering) -> bytes:
    """Clusters that hold more than one document, for each k tried: a PNG."""
    figure, axes = figure_of(4.2, 3.2, dpi=_DPI)
    tried = [point.k for point in clustering.curve]
    shared = [point.n_shared for point in clustering.curve]
    axes.plot(tried, shared, color=BLUE, marker="o", markersize=5, linewidth=2)
    chosen = shared[tried.index(clustering.k)]
    axes.plot([clustering.k], [chosen], marker="o", markersize=9, color=RED, linestyle="")
    axes.annotate(
        f"k = {clustering.k}",
        (clustering.k, chosen),
        (-9, 3),
        textcoords="offset points",
        ha="right",
    )
    axes.set(xlabel="clusters asked for", ylabel="with more than one document")
    axes.grid(color=GRID, linewidth=0.8)
    return png_of(figure)


def spread(labels: np.ndarray, n_most: int = 1000) -> np.ndarray:
    """At most so many samples in the order of their clusters, evenly spread: ``(n,)``."""
    import numpy as np

    order = np.argsort(labels, kind="stable")
    if len(order) > n_most:
        order = order[np.linspace(0, len(order) - 1, n_most).astype(int)]
    return order


def plot_similarity(vectors: Any) -> bytes:
    """Angular similarity between samples in the order of their clusters: a PNG.

    Args:
        vectors: ``(sample, width)``, dense or sparse, ordered by `spread`.
    """
    import numpy as np

    from core.discovery import angular_similarity

    similarity = angular_similarity(vectors)
    off_diagonal = similarity[~np.eye(len(similarity), dtype=bool)]
    low, high = np.percentile(off_diagonal, (1, 99.5)) if off_diagonal.size else (0, 1)
    figure, axes = figure_of(4.2, 3.2, dpi=_DPI)
    image = axes.imshow(similarity, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="angular similarity")
    axes.set(xlabel="samples by cluster", ylabel="samples by cluster", xticks=[], yticks=[])
    return png_of(figure)
