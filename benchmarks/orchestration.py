"""What thousands of circuits cost besides finding them: `python -m benchmarks.orchestration`.

    python -m benchmarks.orchestration --clusters 10 100 1000
    ... --note          # also append dated rows to benchmarks/README.md

The default's model reads its own text through random dictionaries; samples are dealt to clusters
in turn. Effects and faithfulness are computed for the first cluster and taken for all others, so
that what is left is what each circuit costs besides. Each run is a process of its own. CPU time is
sampled by what the process is at: see `WHOLE` and `OWN`.

Runs: the first; a second with nothing to do; one after a circuit's table was deleted; a plan; and
what the UI asks to draw its graph.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from assets.engine.events import ONE_PLANNED_EVENT
from benchmarks.record import append_row, machine

ROOT = Path(__file__).parents[1]
EVERY = 0.005
WHOLE: Mapping[str, Sequence[str]] = {
    "checks": ("assets/checks.py",),
    "pictures": ("core/pictures/", "assets/plots.py"),
    "showing": ("assets/engine/asset.py:_metadata",),
    "summaries": (
        "assets/evaluations/summary.py",
        "assets/evaluations/overlap.py",
        "assets/features/",
    ),
    "files": ("assets/engine/store.py", "assets/engine/records.py"),
}
"""Parts of the work by files, or functions of files, with all that these call: a file that a check
reads belongs to checks."""
OWN: Mapping[str, Sequence[str]] = {
    "circuits as tables": ("core/", "assets/", "pipelines/"),
    "Dagster": ("/dagster/",),
}
"""The rest, by whose code it is at."""
PARTS = (*WHOLE, *OWN)

STAGES = (
    "cluster_behaviours",
    "circuits",
    "circuit_evaluations",
    "evaluation_summary",
    "circuit_overlap",
    "feature_circuits",
)
N_EACH, N_FEATURES = 3, 1024


# -- an experiment of so many clusters -------------------------------------------------------------


def settings(n_clusters: int) -> dict[str, Any]:
    """What its file says."""
    return {
        "model": {"source": str(ROOT / "testbed/model"), "n_layers": 4, "workers": 1},
        "corpus": {"source": "corpus.jsonl", "labels_column": "labels", "n_held_out": 8},
        "dictionaries": {
            "source": "import",
            "format": "sfc",
            "repository": "dictionaries",
            "path": "{submodule}.safetensors",
        },
        "filter": {"max_loss": 2.0, "n_samples": N_EACH * n_clusters, "seed": 0},
        "clustering": {
            "representation": "activations",
            "reduction": "last",
            "algorithm": "kmeans",
            "k": n_clusters,
        },
        "circuits": {
            "rule": "midpoint",
            "steps": 2,
            "node_threshold": 0.2,
            "edge_threshold": 0.1,
            "n_examples": N_EACH,
            "stability": None,
            "n_evaluated": 1,
            "max_length": 32,
        },
        "evaluations": {
            "error_nodes": ["circuit"],
            "n_thresholds": 2,
            "n_examined": 0,
            "variants": [],
            "approximations": None,
        },
        "checks": {"min_variance_explained": None},
        "artifacts": "artifacts",
    }


def prepare(folder: Path, n_clusters: int) -> Path:
    """Write the experiment and make what lies above its behaviours; its file."""
    import torch

    from core.dictionaries import Dictionary, TopK
    from core.dictionaries.files import save_dictionary
    from pipelines.experiment import read_experiment

    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(settings(n_clusters)), encoding="utf-8")
    command = [sys.executable, "-m", "testbed.generate", "--out", str(folder)]
    command += ["--documents", str(200 + n_clusters)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (folder / "dictionaries").mkdir()
    torch.manual_seed(0)
    for submodule in read_experiment(path).submodules:
        rows = torch.nn.functional.normalize(torch.randn(N_FEATURES, 128), dim=1)
        none, bias = torch.zeros(N_FEATURES), torch.zeros(128)
        dictionary = Dictionary(rows, none, 0.2 * rows, bias, bias, TopK(32))
        save_dictionary(dictionary, folder / "dictionaries" / f"{submodule}.safetensors")
    bring_up_to(path, n_clusters)
    return path


def bring_up_to(path: Path, n_clusters: int) -> None:
    """Everything up to the clusters, which are dealt and not found."""
    import numpy as np

    from assets.discovery.clusterings import CLUSTER_ASSIGNMENTS_STAGE, assignments_made
    from assets.engine.stage import PartitionedStage
    from assets.engine.store import ArtifactStore
    from assets.tables.places import FILTERED_TOKENS, assignments
    from core.discovery import Clustering
    from pipelines.experiment import read_experiment
    from pipelines.stages import stages_of

    experiment = read_experiment(path)
    store = ArtifactStore(experiment.artifacts)
    for stage in stages_of(experiment):
        if stage.name == STAGES[0]:
            return
        if stage is CLUSTER_ASSIGNMENTS_STAGE:
            n = store.n_rows(FILTERED_TOKENS)
            dealt = Clustering(np.arange(n) % n_clusters, np.ones(n), n_clusters, [], "kmeans")
            made = assignments_made(dealt)
            recipe = CLUSTER_ASSIGNMENTS_STAGE.recipe(experiment)
            store.write(assignments(), made.table, recipe, notes=made.notes)  # pyright: ignore[reportArgumentType]
        elif isinstance(stage, PartitionedStage):
            stage.run(experiment, stage.partitions(experiment))
        else:
            stage.run(experiment)


# -- what a process does ---------------------------------------------------------------------------


def part_of(frame: FrameType | None) -> str:
    """Which of `PARTS` a stack, from its innermost frame on, belongs to."""
    places = []
    while frame is not None:
        places.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
        frame = frame.f_back
    for part, marks in WHOLE.items():
        if any(_is_at(place, mark) for mark in marks for place in places):
            return part
    for place in places:
        for part, marks in OWN.items():
            if any(_is_at(place, mark) for mark in marks):
                return part
    return "other"


def _is_at(place: str, mark: str) -> bool:
    if mark.startswith("/"):
        return mark in place
    where = f"{ROOT}/{mark}"
    return place.startswith(where) if mark.endswith("/") else place.startswith(where.rstrip(":"))


@contextmanager
def sampled(spent: Counter[str]) -> Iterator[None]:
    """Count CPU seconds of this process by what it is at."""
    last = time.process_time()

    def note(_signal: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.process_time()
        spent[part_of(frame)] += now - last  # pyright: ignore[reportArgumentType]
        last = now

    before = signal.signal(signal.SIGPROF, note)
    signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def measure(path: Path, what: str) -> dict[str, float]:
    """What one run, or one plan, takes in this process; CPU seconds by part."""
    import dagster as dg
    import torch

    from assets.engine.stage import Work
    from pipelines.experiment import read_experiment
    from pipelines.plan import make_plan
    from pipelines.run import run_experiment
    from pipelines.stages import stages_of

    torch.set_num_threads(1)
    experiment = read_experiment(path)
    stages = [stage for stage in stages_of(experiment) if stage.name in STAGES]
    spent, took = Counter[str](), dict[str, float]()
    _compute_once()
    if what == "first":  # what it takes to start is no matter of how many circuits there are
        load = Work.on(experiment).load
        load.model()
        load.dictionaries()
    began = time.process_time()
    with dg.DagsterInstance.get() as instance, sampled(spent):
        if what == "plan":
            make_plan(experiment, by_itself=False)
        elif what == "ui":
            _ask(path, instance)
        else:
            for one in run_experiment(experiment, instance, stages):
                took[f"stage {one.stage}"] = one.seconds
    gc.collect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**spent, **took, "CPU": time.process_time() - began, "MiB": peak}


def _ask(path: Path, instance: Any) -> None:
    """What the UI asks for its graph: the definitions, and which partitions there are of each."""
    import dagster as dg
    from dagster._core.remote_representation.external_data import RepositorySnap
    from dagster._core.storage.partition_status_cache import (
        get_and_update_asset_status_cache_value,
    )

    from pipelines.definitions import build_definitions

    repository = build_definitions([path]).get_repository_def()
    dg.serialize_value(RepositorySnap.from_def(repository))
    for key in repository.asset_graph.materializable_asset_keys:
        partitions = repository.asset_graph.get(key).partitions_def
        get_and_update_asset_status_cache_value(instance, key, partitions)


def _compute_once() -> None:
    """Let every circuit have the effects, the edges and the faithfulness of the first."""
    from assets.evaluations import stages
    from core import circuit

    attribute, judge = circuit.attribute, stages._judge
    effects: list[_Same] = []
    points: list[dict[str, Any]] = []

    def same_effects(*given: Any, **named: Any) -> _Same:
        effects[:] = effects or [_Same(attribute(*given, **named))]
        return effects[0]

    def same_points(source: Any, work: Any, behaviour: Any, found: Any, job: Any) -> Any:
        points[:] = points or judge(source, work, behaviour, found, job)
        return [{**point, "name": job.key} for point in points]

    circuit.attribute = same_effects
    stages._judge = same_points


class _Same:
    """Effects whose circuits are computed once for each pair of thresholds."""

    def __init__(self, effects: Any) -> None:
        self._effects = effects
        self._known: dict[tuple[float, float], Any] = {}

    def circuit(self, **how: Any) -> Any:
        """See `core.circuit.Attributed`."""
        thresholds = how["node_threshold"], how["edge_threshold"]
        if thresholds not in self._known:
            self._known[thresholds] = self._effects.circuit(**how)
        return replace(self._known[thresholds], settings=how.get("settings", {}))


def in_a_process(path: Path, what: str) -> dict[str, float]:
    """`measure` there, with an instance of Dagster's beside the experiment."""
    command = [sys.executable, "-m", "benchmarks.orchestration", "--measure", what, str(path)]
    home = {"DAGSTER_HOME": str(path.parent / "dagster"), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **dict([ONE_PLANNED_EVENT]), **home}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _write_instance(home: Path) -> None:
    """Dagster's settings as in the checkout, with its storage in this folder."""
    chosen = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    chosen["storage"]["custom"]["config"]["base_dir"] = str(home / "storage")
    kept = {name: chosen[name] for name in ("storage", "telemetry")}
    (home / "dagster.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")


