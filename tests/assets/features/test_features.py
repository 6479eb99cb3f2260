"""Cards and labels as stages, on a tiny experiment, with texts made to break pages."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from assets.checks import annotations_are_used, circuit_features_fire, labels_predict
from assets.circuits.stages import read_labels, strongest_nodes
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.features.circuits import _rows
from assets.features.endpoint import ENDPOINT_LABELS_STAGE, Asking, NoAnswer, ask
from assets.features.labels import LABELS_STAGE, feature_stages
from assets.settings import EndpointSettings, Experiment, ExperimentError
from assets.tables.conversions import label_texts
from assets.tables.places import (
    FEATURE_CIRCUITS,
    LABELS,
    VOCABULARY,
    card_contexts,
    cards,
    circuit,
)
from core.types import ERROR, Circuit, Node
from pipelines.show import show
from tests.tiny_experiment import begun, brought_up_to_date

SUBMODULES = ("embed", "attn_0", "resid_0", "resid_1")


@pytest.fixture(scope="module")
def made(finished: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    other = {"n_random": 2, "n_neurons": 3, "n_after": 2}
    experiment = begun(finished, tmp_path_factory.mktemp("cards"), cards=other)
    brought_up_to_date(experiment, "labels")
    return experiment


@pytest.fixture
def store(made: Experiment) -> ArtifactStore:
    return ArtifactStore(made.artifacts)


def test_every_feature_of_a_circuit_has_a_card_and_the_circuits_that_hold_it(
    made: Experiment, store: ArtifactStore
) -> None:
    held = store.read(FEATURE_CIRCUITS).to_pylist()
    nodes = {
        (source, name, row["submodule"], row["feature"], row["pos"]): row["effect"]
        for source, names in (("clusters", made.clusters), ("tasks", ["simple"]))
        for name in names
        if store.footer(circuit(source, name)) is not None
        for row in store.read(circuit(source, name, "nodes")).to_pylist()
        if row["feature"] != ERROR
    }
    found = {
        (r["source"], r["name"], r["submodule"], r["feature"], r["pos"]): r["effect"] for r in held
    }
    assert found == nodes
    for submodule in SUBMODULES:
        rows = store.read(cards(submodule)).to_pylist()
        chosen = {r["feature"] for r in rows if r["chosen"] == "circuits"}
        assert chosen == {key[3] for key in nodes if key[2] == submodule}
        assert sum(r["basis"] == "neurons" for r in rows) == 3
        assert all((r["weights"] is None) == (r["basis"] == "neurons") for r in rows)
        assert all((r["moved"] is None) == (r["max_activation"] == 0) for r in rows)


def test_contexts_of_a_card_are_pieces_of_the_corpus(store: ArtifactStore) -> None:
    from assets.tables.places import CONTEXTS

    corpus = store.read(CONTEXTS).to_pylist()
    n_cards_from = len(corpus) - len(corpus) // 10
    for submodule in SUBMODULES:
        largest = {
            (r["basis"], r["feature"]): r["max_activation"]
            for r in store.read(cards(submodule)).to_pylist()
        }
        for row in store.read(card_contexts(submodule)).to_pylist():
            assert row["window"] < n_cards_from  # the rest is for scoring labels
            context, start = corpus[row["window"]], row["start"]
            assert context["tokens"][start : start + len(row["tokens"])] == row["tokens"]
            assert row["document"] == context["document"]
            peak = row["activations"][row["pos"] - start]
            assert peak == max(row["activations"]) > 0
            if row["quantile"] is None and row["rank"] == 0:
                assert peak == pytest.approx(largest[row["basis"], row["feature"]])


def test_labels_are_scored_and_shown_wherever_features_are(
    made: Experiment, store: ArtifactStore
) -> None:
    rows = store.read(LABELS).to_pylist()
    assert len(rows) == sum(store.n_rows(cards(name)) for name in SUBMODULES)
    assert all(row["by"] == "rule" and row["shown"] and not row["stale"] for row in rows)
    embedded = [r["score"] for r in rows if r["submodule"] == "embed" and r["score"] is not None]
    assert min(embedded) > 0.5  # features of the embedding are sets of words
    labels = read_labels(store)
    strongest = max(
        (r for r in store.read(FEATURE_CIRCUITS).to_pylist() if r["name"] == "simple"),
        key=lambda row: abs(row["effect"]),
    )
    label = labels[f"{strongest['submodule']}/{strongest['feature']}"]
    assert label.split(";")[0][:25] in show(made, "simple", max_nodes=99, max_edges=9)
    stages = {stage.name: stage for stage in feature_stages(made)}
    assert "strongest features" in stages["labels"].shown(made)  # type: ignore


def test_nothing_is_made_again_and_an_annotation_makes_labels_alone(made: Experiment) -> None:
    assert brought_up_to_date(made, "labels") == {}
    store = ArtifactStore(made.artifacts)
    some = next(r for r in store.read(LABELS).to_pylist() if r["basis"] == "features")
    common = {"submodule": some["submodule"], "feature": some["feature"], "by": "Ada"}
    lines = [
        common | {"text": "<b>nouns</b>\n</script>", "weights": some["weights"]},
        common | {"text": "of another dictionary", "by": "Bo", "weights": "0123"},
        common | {"text": "no such feature", "feature": 99_999},
        common | {"text": "no such place", "submodule": "mlp_77"},
    ]
    text = "\n".join([*map(json.dumps, lines), '{"submodule": "emb'])
    made.annotations.write_text(text, encoding="utf-8")
    try:
        assert brought_up_to_date(made, "labels") == {"labels": 1}
        rows = store.read(LABELS).to_pylist()
        people = {row["text"]: row for row in rows if row["by"] in ("Ada", "Bo")}
        assert {text: row["stale"] for text, row in people.items()} == {
            "<b>nouns</b>\n</script>": False,
            "of another dictionary": True,
            "no such feature": True,
            "no such place": True,
        }
        name = f"{some['submodule']}/{some['feature']}"
        assert label_texts(store.read(LABELS))[name] == "<b>nouns</b>\n</script>"
        assert store.notes(LABELS)["left_out"][made.annotations.name] == 1
        assert not annotations_are_used(made, store).passed
        # The stale ones are kept, and hide nothing.
        assert sum(row["shown"] for row in rows) == len(rows) - 4
    finally:
        made.annotations.unlink()
        brought_up_to_date(made, "labels")


def test_checks_of_labels_hold(made: Experiment, store: ArtifactStore) -> None:
    assert annotations_are_used(made, store).passed
    assert labels_predict(made, store).passed
    assert circuit_features_fire(made, store).figures["never active"] == 0


def test_the_vocabulary_is_the_tokenizers(made: Experiment, store: ArtifactStore) -> None:
    rows = store.read(VOCABULARY).to_pylist()
    tokenizer = Work.on(made).load.tokenizer()
    assert [row["token"] for row in rows] == list(range(len(tokenizer)))
    assert [row["text"] for row in rows] == [tokenizer.decode([row["token"]]) for row in rows]


def test_without_cards_only_the_index_of_circuits_is_made(made: Experiment) -> None:
    settings = made.settings.model_copy(update={"cards": None})
    stages = feature_stages(replace(made, settings=settings))
    assert [stage.name for stage in stages] == ["feature_circuits"]


@pytest.mark.parametrize("nodes", [(), (Node("resid_0", ERROR, None, 0.5),)])
def test_circuits_without_features_have_no_rows_and_no_labels(nodes: tuple[Node, ...]) -> None:
    found = Circuit(nodes, (), {}, 1, 0.0, None)
    assert list(_rows(found, "clusters", "k00000", 5)) == []
    shown: Any = strongest_nodes(found, {"resid_0/1": "x"}).value
    assert shown == "none" if not nodes else shown.records[0].data["label"] == ""


# -- an endpoint ----------------------------------------------------------------------------------


@contextmanager
def endpoint(answer: bytes, *, status: int = 200) -> Iterator[tuple[Asking, list[Any]]]:
    """A stand-in for the OpenAI API that always gives the same answer."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/v1"
            yield Asking(SUBMODULES, url, "tiny", 3, "SFC_TEST_KEY", 2.0), asked
        finally:
            server.shutdown()
            thread.join()


