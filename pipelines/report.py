"""What an experiment found, as text for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from assets.circuits.stages import load_circuit
from assets.engine.stage import Work
from assets.evaluations.stages import finite

_WIDTH = 100
_N_CLUSTERS = 8
_N_CIRCUITS = 3
_TRUTH = {"ami": "AMI with truth", "purity": "purity"}


def report(work: Work) -> str:
    """Dictionaries, clusters, three circuits in words, faithfulness, and where everything is."""
    parts = [_dictionaries(work), _clusters(work), _circuits(work), _faithfulness(work)]
    if work.experiment.settings.agreement is not None:
        parts.append(_agreement(work))
    parts.append(_places(work))
    return "\n".join("\n".join(part) + "\n" for part in parts)


def _heading(text: str) -> list[str]:
    return [text, "-" * len(text)]


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        first, *others = (
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()


def _dictionaries(work: Work) -> list[str]:
    rows = work.store.read("dictionary_set").to_pylist()
    columns = ("variance_explained", "l0", "alive", "ce_difference", "ce_recovered")
    lines = [_metrics_row(row["submodule"], row, columns) for row in rows]
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in columns}
    lines.append(_metrics_row("mean", mean, columns))
    names = ("submodule", "var. explained", "L0", "alive", "CE diff.", "CE recovered")
    kind = f"{rows[0]['n_features']:,} features ({rows[0]['activation']})"
    return [*_heading(f"{len(rows)} dictionaries of {kind}"), *_rows(names, lines)]


def _metrics_row(name: str, row: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    shown = {"variance_explained": "{:.1%}", "l0": "{:.1f}", "alive": "{:.1%}"}
    return [name, *(shown.get(column, "{:.3f}").format(row[column]) for column in columns)]


def _clusters(work: Work) -> list[str]:
    rows = work.store.read("clusters").to_pylist()
    n_samples = sum(row["size"] for row in rows)
    shared = sum(row["n_documents"] > 1 for row in rows)
    lines = _heading(f"{len(rows)} clusters of {n_samples:,} predicted tokens")
    lines.append(f"{shared} hold more than one document. The largest:")
    for row in rows[:_N_CLUSTERS]:
        behaviour = f"  {row['behaviour']} {row['share']:.0%}" if row["behaviour"] else ""
        begin = f"  k{row['cluster']:05d} {row['size']:5d}"
        lines.append(_fit(f"{begin}  {_end(row['example'], 58)}{behaviour}"))
    notes = work.store.notes("clusters")
    if "ami" in notes:
        lines.append(
            f"Against the behaviour that generated each token: adjusted mutual information "
            f"{notes['ami']:.2f}, purity {notes['purity']:.2f}."
        )
    return [*lines, *_comparisons(work)]


def _comparisons(work: Work) -> Iterator[str]:
    """How the clusterings compare, if the experiment names several."""
    if not work.experiment.settings.comparisons:
        return
    rows = work.store.read("clustering_comparison").to_pylist()
    known = [name for name in ("ami", "purity") if rows[0][name] is not None]
    table = [
        [
            row["name"],
            str(row["n_clusters"]),
            *(f"{row[n]:.2f}" for n in ("ami_with_chosen", *known)),
        ]
        for row in rows
    ]
    yield ""
    yield from _rows(
        ("compared", "clusters", "AMI with first", *(_TRUTH[name] for name in known)), table
    )


def _end(text: str, width: int) -> str:
    """The end of a text, where the answer is."""
    return text if len(text) <= width else "…" + text[-(width - 1) :]


def _fit(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


def _judged(work: Work) -> list[dict[str, Any]]:
    """Rows of the summary under the first policy for errors, whose faithfulness is a number."""
    errors = work.experiment.settings.evaluations.errors[0]
    rows = work.store.read("evaluation_summary").to_pylist()
    return [r for r in rows if r["errors"] == errors and finite([r["faithfulness"]])]


def _circuits(work: Work) -> list[str]:
    from core.pictures.describe import describe_in_words

    # Of the larger half of the clusters, those whose circuits come closest to the whole model.
    judged = [row for row in _judged(work) if row["n_nodes"]]
    larger = sorted(judged, key=lambda row: -row["size"])[: max(_N_CIRCUITS, len(judged) // 2)]
    best = sorted(larger, key=lambda row: abs(1 - row["faithfulness"]))[:_N_CIRCUITS]
    lines = _heading(f"{len(best)} circuits, of {len(judged)} with nodes")
    for row in best:
        key = f"k{row['cluster']:05d}"
        circuit = load_circuit(work.store, f"circuits/{key}")
        assert circuit is not None, "the summary lists circuits that are there"
        about = f" ({row['behaviour']})" if row["behaviour"] else ""
        lines.append(_fit(f"{key}{about}  {_end(row['example'], 60)}"))
        words = f"{describe_in_words(circuit)} Faithfulness {row['faithfulness']:.2f}"
        words += f", completeness {row['completeness']:.2f}"
        words += " on examples kept back." if row["held_out"] else " on the same examples."
        lines += textwrap.wrap(words, _WIDTH, initial_indent="  ", subsequent_indent="  ")
        place = work.store.path(f"circuits/{key}/circuit", ".svg")
        lines.append(f"  {place}")
    return lines


def _faithfulness(work: Work) -> list[str]:
    rows = work.store.read("evaluation_summary").to_pylist()
    table = []
    for errors in work.experiment.settings.evaluations.errors:
        own = [row for row in rows if row["errors"] == errors]
        faithful = sorted(finite([row["faithfulness"] for row in own]))
        complete = finite([row["completeness"] for row in own])
        if faithful:
            quarter = len(faithful) // 4
            numbers = (median(faithful), faithful[quarter], faithful[-1 - quarter])
            shown = [f"{value:.2f}" for value in (*numbers, median(complete))]
            table.append([errors, str(len(faithful)), *shown])
    sizes = [row["n_nodes"] for row in _judged(work)] or [0]
    header = ("error nodes", "circuits", "median", "lower q.", "upper q.", "of complement")
    title = f"Faithfulness of circuits of clusters (median {median(sizes):.0f} nodes)"
    return [*_heading(title), *_rows(header, table)]


def _agreement(work: Work) -> list[str]:
    rows = work.store.read("agreement_evaluations").to_pylist()
    circuits = work.store.read("agreement_circuits").to_pylist()
    errors = work.experiment.settings.evaluations.errors[0]
    table = []
    for circuit in circuits:
        own = [r for r in rows if r["name"] == circuit["name"] and r["errors"] == errors]
        own = sorted((r for r in own if finite([r["faithfulness"]])), key=lambda r: r["n_nodes"])
        half = next((str(r["n_nodes"]) for r in own if r["faithfulness"] >= 0.5), "-")
        nine = next((str(r["n_nodes"]) for r in own if r["faithfulness"] >= 0.9), "-")
        sizes = [str(circuit[name]) for name in ("n_pairs", "n_nodes", "n_edges")]
        table.append([circuit["name"], *sizes, half, nine])
    header = ("structure", "pairs", "nodes", "edges", "nodes for .5", "nodes for .9")
    title = f"Agreement circuits (faithfulness on unseen pairs, errors: {errors})"
    return [*_heading(title), *_rows(header, table)]


def _places(work: Work) -> list[str]:
    store = work.store
    places = (
        ("tables", store.root),
        ("clusters", store.path("clusters/index", ".html")),
        ("pictures", store.path("circuits/*/circuit", ".svg")),
        ("what tables hold", "docs/tables.md"),
        ("Dagster UI", "make ui, then http://127.0.0.1:3000"),
    )
    return [*_heading("Where to look"), *(f"{name:<18}{place}" for name, place in places)]
