"""SAELens itself, where sae-lens is installed, reads what we write, and we read what it writes.

Skipped without sae-lens; docs/your-own-model.md says how to run it. No network is needed.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.dictionaries import Dictionary, Gated, JumpReLU, ReLU, TopK
from core.dictionaries.formats import load_from, save_as_saelens
from core.errors import FormatError
from tests.core.dictionaries.published import (
    B_DEC,
    B_ENC,
    CANONICAL,
    DEC,
    ENC,
    GATE,
    MAG,
    R_MAG,
    THRESHOLD,
    TOLERANCE,
    D,
    K,
    N,
    X,
    noise,
)

with warnings.catch_warnings():
    # What its dependencies warn of while they are imported is not ours to mend.
    warnings.simplefilter("ignore")
    sae_lens: Any = pytest.importorskip("sae_lens")

pytestmark = pytest.mark.filterwarnings("ignore")

INFERENCE = {
    "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
    "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": K}),
    "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
    "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig, {}),
}
TRAINING = {
    "standard": (sae_lens.StandardTrainingSAE, sae_lens.StandardTrainingSAEConfig, {}),
    "topk": (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig, {"k": K}),
    "jumprelu": (sae_lens.JumpReLUTrainingSAE, sae_lens.JumpReLUTrainingSAEConfig, {}),
    "gated": (sae_lens.GatedTrainingSAE, sae_lens.GatedTrainingSAEConfig, {}),
    "batchtopk": (sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig, {"k": K}),
    "matryoshka": (
        sae_lens.MatryoshkaBatchTopKTrainingSAE,
        sae_lens.MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": K, "matryoshka_widths": [4, N]},
    ),
}
WEIGHTS = CANONICAL | {
    "b_gate": GATE,
    "b_mag": MAG,
    "r_mag": R_MAG,
    "threshold": THRESHOLD,
    "log_threshold": THRESHOLD.log(),
    "topk_threshold": torch.tensor(0.4, dtype=torch.double),
}


def made(classes: dict[str, Any], name: str, **settings: Any) -> Any:
    """Their autoencoder with our weights."""
    kind, config, own = classes[name]
    sae = kind(config(d_in=D, d_sae=N, **own, **settings))
    sae.load_state_dict({key: WEIGHTS[key].clone() for key in sae.state_dict()})
    return sae


@torch.no_grad()
def theirs(sae: Any) -> tuple[Tensor, Tensor]:
    """Features of X, and their reconstruction."""
    f = sae.encode(X)
    return f, sae.decode(f)


@torch.no_grad()
def same(found: Dictionary, f: Tensor, x_hat: Tensor, **tolerance: float) -> None:
    tolerance = tolerance or TOLERANCE
    assert f.count_nonzero() > 0
    torch.testing.assert_close(found.encode(X), f, **tolerance)
    torch.testing.assert_close(found.decode(found.encode(X)), x_hat, **tolerance)


# -- written by us, loaded by them ---------------------------------------------------------------


@pytest.mark.parametrize("where", ["own bias", "no bias", "another"])
@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu", "gated"])
def test_what_is_written_here_loads_there_and_computes_the_same(tmp_path: Path, kind, where):
    activation: Any = {
        "relu": ReLU(),
        "topk": TopK(K),
        "jumprelu": JumpReLU(THRESHOLD),
        "gated": Gated(GATE, R_MAG.exp(), MAG),
    }[kind]
    input_bias = {"own bias": B_DEC, "no bias": torch.zeros(D), "another": B_DEC + 1}[where]
    ours = Dictionary(ENC, B_ENC, DEC.T, B_DEC, input_bias, activation)
    save_as_saelens(ours, tmp_path, hook_name="blocks.1.hook_resid_post", model_name="toy")
    loaded = sae_lens.SAE.load_from_disk(tmp_path)
    same(ours, *theirs(loaded))
    assert loaded.cfg.architecture() == ("standard" if kind == "relu" else kind)
    assert loaded.cfg.metadata.hook_name == "blocks.1.hook_resid_post"


# -- saved by them, read by us -------------------------------------------------------------------


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", list(INFERENCE))
def test_what_is_saved_there_is_read_here(tmp_path: Path, name, centred):
    sae = made(INFERENCE, name, apply_b_dec_to_input=centred)
    sae.save_model(tmp_path)
    same(load_from(str(tmp_path), "saelens"), *theirs(sae))
    other = made(INFERENCE, name, apply_b_dec_to_input=not centred)
    assert not torch.allclose(theirs(sae)[0], theirs(other)[0])


def test_a_choice_by_what_a_feature_writes_is_read(tmp_path: Path):
    sae = made(INFERENCE, "topk", rescale_acts_by_decoder_norm=True)
    sae.save_model(tmp_path)
    same(load_from(str(tmp_path), "saelens"), *theirs(sae))
    plain = made(INFERENCE, "topk", rescale_acts_by_decoder_norm=False)
    assert not torch.equal(theirs(sae)[0] > 0, theirs(plain)[0] > 0)


@pytest.mark.parametrize("name", ["standard", "jumprelu", "gated"])
def test_folded_decoder_norms_are_read(tmp_path: Path, name):
    sae = made(INFERENCE, name)
    f, x_hat = theirs(sae)
    sae.fold_W_dec_norm()
    sae.save_model(tmp_path)
    same(load_from(str(tmp_path), "saelens"), f * DEC.norm(dim=0), x_hat)


def settings_of(name: str, rescaled: bool) -> dict[str, Any]:
    return {"rescale_acts_by_decoder_norm": rescaled} if "k" in TRAINING[name][2] else {}


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("name", list(TRAINING))
def test_a_finished_training_is_read(tmp_path: Path, name, rescaled):
    made(TRAINING, name, **settings_of(name, rescaled)).save_inference_model(tmp_path)
    loaded = sae_lens.SAE.load_from_disk(tmp_path)
    same(load_from(str(tmp_path), "saelens"), *theirs(loaded))


def scaler(kind: str) -> Any:
    from sae_lens.training import activation_scaler as theirs_too

    if kind == "expected_average_only_in":
        return theirs_too.ActivationScaler(scaling_factor=0.3)
    if kind == "none":
        return theirs_too.ActivationScaler()
    matrix = torch.eye(D, dtype=torch.double) + 0.2 * noise(D, D).double()
    statistics = (noise(D).double(), matrix, matrix.inverse())
    return theirs_too.ActivationScaler(whitening=theirs_too.ActivationWhitening(*statistics))


def finished(sae: Any, statistics: Any) -> None:
    """What their trainer does with the statistics after its last step."""
    if statistics.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(statistics.scaling_factor)
    if statistics.whitening is not None:
        w = statistics.whitening
        sae.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix)


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", ["none", "expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("name", list(TRAINING))
def test_a_checkpoint_is_read_as_its_training_would_have_been_finished(
    tmp_path: Path, name, kind, centred, rescaled
):
    settings = {"normalize_activations": kind, "apply_b_dec_to_input": centred}
    sae = made(TRAINING, name, **settings, **settings_of(name, rescaled))
    statistics = scaler(kind)
    sae.save_model(tmp_path / "checkpoint")
    statistics.save(str(tmp_path / "checkpoint" / "activation_scaler.json"))
    finished(sae, statistics)
    sae.save_inference_model(tmp_path / "finished")
    loaded = sae_lens.SAE.load_from_disk(tmp_path / "finished")
    wide = {"rtol": 1e-5, "atol": 5e-6} if kind == "covariance_whitening" else TOLERANCE
    for place in ("checkpoint", "finished"):
        same(load_from(str(tmp_path / place), "saelens"), *theirs(loaded), **wide)


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_inputs_normalised_one_by_one_are_refused(tmp_path: Path, kind):
    made(INFERENCE, "standard", normalize_activations=kind).save_model(tmp_path)
    with pytest.raises(FormatError, match="no affine map"):
        load_from(str(tmp_path), "saelens")


def test_a_version_before_six_is_read_as_they_read_it(tmp_path: Path):
    made(INFERENCE, "topk").save_model(tmp_path)
    old = {"d_in": D, "d_sae": N, "dtype": "float32", "device": "cpu", "hook_point": "x"}
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "model_name": "toy"}
    old |= {"hook_point_layer": 0, "context_size": 8, "dataset_path": "", "prepend_bos": True}
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    loaded = sae_lens.SAE.load_from_disk(tmp_path)
    same(load_from(str(tmp_path), "saelens"), *theirs(loaded))
