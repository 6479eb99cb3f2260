"""dictionary_learning's files, each class in its own layout.

`DL` says what each class computes, after that project's documentation; the reader must agree.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from core.dictionaries.formats import load_from
from core.errors import FormatError
from tests.core.dictionaries.published import (
    B_DEC,
    DEC,
    DL,
    THRESHOLD,
    TOLERANCE,
    K,
    N,
    X,
    check,
    jump,
    linear,
    write_dl,
)


@pytest.mark.parametrize("name", list(DL))
def test_every_class_of_dictionary_learning_is_read(tmp_path, name):
    write_dl(tmp_path, name)
    found = load_from(str(tmp_path), "dictionary_learning", normalize_decoder=False)
    f = DL[name][1](X)
    check(found, f, f @ DEC.T + B_DEC)


def test_an_autoencoder_gets_unit_rows_as_its_from_pretrained_gives_them(tmp_path):
    write_dl(tmp_path, "AutoEncoder")
    found = load_from(str(tmp_path), "dictionary_learning")
    f = DL["AutoEncoder"][1](X)
    check(found, f * DEC.norm(dim=0), f @ DEC.T + B_DEC)
    torch.testing.assert_close(found.decoder.norm(dim=1), torch.ones(N))


@pytest.mark.parametrize(
    "name", [name for name in DL if name not in ("AutoEncoderTopK", "BatchTopKSAE")]
)
def test_a_class_is_recognised_without_a_configuration(tmp_path, name):
    write_dl(tmp_path, name, config=False)
    found = load_from(str(tmp_path), "dictionary_learning", normalize_decoder=False)
    torch.testing.assert_close(found.encode(X), DL[name][1](X), **TOLERANCE)


def test_two_classes_with_the_same_tensors_must_be_told_apart(tmp_path):
    write_dl(tmp_path, "BatchTopKSAE", config=False)
    with pytest.raises(FormatError, match="give dict_class"):
        load_from(str(tmp_path), "dictionary_learning")
    found = load_from(str(tmp_path), "dictionary_learning", dict_class="BatchTopKSAE")
    torch.testing.assert_close(found.encode(X), DL["BatchTopKSAE"][1](X), **TOLERANCE)


def test_a_jump_relu_may_subtract_its_bias(tmp_path):
    write_dl(tmp_path, "JumpReluAutoEncoder")
    found = load_from(str(tmp_path), "dictionary_learning", subtract_bias=True)
    torch.testing.assert_close(found.encode(X), jump(linear(X - B_DEC), THRESHOLD), **TOLERANCE)


@pytest.mark.parametrize(
    ("trainer", "name"),
    [
        ("StandardTrainer", "AutoEncoder"),
        ("StandardTrainerAprilUpdate", "AutoEncoder"),
        ("PAnnealTrainer", "AutoEncoder"),
        ("StandardTrainerNew", "AutoEncoderNew"),
        ("PAnnealTrainerNew", "AutoEncoderNew"),
        ("GatedSAETrainer", "GatedAutoEncoder"),
        ("GatedAnnealTrainer", "GatedAutoEncoder"),
        ("GatedDeepMindTrainer", "GatedAutoEncoder"),
        ("TopKTrainer", "AutoEncoderTopK"),
    ],
)
def test_the_class_decides_whatever_trained_it(tmp_path, trainer, name):
    write_dl(tmp_path, name)
    config = {"trainer_class": trainer, "dict_class": name, "k": K}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": config, "buffer": {"io": "out"}}))
    found = load_from(str(tmp_path), "dictionary_learning", normalize_decoder=False)
    f = DL[name][1](X)
    check(found, f, f @ DEC.T + B_DEC)


def test_an_older_top_k_has_its_k_in_the_configuration_alone(tmp_path):
    state = {k: v for k, v in DL["AutoEncoderTopK"][0].items() if k not in ("k", "threshold")}
    write_dl(tmp_path, "AutoEncoderTopK", state=state)
    found = load_from(str(tmp_path), "dictionary_learning")
    torch.testing.assert_close(found.encode(X), DL["AutoEncoderTopK"][1](X), **TOLERANCE)
    (tmp_path / "config.json").write_text(
        json.dumps({"trainer": {"dict_class": "AutoEncoderTopK"}})
    )
    with pytest.raises(FormatError, match="how large k is"):
        load_from(str(tmp_path), "dictionary_learning")


def test_weights_of_a_compiled_module_are_read(tmp_path):
    state = {f"_orig_mod.{key}": value for key, value in DL["AutoEncoderNew"][0].items()}
    write_dl(tmp_path, "AutoEncoderNew", config=False, state=state)
    found = load_from(str(tmp_path), "dictionary_learning")
    torch.testing.assert_close(found.encode(X), DL["AutoEncoderNew"][1](X), **TOLERANCE)


# -- trained on inputs divided by a factor: finished file, checkpoint, backup ----------------------

FACTOR = 4.0
# What each class's scale_biases multiplies before a finished file or a checkpoint is saved.
SCALED = {
    "AutoEncoder": ("bias", "encoder.bias"),
    "AutoEncoderNew": ("decoder.bias", "encoder.bias"),
    "GatedAutoEncoder": ("decoder_bias", "gate_bias", "mag_bias"),
    "JumpReluAutoEncoder": ("b_dec", "b_enc", "threshold"),
    "AutoEncoderTopK": ("b_dec", "encoder.bias"),
    "BatchTopKSAE": ("b_dec", "encoder.bias", "threshold"),
    "MatryoshkaBatchTopKSAE": ("b_dec", "b_enc", "threshold"),
}


def write_backup(folder: Path, name: str, factor: float | None, *, config: bool = True) -> None:
    optimiser = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    own = {"dict_class": name, "k": K, "norm_factor": factor}
    backup = {"step": 7, "ae": DL[name][0], "optimizer": optimiser, "config": own}
    write_dl(folder, name, config=config, state=backup | {"norm_factor": factor})


def read(place: Path):
    return load_from(str(place), "dictionary_learning", normalize_decoder=False)


@pytest.mark.parametrize("name", list(DL))
def test_finished_files_checkpoints_and_backups_read_the_same_inputs(tmp_path, name):
    finished = {
        key: value * FACTOR if key in SCALED[name] else value for key, value in DL[name][0].items()
    }
    write_dl(tmp_path / "finished", name, state=finished)
    (tmp_path / "finished" / "checkpoints").mkdir()
    torch.save(finished, tmp_path / "finished" / "checkpoints" / "ae_7.pt")
    write_backup(tmp_path / "backup", name, FACTOR)
    # Training there divides what it reads by the factor.
    f = DL[name][1](X / FACTOR)
    for place in ("finished", "finished/checkpoints/ae_7.pt", "backup", "backup/ae.pt"):
        check(read(tmp_path / place), f * FACTOR, (f @ DEC.T + B_DEC) * FACTOR)


@pytest.mark.parametrize("name", list(DL))
def test_a_backup_says_itself_what_it_is(tmp_path, name):
    write_backup(tmp_path, name, None, config=False)
    f = DL[name][1](X)
    check(read(tmp_path), f, f @ DEC.T + B_DEC)


def test_the_factor_of_a_backup_matters(tmp_path):
    write_backup(tmp_path, "AutoEncoder", FACTOR)
    f = DL["AutoEncoder"][1](X)
    assert not torch.allclose(read(tmp_path).encode(X), f)
    write_backup(tmp_path, "AutoEncoder", 0.0)
    with pytest.raises(FormatError, match="norm_factor"):
        read(tmp_path)


def test_a_threshold_that_was_never_measured_is_refused(tmp_path):
    state = DL["BatchTopKSAE"][0] | {"threshold": torch.tensor(-1.0)}
    write_dl(tmp_path, "BatchTopKSAE", state=state)
    with pytest.raises(FormatError, match="has no threshold"):
        load_from(str(tmp_path), "dictionary_learning")
    found = load_from(str(tmp_path), "dictionary_learning", dict_class="AutoEncoderTopK")
    torch.testing.assert_close(found.encode(X), DL["AutoEncoderTopK"][1](X), **TOLERANCE)
