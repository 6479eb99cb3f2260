"""What people type is kept whole, whoever else types at the time."""

from __future__ import annotations

import html
import json
import multiprocessing
import os
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from assets.features.annotations import Annotation
from assets.settings import Experiment
from core.types import Circuit, Node
from explorer import ratings
from explorer.annotating import queue
from explorer.annotations import AnnotationFile, NotSaved
from explorer.pictures import ALIKE, merged, suggested
from explorer.reader import Reader
from tests.explorer.made_up import WEIGHTS, MadeUp
from tests.explorer.test_explorer_pages import opened

FORM = "/made_up/annotate/tasks/simple"
ANSWER = {
    "text": "plural <nouns> & more",
    "interpretability": "80",
    "complexity": "20.5",
    "by": "ann",
}


def made(**values: Any) -> Annotation:
    return Annotation(**{"basis": "features", "text": "", **values})


def hidden(client: TestClient, address: str) -> dict[str, str]:
    """What the form of a page sends besides what is typed."""
    page = opened(client, address)
    found = re.findall(r'type="hidden" name="(item|weights)" value="([^"]*)"', page)
    return {name: html.unescape(value) for name, value in found}


def lines(experiment: Experiment) -> list[dict[str, object]]:
    return [json.loads(line) for line in experiment.annotations.read_text().splitlines()]


def test_an_answer_is_saved_and_the_next_one_comes(client: TestClient, copied: Experiment):
    answer = client.post(
        FORM, data={**ANSWER, "relevant": "no", **hidden(client, FORM)}, follow_redirects=False
    )
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{FORM}?by=ann&i=2&saved=1"
    (row,) = lines(copied)
    first = queue(Reader(copied), "tasks", "simple")[0]
    expected = {
        "submodule": first.submodule,
        "feature": first.feature,
        "basis": "features",
        "weights": WEIGHTS,
        "text": ANSWER["text"],
        "interpretability": 80.0,
        "complexity": 20.5,
        "relevant": False,
        "by": "ann",
        "circuit": "tasks/simple",
        "chosen": "circuits",
        "blind": False,
    }
    assert {**row, **expected} == row
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", str(row["at"]))
    page = opened(client, f"{FORM}?by=ann&i=1")
    assert html.escape(ANSWER["text"]) in page
    assert 'value="80"' in page
    assert 'value="no" checked' in page
    assert html.escape(ANSWER["text"]) in opened(client, f"/made_up/features/{first.name}")


def test_a_description_is_the_label_in_pictures(client: TestClient, copied: Experiment):
    client.post(FORM, data={**ANSWER, "text": "of Ann", **hidden(client, FORM)})
    assert "of Ann" in opened(client, "/made_up/tasks/simple").partition("<svg")[2]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ({"by": " "}, "Your name is missing"),
        ({"interpretability": "101"}, "interpretability is"),
        ({"complexity": "nan"}, "complexity is"),
        ({"complexity": "much"}, "complexity is"),
        ({"text": " ", "interpretability": "", "complexity": ""}, "nothing to save"),
        ({"text": "x" * 1001}, "1,000 are kept"),
    ],
)
def test_what_cannot_be_kept_is_said_and_stays_in_the_form(
    client: TestClient, copied: Experiment, typed: dict[str, str], told: str
):
    form = {**ANSWER, **typed, **hidden(client, FORM)}
    answer = client.post(FORM, data=form)
    assert answer.status_code == 400
    assert told in answer.text
    assert html.escape(form["text"]) in answer.text
    assert not copied.annotations.exists()


def test_a_file_that_cannot_be_written_loses_nothing(client: TestClient, copied: Experiment):
    form = {**ANSWER, **hidden(client, FORM)}
    copied.annotations.mkdir()  # root may write to any file, but not to a folder
    answer = client.post(FORM, data=form)
    assert answer.status_code == 500
    assert "nothing was saved" in answer.text
    assert html.escape(ANSWER["text"]) in answer.text
    copied.annotations.rmdir()
    assert client.post(FORM, data=form, follow_redirects=False).status_code == 303
    assert len(lines(copied)) == 1


def test_a_full_disk_leaves_the_file_as_it_was(copied: Experiment, monkeypatch: pytest.MonkeyPatch):
    file = AnnotationFile(copied.annotations)
    file.save(made(submodule="resid_0", feature=1, by="ann", text="kept"))
    before = copied.annotations.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda number, line: write(number, line[:10]))
    with pytest.raises(NotSaved, match="no room"):
        file.save(made(submodule="resid_0", feature=2, by="ann", text="lost"))
    assert copied.annotations.read_bytes() == before


