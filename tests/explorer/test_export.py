"""Files to give away: valid, whole, and the same circuit as the tables."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import networkx
import pytest

from assets.settings import Experiment
from core.types import Circuit, Edge, Node
from explorer import exchange, export
from explorer.annotations import AnnotationFile
from explorer.circuits import View
from explorer.reader import BehaviourSource, Reader
from tests.explorer.test_explorer_pages import Page

FORMATS = Path(__file__).parents[3] / "shared" / "formats"
# What circuit-tracer's own model of a feature asks for; the schema asks for less.
FEATURE_KEYS = {
    "transcoder_id", "index", "examples_quantiles", "bottom_logits", "top_logits", "act_min",
    "act_max", "quantile_values", "histogram", "activation_frequency",
}  # fmt: skip
PLACES: tuple[tuple[BehaviourSource, str], ...] = (("tasks", "simple"), ("clusters", "k00001"))


def view_of(experiment: Experiment, source: BehaviourSource, name: str) -> View:
    return View(Reader(experiment), AnnotationFile(experiment.annotations), source, name)


def whole(view: View) -> Circuit:
    assert view.circuit is not None
    return view.circuit


# -- the page -------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_and_runs_only_its_own_script(made: Experiment):
    text = export.page(view_of(made, "tasks", "simple"))
    page = Page(text)
    assert [a for a in page.addresses() if not a.startswith("#")] == []
    policy = next(
        a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_page_holds_the_card_of_every_node_it_draws(made: Experiment):
    view = view_of(made, "tasks", "simple")
    page = Page(export.page(view))
    held = [attrs["data-node"] for tag, attrs in page.tags if tag == "template"]
    assert sorted(map(str, held)) == sorted(node.name for node in whole(view).nodes)
    text = export.page(view)
    assert "materialize" not in text
    assert "promotes" in text


# -- DOT and GraphML ------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "name"), PLACES)
def test_graphml_is_the_same_graph(
    made: Experiment, tmp_path: Path, source: BehaviourSource, name: str
):
    view = view_of(made, source, name)
    file = tmp_path / "a.graphml"
    file.write_text(export.written(view, "graphml"), encoding="utf-8")
    graph = networkx.read_graphml(file)
    circuit = whole(view)
    ends = [*(node.name for node in circuit.nodes), "metric"]
    assert sorted(graph.nodes) == sorted(ends)
    for node in circuit.nodes:
        assert graph.nodes[node.name]["effect"] == node.effect
        assert graph.nodes[node.name]["feature"] == node.feature
    weights = {
        (ends[e.upstream], ends[-1 if e.downstream is None else e.downstream]): e.weight
        for e in circuit.edges
    }
    assert {(a, b): data["weight"] for a, b, data in graph.edges(data=True)} == weights


def test_dot_quotes_what_would_end_a_text(made: Experiment):
    circuit = whole(view_of(made, "clusters", "k00001"))
    name = next(node.name for node in circuit.nodes if not node.is_error)
    text = exchange.dot(circuit, 'a "title" \\', {name: 'says "x"\\ </script>'})
    assert text.startswith('digraph "a \\"title\\" \\\\" {')
    assert '\\nsays \\"x\\"\\\\ </script>\\n' in text
    assert text.count(" -> ") == len(circuit.edges)
    assert text.count("shape=triangle") == sum(node.is_error for node in circuit.nodes)
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    assert '"' not in outside


def test_svg_is_a_document(made: Experiment):
    root = ET.fromstring(export.written(view_of(made, "tasks", "simple"), "svg"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


# -- graph JSON -----------------------------------------------------------------------------------


def schema(name: str) -> dict[str, Any]:
    file = FORMATS / "neuronpedia_schema" / name
    if not file.exists():
        pytest.skip("the schemas of Neuronpedia are not here")
    return json.loads(file.read_text())


@pytest.fixture(params=PLACES, ids=lambda place: place[1])
def graph(made: Experiment, request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(export.written(view_of(made, *request.param), "graph-json"))


def test_graph_json_is_valid(graph: dict[str, Any]):
    jsonschema.validate(graph, schema("graph-schema.json"))


def test_graph_json_has_every_key_of_a_real_graph(graph: dict[str, Any]):
    file = FORMATS / "example-graph-clt.json"
    if not file.exists():
        pytest.skip("no real graph is here")
    real = json.loads(file.read_text())
    jsonschema.validate(real, schema("graph-schema.json"))
    assert graph.keys() == real.keys()
    assert graph["qParams"].keys() == real["qParams"].keys()
    assert graph["nodes"][0].keys() == real["nodes"][0].keys()
    assert graph["links"][0].keys() == real["links"][0].keys()
    types = {node["feature_type"] for node in real["nodes"]}
    assert {node["feature_type"] for node in graph["nodes"]} <= types
    for one in (real, graph):
        kinds = {key: type(value) for key, value in one["nodes"][-1].items()}
        assert kinds["node_id"] is str
        assert kinds["ctx_idx"] is int


def test_graph_json_holds_the_circuit(made: Experiment):
    circuit = whole(view_of(made, "tasks", "simple"))
    found = json.loads(export.written(view_of(made, "tasks", "simple"), "graph-json"))
    ids = [exchange.node_id(circuit, node) for node in circuit.nodes]
    assert [node["node_id"] for node in found["nodes"][:-1]] == ids
    assert [link["weight"] for link in found["links"]] == [edge.weight for edge in circuit.edges]
    for link, edge in zip(found["links"], circuit.edges, strict=True):
        assert link["source"] == ids[edge.upstream]
    assert found["metadata"]["prompt_tokens"] == ["<b>", " cat", "\u21b5"]


def test_ids_never_collide(graph: dict[str, Any]):
    ids = [node["node_id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids)
    assert {end for link in graph["links"] for end in (link["source"], link["target"])} <= set(ids)


def test_an_error_node_has_no_id_of_a_feature():
    # circuit-tracer calls the error node of layer 3 at position 2 as it calls feature 3 of layer 0.
    circuit = _circuit(
        Node("embed", 3, 2, 1.0), Node("attn_0", 0, 2, 1.0), Node("mlp_0", -1, 2, 1.0)
    )
    assert len({exchange.node_id(circuit, node) for node in circuit.nodes}) == 3


def _circuit(
    *nodes: Node, edges: tuple[Edge, ...] = (), tokens: tuple[str, ...] | None = None
) -> Circuit:
    tokens = tokens or ("a", "b", "c")
    return Circuit(nodes, edges, {"metric": "m"}, 1, 0.0, None, tokens=tokens)


def _graph(circuit: Circuit) -> dict[str, Any]:
    return exchange.graph(circuit, slug="s", model="m", about="", labels={})


def test_no_node_vanishes_below_a_threshold(graph: dict[str, Any]):
    # A node without influence vanishes where a node_threshold is set: undefined <= x is false.
    assert "node_threshold" not in graph["metadata"]
    influences = [node["influence"] for node in graph["nodes"] if node["feature_type"] != "logit"]
    assert all(0 < value <= 1 for value in influences)


def test_influence_is_cumulative_and_small_where_it_matters():
    found = _graph(_circuit(Node("embed", 1, 0, 1.0), Node("embed", 2, 0, -3.0)))
    assert [node["influence"] for node in found["nodes"]] == [1.0, 0.75, None]


@pytest.mark.parametrize("tokens", [("one",), None])
def test_there_are_two_columns_at_least(tokens: tuple[str, ...] | None):
    # With one token, every node is in more than two thirds of the tokens, and is taken away.
    circuit = _circuit(Node("embed", 1, 0 if tokens else None, 1.0), tokens=tokens)
    circuit = circuit if tokens else replace(circuit, tokens=None)
    found = _graph(circuit)
    assert len(found["metadata"]["prompt_tokens"]) >= 2
    assert all(node["ctx_idx"] < len(found["metadata"]["prompt_tokens"]) for node in found["nodes"])


def test_the_metric_is_at_the_last_token_and_names_a_probability(graph: dict[str, Any]):
    (metric,) = [node for node in graph["nodes"] if node["feature_type"] == "logit"]
    assert re.search(r"\(p=\d\.\d+\)", metric["clerp"])
    assert metric["ctx_idx"] == len(graph["metadata"]["prompt_tokens"]) - 1
    assert int(metric["layer"]) > max(int(n["layer"]) for n in graph["nodes"] if n is not metric)


def test_the_number_of_a_feature_decodes_to_its_row_and_itself():
    seen = {}
    for row in range(20):
        for feature in range(60):
            seen[exchange.cantor(row, feature)] = row, feature
    assert len(seen) == 20 * 60
    assert exchange.cantor(0, 8545) == 36521330 - (36521330 - 8545 * 8546 // 2 - 8545)


def test_the_pairing_is_that_of_a_real_graph():
    file = FORMATS / "example-graph-clt.json"
    if not file.exists():
        pytest.skip("no real graph is here")
    nodes = [
        n for n in json.loads(file.read_text())["nodes"] if n["feature_type"] == exchange.FEATURE
    ]
    assert len(nodes) > 100
    for node in nodes:
        row, feature, _ = node["node_id"].split("_")
        assert exchange.cantor(int(row), int(feature)) == node["feature"]


def test_the_command_writes_everything_and_features_beside(made: Experiment, tmp_path: Path):
    out = tmp_path / "out"
    kinds = [f"--{kind}" for kind in export.FORMATS]
    assert export.main([str(made.path), "simple", *kinds, "--out", str(out)]) == 0
    names = {file.name for file in out.iterdir()}
    assert names == {
        "made_up-simple.html", "made_up-simple.svg", "made_up-simple.dot", "made_up-simple.graphml",
        "made_up-simple.json", "graph-metadata.json", "features",
    }  # fmt: skip
    graph = json.loads((out / "made_up-simple.json").read_text())
    features = {n["feature"] for n in graph["nodes"] if n["feature_type"] == exchange.FEATURE}
    assert {int(file.stem) for file in (out / "features").iterdir()} == features
    details = schema("feature-details-schema.json")
    for file in (out / "features").iterdir():
        content = json.loads(file.read_text())
        jsonschema.validate(content, details)
        assert content["index"] == int(file.stem)
        assert content.keys() == FEATURE_KEYS
        for quantile in content["examples_quantiles"]:
            for example in quantile["examples"]:
                assert len(example["tokens"]) == len(example["tokens_acts_list"])
    assert json.loads((out / "graph-metadata.json").read_text())["graphs"] == [graph["metadata"]]


def test_the_command_says_what_is_wrong(
    made: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert export.main([str(made.path), "nothing", "--dot"]) == 1
    assert "there are k00000" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export.main([str(made.path), "simple"])
    (tmp_path / "file").touch()
    assert export.main([str(made.path), "simple", "--dot", "--out", str(tmp_path / "file")]) == 1


def test_a_page_to_give_away_tells_nothing_of_this_machine(copied: Experiment):
    for place in ("cards", "evaluations", "behaviours", "vocabulary.parquet"):
        (copied.artifacts / place).rename(copied.artifacts / f"no_{place}")
    text = export.page(view_of(copied, "tasks", "simple"))
    assert str(copied.path.parent) not in text
    assert "No card yet." in text
