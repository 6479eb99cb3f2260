"""SAELens's files, each architecture in its own layout.

`SL` says what each architecture computes, after that project's documentation; the reader must
agree. With sae-lens installed, `test_saelens_installed` asks the project itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from core.dictionaries.formats import load_from
from core.errors import FormatError
from tests.core.dictionaries.published import (
    B_DEC,
    CANONICAL,
    DEC,
    SL,
    THRESHOLD,
    D,
    K,
    N,
    X,
    check,
    jump,
    linear,
    noise,
    top,
    write_sl,
)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", list(SL))
def test_every_architecture_of_saelens_is_read(tmp_path, name, centred):
    tensors, config, theirs = SL[name]
    config = {"architecture": name, "apply_b_dec_to_input": centred, "metadata": {}, **config}
    write_sl(tmp_path, tensors, config)
    f = theirs(X - B_DEC if centred else X)
    check(load_from(str(tmp_path), "saelens"), f, f @ DEC.T + B_DEC)


def test_top_k_may_choose_by_what_a_feature_writes(tmp_path):
    config = {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True, "metadata": {}}
    write_sl(tmp_path, CANONICAL, config)
    f = top(F.relu(linear(X - B_DEC)) * DEC.norm(dim=0))
    check(load_from(str(tmp_path), "saelens"), f, f / DEC.norm(dim=0) @ DEC.T + B_DEC)


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        ({}, lambda x: F.relu(linear(x - B_DEC))),
        ({"normalize_activations": False, "hook_point": "x"}, lambda x: F.relu(linear(x - B_DEC))),
        ({"apply_b_dec_to_input": False}, lambda x: F.relu(linear(x))),
        (
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
            lambda x: top(F.relu(linear(x - B_DEC))),
        ),
    ],
)
def test_saelens_before_version_six_is_read(tmp_path, config, theirs):
    write_sl(tmp_path, CANONICAL | {"scaling_factor": torch.ones(N)}, config)
    f = theirs(X)
    check(load_from(str(tmp_path), "saelens"), f, f @ DEC.T + B_DEC)


def test_a_threshold_kept_as_its_logarithm_is_read(tmp_path):
    tensors = CANONICAL | {"log_threshold": THRESHOLD.log()}
    write_sl(tmp_path, tensors, {"architecture": "jumprelu", "metadata": {}})
    f = jump(linear(X - B_DEC), THRESHOLD)
    check(load_from(str(tmp_path), "saelens"), f, f @ DEC.T + B_DEC)


@pytest.mark.parametrize(
    ("tensors", "config", "reason"),
    [
        ({}, {"d_out": D}, "transcoder"),
        ({"W_skip": torch.eye(D)}, {}, "transcoder"),
        ({}, {"normalize_activations": "layer_norm"}, "by itself .'layer_norm'"),
        ({}, {"normalize_activations": "constant_norm_rescale"}, "no affine map"),
        ({}, {"normalize_activations": True}, "expected_average_only_in"),
        ({}, {"normalize_activations": "covariance_whitening"}, "no activation_whitening"),
        ({}, {"activation_fn": "tanh-relu"}, "only relu"),
        ({"finetuning_scaling_factor": 2 * torch.ones(N)}, {}, "finetuning_scaling_factor"),
        ({"scaling_factor": 2 * torch.ones(N)}, {}, "scaling_factor"),
        ({}, {"architecture": "temporal"}, "none of standard"),
        ({}, {"architecture": "abstopk", "k": K}, "none of standard"),
        ({}, {"architecture": "jumprelu"}, "lacks threshold"),
        ({}, {"architecture": "topk"}, "how large k is"),
    ],
)
def test_what_cannot_stand_for_a_submodule_is_refused(tmp_path, tensors, config, reason):
    write_sl(tmp_path, CANONICAL | tensors, config)
    with pytest.raises(FormatError, match=reason):
        load_from(str(tmp_path), "saelens")


# -- checkpoints: trained on normalised inputs, which statistics beside the weights undo ----------

SCALE = 0.3
MEAN, MATRIX = noise(D), torch.eye(D) + 0.2 * noise(D, D)


def write_statistics(folder: Path) -> None:
    scaler = {"scaling_factor": SCALE, "has_whitening": True}
    (folder / "activation_scaler.json").write_text(json.dumps(scaler))
    matrix = MATRIX.double()
    whitening = {"mean": MEAN.double(), "matrix": matrix, "inverse_matrix": matrix.inverse()}
    save_file(
        {key: value.contiguous() for key, value in whitening.items()},
        folder / "activation_whitening.safetensors",
    )


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", ["expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("name", list(SL))
def test_a_checkpoint_is_read_for_inputs_as_the_model_has_them(tmp_path, name, kind, centred):
    tensors, config, theirs = SL[name]
    config = {"architecture": name, "apply_b_dec_to_input": centred, "metadata": {}, **config}
    write_sl(tmp_path, tensors, config | {"normalize_activations": kind})
    write_statistics(tmp_path)
    whitened = kind == "covariance_whitening"
    z = (X - MEAN) @ MATRIX if whitened else X * SCALE
    f = theirs(z - B_DEC if centred else z)
    z_hat = f @ DEC.T + B_DEC
    x_hat = z_hat @ MATRIX.inverse() + MEAN if whitened else z_hat / SCALE
    found = load_from(str(tmp_path), "saelens")
    # An inverse in float32 is good to some 1e-6 of what it maps.
    torch.testing.assert_close(found.encode(X), f, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(found.decode(f), x_hat, rtol=1e-5, atol=5e-6)


def test_the_scale_of_the_inputs_may_be_given(tmp_path):
    config = {"normalize_activations": "expected_average_only_in", "metadata": {}}
    write_sl(tmp_path, CANONICAL, config | {"architecture": "standard"})
    f = F.relu(linear(X * SCALE - B_DEC))
    found = load_from(str(tmp_path), "saelens", norm_scaling_factor=SCALE)
    check(found, f, (f @ DEC.T + B_DEC) / SCALE)
    assert not torch.allclose(
        load_from(str(tmp_path), "saelens", norm_scaling_factor=1).encode(X), f
    )
    with pytest.raises(FormatError, match="not above zero"):
        load_from(str(tmp_path), "saelens", norm_scaling_factor=0)


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescaled", [True, False])
def test_a_threshold_of_batch_top_k_may_be_on_what_a_feature_writes(tmp_path, name, rescaled):
    config = {"architecture": name, "k": K, "rescale_acts_by_decoder_norm": rescaled}
    threshold = torch.tensor(0.4, dtype=torch.double)
    write_sl(tmp_path, CANONICAL | {"topk_threshold": threshold}, config | {"metadata": {}})
    norm = DEC.norm(dim=0) if rescaled else torch.ones(N)
    f = jump(linear(X - B_DEC) * norm, 0.4)
    check(load_from(str(tmp_path), "saelens"), f, f / norm @ DEC.T + B_DEC)


def test_a_finished_jumprelu_is_not_rescaled_again(tmp_path):
    config = {"architecture": "jumprelu", "rescale_acts_by_decoder_norm": True, "metadata": {}}
    write_sl(tmp_path, CANONICAL | {"threshold": THRESHOLD}, config)
    f = jump(linear(X - B_DEC), THRESHOLD)
    check(load_from(str(tmp_path), "saelens"), f, f @ DEC.T + B_DEC)
