"""Numbers, counts and facts of a circuit in words, the same in pictures and in text."""

from __future__ import annotations

from core.pictures.selection import Selection
from core.pictures.text import printable
from core.types import Circuit

_FOOTER_SETTINGS = (
    ("model", "model"),
    ("estimator", "effects by"),
    ("node_threshold", "node threshold"),
    ("edge_threshold", "edge threshold"),
    ("faithfulness", "faithfulness"),
    ("completeness", "completeness"),
)


def signed(value: float) -> str:
    """A number with its sign in three significant digits: ``+0.312``, ``-12.5``, ``+3.1e-05``."""
    if value == 0:
        return "0"
    return f"{value:+.3g}" if 1e-3 <= abs(value) < 999.5 else f"{value:+.1e}"


def plain(value: object) -> str:
    """A setting's value as a person would write it."""
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def listed(names: list[str]) -> str:
    """Names in a sentence: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(n: int, noun: str) -> str:
    """``1 node``, ``12 nodes``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def metric_text(circuit: Circuit) -> str:
    """What the metric is called in the circuit's settings."""
    return plain(circuit.settings.get("metric", "metric"))


def metric_values(circuit: Circuit) -> str:
    """The metric's means, ``clean 3.2, patch -1.1``."""
    clean = f"clean {plain(circuit.metric_clean)}"
    patch = circuit.metric_patch
    return clean if patch is None else f"{clean}, patch {plain(patch)}"


def meaning_of_effect(circuit: Circuit) -> str:
    """What a node's effect says, for this circuit."""
    set_to = "zero" if circuit.metric_patch is None else "its value on the patch input"
    where = "at its token" if circuit.by_position else "summed over tokens"
    return (
        f"Effect of a node: change of the metric when the node is set to {set_to}, {where}, "
        f"mean over {counted(circuit.n_examples, 'example')}; blue raises the metric, red lowers "
        "it."
    )


def edges_at_errors(circuit: Circuit) -> str | None:
    """What is to be said of edges at error nodes, with what was measured; None without any."""
    ends = (end for edge in circuit.edges for end in edge[:2] if end is not None)
    if not any(circuit.nodes[end].is_error for end in ends):
        return None
    measured = circuit.settings.get("edge_agreement")
    return "Weights of edges from or into error nodes (ε) are the least reliable" + (
        "." if measured is None else f": {plain(measured)}."
    )


def left_out_text(circuit: Circuit, selection: Selection) -> str:
    """What the picture leaves out, or nothing."""
    n_nodes, n_edges = selection.n_nodes_left_out, selection.n_edges_left_out
    if not n_nodes and not n_edges:
        return ""
    drawn = (
        f"Drawn: the strongest {len(selection.nodes):,} of {len(circuit.nodes):,} nodes and "
        f"{len(selection.edges):,} of {counted(len(circuit.edges), 'edge')}; "
    )
    return drawn + f"left out: {counted(n_nodes, 'node')} and {counted(n_edges, 'edge')}."


def footer_parts(circuit: Circuit) -> list[str]:
    """Counts and the settings that matter to a reader, one text each."""
    n_errors = sum(node.is_error for node in circuit.nodes)
    parts = [
        f"{counted(len(circuit.nodes), 'node')} ({counted(n_errors, 'error')})",
        counted(len(circuit.edges), "edge"),
        counted(circuit.n_examples, "example"),
    ]
    known = circuit.settings
    return parts + [f"{text} {plain(known[key])}" for key, text in _FOOTER_SETTINGS if key in known]
