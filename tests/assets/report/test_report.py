"""The page of a finished experiment, read back."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.report import charts
from assets.report.blocks import HeatMap, Section, Table, Text, in_square, number
from assets.report.found import Found
from assets.report.stages import Reporting, _page
from assets.settings import Experiment
from assets.tables.places import CIRCUIT_TRANSFER, EVALUATION_SUMMARY, REPORT
from pipelines.experiment import read_experiment
from pipelines.report import report
from pipelines.stages import stages_of
from tests.tiny_experiment import brought_up_to_date, write_experiment


def _stage(experiment: Experiment) -> Any:
    return {stage.name: stage for stage in stages_of(experiment)}["report"]


@pytest.fixture(scope="module")
def reported(finished: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The finished experiment in another folder, with its report."""
    folder = tmp_path_factory.mktemp("reported") / "copied"
    shutil.copytree(finished.path.parent, folder)
    experiment = read_experiment(folder / finished.path.name)
    assert _stage(experiment).run(experiment)
    return experiment


@pytest.fixture(scope="module")
def page(reported: Experiment) -> str:
    store = ArtifactStore(reported.artifacts)
    return store.path(REPORT, ".html").read_text(encoding="utf-8")


class _Reader(HTMLParser):
    """Ids, places that links lead to, tags left open, and text by section."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.outside: list[str] = []
        self.open: list[str] = []
        self.text: dict[str, str] = {}
        self.section = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        for name, value in attrs:
            if name in ("href", "xlink:href", "src", "action"):
                (self.links if (value or "").startswith("#") else self.outside).append(value or "")
        if tag == "section":
            self.section = given["id"] or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data


def test_the_page_asks_for_nothing_and_every_reference_is_in_it(page: str) -> None:
    read = _Reader(page)
    assert read.open == read.outside == []
    assert len(read.ids) == len(set(read.ids)) > 20
    inside = set(re.findall(r"url\(#([^)]+)\)", page)) | {link[1:] for link in read.links}
    assert inside <= set(read.ids)
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\((?!#)", page)


def test_there_is_a_section_for_what_the_experiment_has(page: str, reported: Experiment) -> None:
    table = ArtifactStore(reported.artifacts).read(REPORT).to_pylist()
    names = [row["section"] for row in table]
    assert names == list(filter(None, _Reader(page).text))
    assert {"circuits-tasks", "circuits-clusters", "faithfulness", "overlap", "transfer"} <= {
        *names
    }
    assert {"features", "dictionaries", "clusters", "checks", "made"} <= {*names}
    assert {"baselines", "edges", "estimates", "stability"} <= {*names}
    # One circuit shares nothing with another of its kind.
    shared = _Reader(page).text["overlap"]
    assert "clusters: features, weighted" in shared
    assert "tasks: features, weighted" not in shared


def test_numbers_are_those_of_the_tables(page: str, reported: Experiment) -> None:
    store, text = ArtifactStore(reported.artifacts), _Reader(page).text
    rows = store.read(EVALUATION_SUMMARY).to_pylist()
    (task,) = (row for row in rows if row["source"] == "tasks")
    assert f"faithfulness {number(task['faithfulness'])}" in text["circuits-tasks"]
    assert text["circuits-clusters"].count("nodes · faithfulness ") == len(reported.examined)
    assert all(name in text["circuits-clusters"] for name in reported.clusters)
    for row in store.read(CIRCUIT_TRANSFER).to_pylist():
        assert row["by_position"] or number(round(row["faithfulness"], 2)) in text["transfer"]
    assert store.content(EVALUATION_SUMMARY) in text["made"]


def test_a_table_that_is_gone_takes_its_section_with_it(copied: Experiment) -> None:
    stage, store = _stage(copied), ArtifactStore(copied.artifacts)
    stage.run(copied)
    assert not stage.run(copied)
    store.path(CIRCUIT_TRANSFER).unlink()
    assert stage.run(copied)
    assert "transfer" not in store.read(REPORT)["section"].to_pylist()


def test_an_experiment_without_tasks_has_no_section_on_them(copied: Experiment) -> None:
    changed = read_experiment(write_experiment(copied.path.parent, tasks=None))
    brought_up_to_date(changed, "report")
    names = ArtifactStore(changed.artifacts).read(REPORT)["section"].to_pylist()
    assert "circuits-tasks" not in names
    assert "circuits-clusters" in names


def test_limits_of_checks_make_it_again_and_the_device_does_not(copied: Experiment) -> None:
    stage = _stage(copied)
    stage.run(copied)
    folder = copied.path.parent
    strict = {"min_faithfulness": 100.0}
    assert not stage.run(read_experiment(write_experiment(folder, model={"memory_gb": 3.0})))
    changed = read_experiment(write_experiment(folder, evaluations=strict))
    assert stage.run(changed)
    text = _Reader(ArtifactStore(folder / "artifacts").path(REPORT, ".html").read_text()).text
    assert "at least 100.0 is expected" in text["checks"]


def test_the_command_says_where_the_page_is(reported: Experiment) -> None:
    store = ArtifactStore(reported.artifacts)
    assert f"report, in one page  {store.path(REPORT, '.html')}" in report(reported, store)


def test_nothing_in_a_text_is_taken_for_markup(finished: Experiment) -> None:
    bad = "<script>alert(1)</script>"
    how = Reporting(bad, bad, {}, {}, {})
    sections = [
        Section("one", bad, [Text(bad), Table([bad], [[bad], [f"{bad} [{bad}]"]], bad)]),
        Section("two", "2", [HeatMap(bad, [bad], [bad], [[0.5]])]),
    ]
    work = Work.on(finished)
    found = Found(bad, work.store, {}, {}, {})
    assert _page(found, how, sections).count("<script>") == 1  # its own


def test_numbers_as_a_person_would_write_them() -> None:
    assert [number(value) for value in (None, float("nan"), True)] == ["\u2013", "\u2013", "yes"]
    assert [number(value) for value in (3, 12345, 12345.6)] == ["3", "12,345", "12,346"]
    assert [number(value) for value in (0.5, 4e-3, 1e-7)] == ["0.50", "0.004", "0.00"]
    assert [number(value) for value in (-0.25, 2e-4)] == ["\u22120.25", "2.0e\u221204"]
    assert [in_square(value, 4) for value in (0.123, float("nan"))] == ["0.12", ""]
    assert [in_square(value, 40) for value in (0.123, 0.01)] == ["0.1", ""]


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_chart_takes_the_pages_colour_and_keeps_its_ids_apart(name: str) -> None:
    drawn = charts.lines(name, {"a": ([0, 10], [0.0, 1.0])}, "nodes", "share")
    assert drawn == charts.lines(name, {"a": ([0, 10], [0.0, 1.0])}, "nodes", "share")
    assert "currentColor" in drawn
    assert "<style" not in drawn
    assert all(found.startswith(f"{name}-") for found in re.findall(r' id="([^"]+)"', drawn))


def test_a_chart_of_very_many_points_stays_small() -> None:
    xs = np.arange(100_000).tolist()
    assert len(charts.scatter("many", {"all": (xs, xs)}, "x", "y")) < 600_000
