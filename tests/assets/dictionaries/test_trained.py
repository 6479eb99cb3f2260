"""Dictionaries train alone as together, and a killed training goes on to the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from assets.corpus.contexts import read_lengths
from assets.dictionaries.stages import SAES
from assets.engine import stage
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, TrainSettings
from assets.tables.places import sae
from core.training.buffer import rows_within
from pipelines.experiment import read_experiment
from tests.tiny_experiment import WIDTH, brought_up_to_date, tiny_experiment, write_experiment

BUFFER_MB = 0.05


class Killed(Exception):
    """Stands for whatever ends a process."""


def trained(folder: Path, name: str, **changed: Any) -> Experiment:
    """An experiment of its own name and artifacts, with everything before its dictionaries made."""
    changed = {"buffer_mb": BUFFER_MB, "checkpoint_every": 7, **changed}
    path = write_experiment(folder, name, dictionaries=changed, artifacts=f"./{name}")
    experiment = read_experiment(path)
    last = "contexts" if changed.get("activations") == "model" else "activation_cache"
    brought_up_to_date(experiment, last)
    return experiment


def weights(experiment: Experiment) -> dict[str, str]:
    store = ArtifactStore(experiment.artifacts)
    return {name: store.notes(sae(name))["weights"] for name in experiment.submodules}


def killed_before_any_is_written(experiment: Experiment) -> None:
    """Train all, and end where the first would be written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_write", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            SAES.run(experiment, experiment.submodules)


def states(experiment: Experiment) -> list[str]:
    """Dictionaries of which trainings left their states."""
    return sorted(file.stem for file in (experiment.artifacts / "saes").glob("training-*/*"))


@pytest.mark.parametrize("activations", ["cache", "model"])
def test_one_at_a_time_they_become_what_all_together_become(
    tmp_path: Path, activations: str
) -> None:
    tiny_experiment(tmp_path)
    together = trained(tmp_path, "together", activations=activations)
    alone = trained(tmp_path, "alone", activations=activations)
    names = together.submodules
    n_tokens = int(read_lengths(ArtifactStore(alone.artifacts)).sum())
    # For one alone the buffer would hold all tokens; shared out among four it does not.
    assert rows_within(int(BUFFER_MB * 1e6), dict.fromkeys(names, WIDTH)) < n_tokens
    assert rows_within(int(BUFFER_MB * 1e6), {names[0]: WIDTH}) >= n_tokens
    assert SAES.run(together, names) == 4
    assert [SAES.run(alone, [name]) for name in reversed(names)] == [1, 1, 1, 1]
    assert weights(alone) == weights(together)
    assert SAES.run(alone, names) == 0


@pytest.mark.parametrize(("n", "before"), [(1, True), (1, False), (2, True), (3, False), (4, True)])
def test_a_training_killed_while_dictionaries_are_written_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, before: bool
) -> None:
    tiny_experiment(tmp_path)
    whole, cut = trained(tmp_path, "whole"), trained(tmp_path, "cut")
    SAES.run(whole, whole.submodules)
    write, calls = stage._write, []

    def killed(*arguments: Any) -> list[Path]:
        calls.append(arguments)
        if before and len(calls) == n:
            raise Killed
        files = write(*arguments)
        if len(calls) == n:
            raise Killed
        return files

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_write", killed)
        with pytest.raises(Killed):
            SAES.run(cut, cut.submodules)
    n_written = n - before
    said: list[str] = []
    assert SAES.run(cut, cut.submodules, said.append) == 4 - n_written
    assert weights(cut) == weights(whole)
    # Nothing was trained again: what is said is what is written.
    of_dictionaries = [text.split(":")[0] for text in said if not text.startswith("saes:")]
    assert of_dictionaries == cut.submodules[n_written:]
    assert not list((cut.artifacts / "saes").glob("training-*"))


def test_another_k_of_one_kind_trains_that_kind_again_and_no_other(tmp_path: Path) -> None:
    tiny_experiment(tmp_path)
    kind = {"kind": "topk", "k": 6}
    plain = trained(tmp_path, "plain", **kind)
    SAES.run(plain, plain.submodules)
    before = weights(plain)
    other = trained(tmp_path, "plain", **kind, ks={"attn": 3, "embed": 6})
    assert SAES.run(other, other.submodules) == 1
    after = weights(other)
    assert [name for name in after if after[name] != before[name]] == ["attn_0"]
    wanted = {name: ArtifactStore(other.artifacts).notes(sae(name))["wanted_l0"] for name in after}
    assert wanted == {"embed": 6, "attn_0": 3, "resid_0": 6, "resid_1": 6}
    # Together or alone, they become the same.
    alone = trained(tmp_path, "alone", **kind, ks={"attn": 3})
    assert [SAES.run(alone, [name]) for name in ("attn_0", "resid_1")] == [1, 1]
    store = ArtifactStore(alone.artifacts)
    assert store.notes(sae("attn_0"))["weights"] == after["attn_0"]


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_when_to_resample_is_nothing_to_a_kind_that_does_not(tmp_path: Path, kind: str) -> None:
    tiny_experiment(tmp_path, submodules=["embed", "resid_0"])
    how = {"kind": kind, "k": 6, "buffer_mb": 0.2}
    often, never = (
        trained(tmp_path, "same", **how, resample_every=steps, warmup=0) for steps in (5, 0)
    )
    assert SAES.run(often, ["embed"]) == 1
    assert SAES.run(never, ["embed"]) == 0