def size(folder: Path) -> int:
    """Bytes of all files below it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def n_files(folder: Path) -> int:
    """How many there are."""
    return sum(file.is_file() for file in folder.rglob("*"))


def bench(n_clusters: int, *, details: bool) -> dict[str, str]:
    """All runs of an experiment of so many clusters, as a line of a table."""
    with tempfile.TemporaryDirectory() as temporary:
        path = prepare(Path(temporary), n_clusters)
        artifacts, dagster = path.parent / "artifacts", path.parent / "dagster"
        dagster.mkdir()
        _write_instance(dagster)
        before = size(artifacts), n_files(artifacts)
        first = in_a_process(path, "first")
        made, n_made = size(artifacts) - before[0], n_files(artifacts) - before[1]
        noted = size(dagster)
        again = in_a_process(path, "later")
        grown = size(dagster) - noted
        (artifacts / "circuits/clusters/k00001/nodes.parquet").unlink()
        one = in_a_process(path, "later")
        plan = in_a_process(path, "plan")
        asked = in_a_process(path, "ui")
    runs = {"first": first, "again": again, "one": one, "plan": plan, "ui": asked}
    if details:
        for what, spent in runs.items():
            told = ", ".join(f"{name} {value:.2f}" for name, value in spent.items())
            print(f"  {what}: {told}", flush=True)
    outside = {part: first.get(part, 0.0) for part in PARTS}
    return {
        "clusters": f"{n_clusters:,}",
        "CPU ms each": _each(sum(outside.values()), n_clusters),
        **{name: _each(seconds, n_clusters) for name, seconds in outside.items()},
        "files each": f"{n_made / n_clusters:.1f}",
        "KiB each": f"{made / n_clusters / 1024:.1f}",
        ".dagster, KiB each": f"{noted / n_clusters / 1024:.1f}",
        "nothing to do, CPU s": f"{again['CPU']:.1f}",
        "KiB added": f"{grown / 1024:.0f}",
        "one to do, CPU s": f"{one['CPU']:.1f}",
        "plan, CPU s": f"{plan['CPU']:.1f}",
        "UI's graph, CPU s": f"{asked['CPU']:.1f}",
        "peak, MiB": f"{first['MiB']:.0f}",
    }


def _each(seconds: float, n: int) -> str:
    return f"{1000 * seconds / n:.0f}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__)
    parser.add_argument("--clusters", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--note", action="store_true", help="add rows to benchmarks/README.md")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FILE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """The command."""
    chosen = parse()
    if chosen.measure:
        print(json.dumps(measure(Path(chosen.measure[1]), chosen.measure[0])))
        return
    for n_clusters in chosen.clusters:
        row = bench(n_clusters, details=True)
        print("; ".join(f"{name}: {value}" for name, value in row.items()), flush=True)
        if chosen.note:
            append_row("Orchestration", {**machine(), **row})


if __name__ == "__main__":
    main()
