"""Clusters as pages to read: contexts with the answer highlighted, an overview, and plots.

Every page is one HTML file that needs nothing else, so that a folder of them can be opened,
mailed or attached to a run. The answer's background follows feature-circuits.xyz.
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from core.discovery import Clustering, ClusterSummary, Sample

    TokenText = Callable[[int], str]

_N_TOKENS = 80  # of a context's end that a page shows
_N_TOKENS_BRIEF = 12  # of it that the overview shows
_N_ANSWERS = 12
_INK, _BLUE, _GRID = "#333333", "#3b6ea8", "#dddddd"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 80rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
a { color: #2b5d94; }
table { border-collapse: collapse; }
th, td { padding: .25rem .45rem; text-align: right; vertical-align: top;
         border-bottom: 1px solid #e5e5e5; }
th { font-weight: 600; white-space: nowrap; } th[onclick] { cursor: pointer; }
th[onclick]::after { content: " \\2195"; color: #999; }
td.text, th.text { text-align: left; } td.text { overflow-wrap: anywhere; }
.context { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 1rem;
           padding: .5rem .7rem; background: #f7f7f7; border-radius: .3rem; }
.answer { background: #ff9999; border-radius: .2rem; padding: 0 .1rem; white-space: pre-wrap; }
.note { color: #666; font-size: .85rem; }
.bar { display: inline-block; height: .7rem; background: #3b6ea8; }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; }
figcaption { color: #666; font-size: .85rem; } img { max-width: 100%; height: 17rem; }
p, .context { max-width: 62rem; }
td.brief { min-width: 24rem; }
"""

# Sorts the table by the clicked column, numbers from high to low, text from a to z.
_SORT = """
function sortBy(head, column) {
  const body = head.closest("table").tBodies[0], rows = Array.from(body.rows);
  const value = row => row.cells[column].dataset.value;
  rows.sort((a, b) => (parseFloat(value(b)) - parseFloat(value(a)))
                      || value(a).localeCompare(value(b)));
  rows.forEach(row => body.appendChild(row));
}
"""


def token_text(tokenizer: Any) -> TokenText:
    """What a token adds to a text, with the space before it that decoding it alone would drop."""

    def text(token: int) -> str:
        decoded = str(tokenizer.decode([token]))
        piece = str(tokenizer.convert_ids_to_tokens(token))
        spaced = piece.startswith(("\u2581", "\u0120")) and not decoded.startswith(" ")
        return f" {decoded}" if spaced else decoded

    return text


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
    """Write a page per cluster and an overview.

    Args:
        folder: made if it is missing; pages already in it are replaced, older ones removed.
        samples: those that were clustered, in the same order.
        text: what a token looks like, such as `token_text(tokenizer)`.
        title: of the overview.
        plots: PNG images for the overview, by caption.
        truth: the behaviour that generated each sample, where it is known.
        n_contexts: contexts on a page, the most typical first.

    Returns:
        The overview, ``index.html``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("k?????.html"):
        old.unlink()
    for summary in summaries:
        members: list[int] = (clustering.labels == summary.cluster).nonzero()[0].tolist()
        # A lone sample has no similarity; any order will do.
        members.sort(key=lambda i: (-_number(float(clustering.similarity[i])), i))
        body = _cluster_page(summary, members, samples, clustering, text, truth, n_contexts)
        page = _page(f"Cluster {summary.cluster}", body)
        (folder / page_name(summary.cluster)).write_text(page, encoding="utf-8")
    overview = _overview(samples, clustering, summaries, text, truth, plots or {})
    index = folder / "index.html"
    index.write_text(_page(title, overview), encoding="utf-8")
    return index


def _number(value: float) -> float:
    return 0.0 if math.isnan(value) else float(value)


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><script>{_SORT}</script></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _visible(text: str) -> str:
    """Text for a page: markup escaped, line ends seen."""
    return escape(text).replace("\n", "\u21b5\n")


def _context(sample: Sample, text: TokenText, n_tokens: int) -> str:
    """The end of a sample's context and its answer, highlighted."""
    cut = "\u2026" if len(sample.context) > n_tokens else ""
    before = "".join(text(token) for token in sample.context[-n_tokens:])
    answer = _visible(text(sample.answer))
    return f'{cut}{_visible(before)}<span class="answer">{answer}</span>'


def _figures(value: float) -> str:
    return "\u2013" if math.isnan(value) else f"{value:.2f}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _cluster_page(
    summary: ClusterSummary,
    members: Sequence[int],
    samples: Sequence[Sample],
    clustering: Clustering,
    text: TokenText,
    truth: Sequence[str] | None,
    n_contexts: int,
) -> str:
    parts = [
        '<p><a href="index.html">All clusters</a></p>',
        f"<p>{_counted(summary.size, 'sample')} from {_counted(summary.n_documents, 'document')}; "
        f"{_counted(summary.n_answers, 'answer')}, entropy {summary.answer_entropy:.2f} nats; "
        f"coherence (mean cosine of pairs) {_figures(summary.coherence)}.</p>",
        "<h2>Answers</h2>",
        _shares(Counter(_quoted(text(samples[i].answer)) for i in members)),
    ]
    if truth is not None:
        parts += ["<h2>Behaviours</h2>", _shares(Counter(truth[i] for i in members))]
    shown = members[:n_contexts]
    parts.append(f"<h2>Contexts, the {len(shown)} most typical first</h2>")
    for i in shown:
        sample = samples[i]
        known = "" if truth is None else f" · {escape(truth[i])}"
        parts.append(
            f'<div class="note">sample {i} · document {sample.document}, position {sample.pos} · '
            f"loss {sample.loss:.3f} nats · similarity {_figures(clustering.similarity[i])}{known}"
            f'</div><div class="context">{_context(sample, text, _N_TOKENS)}</div>'
        )
    return "\n".join(parts)


