"""What files say of imported dictionaries, from the import to the table and its check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from assets.checks import imports_are_as_said
from assets.dictionaries.imports import IMPORT_CHECKS_STAGE
from assets.dictionaries.stages import DICTIONARY_SET_STAGE, SAES
from assets.engine.store import ArtifactStore
from assets.settings import Experiment
from assets.tables.places import DICTIONARY_SET, IMPORT_CHECKS, sae
from core.dictionaries import Dictionary, JumpReLU, TopK
from core.dictionaries.formats import save_as_saelens
from core.errors import FormatError
from pipelines.definitions import build_definitions
from pipelines.experiment import read_experiment
from pipelines.stages import stages_of
from tests.tiny_experiment import (
    WIDTH,
    brought_up_to_date,
    tiny_experiment,
    write_experiment,
)

N, K = 24, 4
G = torch.Generator().manual_seed(2)
ENC = torch.randn(N, WIDTH, generator=G)
ENC /= ENC.norm(dim=1, keepdim=True)
ZERO = torch.zeros(WIDTH)
TOPK = Dictionary(ENC, torch.zeros(N), ENC, ZERO, ZERO, TopK(K))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_experiment(tmp_path)
    for layer in (0, 1):
        write(tmp_path, layer)
    return tmp_path


def write(folder: Path, layer: int, dictionary: Dictionary = TOPK, **metadata: Any) -> None:
    place = folder / f"saes/resid_{layer}"
    hook = f"blocks.{layer}.hook_resid_post"
    save_as_saelens(dictionary, place, hook_name=hook, model_name="model")
    config = json.loads((place / "cfg.json").read_text())
    config["metadata"] |= metadata
    (place / "cfg.json").write_text(json.dumps(config))


def importing(folder: Path, **changed: Any) -> Experiment:
    """Residual dictionaries alone: nodes only where dictionaries are."""
    section = {"source": "import", "format": "saelens", "repository": "./saes"}
    changed = {"submodules": ["resid_0", "resid_1"], **changed}
    path = write_experiment(
        folder, dictionaries=None, imported=section | {"path": "{submodule}"}, **changed
    )
    path.write_text(path.read_text().replace("imported:", "dictionaries:"))
    return read_experiment(path)


def checked(experiment: Experiment) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of import_checks, brought up to date."""
    for stage in stages_of(experiment):
        if stage.name in ("contexts", "dictionary_set", "import_checks"):
            stage.run(experiment)  # type: ignore[call-arg]
        elif stage.name == "saes":
            stage.run(experiment, experiment.submodules)  # type: ignore[arg-type]
    rows = ArtifactStore(experiment.artifacts).read(IMPORT_CHECKS).to_pylist()
    return {(row["submodule"], row["claim"]): row for row in rows}


def test_every_claim_has_a_row_with_what_is(folder: Path) -> None:
    experiment = importing(folder)
    rows = checked(experiment)
    measured = ArtifactStore(experiment.artifacts).read(DICTIONARY_SET).to_pylist()
    for row in measured:
        name = row["submodule"]
        claims = {claim for submodule, claim in rows if submodule == name}
        assert claims == {
            *("width", "features", "k", "hook", "exporter"),
            *("model", "bos", "measured k", "variance explained"),
        }
        assert rows[name, "measured k"]["said"] == str(K)
        assert rows[name, "measured k"]["found"] == f"{row['l0']:.1f}"
        assert rows[name, "variance explained"]["found"] == f"{row['variance_explained']:.1%}"
        for claim in ("width", "features", "k", "hook", "model", "bos", "measured k"):
            assert rows[name, claim]["verdict"] == "ok", claim


def test_what_differs_is_a_warning_with_both_numbers(folder: Path) -> None:
    thresholds = JumpReLU(torch.full((N,), 0.01))
    loose = Dictionary(ENC, torch.zeros(N), ENC, ZERO, ZERO, thresholds)
    write(folder, 1, loose, l0=2.0, prepend_bos=True, model_name="gpt2")
    experiment = importing(folder)
    rows = checked(experiment)
    l0 = rows["resid_1", "measured l0"]
    assert (l0["said"], l0["verdict"]) == ("2", "warn")
    assert float(l0["found"]) > 6
    assert rows["resid_1", "bos"]["verdict"] == "warn"
    assert rows["resid_1", "model"]["verdict"] == "unchecked"  # a folder may be called anything
    found = imports_are_as_said(experiment, ArtifactStore(experiment.artifacts))
    assert not found.passed
    assert "resid_1 measured l0: measured L0 is" in found.says