def test_other_dictionaries_since_the_page_was_opened_are_noticed(
    client: TestClient, copied: Experiment
):
    form = {**ANSWER, **hidden(client, FORM)}
    MadeUp(copied.path.parent).dictionaries("f" * 16)
    answer = client.post(FORM, data=form)
    assert answer.status_code == 409
    assert html.escape(ANSWER["text"]) in answer.text
    assert not copied.annotations.exists()
    retyped = {**ANSWER, **hidden(client, FORM)}
    assert client.post(FORM, data=retyped, follow_redirects=False).status_code == 303


def test_another_circuit_since_the_page_was_opened_is_noticed(
    client: TestClient, copied: Experiment
):
    form = {**ANSWER, **hidden(client, FORM)}
    node = {"node": 0, "submodule": "embed", "feature": 5, "pos": 0, "effect": 1.0}
    MadeUp(copied.path.parent).circuit("tasks", "simple", [node])
    assert client.post(FORM, data=form).status_code == 409
    assert not copied.annotations.exists()


def _save_many(path: Path, by: str) -> None:
    file = AnnotationFile(path)
    for i in range(200):
        file.save(made(submodule="resid_0", feature=i, by=by, text="x" * 500))


def test_two_at_once_lose_nothing(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    spawn = multiprocessing.get_context("fork")
    both = [spawn.Process(target=_save_many, args=(path, by)) for by in ("ann", "bob")]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert sorted((row["by"], row["feature"]) for row in rows) == sorted(
        (by, i) for by in ("ann", "bob") for i in range(200)
    )


def test_a_line_without_an_end_does_not_swallow_the_next(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"Name": "resid_5/3036", "Annotation": "by the authors"}\n{"half')
    file = AnnotationFile(path)
    file.save(made(submodule="resid_0", feature=1, by="ann"))
    assert [one.feature for one in file.annotations()] == [3036, 1]
    assert file.n_left_out == 1


def test_stale_annotations_are_kept_and_marked(client: TestClient, copied: Experiment):
    file = AnnotationFile(copied.annotations)
    one = made(
        submodule="resid_0", feature=4, weights=WEIGHTS, text="now", by="ann", interpretability=50
    )
    file.save(one)
    file.save(replace(one, by="bob", weights="f" * 16, text="of older ones", interpretability=90))
    file.save(replace(one, by="cy", feature=9999, text="of none", interpretability=90))
    page = opened(client, "/made_up/annotations")
    assert page.count("<small>stale</small>") == 2
    assert "2 ratings of other dictionaries are left out" in page
    card = opened(client, "/made_up/features/resid_0/4")
    assert "stale: made for other dictionaries" in card
    assert "of older ones" not in card.partition("</h1>")[2].partition("Card")[0]
    rows, n_stale = ratings.table(Reader(copied), file.annotations())
    assert n_stale == 2
    assert [(row.n, row.interpretability.value) for row in rows] == [(1, 50)]


def test_ratings_are_summed_up_by_kind_and_origin(
    copied: Experiment, capsys: pytest.CaptureFixture[str]
):
    file = AnnotationFile(copied.annotations)
    rated = [
        ("features", 1, "circuits", 80, "ann"),
        ("features", 2, "circuits", 60, "ann"),
        ("features", 2, "circuits", 70, "bob"),
        ("features", 3, "random", 50, "ann"),
        ("neurons", 3, "random", 10, "ann"),
    ]
    for basis, feature, chosen, rating, by in rated:
        file.save(
            made(
                submodule="resid_0", feature=feature, basis=basis, chosen=chosen, by=by,
                circuit="tasks/simple", interpretability=rating, blind=True,
            )
        )  # fmt: skip
    file.save(
        made(submodule="resid_0", feature=1, by="ann", circuit="tasks/simple", interpretability=90)
    )
    rows = {(r.kind, r.chosen): r for r in ratings.table(Reader(copied), file.annotations())[0]}
    circuits = rows["features", "circuits of tasks"]
    assert (circuits.n, circuits.n_features, circuits.n_people) == (3, 2, 2)
    # 90 (which replaces 80), 60 and 70: mean 220/3, variance 233.3, standard error 8.819.
    assert circuits.interpretability.value == pytest.approx(220 / 3)
    assert circuits.interpretability.error == pytest.approx(8.819, abs=1e-3)
    assert rows["neurons", "random"].interpretability.value == 10
    assert rows["features", "random"].n == 1
    assert ratings.main([str(copied.path)]) == 0
    assert (
        "| features | circuits of tasks | 3 | 2 | 2 | 73.3 ± 8.8 | \u2013 |"
        in capsys.readouterr().out
    )


def test_blind_mixes_in_random_features_and_neurons_and_hides_names(
    client: TestClient, copied: Experiment
):
    reader = Reader(copied)
    items = queue(reader, "clusters", "k00001", blind=True, seed=7)
    kinds = {(item.basis, item.chosen) for item in items}
    assert kinds == {("features", "circuits"), ("features", "random"), ("neurons", "random")}
    assert queue(reader, "clusters", "k00001", blind=True, seed=7) == items
    assert queue(reader, "clusters", "k00001", blind=True, seed=8) != items
    held = reader.held("clusters")["k00001"].by_feature
    assert not [
        item
        for item in items
        if item.chosen == "random" and item.basis == "features" and item.name in held
    ]
    place = 1 + next(i for i, item in enumerate(items) if item.basis == "neurons")
    address = f"/made_up/annotate/clusters/k00001?blind=1&seed=7&by=ann&i={place}"
    page = opened(client, address).partition("<main")[2]
    assert not re.findall(r"(embed|attn_\d|mlp_\d|resid_\d)/\d", page)
    assert "fires on &lt;" not in page
    client.post(address, data={**ANSWER, **hidden(client, address)})
    (row,) = lines(copied)
    assert (row["basis"], row["chosen"], row["blind"], row["weights"]) == (
        "neurons",
        "random",
        True,
        None,
    )


# -- groups ---------------------------------------------------------------------------------------


def alike(circuit: Circuit) -> list[Node]:
    """Two features of one submodule."""
    features = [node for node in circuit.nodes if not node.is_error]
    return next([a, b] for a, b in pairwise(features) if a.submodule == b.submodule)


def test_a_group_is_one_node_with_the_sum_of_effects_and_edges(copied: Experiment):
    found = Reader(copied).circuit("clusters", "k00001")
    assert found is not None
    of_one = alike(found)
    pair = [n.name for n in of_one]
    joined, standing = merged(found, [pair])
    assert len(joined.nodes) == len(found.nodes) - 1
    assert sorted(next(iter(standing.values()))) == sorted(pair)
    name = next(iter(standing))
    (node,) = [n for n in joined.nodes if n.name == name]
    assert node.effect == pytest.approx(sum(n.effect for n in of_one))
    assert sum(e.weight for e in joined.edges) == pytest.approx(sum(e.weight for e in found.edges))
    assert merged(found, [])[0] == found


def test_groups_are_kept_and_taken_apart(client: TestClient, copied: Experiment):
    found = Reader(copied).circuit("clusters", "k00001")
    assert found is not None
    names = [n.name for n in alike(found)]
    form = {"members": " ".join(names), "together": "yes"}
    client.post("/made_up/group/clusters/k00001", data=form)
    page = opened(client, "/made_up/clusters/k00001")
    assert page.count('class="node"') == len(found.nodes) - 1
    assert "2 features" in page
    client.post("/made_up/group/clusters/k00001", data={**form, "together": "no"})
    assert opened(client, "/made_up/clusters/k00001").count('class="node"') == len(found.nodes)
    assert len(lines(copied)) == 2


@pytest.mark.parametrize("members", ["", "resid_0/1", "resid_0/1 mlp_0/2"])
def test_what_is_no_group_is_refused(client: TestClient, copied: Experiment, members: str):
    answer = client.post(
        "/made_up/group/tasks/simple", data={"members": members, "together": "yes"}
    )
    assert answer.status_code == 400
    assert not copied.annotations.exists()


def test_features_that_act_alike_everywhere_are_suggested(copied: Experiment):
    made = MadeUp(copied.path.parent)
    effects = {"k00000": (1.0, 0.5, 0.2), "k00001": (2.0, 1.0, -3.0), "k00002": (0.5, 0.25, 1.0)}
    for name, values in effects.items():
        nodes = [
            {"node": i, "submodule": "resid_0", "feature": i, "pos": None, "effect": effect}
            for i, effect in enumerate(values)
        ]
        made.circuit("clusters", name, nodes)
    reader = Reader(copied)
    found = reader.circuit("clusters", "k00001")
    assert found is not None
    first = suggested(reader, found, [])[0]
    assert first.members == ("resid_0/0", "resid_0/1")
    assert first.profile > ALIKE
    assert suggested(reader, found, [("resid_0/0", "resid_0/1")]) == []
