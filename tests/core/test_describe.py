"""A circuit in text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.errors import InputError
from core.pictures.describe import Path, describe_circuit, describe_in_words, strongest_paths
from core.types import ERROR, Circuit, Edge, Node


@pytest.fixture
def circuit() -> Circuit:
    """embed/1 feeds mlp_0/2 strongly and resid_0/3 weakly; mlp_0's error feeds nothing."""
    nodes = (
        Node("embed", 1, None, 0.5),
        Node("mlp_0", ERROR, None, -0.25),
        Node("mlp_0", 2, None, 0.25),
        Node("resid_0", 3, None, 1.0),
    )
    edges = (Edge(0, 2, 0.4), Edge(0, 3, -0.1), Edge(2, 3, 0.3), Edge(3, None, 1.0))
    settings = {
        "metric": "logit difference",
        "estimator": "ig(midpoint, 10)",
        "node_threshold": 0.1,
        "edge_threshold": 0.05,
    }
    gaps = {"mlp_0": 0.02, "resid_0": 0.01, "embed": float("nan")}
    return Circuit(nodes, edges, settings, 100, 3.25, -2.5, gaps)


def test_header_states_metric_settings_counts_and_gap(circuit):
    header = describe_circuit(circuit).split("\n\n")[0]
    assert "logit difference: clean 3.25, patch -2.5" in header
    assert "ig(midpoint, 10), summed over positions, mean over 100 examples" in header
    assert "4 nodes, 1 of them errors, each |effect| > 0.1" in header
    assert "4 edges, each |weight| > 0.05" in header
    assert "0.02 at most, at mlp_0" in header


def test_nodes_are_listed_by_submodule_with_effect_bar_and_label(circuit):
    lines = describe_circuit(circuit, labels={"resid_0/3": "plural"}).splitlines()
    listed = [line.split() for line in lines if line.startswith("  ") and "->" not in line]
    assert listed == [
        ["embed/1", "+0.5", "+" * 8],
        ["mlp_0/error", "-0.25", "-" * 4],
        ["mlp_0/2", "+0.25", "+" * 4],
        ["resid_0/3", "+1", "+" * 16, "plural"],
    ]
    assert "mlp_0: 2 nodes, total 0" in lines


def test_nodes_that_other_examples_might_not_have_are_marked_and_counted(circuit):
    errors = (0.05, 0.4, 0.1, 0.1)
    nodes = [node._replace(stderr=e) for node, e in zip(circuit.nodes, errors, strict=True)]
    nodes[2] = nodes[2]._replace(effect=0.21)
    text = describe_circuit(replace(circuit, nodes=tuple(nodes)))
    assert "other draws would have: 2 core, 1 contingent (~), 1 noise (?)" in text
    assert "-0.25? ----" in text
    assert "+0.21~ ++++" in text
    assert "other draws" not in describe_circuit(circuit)


def test_edges_are_listed_strongest_first(circuit):
    text = describe_circuit(circuit)
    section = next(part for part in text.split("\n\n") if part.startswith("Strongest edges"))
    assert [line.split() for line in section.splitlines()[1:]] == [
        ["resid_0/3", "->", "metric", "+1"],
        ["embed/1", "->", "mlp_0/2", "+0.4"],
        ["mlp_0/2", "->", "resid_0/3", "+0.3"],
        ["embed/1", "->", "resid_0/3", "-0.1"],
    ]


def test_edges_at_error_nodes_are_said_to_be_the_least_reliable(circuit):
    assert "least reliable" not in describe_circuit(circuit)  # the error has no edge
    joined = replace(circuit, edges=(*circuit.edges, Edge(1, 3, 0.2)))
    assert "from or into error nodes (ε) are the least reliable.\n" in describe_circuit(joined)
    measured = replace(joined, settings={"edge_agreement": "rank correlation 0.5"})
    assert "the least reliable: rank correlation 0.5.\n" in describe_circuit(measured)


def test_the_strongest_path_is_that_whose_weakest_edge_is_strongest(circuit):
    (path,) = strongest_paths(circuit)
    assert path == Path((0, 2, 3), (Edge(0, 2, 0.4), Edge(2, 3, 0.3), Edge(3, None, 1.0)))
    assert path.weakest == Edge(2, 3, 0.3)
    stronger = replace(circuit, edges=(*circuit.edges[:1], Edge(0, 3, -0.35), *circuit.edges[2:]))
    (path,) = strongest_paths(stronger)
    assert path.nodes == (0, 3)


def test_every_path_is_no_weaker_than_any_other_from_its_start(circuit):
    # Every chain of edges from node 0, walked by hand, against the one-pass answer.
    def strengths(node: int, so_far: float) -> list[float]:
        found = []
        for edge in circuit.edges:
            if edge.upstream == node:
                least = min(so_far, abs(edge.weight))
                found += [least] if edge.downstream is None else strengths(edge.downstream, least)
        return found

    (path,) = strongest_paths(circuit)
    assert abs(path.weakest.weight) == max(strengths(0, float("inf")))


def test_dead_ends_and_lone_edges_are_no_paths(circuit):
    dead_end = replace(circuit, edges=(Edge(0, 2, 0.4), Edge(3, None, 1.0)))
    assert strongest_paths(dead_end) == []
    assert "Strongest paths" not in describe_circuit(dead_end)


def test_lines_fit_a_terminal_whatever_names_and_labels(circuit):
    nodes = tuple(node._replace(pos=i) for i, node in enumerate(circuit.nodes))
    long = replace(
        circuit,
        nodes=nodes,
        tokens=("antidisestablishmentarianism" * 3, "日本語" * 30, "\n", " that"),
        settings={**circuit.settings, "metric": "m" * 300},
    )
    text = describe_circuit(long, labels={"resid_0/3": "日本語" * 50, "embed/1": "x" * 500})
    lines = text.splitlines()
    assert all(len(line) + sum(ord(c) > 0x2FFF for c in line) <= 100 for line in lines)
    assert "mlp_0/2 at 2 '↵'" in text
    assert "by position" in text


def test_what_is_not_listed_is_counted(circuit):
    text = describe_circuit(circuit, max_nodes=1, max_edges=2)
    assert "resid_0/3" in text
    assert text.count("(1 weaker node not listed)") == 1
    assert text.count("(2 weaker nodes not listed)") == 1
    assert "Strongest edges (2 of 4)" in text
    with pytest.raises(InputError, match="max_nodes=0"):
        describe_circuit(circuit, max_nodes=0)


def test_words_name_the_main_submodules_errors_and_path(circuit):
    assert describe_in_words(circuit, {"embed/1": "plural nouns"}) == (
        "The circuit has 4 nodes (1 error) and 4 edges, found over 100 examples. "
        "resid_0 carries 50% of the summed |effect|, errors 12%. "
        'The strongest path is embed/1 ("plural nouns") -> mlp_0/2 -> resid_0/3 -> the metric; '
        "its weakest edge weighs +0.3."
    )


def test_an_empty_circuit_is_described_as_such(circuit):
    empty = replace(circuit, nodes=(), edges=())
    assert describe_in_words(empty) == "No node passed the threshold, over 100 examples."
    assert "No node passed the threshold." in describe_circuit(empty)


def test_zero_ablation_is_named_in_the_table(circuit):
    text = describe_circuit(replace(circuit, metric_patch=None))
    assert "+ where setting it to zero raises the metric" in text
    assert "patch" not in text