def _quoted(token: str) -> str:
    """A token as a label, its spaces and line ends seen."""
    return "\u201c" + token.replace("\n", "\u21b5") + "\u201d"


def _shares(counts: Counter[str]) -> str:
    """A table of counts with bars, the commonest first."""
    total = counts.total()
    rows = []
    for name, n in counts.most_common(_N_ANSWERS):
        bar = f'<span class="bar" style="width:{16 * n / total:.2f}rem"></span>'
        rows.append(
            f'<tr><td class="text">{escape(name)}</td><td>{n}</td>'
            f'<td>{n / total:.0%}</td><td class="text">{bar}</td></tr>'
        )
    rest = len(counts) - _N_ANSWERS
    more = f'<p class="note">and {rest} more</p>' if rest > 0 else ""
    return f"<table><tbody>{''.join(rows)}</tbody></table>{more}"


def _overview(
    samples: Sequence[Sample],
    clustering: Clustering,
    summaries: Sequence[ClusterSummary],
    text: TokenText,
    truth: Sequence[str] | None,
    plots: Mapping[str, bytes],
) -> str:
    shared = sum(summary.n_documents > 1 for summary in summaries)
    parts = [
        f"<p>{len(samples)} samples in {len(summaries)} clusters ({clustering.method}, "
        f"k = {clustering.k}); {shared} clusters hold more than one document. The table is sorted "
        "by size, then coherence; click a heading to sort by it.</p>"
    ]
    for caption, png in plots.items():
        data = base64.b64encode(png).decode()
        parts.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    heads = ["cluster", "size", "documents", "answers", "entropy", "coherence"]
    heads += ["main answer"] + (["main behaviour"] if truth is not None else [])
    cells = [
        f'<th{" class=text" if i > 5 else ""} onclick="sortBy(this, {i})">{head}</th>'
        for i, head in enumerate(heads)
    ]
    rows = [
        _row(summary, samples, clustering, text, truth)
        for summary in sorted(summaries, key=lambda s: (-s.size, -_number(s.coherence)))
    ]
    parts.append(
        f'<table><thead><tr>{"".join(cells)}<th class="text">a typical context</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return "\n".join(parts)


def _row(
    summary: ClusterSummary,
    samples: Sequence[Sample],
    clustering: Clustering,
    text: TokenText,
    truth: Sequence[str] | None,
) -> str:
    """One cluster in the overview's table; ``data-value`` is what it is sorted by."""
    members: list[int] = (clustering.labels == summary.cluster).nonzero()[0].tolist()
    number = f"{summary.cluster:05d}"
    link = f'<a href="{page_name(summary.cluster)}">k{number}</a>'
    cells = [(link, str(-summary.cluster))]
    cells += [(str(n), str(n)) for n in (summary.size, summary.n_documents, summary.n_answers)]
    for value in (summary.answer_entropy, summary.coherence):
        cells.append((_figures(value), str(_number(value))))
    answers = Counter(_quoted(text(samples[i].answer)) for i in members)
    commonest = [_share(answers)]
    if truth is not None:
        commonest.append(_share(Counter(truth[i] for i in members)))
    brief = _context(samples[summary.typical[0]], text, _N_TOKENS_BRIEF)
    return (
        "<tr>"
        + "".join(f'<td data-value="{value}">{cell}</td>' for cell, value in cells)
        + "".join(
            f'<td class="text" data-value="{escape(cell)}">{escape(cell)}</td>'
            for cell in commonest
        )
        + f'<td class="text brief">{brief}</td></tr>'
    )


def _share(counts: Counter[str]) -> str:
    name, n = counts.most_common(1)[0]
    return f"{name} {n / counts.total():.0%}"


def plot_sizes(clustering: Clustering) -> bytes:
    """Samples in each cluster, from the largest to the smallest: a PNG."""
    figure, axes = _figure(6.0, 3.2)
    sizes = Counter(clustering.labels.tolist())
    numbers = sorted(sizes)
    axes.bar(numbers, [sizes[n] for n in numbers], width=0.9, color=_BLUE)
    axes.set(xlabel="cluster", ylabel="samples")
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    return _png(figure)


def plot_curve(clustering: Clustering) -> bytes:
    """Clusters that hold more than one document, for each k tried: a PNG."""
    figure, axes = _figure(4.2, 3.2)
    tried = [point.k for point in clustering.curve]
    shared = [point.n_shared for point in clustering.curve]
    axes.plot(tried, shared, color=_BLUE, marker="o", markersize=5, linewidth=2)
    chosen = shared[tried.index(clustering.k)]
    axes.plot([clustering.k], [chosen], marker="o", markersize=9, color="#c0392b", linestyle="")
    axes.annotate(
        f"k = {clustering.k}",
        (clustering.k, chosen),
        (-9, 3),
        textcoords="offset points",
        ha="right",
        color=_INK,
    )
    axes.set(xlabel="clusters asked for", ylabel="with more than one document")
    axes.grid(color=_GRID, linewidth=0.8)
    return _png(figure)


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
    figure, axes = _figure(5.0, 4.2)
    image = axes.imshow(similarity, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="angular similarity", shrink=0.85)
    axes.set(xlabel="samples by cluster", ylabel="samples by cluster", xticks=[], yticks=[])
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure with one set of axes, free of pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Without the program's version in it, the same plot is the same file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