def test_a_dictionary_of_another_place_writes_nothing(folder: Path) -> None:
    write(folder, 1, hook_name="blocks.0.hook_resid_post")
    experiment = importing(folder)
    with pytest.raises(FormatError, match=r"saes/resid_1, for resid_1, .*that place is resid_0"):
        SAES.run(experiment, ["resid_1"])
    assert ArtifactStore(experiment.artifacts).footer(sae("resid_1")) is None
    assert not list(experiment.artifacts.rglob("*.safetensors"))


def test_the_experiments_own_attention_counts(folder: Path) -> None:
    save_as_saelens(TOPK, folder / "saes/attn_0", hook_name="blocks.0.attn.hook_z")
    experiment = importing(folder, submodules=["attn_0"])
    with pytest.raises(FormatError, match="set attn_input of the model to true"):
        SAES.run(experiment, ["attn_0"])
    inside = {"source": "./model", "n_layers": 2, "device": "cpu", "attn_input": True}
    assert SAES.run(importing(folder, submodules=["attn_0"], model=inside), ["attn_0"]) == 1


def test_a_changed_claim_alone_is_read_again(folder: Path) -> None:
    experiment = importing(folder)
    assert ("resid_0", "measured l0") not in checked(experiment)
    write(folder, 0, l0=4.0)
    assert checked(experiment)["resid_0", "measured l0"]["said"] == "4"


def test_a_file_given_by_itself_counts_with_what_is_said_beside_it(folder: Path) -> None:
    changed = {"path": "{submodule}/sae_weights.safetensors"}
    path = importing(folder).path
    path.write_text(path.read_text().replace("path: '{submodule}'", f"path: '{changed['path']}'"))
    experiment = read_experiment(path)
    assert SAES.run(experiment, ["resid_0"]) == 1
    assert SAES.run(experiment, ["resid_0"]) == 0
    write(folder, 0, prepend_bos=True)
    assert SAES.run(experiment, ["resid_0"]) == 1


def test_a_limit_makes_the_table_again_and_nothing_else(folder: Path) -> None:
    assert checked(importing(folder))["resid_0", "measured k"]["verdict"] == "ok"
    strict = importing(folder, checks={"low_variance_explained": 1.0})
    assert SAES.run(strict, ["resid_0", "resid_1"]) == 0
    assert not DICTIONARY_SET_STAGE.run(strict)
    assert IMPORT_CHECKS_STAGE.run(strict)
    assert checked(strict)["resid_0", "variance explained"]["verdict"] == "warn"


def test_residual_dictionaries_alone_make_circuits_of_their_features(folder: Path) -> None:
    anything = {"min_variance_explained": None}
    experiment = importing(folder, checks=anything)
    made = brought_up_to_date(experiment)
    assert made["import_checks"] == 1
    assert made["circuits"] > 0
    store = ArtifactStore(experiment.artifacts)
    nodes = [
        submodule
        for file in experiment.artifacts.rglob("circuits/*/*/nodes.parquet")
        for submodule in _submodules(file)
    ]
    assert set(nodes) == {"resid_0", "resid_1"}
    assert {row["submodule"] for row in store.read(DICTIONARY_SET).to_pylist()} == set(nodes)


def _submodules(file: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(file, columns=["submodule"])["submodule"].to_pylist()


def test_the_table_is_an_asset_where_dictionaries_are_imported(folder: Path) -> None:
    graph = build_definitions([importing(folder).path]).resolve_asset_graph()
    nodes = {key.path[-1]: graph.get(key) for key in graph.get_all_asset_keys()}
    parents = {key.path[-1] for key in nodes["import_checks"].parent_keys}
    assert parents == {"saes", "dictionary_set"}
    checks = {
        key.name for key in graph.asset_check_keys if key.asset_key.path[-1] == "import_checks"
    }
    assert checks == {"imports_are_as_said"}
