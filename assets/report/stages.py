"""Stage 9: one page on everything an experiment found, which needs no network and no server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import jinja2

from assets.checks import outcomes
from assets.engine.recipe import aside, plain
from assets.engine.stage import Made, Metadata, PartitionedStage, Stage, TableStage, Work
from assets.engine.store import together
from assets.evaluations.summary import Names, names_of
from assets.report import classifier as of_classifier
from assets.report import compared, making, results
from assets.report.blocks import Section, in_square, number
from assets.report.charts import shade
from assets.report.found import Found
from assets.settings import Experiment
from assets.tables.places import REPORT, Key
from assets.tables.schemas import TABLES

MOST_DRAWN = 60
"""Circuits of clusters that are drawn at most: each takes some 60 kB of the page."""


@dataclass(frozen=True)
class Reporting:
    """What the report is of.

    Attributes:
        name, description: of the experiment.
        names: its behaviours that have a circuit.
        examined: those of them whose circuits are drawn.
        limits: what checks hold tables against.
        labelled: what the classifier's texts are labelled with; None without one.
        tables: its stages in order, and where their tables lie: their contents are inputs.
        experiment: what checks look at, as far as `limits` has it.
    """

    name: str
    description: str
    names: Names
    examined: Names
    limits: Mapping[str, Any]
    labelled: of_classifier.Labelled | None = None
    tables: tuple[tuple[str, tuple[Key, ...]], ...] = aside(())
    experiment: Experiment | None = aside(None)


def _reads(stages: Sequence[Stage], experiment: Experiment) -> Reporting:
    settings, names = experiment.settings, names_of(experiment)
    return Reporting(
        name=experiment.name,
        description=settings.description,
        names=names,
        examined={**names, "clusters": tuple(experiment.examined[:MOST_DRAWN])},
        limits={
            "checks": plain(settings.checks),
            "max_loss": settings.filter.max_loss,
            "stability": settings.circuits.stability,
            "min_faithfulness": settings.evaluations.min_faithfulness,
            "max_overlap": settings.evaluations.max_overlap,
        },
        labelled=of_classifier.Labelled.of(experiment),
        tables=tuple((stage.name, _keys(stage, experiment)) for stage in stages),
        experiment=experiment,
    )


def _keys(stage: Stage, experiment: Experiment) -> tuple[Key, ...]:
    if isinstance(stage, PartitionedStage):
        return tuple(stage.key(name) for name in stage.partitions(experiment))
    return (stage.key, *stage.beside)


def make_report(work: Work, how: Reporting) -> Made:
    """Write the page; a section for what the experiment does not have is left out."""
    found = Found(how.name, work.store, dict(how.tables), how.names, how.examined)
    sections = list(_sections(found, how))
    page = _page(found, how, sections)
    written = work.store.write_text(REPORT, ".html", page)
    work.say(f"{len(sections)} sections, {len(page.encode()) / 1e6:.1f} MB")
    rows = [{"section": one.key, "title": one.title, "blocks": len(one.blocks)} for one in sections]
    return Made(TABLES["report"].build(rows), files=[written])


def _sections(found: Found, how: Reporting) -> Iterator[Section]:
    assert how.experiment is not None, "reads gives it"
    looked = outcomes(how.experiment, found.store, [name for name, _ in how.tables])
    yield from results.circuits(found)
    for section in (*results.RESULTS, *compared.COMPARED):
        yield from section(found)
    if how.labelled is not None:
        yield from of_classifier.shift(found, how.labelled)
    yield from making.dictionaries(found)
    yield from making.discovered(found)
    yield from making.checks(looked)
    yield from making.made_from(found)


def _page(found: Found, how: Reporting, sections: Sequence[Section]) -> str:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, "shade": shade, "in_square": in_square}
    style = (Path(__file__).with_name("templates") / "report.css").read_text(encoding="utf-8")
    return templates.get_template("report.html").render(
        title=how.name,
        description=how.description,
        facts_in_short=results.in_short(found),
        sections=sections,
        style=style,
    )


def _inputs(work: Work, how: Reporting) -> Mapping[str, str]:
    """Contents of all tables that are there, by stage."""
    there = {
        stage: [work.store.content(key) for key in keys if work.store.footer(key) is not None]
        for stage, keys in how.tables
    }
    return {stage: together(contents) for stage, contents in there.items() if contents}


def show_report(work: Work, _how: Reporting) -> Metadata:
    """Where the page is, and what is in it."""
    path = work.store.here(REPORT, ".html")
    titles = work.store.read(REPORT)["title"].to_pylist()
    return {
        "page": dg.MetadataValue.path(work.store.place(REPORT, ".html")),
        "open": dg.MetadataValue.url(path.resolve().as_uri()),
        "sections": dg.MetadataValue.md("\n".join(f"- {title}" for title in titles)),
        "MB": path.stat().st_size / 1e6,
    }


def report_stage(stages: Sequence[Stage]) -> Stage:
    """The stage that reports what all of these made."""
    return TableStage(
        name="report",
        group="report",
        description="One page on everything the experiment found: circuits, evaluations, what they "
        "rest on. It needs no network and no server.",
        kinds=frozenset({"html"}),
        key=REPORT,
        deps=lambda _how: [stage.name for stage in stages],
        reads=lambda experiment: _reads(stages, experiment),
        inputs=_inputs,
        make=make_report,
        show=show_report,
    )
