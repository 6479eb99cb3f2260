"""What an experiment found, as text for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from statistics import median
from typing import Any

from assets.circuits.stages import load_circuit, read_labels
from assets.engine.store import ArtifactStore
from assets.settings import Experiment
from assets.tables.conversions import Frame, frame
from assets.tables.places import (
    CLUSTERING_COMPARISON,
    DICTIONARY_SET,
    EVALUATION_SUMMARY,
    LABELS,
    REPORT,
    RULE_LABELS,
    cluster_pages,
    clusters,
)

_WIDTH = 100
_N_CLUSTERS = 8
_N_CIRCUITS = 3
_SHARES = ("nodes_half", "nodes_nine_tenths")
_TRUTH = {"ami": "AMI with truth", "ami_within_answers": "within answers", "purity": "purity"}


def report(experiment: Experiment, store: ArtifactStore) -> str:
    """Dictionaries, clusters, three circuits in words, faithfulness, and where everything is."""
    summary = frame(store.read(EVALUATION_SUMMARY))
    parts = [
        _dictionaries(store),
        [*_clusters(store), *_comparisons(experiment, store)],
        _circuits(experiment, store, summary),
        *(_faithfulness(source, rows) for source, rows in summary.groupby("source", sort=False)),
        *_labels(experiment, store),
        _places(store),
    ]
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


def _dictionaries(store: ArtifactStore) -> list[str]:
    table = frame(store.read(DICTIONARY_SET))
    columns = ["variance_explained", "l0", "alive", "ce_difference", "ce_recovered"]
    columns += ["error_norm", "in_series"]
    rows = table[["submodule", *columns]].to_dict("records")
    lines = [_metrics_row(row["submodule"], row, columns) for row in rows]
    # Of the last column, what stands in the last row is of all dictionaries.
    means = {**table[columns].mean().to_dict(), "in_series": table["in_series"].iloc[-1]}
    lines.append(_metrics_row("mean, all in series", means, columns))
    names = ("submodule", "var. explained", "L0", "alive", "CE diff.", "CE recovered")
    names += ("|error|/|x|", "in series")
    kind = f"{table['n_features'][0]:,} features ({table['activation'][0]})"
    return [*_heading(f"{len(rows)} dictionaries of {kind}"), *_rows(names, lines)]


def _metrics_row(name: str, row: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    shown = {"variance_explained": "{:.1%}", "l0": "{:.1f}", "alive": "{:.1%}"}
    cells = (shown.get(column, "{:.3f}").format(row[column]) for column in columns)
    return [name, *("-" if cell == "nan" else cell for cell in cells)]


def _clusters(store: ArtifactStore) -> list[str]:
    rows = store.read(clusters()).to_pylist()
    n_samples = sum(row["size"] for row in rows)
    shared = sum(row["n_documents"] > 1 for row in rows)
    lines = _heading(f"{len(rows)} clusters of {n_samples:,} predicted tokens")
    lines.append(f"{shared} hold more than one document. The largest:")
    for row in rows[:_N_CLUSTERS]:
        behaviour = f"  {row['behaviour']} {row['share']:.0%}" if row["behaviour"] else ""
        begin = f"  k{row['cluster']:05d} {row['size']:5d}"
        lines.append(_fit(f"{begin}  {_end(row['example'], 58)}{behaviour}"))
    notes = store.notes(clusters())
    if "ami" in notes:
        words = "Against the behaviour that generated each token: adjusted mutual information "
        words += f"{_score(notes['ami'])}, with pairs of behaviour and answer "
        words += f"{_score(notes['ami_with_answer'])}, within answers that behaviours share "
        words += f"{_score(notes['ami_within_answers'])}; purity {_score(notes['purity'])}."
        lines += textwrap.wrap(words, _WIDTH)
    return lines


def _comparisons(experiment: Experiment, store: ArtifactStore) -> Iterator[str]:
    """How the clusterings compare, if the experiment names several."""
    if not experiment.settings.comparisons:
        return
    rows = store.read(CLUSTERING_COMPARISON).to_pylist()
    known = [name for name in _TRUTH if rows[0][name] is not None]
    table = [
        [
            row["name"],
            str(row["n_clusters"]),
            *(_score(row[n]) for n in ("ami_with_chosen", *known)),
        ]
        for row in rows
    ]
    yield ""
    yield from _rows(
        ("compared", "clusters", "AMI with first", *(_TRUTH[name] for name in known)), table
    )


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _end(text: str, width: int) -> str:
    """The end of a text, where the answer is."""
    return text if len(text) <= width else "…" + text[-(width - 1) :]


def _fit(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


def _circuits(experiment: Experiment, store: ArtifactStore, summary: Frame) -> list[str]:
    from core.pictures.describe import describe_in_words

    # Of the larger half of the clusters, those whose circuits come closest to the whole model.
    first = experiment.settings.evaluations.error_nodes[0]
    judged = summary[(summary["source"] == "clusters") & (summary["error_nodes"] == first)]
    judged = judged[judged["start_layer"] == experiment.settings.evaluations.start_layer]
    judged = judged[judged["faithfulness"].notna() & (judged["n_nodes"] > 0)]
    larger = judged.sort_values("size", ascending=False, kind="stable")
    larger = larger.head(max(_N_CIRCUITS, len(judged) // 2))
    best = larger.loc[(1 - larger["faithfulness"]).abs().sort_values(kind="stable").index]
    best = best.head(_N_CIRCUITS)
    lines, labels = (
        _heading(f"{len(best)} circuits, of {len(judged)} with nodes"),
        read_labels(store),
    )
    for row in best.to_dict("records"):
        found = load_circuit(store, "clusters", row["name"])
        assert found is not None, "the summary lists circuits that are there"
        # Where no row has a label, pandas fills the column with NaN.
        label = f" ({row['label']})" if isinstance(row["label"], str) else ""
        lines.append(_fit(f"{row['name']}{label}  {_end(row['about'], 60)}"))
        words = f"{describe_in_words(found, labels)} Faithfulness {row['faithfulness']:.2f}"
        words += f", completeness {row['completeness']:.2f}"
        words += " on examples kept back." if row["held_out"] else " on the same examples."
        lines += textwrap.wrap(words, _WIDTH, initial_indent="  ", subsequent_indent="  ")
    return lines


def _faithfulness(source: Any, summary: Frame) -> list[str]:
    """Of all circuits of a source; of tasks, which are few, each by itself."""
    return _by_policy(summary) if source == "clusters" else _by_task(summary)


def _by_policy(summary: Frame) -> list[str]:
    table = []
    for (start_layer, error_nodes), rows in summary.groupby(
        ["start_layer", "error_nodes"], sort=False
    ):
        faithful = rows["faithfulness"].dropna().sort_values().tolist()
        if faithful:
            quarter = len(faithful) // 4
            numbers = (median(faithful), faithful[quarter], faithful[-1 - quarter])
            others = (rows[name].median() for name in ("completeness", "at_100", "area"))
            # Adding zero takes the sign from a rounded -0.00.
            rounded = [round(value, 2) + 0.0 for value in (*numbers, *others)]
            shown = ["-" if isnan(value) else f"{value:.2f}" for value in rounded]
            n_judged = f"{rows['n_judged'].median():.0f}"
            table.append([str(error_nodes), str(start_layer), n_judged, *shown])
    header = ("error nodes", "from layer", "nodes", "median", "lower q.", "upper q.", "complement")
    header += ("100 nodes", "area")
    circuits = summary.drop_duplicates("name")
    title = f"Faithfulness of {len(circuits)} circuits of clusters ({circuits['metric'].iloc[0]})"
    return [*_heading(title), *_rows(header, table), *_rest_on(circuits)]


def _rest_on(circuits: Frame) -> Iterator[str]:
    """How well circuits are estimated: their integrals, and the examples they are found from."""
    gaps = circuits["gap"].dropna()
    if len(gaps):
        said = f"Completeness gap, of the submodule where it is largest: median {gaps.median():.2g}"
        short = circuits["unmet"].fillna(0)
        if (short > 0).any():
            said += f"; {short.mean():.1%} of integrals are short of the tolerance"
        yield f"{said}."
    stabilities = circuits["stability"].dropna()
    if len(stabilities):
        yield (
            f"Circuits from two halves of the examples share {stabilities.median():.0%} of their "
            "nodes (Jaccard, median)."
        )


def _by_task(summary: Frame) -> list[str]:
    first = summary["error_nodes"].iloc[0]
    table = [
        [
            row["name"],
            str(row["size"]),
            str(row["n_nodes"]),
            str(row["n_edges"]),
            f"{row['faithfulness']:.2f}",
            f"{row['faithfulness_low']:.2f}-{row['faithfulness_high']:.2f}",
            "-" if isnan(row["at_100"]) else f"{row['at_100']:.2f}",
            f"{row['area']:.2f}",
            *("-" if isnan(row[n]) else f"{row[n]:.0f}" for n in _SHARES),
        ]
        for row in summary[summary["error_nodes"] == first].to_dict("records")
    ]
    header = ("name", "examples", "nodes", "edges", "faithful", "95%")
    header += ("100 nodes", "area", "nodes for .5", "nodes for .9")
    of_tasks = summary["source"].iloc[0] == "tasks"
    title = "Circuits of tasks" if of_tasks else "The classifier's circuit"
    title += f" (faithfulness on unseen examples, error nodes: {first})"
    return [*_heading(title), *_rows(header, table)]


def _labels(experiment: Experiment, store: ArtifactStore) -> Iterator[list[str]]:
    """How well features are described, where they are."""
    if experiment.settings.cards is None or store.footer(RULE_LABELS) is None:
        return
    notes = store.notes(RULE_LABELS)
    lines = _heading(f"Labels of {store.n_rows(LABELS):,} features and neurons")
    if "n_scored" in notes:
        told = (
            "Rules made from cards predict where features are active on unseen text: correlation "
            f"{notes['median score']:.2f} (median of {notes['n_scored']:,})."
        )
        lines += textwrap.wrap(told, _WIDTH)
    if "named right" in notes:
        told = (
            f"Of {notes['n_of_known_behaviours']:,} features that are active before one known "
            f"behaviour, {notes['named right']:.0%} have a label that picks it."
        )
        lines += textwrap.wrap(told, _WIDTH)
    yield lines


def _places(store: ArtifactStore) -> list[str]:
    places = (
        ("report, in one page", store.place(REPORT, ".html")),
        ("tables", store.at),
        ("clusters", store.place(cluster_pages(), "/index.html")),
        ("pictures of circuits", "make explore, then http://127.0.0.1:3001"),
        ("what tables hold", "docs/tables.md"),
        ("Dagster UI", "make ui, then http://127.0.0.1:3000"),
    )
    return [*_heading("Where to look"), *(f"{name:<21}{place}" for name, place in places)]
