"""Sections on what circuits rest on: dictionaries, clusters, checks, and what made everything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from assets.checks import Check, Outcome
from assets.report import charts
from assets.report.blocks import Charts, Facts, Section, Table, Text, number, table
from assets.report.found import Found
from assets.tables.places import (
    CLUSTERING_COMPARISON,
    DICTIONARY_SET,
    Key,
    clusters,
    sae,
)

_MOST_ITEMS = 14
_MOST_CLUSTERS = 60


def dictionaries(found: Found) -> Iterator[Section]:
    """How well dictionaries explain the model, and how they were trained."""
    if not found.has(DICTIONARY_SET):
        return
    rows = found.read(DICTIONARY_SET)
    means = rows[["variance_explained", "l0", "alive", "ce_recovered"]].mean()
    facts = {
        "dictionaries": number(len(rows)),
        "features in each": number(int(rows["n_features"].iloc[0])),
        "kind": str(rows["activation"].iloc[0]),
        "variance explained": f"{means['variance_explained']:.1%}",
        "active per token": f"{means['l0']:.1f}",
        "alive": f"{means['alive']:.0%}",
        "cross-entropy recovered": f"{means['ce_recovered']:.1%}",
    }
    shown = {
        "submodule": "submodule",
        "variance_explained": "variance explained",
        "l0": "L0",
        "alive": "alive",
        "ce_difference": "CE difference",
        "ce_recovered": "CE recovered",
        "error_norm": "|error| / |x|",
        "in_series": "in series",
        "weights": "weights",
    }
    rows["weights"] = rows["weights"].str[:12]
    names = rows["submodule"].tolist()
    pictures = {
        "Variance explained": charts.bars(
            "variance", dict(zip(names, rows["variance_explained"], strict=True)), "share", top=1
        ),
        "Features active per token (L0)": charts.bars(
            "l0", dict(zip(names, rows["l0"], strict=True)), "features"
        ),
        **_training(found, names),
    }
    yield Section(
        "dictionaries",
        "Dictionaries",
        [
            Facts(facts),
            table(
                rows,
                shown,
                "Measured on text that none was trained on. In series: faithfulness with this and "
                "all earlier dictionaries in place and no errors; the last row is of all.",
            ),
            Charts(pictures),
        ],
    )


def _training(found: Found, names: Sequence[str]) -> dict[str, str]:
    """Curves over the steps of training, where the dictionaries were trained."""
    curves = {n: c for n in names if found.has(sae(n)) and (c := found.notes(sae(n)).get("curve"))}
    if not curves:
        return {}
    shown: dict[str, str] = {}
    for column, what in ((1, "loss"), (2, "L0"), (3, "share of dead features")):
        of = {n: ([p[0] for p in c], [p[column] for p in c]) for n, c in curves.items()}
        name = f"training-{column}"
        shown[f"Training: {what}, by step, one line for each dictionary"] = charts.lines(
            name, of, "steps", what, log=False, faint=True
        )
    return shown


def discovered(found: Found) -> Iterator[Section]:
    """What clusters there are."""
    if not found.has(clusters()):
        return
    rows, notes = found.read(clusters()), found.notes(clusters())
    facts = {"clusters": number(len(rows)), "samples": number(int(rows["size"].sum()))}
    facts["of several documents"] = number(int((rows["n_documents"] > 1).sum()))
    for key, said in (
        ("ami", "mutual information with the known behaviours"),
        ("ami_within_answers", "the same within answers that several share"),
        ("purity", "purity"),
    ):
        if notes.get(key) is not None:
            facts[said] = f"{notes[key]:.2f}"
    shown = {
        "name": "cluster",
        "size": "samples",
        "n_documents": "documents",
        "n_answers": "answers",
        "answer_entropy": "entropy, nats",
        "coherence": "coherence",
    }
    if rows["behaviour"].notna().any():
        shown |= {"behaviour": "known behaviour", "share": "its share"}
    rows["name"] = [f"k{number:05d}" for number in rows["cluster"]]
    blocks: list[Any] = [
        Facts(facts),
        table(rows.head(_MOST_CLUSTERS), {**shown, "example": "typical context"}),
    ]
    if len(rows) > _MOST_CLUSTERS:
        blocks.append(Text(f"{len(rows) - _MOST_CLUSTERS} smaller clusters are not listed."))
    if found.has(CLUSTERING_COMPARISON):
        blocks.append(_compared(found))
    yield Section("clusters", "Clusters of predicted tokens", blocks)


def _compared(found: Found) -> Table:
    shown = {
        "name": "clustering",
        "representation": "samples as",
        "n_clusters": "clusters",
        "ami": "AMI with behaviours",
        "ami_within_answers": "within answers",
        "purity": "purity",
        "ami_with_chosen": "AMI with the chosen",
    }
    return table(found.read(CLUSTERING_COMPARISON), shown, "Other ways to group the same samples")


def checks(outcomes: Sequence[tuple[Check, Outcome]]) -> Iterator[Section]:
    """What the checks of every table found."""
    if not outcomes:
        return
    failed = [check for check, outcome in outcomes if not outcome.passed]
    said = f"{len(outcomes) - len(failed)} of {len(outcomes)} checks hold."
    rows = [
        [
            "holds" if outcome.passed else "warning" if check.warns else "fails",
            check.asset,
            check.description,
            outcome.says,
        ]
        for check, outcome in sorted(outcomes, key=lambda pair: pair[1].passed)
    ]
    yield Section(
        "checks", "Checks", [Text(said), Table(["", "table", "what must hold", "found"], rows)]
    )


def made_from(found: Found) -> Iterator[Section]:
    """When and with what each stage was made, its settings and the hashes of what it holds."""
    rows, settings, versions = [], [], dict[str, str]()
    for stage, keys in found.tables.items():
        there = [key for key in keys if found.has(key)]
        if not there:
            continue
        records = [_made(found, key) for key in there]
        versions |= records[-1].get("with", {})
        notes = found.notes(there[0])
        seconds = sum(record.get("seconds", 0.0) for record in records)
        contents = found.store.content(there[0]) if len(keys) == 1 else f"{len(there)} tables"
        rows.append(
            [
                stage,
                max((record.get("when", "") for record in records), default="")[:16],
                float(seconds),
                contents,
                notes["code"],
                str(records[-1].get("with", {}).get("project", ""))[:12],
            ]
        )
        settings.append([stage, _in_words(notes["settings"])])
    rows_of_versions = [[name, str(version)] for name, version in versions.items()]
    head = ["stage", "made (UTC)", "seconds", "contents", "code", "commit"]
    yield Section(
        "made",
        "What this was made with",
        [
            Table(head, rows, "Stages in order, with digests of what they hold and of their code"),
            Table(["stage", "settings"], settings, "Settings of each stage", closed=True),
            Table(["", "version"], rows_of_versions, "Versions, at the last making", closed=True),
        ],
    )


def _made(found: Found, key: Key) -> Mapping[str, Any]:
    """When, where and with what a table was made; empty where that was not recorded."""
    footer, lineage = found.store.footer(key), found.store.lineage
    assert footer is not None, "only tables that are there are looked at"
    record = lineage.get(lineage.name(key.path, footer.fingerprint)) or {}
    return record.get("made", {})


def _in_words(settings: Any) -> str:
    """Settings as text: one line for each, long lists cut."""
    if not isinstance(settings, dict):
        return _short(settings)
    return "\n".join(f"{k}: {_short(v)}" for k, v in settings.items() if k != "is")


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > _MOST_ITEMS:
        begin = ", ".join(map(str, value[:_MOST_ITEMS]))
        return f"{begin} and {len(value) - _MOST_ITEMS} more"
    if isinstance(value, dict):
        return json.dumps({k: v for k, v in value.items() if k != "is"}, default=str)
    return str(value)
