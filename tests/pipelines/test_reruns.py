"""What a change starts by itself: which stages, in how many runs, in which order.

The sensor is looked through as the daemon does, and what it asks for is run in this process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.engine.lock import alone
from assets.engine.store import ArtifactStore
from assets.tables.places import circuit, sae
from pipelines.definitions import build_definitions
from pipelines.experiment import read_experiment
from pipelines.reruns import PASS, rerun_sensor
from pipelines.run import run_experiment
from pipelines.stages import stages_of
from tests.tiny_experiment import QUICK, brought_up_to_date, tiny_experiment, write_experiment

IMPORTED = {"source": "import", "format": "sfc", "repository": "./set", "path": "{submodule}"}
FROM_SET = [
    *("dictionary_set", "import_checks", "cluster_vectors", "cluster_assignments", "clusters"),
    *("cluster_behaviours", "circuits", "circuit_evaluations", "circuit_baselines"),
    *("circuit_approximations", "circuit_edge_evaluations", "task_circuits", "task_evaluations"),
    *("task_baselines", "task_approximations", "evaluation_summary", "circuit_overlap"),
    *("circuit_transfer", "task_edge_evaluations"),
    *("feature_circuits", "cards", "rule_labels", "labels", "report"),
]
"""What follows from another dictionary, in order."""
FROM_CIRCUITS = [
    [
        *("circuits", "circuit_evaluations", "circuit_baselines", "evaluation_summary"),
        *("circuit_overlap", "circuit_transfer", "circuit_edge_evaluations", "feature_circuits"),
    ],
    ["cards", "rule_labels", "report"],
]
"""What follows from other circuits of clusters, run by run."""
_QUIET = {"telemetry": {"enabled": False}}

pytestmark = pytest.mark.usefixtures("undrawn")


class Daemon:
    """Looks again and again, as the daemon does, and runs what is asked for."""

    def __init__(self, path: Path, instance: dg.DagsterInstance) -> None:
        self.path, self.instance = path, instance
        self.cursor: str | None = None
        self.told = ""
        self.observed: list[str] = []

    def look(self) -> list[dg.RunRequest]:
        """What one look asks for."""
        experiment = read_experiment(self.path)
        context = dg.build_sensor_context(self.instance, cursor=self.cursor)
        found: Any = rerun_sensor(experiment)(context)
        assert isinstance(found, dg.SensorResult)
        self.cursor = found.cursor
        self.told = str(found.skip_reason.skip_message) if found.skip_reason else ""
        for event in found.asset_events:
            self.observed.append(event.asset_key.path[-1])
            self.instance.report_runless_asset_event(event)
        return list(found.run_requests or [])

    def asked(self) -> list[str]:
        """The stages of the first run that is asked for once everything rests, in order."""
        assert not self.look()
        (request,) = self.look()
        return [key.path[-1] for key in request.asset_selection or []]

    def rest(self, n_looks: int = 12) -> list[list[str]]:
        """Look until nothing is asked for; the stages of each run, those that did anything."""
        runs: list[list[str]] = []
        for _ in range(n_looks):
            for request in self.look():
                runs.append(self.run(request))
        assert not self.look()
        return runs

    def run(self, request: dg.RunRequest) -> list[str]:
        """Make what was asked for; the stages that made anything anew, in order."""
        experiment, made = read_experiment(self.path), []
        asked = {key.path[-1] for key in request.asset_selection or []}
        for stage in stages_of(experiment):
            if stage.name in asked:
                every = [stage.partitions(experiment)] if hasattr(stage, "partitions") else []
                made += [stage.name] * bool(stage.run(experiment, *every))
        return made

    def run_in_dagster(self, request: dg.RunRequest) -> bool:
        """Execute what was asked for as a run; whether it succeeded."""
        job = build_definitions([self.path]).resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=list(request.asset_selection or []),
            tags=dict(request.tags),
            raise_on_error=False,
        ).success


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> Path:
    """A finished experiment with imported dictionaries, and what Dagster knows of it."""
    folder = tmp_path_factory.mktemp("made")
    trained = tiny_experiment(folder, **QUICK)
    brought_up_to_date(trained, "saes")
    (folder / "set").mkdir()
    for file in (trained.artifacts / "saes").glob("*.safetensors"):
        shutil.copy(file, folder / "set" / file.stem)
    shutil.rmtree(trained.artifacts)
    path = write_experiment(folder, dictionaries=None, imported=IMPORTED, **QUICK)
    path.write_text(path.read_text().replace("imported:", "dictionaries:"))
    (folder / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(folder / "dagster"), _QUIET) as instance:
        run_experiment(read_experiment(path), instance)
    return folder


@pytest.fixture
def daemon(made_once: Path, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that has looked until it rests."""
    shutil.copytree(made_once, tmp_path / "made")
    with dg.DagsterInstance.local_temp(str(tmp_path / "made" / "dagster"), _QUIET) as instance:
        found = Daemon(tmp_path / "made" / "tiny.yaml", instance)
        assert found.rest(3) == []
        found.observed.clear()
        yield found


