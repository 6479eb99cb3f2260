"""Every page, from a table to what a reader sees."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from assets.settings import Experiment
from assets.tables.places import circuit
from explorer.reader import Reader
from tests.explorer.made_up import MadeUp

PAGES = (
    "/",
    "/made_up/clusters",
    "/made_up/tasks",
    "/made_up/clusters/k00001",
    "/made_up/clusters/k00001?alike=1",
    "/made_up/tasks/simple",
    "/made_up/features/resid_0/4",
    "/made_up/features/resid_0/63",
    "/made_up/neurons/resid_0/3",
    "/made_up/compare",
    "/made_up/compare?a=tasks/simple&b=clusters/k00001",
    "/made_up/annotate/tasks/simple",
    "/made_up/annotate/clusters/k00001?blind=1&seed=3",
    "/made_up/annotations",
)
VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """A page's tags; complains of those that are not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def addresses(self) -> list[str]:
        """Every link, picture and script."""
        named = [attrs.get(key) for _, attrs in self.tags for key in ("href", "src", "action")]
        return [address for address in named if address]


def opened(client: TestClient, address: str, status: int = 200) -> str:
    answer = client.get(address)
    assert answer.status_code == status, answer.text
    return answer.text


@pytest.mark.parametrize("address", PAGES)
def test_a_page_is_whole_and_asks_only_this_server(client: TestClient, address: str):
    page = Page(opened(client, address))
    other = [a for a in page.addresses() if not a.startswith(("/", "#", "http://127.0.0.1:3000/"))]
    assert other == []
    assert not [attrs for _, attrs in page.tags if any(key.startswith("on") for key in attrs)]
    assert not [attrs for tag, attrs in page.tags if "style" in attrs and tag != "svg"]


def test_every_link_of_every_page_leads_somewhere(client: TestClient):
    addresses = set()
    for address in PAGES:
        addresses |= set(Page(opened(client, address)).addresses())
    own = {a for a in addresses if a.startswith("/") and "/group/" not in a}
    assert len(own) > 60
    answers = {address: client.get(address).status_code for address in own}
    assert {address: code for address, code in answers.items() if code != 200} == {}


def test_circuits_are_sorted_by_any_figure(client: TestClient, copied: Experiment):
    held = Reader(copied).held("clusters")
    for key, figure in (
        ("n_nodes", lambda h: len(h.nodes)),
        ("error_share", lambda h: h.error_share),
    ):
        for order in ("up", "down"):
            html = opened(client, f"/made_up/clusters?sort={key}&order={order}")
            names = re.findall(r">(k\d{5})</a>", html)
            values = [figure(held[name]) for name in names]
            assert len(names) == 4
            assert values == sorted(values, reverse=order == "down")


def test_the_shares_of_a_circuit_are_those_of_its_nodes(copied: Experiment):
    rows = Reader(copied).store.read(circuit("tasks", "simple", "nodes")).to_pylist()
    total = sum(abs(row["effect"]) for row in rows)
    errors = sum(abs(row["effect"]) for row in rows if row["feature"] < 0)
    sums: dict[tuple[str, int], float] = {}
    for row in rows:
        if row["feature"] >= 0:
            place = row["submodule"], row["feature"]
            sums[place] = sums.get(place, 0.0) + row["effect"]
    held = Reader(copied).held("tasks")["simple"]
    assert held.error_share == pytest.approx(errors / total)
    assert held.largest_share == pytest.approx(max(map(abs, sums.values())) / total)


def test_text_is_searched_in_contexts(client: TestClient):
    assert "k00002" in opened(client, "/made_up/clusters?q=text+of+K00002")
    assert "k00001" not in opened(client, "/made_up/clusters?q=text+of+k00002")
    assert "No circuit" in opened(client, "/made_up/clusters?q=nowhere")
    # What no table but that of the examples holds.
    assert "k00001" in opened(client, "/made_up/clusters?q=%3C/script%3E")


