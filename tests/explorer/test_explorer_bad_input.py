"""Hostile text, damaged tables, foreign sites: nothing is taken for markup, nothing is lost."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from assets.settings import Experiment
from assets.tables.places import DICTIONARY_SET, behaviours, cards, circuit, evaluation, examples
from explorer.app import Explorer
from explorer.reader import Reader
from tests.explorer.conftest import ADDRESS
from tests.explorer.made_up import HOSTILE, MadeUp
from tests.explorer.test_explorer_pages import PAGES, Page, opened


@pytest.mark.parametrize("address", PAGES)
def test_tokens_that_look_like_markup_are_text(client: TestClient, address: str):
    page = opened(client, address)
    tags = Page(page).tags
    assert not {"b", "i"} & {tag for tag, _ in tags}
    scripts = [attrs for tag, attrs in tags if tag == "script"]
    assert all("src" in attrs or attrs["type"] == "application/json" for attrs in scripts)
    assert "\u202e" not in page
    assert "\u2028" not in page
    assert "\x1b" not in page


def test_hostile_tokens_are_all_seen(client: TestClient):
    seen = html.unescape(opened(client, "/made_up/features/resid_0/4"))
    for token in HOSTILE:
        shown = token.replace("\n", "\u21b5").replace("\x1b", "\u241b")
        shown = (
            shown.encode("ascii", "backslashreplace").decode() if not shown.isprintable() else shown
        )
        assert shown.replace("\\u21b5", "\u21b5").replace("\\u241b", "\u241b").strip() in seen


def test_a_lone_surrogate_does_not_break_a_page(client: TestClient):
    answer = client.get("/made_up/clusters", params={"q": "\ud800"[:0] + "\ufffd"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "address",
    [
        "/made_up/clusters/../../etc/passwd",
        "/made_up/clusters/..%2f..%2fetc",
        "/made_up/clusters/%2e%2e",
        "/.static/../app.py",
        "/.static/..%2fapp.py",
        "/..%2f..%2fetc/clusters",
        "/made_up/nowhere",
        "/made_up/clusters/k99999",
        "/made_up/features/resid_9/1",
        "/made_up/features/resid_0/64",
        "/made_up/features/resid_0/-1",
        "/made_up/features/resid_0/%D9%A1",
        "/made_up/features/..%2f..%2fx/1",
        "/made_up/neurons/resid_0/16",
        "/made_up/tasks/simple/node?name=nothing",
        "/made_up/tasks/simple/file/exe",
        "/made_up/compare?a=..%2f..&b=tasks/simple",
        "/made_up/annotate/tasks/nothing",
        "/elsewhere/clusters",
    ],
)
def test_addresses_of_nothing_are_answered_as_such(client: TestClient, address: str):
    assert client.get(address).status_code == 404


@pytest.mark.parametrize(
    "query", ["page=-1", "page=9e9", "sort=<b>", "order=x", "errors=x", "page="]
)
def test_odd_queries_are_read_as_nothing(client: TestClient, query: str):
    assert "k00001" in opened(client, f"/made_up/clusters?{query}")


def test_an_empty_circuit_and_one_of_errors_alone_have_their_pages(
    client: TestClient, copied: Experiment
):
    made = MadeUp(copied.path.parent)
    errors = [
        {"node": i, "submodule": name, "feature": -1, "pos": None, "effect": 1.0 + i}
        for i, name in enumerate(("embed", "resid_0"))
    ]
    made.circuit("clusters", "k00000", [], is_empty=True)
    made.circuit("clusters", "k00001", errors, 1)
    made.circuit("clusters", "k00002", [])
    assert "k00000 is empty" in opened(client, "/made_up/clusters/k00000")
    assert opened(client, "/made_up/clusters/k00001").count('class="node"') == 2
    assert "the circuit is empty" in opened(client, "/made_up/clusters/k00002")
    assert "100%" in opened(client, "/made_up/clusters")
    assert "error nodes only" in opened(client, "/made_up/annotate/clusters/k00001")
    assert opened(client, "/made_up/compare?a=clusters/k00000&b=clusters/k00001")
    assert client.get("/made_up/clusters/k00000/file/html").status_code == 404
    for kind in ("html", "svg", "dot", "graphml", "graph-json"):
        for name in ("k00001", "k00002"):
            assert opened(client, f"/made_up/clusters/{name}/file/{kind}")


@pytest.mark.parametrize(
    ("key", "address", "status"),
    [
        (circuit("tasks", "simple"), "/made_up/tasks/simple", 404),
        (circuit("tasks", "simple", "nodes"), "/made_up/tasks/simple", 404),
        (evaluation("tasks", "simple"), "/made_up/tasks/simple", 200),
        (behaviours("tasks"), "/made_up/tasks", 200),
        (examples("tasks"), "/made_up/tasks/simple", 200),
        (cards("resid_0"), "/made_up/features/resid_0/4", 200),
    ],
)
@pytest.mark.parametrize("how", ["missing", "cut short", "empty"])
def test_a_page_says_which_table_is_missing(
    client: TestClient, copied: Experiment, key, address, status, how
):
    file = copied.artifacts / f"{key.path}.parquet"
    content = file.read_bytes()
    file.unlink()
    if how != "missing":
        file.write_bytes(content[: len(content) // 2] if how == "cut short" else b"")
    page = opened(client, address, status)
    assert str(file) in html.unescape(page)
    assert f"materialize {key.stage}" in page


def test_damaged_values_of_a_circuit_are_not_shown(client: TestClient, copied: Experiment):
    file = copied.artifacts / "circuits/tasks/simple/nodes.parquet"
    content = bytearray(file.read_bytes())
    middle = content.index(b"PAR1") + 40
    content[middle : middle + 20] = bytes(20)
    file.write_bytes(content)
    page = opened(client, "/made_up/tasks/simple", 404)
    assert "is damaged" in page
    assert opened(client, "/made_up/tasks")


@pytest.mark.parametrize(
    "host", ["evil.test", "127.0.0.1.evil.test:3001", "", "evil.test:127.0.0.1", "0.0.0.0:3001"]
)
def test_another_host_name_is_refused(client: TestClient, host: str):
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 403
    assert "Experiments" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:3001", "[::1]:3001", "127.0.0.1:8080"])
def test_this_machine_is_answered(client: TestClient, host: str):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.test", "null", "https://127.0.0.1:3001", "http://127.0.0.1:8000", None]
)
@pytest.mark.parametrize("where", ["annotate", "group"])
def test_a_form_of_another_site_saves_nothing(copied: Experiment, origin: str | None, where: str):
    client = TestClient(Explorer([copied]).app(), ADDRESS)
    headers = {} if origin is None else {"origin": origin}
    answer = client.post(
        f"/made_up/{where}/tasks/simple", data={"text": "x", "by": "x"}, headers=headers
    )
    assert answer.status_code == 403
    assert not copied.annotations.exists()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "POST"])
def test_nothing_else_can_be_changed(client: TestClient, copied: Experiment, method: str):
    before = {file: file.stat().st_mtime_ns for file in copied.path.parent.rglob("*")}
    for address in ("/", "/made_up/tasks", "/made_up/tasks/simple", "/made_up/annotations"):
        assert client.request(method, address).status_code == 405
    assert {file: file.stat().st_mtime_ns for file in copied.path.parent.rglob("*")} == before


def test_every_answer_forbids_what_the_pages_do_not_need(client: TestClient):
    for address in ("/", "/made_up/tasks/simple", "/.static/circuit.js", "/nowhere"):
        headers = client.get(address).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_data_for_scripts_holds_no_markup(client: TestClient, copied: Experiment):
    page = opened(client, "/made_up/tasks/simple")
    island = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)[0]
    assert not set("<>&'") & set(island)
    assert json.loads(island)["n_nodes"] == 24


def test_without_a_vocabulary_or_a_model_tokens_are_numbers(client: TestClient, copied: Experiment):
    (copied.artifacts / "vocabulary.parquet").unlink()
    page = opened(client, "/made_up/tasks/simple")
    assert "shown by their numbers" in page
    assert "\u27e84\u27e9" in page


def test_a_form_too_large_is_refused(client: TestClient, copied: Experiment):
    answer = client.post("/made_up/annotate/tasks/simple", data={"text": "x" * 200_000, "by": "a"})
    assert answer.status_code == 413
    assert not copied.annotations.exists()


def test_an_experiment_that_was_never_run_has_pages_that_say_so(tmp_path: Path):
    experiment = MadeUp(tmp_path).experiment
    client = TestClient(Explorer([experiment]).app(), ADDRESS)
    page = opened(client, "/made_up/clusters")
    assert "materialize cluster_behaviours first" in page
    assert "not made" in page
    assert "materialize circuits first" in opened(client, "/made_up/clusters/k00000", 404)
    assert opened(client, "/made_up/features/resid_0/1")
    assert Reader(experiment).store.footer(DICTIONARY_SET) is None