def test_tuned_all_depend_on_the_k_of_each(tmp_path: Path) -> None:
    tiny_experiment(tmp_path)
    how = {"kind": "topk", "k": 6, "tuning_steps": 2, "tuning_lr": 0.01}
    plain = trained(tmp_path, "plain", **how)
    SAES.run(plain, plain.submodules)
    other = trained(tmp_path, "plain", **how, ks={"attn": 3})
    assert SAES.run(other, other.submodules) == 4


def test_a_killed_training_of_several_k_goes_on(tmp_path: Path) -> None:
    tiny_experiment(tmp_path)
    how = {"kind": "batchtopk", "k": 6, "ks": {"resid": 4}}
    whole, cut = trained(tmp_path, "whole", **how), trained(tmp_path, "cut", **how)
    SAES.run(whole, whole.submodules)
    killed_before_any_is_written(cut)
    assert SAES.run(cut, ["embed"]) == 1
    assert states(cut) == ["attn_0", "resid_0", "resid_1"]
    assert SAES.run(cut, ["resid_0", "resid_1", "attn_0"]) == 3
    assert weights(cut) == weights(whole)
    assert not states(cut)


def test_another_k_of_one_leaves_the_states_of_the_others(tmp_path: Path) -> None:
    tiny_experiment(tmp_path)
    how = {"kind": "topk", "k": 6}
    cut = trained(tmp_path, "cut", **how)
    killed_before_any_is_written(cut)
    changed = trained(tmp_path, "cut", **how, ks={"attn": 3})
    said: list[str] = []
    assert SAES.run(changed, ["resid_0"], said.append) == 1
    assert not [text for text in said if text.startswith("training:")]
    # Of the other k nothing is of use, of the rest all is.
    assert states(changed) == ["embed", "resid_1"]
    assert SAES.run(changed, changed.submodules) == 3
    whole = trained(tmp_path, "whole", **how, ks={"attn": 3})
    SAES.run(whole, whole.submodules)
    assert weights(changed) == weights(whole)
    assert not states(changed)


def test_k_counts_only_where_it_is_used(tmp_path: Path) -> None:
    """A k of 32, the default, is no clash where every dictionary has its own."""
    ks = {"embed": 3, "attn": 3, "resid": 3}
    experiment = tiny_experiment(
        tmp_path, dictionaries={"kind": "topk", "n_features": 20, "ks": ks}
    )
    settings = experiment.settings.dictionaries
    assert isinstance(settings, TrainSettings)
    assert {settings.k_of(name) for name in experiment.submodules} == {3}


def test_tuned_alone_they_become_what_all_together_become(tmp_path: Path) -> None:
    tiny_experiment(tmp_path)
    tuning = {"tuning_steps": 4, "tuning_lr": 0.01}
    plain = trained(tmp_path, "plain")
    together, alone = (trained(tmp_path, name, **tuning) for name in ("together", "alone"))
    SAES.run(plain, plain.submodules)
    said: list[str] = []
    assert SAES.run(together, together.submodules, said.append) == 4
    assert any(text.startswith("tuning: step 4 of 4") for text in said)
    assert [SAES.run(alone, [name]) for name in ("resid_1", "attn_0")] == [1, 1]
    changed = weights(together)
    for name in ("resid_1", "attn_0"):
        assert ArtifactStore(alone.artifacts).notes(sae(name))["weights"] == changed[name]
    same = [name for name, was in weights(plain).items() if was == changed[name]]
    assert same == ["embed"]


def test_the_state_of_a_dictionary_that_is_still_wanted_is_kept(tmp_path: Path) -> None:
    tiny_experiment(tmp_path)
    whole, cut = trained(tmp_path, "whole"), trained(tmp_path, "cut")
    SAES.run(whole, whole.submodules)
    killed_before_any_is_written(cut)
    assert SAES.run(cut, ["attn_0"]) == 1
    assert states(cut) == ["embed", "resid_0", "resid_1"]
    assert SAES.run(cut, cut.submodules) == 3
    assert weights(cut) == weights(whole)
    assert not list((cut.artifacts / "saes").glob("training-*"))


def test_states_of_trainings_by_other_settings_go(tmp_path: Path) -> None:
    tiny_experiment(tmp_path)
    experiment = trained(tmp_path, "cut")
    killed_before_any_is_written(experiment)
    assert len(states(experiment)) == 4
    other = trained(tmp_path, "cut", seed=1)
    assert SAES.run(other, other.submodules) == 4
    assert not list((other.artifacts / "saes").glob("training-*"))
