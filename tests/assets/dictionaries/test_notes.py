"""What is noted of dictionaries that were trained for a number of active features."""

from __future__ import annotations

from pathlib import Path

import pytest

from assets.checks import l0_is_near_k
from assets.dictionaries.stages import SAES
from assets.engine.stage import Work
from assets.engine.store import ArtifactStore
from assets.tables.places import sae
from core.dictionaries.formats import read_from
from tests.tiny_experiment import brought_up_to_date, tiny_experiment


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "relu"])
def test_k_is_noted_said_by_the_file_and_held_against_what_is_measured(
    tmp_path: Path, kind: str
) -> None:
    k = {} if kind == "relu" else {"kind": kind, "k": 4}
    experiment = tiny_experiment(tmp_path, submodules=["resid_0"], dictionaries=k)
    brought_up_to_date(experiment, "dictionary_set")
    store = ArtifactStore(experiment.artifacts)
    notes = store.notes(sae("resid_0"))
    assert notes["wanted_l0"] == k.get("k")
    assert SAES.show(Work.on(experiment), "resid_0")["L0 in training"] == notes["l0"]
    file = store.path(sae("resid_0"), ".safetensors")
    claims = read_from(str(file), "sfc").claims
    assert (claims.hook, claims.k) == ("resid_0", k.get("k"))
    found = l0_is_near_k(experiment, store)
    assert found.says.startswith(f"{len(k) and 1} dictionaries trained")
    assert found.passed, found.says
