"""How long the explorer's pages take: `python -m benchmarks.explorer`.

On made-up tables of 2,000 clusters of 100 nodes and a circuit of 5,000 nodes and 30,000 edges, each
page is asked for once cold (nothing of it read before) and then again; the row gives the slower of
three later answers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from starlette.testclient import TestClient

from benchmarks.record import append_row, machine
from explorer.app import Explorer
from tests.explorer.made_up import MadeUp

ADDRESS = "http://127.0.0.1:3001"


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clusters", type=int, default=2000)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--record", action="store_true", help="add a row to benchmarks/README.md")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = MadeUp(Path(folder), n_clusters=chosen.clusters, n_layers=6, n_features=4096)
        made.all(n_nodes=100, n_edges=300)
        made.circuit("tasks", "simple", made.nodes(chosen.nodes, True), 6 * chosen.nodes)
        explorer = Explorer([made.experiment])
        reader = explorer.readers["made_up"]
        client = TestClient(explorer.app(), ADDRESS)
        large = reader.circuit("tasks", "simple")
        assert large is not None
        strongest = max(large.nodes, key=lambda node: abs(node.effect) * (not node.is_error))
        feature = strongest._replace(pos=None).name
        pages = {
            "clusters": "/made_up/clusters",
            "sorted, last page": "/made_up/clusters?sort=error_share&order=up&page=20",
            "search": "/made_up/clusters?q=cat+the",
            "circuit": "/made_up/clusters/k01000?sort=largest_share",
            "large circuit": "/made_up/tasks/simple",
            "large, 250 drawn": "/made_up/tasks/simple?nodes=250",
            "its node": f"/made_up/tasks/simple/node?name={strongest.name}",
            "feature": f"/made_up/features/{feature}",
            "alike": "/made_up/tasks/simple?alike=1",
            "compare": "/made_up/compare?a=tasks/simple&b=clusters/k00001",
            "annotate": "/made_up/annotate/tasks/simple",
            "blind": "/made_up/annotate/tasks/simple?blind=1&seed=1",
            "file": "/made_up/tasks/simple/file/html",
            "graph JSON": "/made_up/tasks/simple/file/graph-json",
        }
        row = {**machine(), "start": f"{seconds(reader.warm):.1f}"}

        def ask(address: str) -> float:
            took = seconds(lambda: answers.append(client.get(address)))
            assert answers[-1].status_code == 200, address
            return took

        answers = []
        for name, address in pages.items():
            first = ask(address)
            later = max(ask(address) for _ in range(3))
            row[name] = f"{later:.2f}"
            print(f"{name:20} {first:6.2f} s cold, {later:6.2f} s")
    if chosen.record:
        append_row("Explorer", row)


if __name__ == "__main__":
    main()