def _answer(content: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


def test_the_card_is_sent_and_one_line_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFC_TEST_KEY", "secret")
    with endpoint(_answer(' "plural\n nouns\u202e" ')) as (asking, asked):
        assert ask(asking, "a «card»") == "plural nouns\\u202e"
    path, key, body = asked[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "tiny")
    assert body["messages"][1]["content"] == "a «card»"


@pytest.mark.parametrize(
    "answer", [b"<html>", b"[]", b"{}", _answer(None), _answer(""), _answer("x" * 300)]
)
def test_nonsense_is_no_label(answer: bytes) -> None:
    with endpoint(answer) as (asking, _), pytest.raises(NoAnswer):
        ask(asking, "card")


def test_an_error_or_silence_is_no_label_and_tells_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFC_TEST_KEY", "secret")
    with endpoint(b"secret", status=401) as (asking, _):
        with pytest.raises(NoAnswer, match="401") as error:
            ask(asking, "card")
        assert "secret" not in str(error.value)
    with pytest.raises(NoAnswer, match="no answer"):
        ask(asking, "card")  # nobody listens any more


def _asking(made: Experiment, asking: Asking) -> Experiment:
    settings = EndpointSettings(url=asking.url, model="tiny", n_features=3, timeout=2)
    labels = made.settings.labels.model_copy(update={"endpoint": settings})
    return replace(made, settings=made.settings.model_copy(update={"labels": labels}))


def test_a_models_labels_go_before_rules(made: Experiment) -> None:
    with endpoint(_answer("words for animals")) as (asking, asked):
        experiment = _asking(made, asking)
        assert ENDPOINT_LABELS_STAGE.run(experiment)
        assert LABELS_STAGE.run(experiment)
        sent = asked[0][2]["messages"][1]["content"]
    assert "««" in sent
    assert "Promotes: " in sent
    rows = ArtifactStore(made.artifacts).read(LABELS).to_pylist()
    own = [row for row in rows if row["by"] == "endpoint tiny"]
    assert len(own) == 3
    assert all(row["shown"] and row["text"] == "words for animals" for row in own)
    assert sum(row["shown"] for row in rows) == len(rows) - 3
    assert LABELS_STAGE.run(made)  # without it the rules are shown again


def test_an_endpoint_that_never_answers_stops_its_stage(made: Experiment) -> None:
    with endpoint(b"{}") as (asking, asked):
        experiment = _asking(made, replace(asking, url=asking.url + "/other"))
        with pytest.raises(ExperimentError, match=r"labels\.endpoint.*3 features in turn"):
            ENDPOINT_LABELS_STAGE.run(experiment)
        assert len(asked) == 3