def test_next_and_previous_follow_the_order_of_the_table(client: TestClient):
    table = opened(client, "/made_up/clusters?sort=faithfulness&order=up")
    names = re.findall(r">(k\d{5})</a>", table)
    page = opened(client, f"/made_up/clusters/{names[1]}?sort=faithfulness&order=up")
    steps = {
        attrs["rel"]: attrs["href"]
        for _, attrs in Page(page).tags
        if attrs.get("rel") in ("prev", "next")
    }
    assert steps["prev"] == f"/made_up/clusters/{names[0]}?sort=faithfulness&order=up"
    assert steps["next"] == f"/made_up/clusters/{names[2]}?sort=faithfulness&order=up"


def test_an_address_brings_back_the_pinned_node(client: TestClient, copied: Experiment):
    found = Reader(copied).circuit("tasks", "simple")
    assert found is not None
    name = found.nodes[2].name
    page = client.get("/made_up/tasks/simple", params={"pin": name, "nodes": 120}).text
    assert f'data-name="{name}"' in page.partition('id="panel"')[2]
    assert 'aria-current="true">120<' in page


def test_a_node_lists_its_edges_with_their_weights(client: TestClient, copied: Experiment):
    found = Reader(copied).circuit("clusters", "k00001")
    assert found is not None
    i, node = next(
        (i, n) for i, n in enumerate(found.nodes) if any(e.downstream == i for e in found.edges)
    )
    piece = client.get("/made_up/clusters/k00001/node", params={"name": node.name}).text
    into = {found.nodes[e.upstream].name for e in found.edges if e.downstream == i}
    shown = set(re.findall(r'data-go="([^"]+)"', piece.partition("edges into it")[2]))
    assert shown == into


def test_a_feature_names_every_circuit_that_holds_it(client: TestClient, copied: Experiment):
    reader = Reader(copied)
    everywhere: dict[str, set[str]] = {}
    for source in reader.names:
        for name, held in reader.held(source).items():
            for feature in held.by_feature:
                everywhere.setdefault(feature, set()).add(name)
    feature, names = max(everywhere.items(), key=lambda one: len(one[1]))
    page = opened(client, f"/made_up/features/{feature}")
    listed = re.findall(r'<td><a href="/made_up/\w+/([\w]+)">', page)
    assert len(names) > 1
    assert sorted(listed) == sorted(names)


def test_two_circuits_show_what_they_share(client: TestClient, copied: Experiment):
    reader = Reader(copied)
    a, b = (reader.held("clusters")[name].by_feature for name in ("k00000", "k00001"))
    page = opened(client, "/made_up/compare?a=clusters/k00000&b=clusters/k00001")
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])
    assert set(data["shared"]) == a.keys() & b.keys()
    same = opened(client, "/made_up/compare?a=clusters/k00000&b=clusters/k00000")
    assert "<dt>shared of all</dt><dd>100%</dd>" in same


def test_a_changed_table_is_read_again(client: TestClient, copied: Experiment):
    before = opened(client, "/made_up/clusters/k00001")
    again = MadeUp(copied.path.parent)
    again.circuit("clusters", "k00001", again.nodes(3), 2)
    after = opened(client, "/made_up/clusters/k00001")
    assert "<dt>nodes</dt><dd>24</dd>" in before
    assert "<dt>nodes</dt><dd>3</dd>" in after


def test_what_was_typed_finds_a_circuit_a_feature_or_a_text(client: TestClient):
    def found(text: str) -> str:
        answer = client.get("/made_up/find", params={"name": text}, follow_redirects=False)
        assert answer.status_code == 303
        return answer.headers["location"]

    assert found("k00002") == "/made_up/clusters/k00002"
    assert found(" resid_0/4 ") == "/made_up/features/resid_0/4"
    assert found("//evil.test") == "/made_up/clusters?q=%2F%2Fevil.test"


def test_circuits_link_to_their_partition_in_dagster(client: TestClient):
    page = opened(client, "/made_up/tasks/simple")
    assert 'href="http://127.0.0.1:3000/assets/made_up/task_circuits?partition=simple"' in page


def test_a_card_is_the_same_whether_its_table_fits_in_memory(
    made: Experiment, monkeypatch: pytest.MonkeyPatch
):
    kept = Reader(made).card("features", "resid_0", 4)
    monkeypatch.setattr("explorer.reader._IN_MEMORY", 0)
    read = Reader(made).card("features", "resid_0", 4)
    assert kept is not None
    assert len(kept["contexts"]) == 6
    assert read == kept
    assert Reader(made).card("features", "resid_0", 10**6) is None
