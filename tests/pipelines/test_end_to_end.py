"""All stages of an experiment, run for real through Dagster."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import dagster as dg
import pytest

from assets.circuits.stages import load_circuit
from assets.dictionaries.stages import SAES
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, ExperimentError
from assets.tables.places import (
    DICTIONARY_SET,
    EVALUATION_SUMMARY,
    behaviours,
    circuit,
    clusters,
    evaluation,
    examples,
    sae,
)
from core.errors import InputError, ModelError
from pipelines.experiment import read_experiment
from pipelines.report import report
from pipelines.run import Took, run_experiment
from pipelines.show import main as show
from pipelines.stages import stages_of
from tests.tiny_experiment import (
    QUICK,
    brought_up_to_date,
    tiny_experiment,
    write_experiment,
    write_model,
)

pytestmark = pytest.mark.usefixtures("undrawn")
SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, instance: dg.DagsterInstance, undrawn: None
) -> Experiment:
    """The tiny experiment, run once."""
    experiment = tiny_experiment(tmp_path_factory.mktemp("tiny"), **QUICK)
    took = run_experiment(experiment, instance)
    assert sorted(step.stage for step in took) == sorted(s.name for s in stages_of(experiment))
    assert all(step.peak_mib > 10 for step in took)
    return experiment


def _store(experiment: Experiment) -> ArtifactStore:
    return ArtifactStore(experiment.artifacts)


def _times(experiment: Experiment) -> dict[str, int]:
    """When each file of the store was last written."""
    files = experiment.artifacts.rglob("*.parquet")
    return {str(p.relative_to(experiment.artifacts)): p.stat().st_mtime_ns for p in files}


def _changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """The parts of the store with a file that was written again."""
    written = {name for name in after if after[name] != before.get(name)}
    return {
        name.rsplit("/", name.count("/") - 1 or 1)[0].removesuffix(".parquet") for name in written
    }


def test_every_stage_is_materialized_and_seen_by_dagster(
    finished: Experiment, instance: dg.DagsterInstance
) -> None:
    for stage in stages_of(finished):
        key = dg.AssetKey(["tiny", stage.name])
        assert instance.get_latest_materialization_event(key) is not None, stage.name


def test_every_partition_is_materialized_with_its_own_metadata(
    finished: Experiment, instance: dg.DagsterInstance
) -> None:
    key = dg.AssetKey(["tiny", "circuits"])
    assert instance.get_materialized_partitions(key) == set(finished.clusters)
    event = instance.get_latest_materialization_event(key)
    assert event is not None
    materialization = event.asset_materialization
    assert materialization is not None
    assert {"nodes", "dagster/row_count", "settings"} <= materialization.metadata.keys()


def test_checks_are_evaluated_with_their_stage(
    finished: Experiment, instance: dg.DagsterInstance
) -> None:
    key = dg.AssetCheckKey(dg.AssetKey(["tiny", "dictionary_set"]), "set_is_usable")
    found = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    assert found, "the blocking check of the dictionaries ran"


def test_a_circuit_names_where_it_comes_from(finished: Experiment) -> None:
    store = _store(finished)
    found = load_circuit(store, "clusters", "k00000")
    assert found is not None
    assert found.nodes
    made_from = found.settings["made_from"]
    assert isinstance(made_from, dict)
    assert made_from["dictionary_set"] == store.content(DICTIONARY_SET)
    (digest,) = [
        row["digest"]
        for row in store.read(behaviours("clusters")).to_pylist()
        if row["name"] == "k00000"
    ]
    assert made_from["behaviour"] == digest
    assert found.settings["model"] == "./model"
    assert store.notes(circuit("clusters", "k00000"))["settings"]["node_threshold"] == 0.01


def test_an_empty_cluster_has_an_empty_circuit(finished: Experiment) -> None:
    # Three clusters were asked for, so a fourth partition would be one too many.
    assert finished.clusters == ["k00000", "k00001", "k00002"]
    store = _store(finished)
    sizes = store.read(clusters())["size"].to_pylist()
    for cluster in finished.clusters[len(sizes) :]:
        assert load_circuit(store, "clusters", cluster) is None


def test_circuits_are_judged_on_examples_kept_back(finished: Experiment) -> None:
    store = _store(finished)
    rows = store.read(examples("clusters")).to_pylist()
    own = [row for row in rows if row["name"] == "k00000"]
    assert own
    assert not any(row["found"] and row["evaluated"] for row in own)
    judged = store.read(evaluation("clusters", "k00000")).to_pylist()
    assert [row["threshold"] for row in judged] == [None, pytest.approx(1e-3), pytest.approx(10)]
    assert all(row["held_out"] for row in judged)


def test_a_second_run_does_nothing_again(
    finished: Experiment, instance: dg.DagsterInstance
) -> None:
    before = _times(finished)
    run_experiment(finished, instance)
    assert _times(finished) == before


def test_a_changed_setting_redoes_only_what_depends_on_it(
    finished: Experiment, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished.path.parent, tmp_path / "copied")
    before = _times(finished)
    path = write_experiment(folder, circuits={"node_threshold": 0.02}, **QUICK)
    experiment = read_experiment(path)
    _run(experiment)
    changed = _changed(before, _times(experiment))
    assert "circuits/clusters" in changed
    after_circuits = {"feature_circuits", "cards", "labels"}
    assert changed <= {
        *("circuits/clusters", "evaluations/clusters", "edges/clusters", "baselines/clusters"),
        *("evaluation_summary", "circuit_overlap", "circuit_transfer", "report"),
        *after_circuits,
    }


def test_finished_dictionaries_can_be_imported_from_a_folder_and_from_an_archive(
    finished: Experiment, tmp_path: Path
) -> None:
    tiny_experiment(tmp_path)
    own = finished.artifacts / "saes"
    with zipfile.ZipFile(tmp_path / "saes.zip", "w") as archive:
        for file in own.glob("*.safetensors"):
            archive.write(file, f"set/{file.name}")
    folder = {"repository": str(own), "path": "{submodule}.safetensors"}
    zipped = {"repository": ".", "archive": "saes.zip", "path": "set/{submodule}.safetensors"}
    wanted = _store(finished)
    for name, where in (("folder", folder), ("zipped", zipped)):
        path = write_experiment(
            tmp_path,
            name,
            dictionaries=None,
            imported={"source": "import", "format": "sfc", **where},
            artifacts=f"./{name}",
        )
        path.write_text(path.read_text().replace("imported:", "dictionaries:"))
        experiment = read_experiment(path)
        assert SAES.run(experiment, experiment.submodules) == 4
        for submodule in experiment.submodules:
            weights = _store(experiment).notes(sae(submodule))["weights"]
            assert weights == wanted.notes(sae(submodule))["weights"]


def test_the_report_fits_a_terminal_and_names_what_was_found(finished: Experiment) -> None:
    text = report(finished, _store(finished))
    places = text.index("Where to look")
    told = [line for line in text[:places].splitlines() if not line.strip().startswith("/")]
    assert max(map(len, told)) <= 100
    for part in ("dictionaries of 32 features", "clusters of 24", "Faithfulness", "simple"):
        assert part in text
    assert re.search(r"k0000\d .*\[", text), "an example with its answer in brackets"


# -- what cannot work ------------------------------------------------------------------------------


def _run(experiment: Experiment) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run_experiment(experiment, instance)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path, model={"source": "./artifacts"})
    (tmp_path / "artifacts").mkdir()
    with pytest.raises(ModelError, match=r"artifacts' holds no tokenizer"):
        _run(experiment)


def test_without_a_network_a_hub_id_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    experiment = tiny_experiment(tmp_path, model={"source": "nobody/nothing-at-all"})
    with pytest.raises(ModelError, match="give the folder"):
        _run(experiment)


def test_a_corpus_without_text_is_refused(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path, corpus={"labels_column": None})
    (tmp_path / "corpus.jsonl").write_text('{"text": "  "}\n')
    with pytest.raises(InputError, match="no text"):
        _run(experiment)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path, model={"device": "cuda:77"})
    with pytest.raises(InputError, match="cuda:77"):
        _run(experiment)


def test_a_wrong_number_of_layers_is_refused(tmp_path: Path) -> None:
    experiment = tiny_experiment(tmp_path)
    write_model(tmp_path / "model", n_layers=3)
    with pytest.raises(ExperimentError, match="has 3 layers"):
        _run(experiment)


def test_a_read_only_artifacts_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    experiment = tiny_experiment(tmp_path, artifacts="./file/artifacts")
    with pytest.raises(ExperimentError, match="nothing can be written"):
        _run(experiment)


def test_a_useless_dictionary_stops_everything_after_it(tmp_path: Path) -> None:
    # One step of this size leaves weights that reconstruct far worse than the mean would.
    experiment = tiny_experiment(tmp_path, dictionaries={"steps": 1, "warmup": 0, "lr": 10.0})
    with pytest.raises(ExperimentError, match="set_is_usable"):
        _run(experiment)
    assert not (experiment.artifacts / "clusterings").exists()


def test_a_file_changed_under_a_running_job_changes_nothing_in_it(
    tmp_path: Path,
) -> None:
    experiment = tiny_experiment(tmp_path, tasks=None, **QUICK)

    def edit(took: Took) -> None:
        if took.stage == "contexts":
            write_experiment(tmp_path, tasks=None, circuits={"node_threshold": 5.0}, **QUICK)

    every = stages_of(experiment)
    to_circuits = every[: [stage.name for stage in every].index("circuits") + 1]
    with dg.DagsterInstance.ephemeral() as instance:
        run_experiment(experiment, instance, to_circuits, ended=edit)
    settings = _store(experiment).notes(circuit("clusters", "k00000"))["settings"]
    assert settings["node_threshold"] == 0.01


@pytest.mark.weights
@pytest.mark.skipif(not (SHARED / "models/stories260K").is_dir(), reason="no shared models")
def test_a_real_llama_gives_circuits(tmp_path: Path) -> None:
    experiment = tiny_experiment(
        tmp_path,
        model={"source": str(SHARED / "models/stories260K"), "n_layers": 5},
        corpus={
            "source": str(SHARED / "text/tinystories.txt"),
            "separator": "<|endoftext|>",
            "labels_column": None,
            "n_documents": 60,
            "n_positions": 32,
            "bos": True,
        },
        submodules=["embed", "mlp_1", "resid_2", "resid_4"],
        dictionaries={"n_features": 128, "batch": 256, "lr": 0.005, "steps": 60},
        filter={"max_loss": 0.3, "n_samples": 40},
        clustering={"k": 6, "max_clusters": 2},
        tasks=None,
        **QUICK,
    )
    brought_up_to_date(experiment)
    rows = _store(experiment).read(EVALUATION_SUMMARY).to_pylist()
    assert len(rows) == 2
    assert all(row["n_nodes"] > 0 and row["m_empty"] > row["m_full"] for row in rows)


def test_a_circuit_is_printed_and_drawn_from_its_tables(
    finished: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "circuit.svg"
    assert show([str(finished.path), "simple", "--nodes", "5", "--draw", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "Nodes by submodule" in printed
    assert picture.read_text().startswith("<svg")


def test_without_a_name_the_circuits_are_listed(
    finished: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show([str(finished.path)]) == 0
    assert {*finished.clusters, "simple"} <= set(capsys.readouterr().out.split())


def test_a_circuit_that_is_not_there_is_answered_with_those_that_are(
    finished: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show([str(finished.path), "k99999"]) == 1
    assert f"there are {finished.clusters[0]}" in capsys.readouterr().err
