"""The explorer as a person uses it, in headless Chromium; needs it, and the package playwright."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from assets.settings import Experiment
from explorer import export
from explorer.annotations import AnnotationFile
from explorer.app import Explorer
from explorer.circuits import View
from explorer.reader import Reader

pytestmark = pytest.mark.slow
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which no script fails and no request goes elsewhere."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    opened.on(
        "request",
        lambda asked: (
            problems.append(asked.url)
            if not asked.url.startswith(("http://127.0.0.1:", "file://"))
            else None
        ),
    )
    yield opened
    opened.close()
    assert problems == []


@pytest.fixture
def address(copied: Experiment) -> Iterator[str]:
    with serving(copied) as address:
        yield address


@contextmanager
def serving(experiment: Experiment) -> Iterator[str]:
    config = uvicorn.Config(
        Explorer([experiment]).app(), host="127.0.0.1", port=0, log_level="warning"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_circuit_is_explored_by_pointer_and_keyboard(page: Any, address: str):
    page.goto(f"{address}/made_up/tasks")
    page.get_by_role("link", name="simple", exact=True).click()
    n_nodes = page.locator(".node").count()

    slider = page.locator("#node-threshold")
    slider.focus()
    for _ in range(60):
        page.keyboard.press("ArrowRight")
    n_left = page.locator(".node:not(.off)").count()
    assert 0 < n_left < n_nodes
    assert page.locator("#node-count").inner_text().startswith(f"{n_left} of {n_nodes} above ")
    assert "faithfulness" in page.locator("#faith").inner_text()
    for edge in page.locator(".edge:not(.off)").all():
        for end in ("data-upstream", "data-downstream"):
            name = edge.get_attribute(end)
            assert name == "metric" or page.locator(f'.node:not(.off)[data-name="{name}"]').count()

    node = page.locator(".node:not(.off)").first
    name = node.get_attribute("data-name")
    node.click()
    page.locator("#panel h3").wait_for()
    assert page.locator("#panel [data-name]").get_attribute("data-name") == name
    page.reload()
    assert page.locator(".node.pinned").get_attribute("data-name") == name
    assert page.locator(".node:not(.off)").count() == n_left

    page.locator("#panel .go:not(:disabled)").first.click()
    page.wait_for_function(
        "name => document.querySelector('#panel [data-name]')?.dataset.name !== name", arg=name
    )
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()


def test_from_a_node_to_its_card_to_another_circuit(page: Any, address: str, copied: Experiment):
    reader = Reader(copied)
    name = next(
        node.name
        for node in reader.circuit("clusters", "k00001").nodes  # pyright: ignore
        if not node.is_error and len(reader.holders(node.name)) > 1
    )
    page.goto(f"{address}/made_up/clusters/k00001")
    page.locator(f'.node[data-name="{name}"]').focus()
    page.keyboard.press("Enter")
    page.locator("#panel h3 a").click()
    assert page.locator("h1").inner_text() == name
    others = page.locator("td a").all_inner_texts()
    other = next(one for one in others if one != "k00001")
    page.get_by_role("link", name=other, exact=True).click()
    assert page.locator("h1").inner_text() == other
    page.go_back()
    page.go_back()
    page.keyboard.press("n")
    page.wait_for_url(lambda url: "/clusters/" in url and "k00001" not in url)


def test_five_features_are_annotated_by_keyboard_and_are_there_again(
    page: Any, address: str, copied: Experiment
):
    page.goto(f"{address}/made_up/annotate/tasks/simple")
    for i in range(5):
        page.keyboard.type(f"of plural nouns, no. {i}")
        page.keyboard.press("Alt+2")
        page.keyboard.type(str(90 - i))
        page.keyboard.press("Alt+3")
        page.keyboard.type("15")
        page.keyboard.press("Alt+4")
        if i == 0:
            page.locator("#by").fill("ann")
        page.keyboard.press("Control+Enter")
        page.get_by_text(f"No. {i + 1} is saved.").wait_for()
    rows = [json.loads(line) for line in copied.annotations.read_text().splitlines()]
    assert [row["text"] for row in rows] == [f"of plural nouns, no. {i}" for i in range(5)]
    assert [row["interpretability"] for row in rows] == [90, 89, 88, 87, 86]
    assert {(row["by"], row["relevant"]) for row in rows} == {("ann", True)}
    page.goto(f"{address}/made_up/annotate/tasks/simple?by=ann&i=3")
    assert page.locator("#text").input_value() == "of plural nouns, no. 2"
    assert page.locator(".dots .done").count() == 5


def test_features_of_a_classifier_are_judged_by_one_key_each(page: Any, judged: Experiment):
    with serving(judged) as address:
        page.goto(f"{address}/made_up/classifiers/probe")
        page.get_by_role("link", name="Judge").click()
        page.keyboard.press("i")  # the name is asked for first
        page.keyboard.type("ann")
        page.keyboard.press("Enter")
        page.get_by_text("No. 1 is saved.").wait_for()
        page.keyboard.press("k")
        page.get_by_text("No. 2 is saved.").wait_for()
        page.keyboard.press("n")
        page.get_by_role("heading", name="No. 4 of 60").wait_for()
        page.locator("#text").fill("i and k are letters here")
        page.keyboard.press("Escape")
        page.keyboard.press("i")
        page.get_by_text("No. 4 is saved.").wait_for()
    rows = [json.loads(line) for line in judged.annotations.read_text().splitlines()]
    said = [(row["feature"], row["relevant"], row["by"]) for row in rows]
    assert said == [(0, False, "ann"), (1, True, "ann"), (3, False, "ann")]
    assert rows[2]["text"] == "i and k are letters here"


def test_what_was_typed_and_not_saved_is_there_again(page: Any, address: str):
    page.goto(f"{address}/made_up/annotate/tasks/simple?by=ann")
    page.locator("#text").fill("half a thought")
    page.goto(f"{address}/made_up/tasks")
    page.goto(f"{address}/made_up/annotate/tasks/simple?by=ann")
    assert page.locator("#text").input_value() == "half a thought"


def test_the_page_to_give_away_works_from_a_disk(page: Any, made: Experiment, tmp_path: Path):
    view = View(Reader(made), AnnotationFile(made.annotations), "tasks", "simple")
    file = tmp_path / "simple.html"
    file.write_text(export.page(view), encoding="utf-8")
    page.goto(file.as_uri())
    name = page.locator(".node").first.get_attribute("data-name")
    page.locator(".node").first.click()
    assert page.locator("#panel [data-name]").get_attribute("data-name") == name
    n_nodes = page.locator(".node").count()
    page.locator("#node-threshold").focus()
    page.keyboard.press("End")
    assert page.locator(".node:not(.off)").count() == 1 < n_nodes


@pytest.mark.parametrize("width", [1280, 1920])
def test_no_page_is_wider_than_the_window(page: Any, address: str, width: int):
    page.set_viewport_size({"width": width, "height": 900})
    from tests.explorer.test_explorer_pages import PAGES

    for path in PAGES:
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