def _retrained(daemon: Daemon, submodule: str, factor: float) -> None:
    """Another dictionary of a submodule, its decoder scaled: in place of the one imported."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = daemon.path.parent / "set" / submodule
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    weights = load_file(file)
    save_file({name: factor * value for name, value in weights.items()}, file, about)


def _shown_as_stale(daemon: Daemon) -> set[str]:
    """Assets that Dagster itself says are not fresh, partitions included."""
    from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
    from dagster._core.loader import LoadingContextForTest

    graph = build_definitions([daemon.path]).get_repository_def().asset_graph
    context = LoadingContextForTest(daemon.instance)
    resolver = CachingStaleStatusResolver(daemon.instance, graph, context)
    return {
        key.path[-1]
        for key in graph.materializable_asset_keys
        for names in [graph.get(key).partitions_def]
        for partition in (names.get_partition_keys() if names else [None])
        if resolver.get_status(key, partition) != StaleStatus.FRESH
    }


def _weights(daemon: Daemon, submodule: str) -> str:
    return ArtifactStore(read_experiment(daemon.path).artifacts).notes(sae(submodule))["weights"]


def test_nothing_changed_asks_for_nothing_and_says_so(daemon: Daemon) -> None:
    assert daemon.look() == []
    assert daemon.told == "Nothing to run."
    assert daemon.observed == []


def test_a_changed_dictionary_file_is_one_pass_in_order(daemon: Daemon) -> None:
    before = _weights(daemon, "attn_0"), _weights(daemon, "embed")
    _retrained(daemon, "attn_0", 1.1)
    assert daemon.look() == []
    assert daemon.told == "Files changed since the last look: waits until they rest."
    runs = daemon.rest()
    assert [stage for run in runs for stage in run] == ["saes", *FROM_SET]
    assert len(runs) == 4  # a range of submodules, of clusters, of tasks, and of cards
    assert daemon.observed == ["dictionary_files"]
    assert _weights(daemon, "attn_0") != before[0]
    assert _weights(daemon, "embed") == before[1]


def test_after_a_pass_nothing_shows_as_stale(daemon: Daemon) -> None:
    assert _shown_as_stale(daemon) == set()
    _retrained(daemon, "attn_0", 1.1)
    daemon.look()
    asked = daemon.look()
    assert _shown_as_stale(daemon) == {"saes"}
    while asked:
        assert daemon.run_in_dagster(asked[0])
        asked = daemon.look() or daemon.look()
    assert _shown_as_stale(daemon) == set()


def _n_reports(daemon: Daemon) -> int:
    keys = [dg.AssetKey(["tiny", s.name]) for s in stages_of(read_experiment(daemon.path))]
    found = [daemon.instance.fetch_materializations(key, limit=1000).records for key in keys]
    return sum(map(len, found))


def test_dagster_is_told_what_it_does_not_know_and_nothing_again(daemon: Daemon) -> None:
    text = daemon.path.read_text()
    daemon.path.write_text(text.replace("node_threshold: 0.01", "node_threshold: 0.02"))
    daemon.rest()  # without Dagster
    assert _shown_as_stale(daemon) != set()
    experiment = read_experiment(daemon.path)
    run_experiment(experiment, daemon.instance)
    assert _shown_as_stale(daemon) == set()
    before = _n_reports(daemon)
    told = {"contexts", "saes", "circuits", "circuit_evaluations", "evaluation_summary"}
    stages = [stage for stage in stages_of(experiment) if stage.name in told]
    run_experiment(experiment, daemon.instance, stages)
    assert _n_reports(daemon) == before
    ArtifactStore(experiment.artifacts).path(circuit("clusters", "k00001", "edges")).unlink()
    run_experiment(experiment, daemon.instance, stages)
    assert _n_reports(daemon) == before + 1


def test_the_same_bytes_again_start_nothing(daemon: Daemon) -> None:
    file = daemon.path.parent / "set" / "attn_0"
    file.write_bytes(file.read_bytes())
    assert daemon.rest() == []


def test_a_retrained_dictionary_reaches_dagster_partition_by_partition(daemon: Daemon) -> None:
    def versions() -> dict[str, str]:
        tags = daemon.instance.event_log_storage.get_latest_tags_by_partition(
            dg.AssetKey(["tiny", "saes"]),
            dg.DagsterEventType.ASSET_MATERIALIZATION,
            ["dagster/data_version"],
        )
        return {key: found["dagster/data_version"] for key, found in tags.items()}

    before = versions()
    assert set(before) == {"embed", "attn_0", "resid_0", "resid_1"}
    _retrained(daemon, "resid_1", 1.05)
    daemon.look()
    (asked,) = daemon.look()
    assert daemon.run_in_dagster(asked)
    after = versions()
    assert {key for key in after if after[key] != before[key]} == {"resid_1"}


def test_an_appended_document_runs_all_that_reads_the_corpus(daemon: Daemon) -> None:
    file = daemon.path.parent / "corpus.jsonl"
    with file.open("a") as opened:
        opened.write(json.dumps({"text": "the old cat sees a dog", "labels": ["other"] * 6}) + "\n")
    runs = daemon.rest()
    stages = [stage for run in runs for stage in run]
    assert stages[0] == "contexts"
    assert stages.index("dictionary_set") < stages.index("filtered_tokens")
    assert "circuits" in stages
    assert "saes" not in stages
    assert daemon.observed == ["corpus_files"]
    assert len(runs) <= 4


def test_a_changed_setting_runs_what_depends_on_it_and_changed_back_again(
    daemon: Daemon,
) -> None:
    text = daemon.path.read_text()
    for threshold in ("0.02", "0.01"):
        changed = f"node_threshold: {threshold}"
        daemon.path.write_text(text.replace("node_threshold: 0.01", changed))
        assert daemon.rest() == FROM_CIRCUITS


def test_a_cancelled_half_is_left_to_whoever_cancelled_it(daemon: Daemon) -> None:
    text = daemon.path.read_text()
    daemon.path.write_text(text.replace("node_threshold: 0.01", "node_threshold: 0.02"))
    assert daemon.look() == []
    (_asked,) = daemon.look()  # the run is cancelled after one circuit
    experiment = read_experiment(daemon.path)
    (stage,) = [one for one in stages_of(experiment) if one.name == "circuits"]
    stage.run(experiment, ["k00000"])
    assert daemon.rest(4) == []
    assert daemon.told.startswith("Asked for before, and not done: circuits")
    # The next change takes the other half along.
    daemon.path.write_text(text.replace("node_threshold: 0.01", "node_threshold: 0.03"))
    assert daemon.rest()[0][:2] == ["circuits", "circuit_evaluations"]


def test_a_deleted_part_of_a_circuit_is_made_again(daemon: Daemon) -> None:
    experiment = read_experiment(daemon.path)
    store = ArtifactStore(experiment.artifacts)
    for part in (store.path(circuit("clusters", "k00001", "nodes")),):
        part.unlink()
        runs = daemon.rest()
        assert runs[0][0] == "circuits"
        assert part.is_file()


def test_the_same_loss_again_is_made_good_again(daemon: Daemon) -> None:
    experiment = read_experiment(daemon.path)
    lost = ArtifactStore(experiment.artifacts).path(circuit("clusters", "k00000", "edges"))
    for _ in range(2):
        lost.unlink()
        assert daemon.rest()[0] == ["circuits"]
        assert lost.is_file()


@pytest.mark.parametrize("cursor", ["garbage", "[]", "null", '{"versions": 3}'])
def test_a_strange_cursor_is_begun_anew(daemon: Daemon, cursor: str) -> None:
    daemon.cursor = cursor
    assert daemon.rest(3) == []
    assert daemon.told == "Nothing to run."


def test_a_link_to_nowhere_among_the_artifacts_does_no_harm(daemon: Daemon) -> None:
    (read_experiment(daemon.path).artifacts / "circuits" / "link").symlink_to("/nowhere")
    assert daemon.rest(3) == []
    assert daemon.told == "Nothing to run."


def test_new_partitions_are_asked_for_once_the_definitions_are_reloaded(daemon: Daemon) -> None:
    loaded, text = read_experiment(daemon.path), daemon.path.read_text()
    daemon.path.write_text(text.replace("  k: 3", "  k: 5").replace("clusters: 4", "clusters: 6"))
    daemon.look()
    for _ in range(2):
        found: Any = rerun_sensor(loaded)(
            dg.build_sensor_context(daemon.instance, cursor=daemon.cursor)
        )
        daemon.cursor = found.cursor
        assert "reload the definitions" in found.skip_reason.skip_message
    assert daemon.look()  # with definitions of now


def test_whatever_a_file_makes_a_library_raise_is_said(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    from assets.dictionaries import stages

    def broken(_work: Any, _settings: Any) -> dict[str, str]:
        raise ValueError("no header\nin the file")

    monkeypatch.setattr(stages, "import_inputs", broken)
    _retrained(daemon, "attn_0", 1.1)
    assert daemon.rest(3) == []
    assert "dictionary_files: ValueError: no header in the file" in daemon.told
    assert "saes: ValueError: no header in the file" in daemon.told
    monkeypatch.undo()
    (daemon.path.parent / "set" / "attn_0").touch()
    assert daemon.asked()[0] == "saes"
    assert daemon.observed == ["dictionary_files"]


def test_another_experiment_whose_name_goes_on_is_not_waited_for(daemon: Daemon) -> None:
    @dg.job
    def tiny_too_everything() -> None:
        pass

    daemon.instance.create_run_for_job(tiny_too_everything, status=dg.DagsterRunStatus.STARTED)
    _retrained(daemon, "attn_0", 1.1)
    daemon.look()
    assert daemon.look()


def test_a_vanished_file_is_said_and_starts_nothing(daemon: Daemon) -> None:
    file = daemon.path.parent / "corpus.jsonl"
    file.rename(file.with_suffix(".away"))
    assert daemon.rest(3) == []
    assert "corpus.jsonl does not exist" in daemon.told
    file.with_suffix(".away").rename(file)
    assert daemon.rest(3) == []
    assert daemon.told == "Nothing to run."


def test_a_file_that_is_still_being_written_is_waited_for(daemon: Daemon) -> None:
    file = daemon.path.parent / "corpus.jsonl"
    for _ in range(3):
        with file.open("a") as opened:
            opened.write(json.dumps({"text": "a dog", "labels": ["other"] * 2}) + "\n")
        assert daemon.look() == []
    assert daemon.look()


def test_a_broken_experiment_file_is_said_and_starts_nothing(daemon: Daemon) -> None:
    loaded = read_experiment(daemon.path)
    daemon.path.write_text(daemon.path.read_text() + "nonsense: 1\n")
    found: Any = rerun_sensor(loaded)(dg.build_sensor_context(daemon.instance))
    assert "nonsense" in found.skip_reason.skip_message


def test_what_was_never_made_waits_for_a_hand(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path, **QUICK)
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(experiment.path, instance)
        assert daemon.rest(3) == []
    assert "contexts: 1 never made" in daemon.told


def test_training_waits_until_it_is_asked_for_or_allowed(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path, **QUICK)
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster"), _QUIET) as instance:
        brought_up_to_date(experiment)
        daemon = Daemon(experiment.path, instance)
        daemon.rest(3)
        write_experiment(tmp_path, dictionaries={"seed": 1}, **QUICK)
        assert daemon.rest(3) == []
        assert "saes: 4 partitions: settings changed: seed: training is dear" in daemon.told
        assert "circuits: waits for " in daemon.told
        write_experiment(tmp_path, dictionaries={"seed": 1}, reruns={"training": True}, **QUICK)
        assert daemon.asked()[0] == "saes"


def test_a_shuffled_half_is_one_request(daemon: Daemon) -> None:
    experiment = read_experiment(daemon.path)
    store = ArtifactStore(experiment.artifacts)
    for name in ("k00000", "k00002"):
        store.path(circuit("clusters", name, "edges")).unlink()
    assert daemon.look() == []
    (asked,) = daemon.look()
    assert asked.tags["dagster/asset_partition_range_start"] == "k00000"
    assert asked.tags["dagster/asset_partition_range_end"] == "k00002"
    daemon.run(asked)


def test_nothing_is_asked_for_while_somebody_works(daemon: Daemon) -> None:
    experiment = read_experiment(daemon.path)
    _retrained(daemon, "attn_0", 1.2)
    daemon.look()
    with alone(experiment.artifacts, PASS, lambda _told: None):
        assert daemon.look() == []
        assert daemon.told == "At work: make run."
    daemon.instance.create_run_for_job(
        build_definitions([daemon.path]).resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset({dg.AssetKey(["tiny", "circuits"])}),
        status=dg.DagsterRunStatus.STARTED,
    )
    assert daemon.look() == []
    assert daemon.told.startswith("At work: run ")


def test_a_failed_check_holds_what_it_blocks(daemon: Daemon) -> None:
    text = daemon.path.read_text()
    daemon.path.write_text(text + "checks: {min_variance_explained: 0.999999}\n")
    _retrained(daemon, "attn_0", 1.3)
    daemon.look()
    (asked,) = daemon.look()
    assert not daemon.run_in_dagster(asked)
    assert daemon.rest(4) == []
    assert "blocked by set_is_usable" in daemon.told


def test_a_new_commit_on_the_hub_is_seen_only_if_asked_for(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import reruns

    asked: list[str] = []
    monkeypatch.setattr(reruns, "hub_commits", lambda one: asked.append(one.name) or {})
    daemon.rest(2)
    assert not asked
    daemon.path.write_text(daemon.path.read_text() + "reruns: {hub: true}\n")
    daemon.rest(3)
    assert asked == ["tiny"]
