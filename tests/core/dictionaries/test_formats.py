"""Each format's files are written here by hand, in its own layout, with its own way to encode.

`theirs` below is what each format's documentation says its class computes; readers must agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from core.dictionaries import Dictionary, Gated, JumpReLU, ReLU, TopK, identity_dictionary
from core.dictionaries.files import save_dictionary
from core.dictionaries.formats import (
    load_all,
    load_from,
    save_as_dictionary_learning,
    save_as_saelens,
)
from core.errors import FormatError

D, N, K, G = 5, 12, 3, torch.Generator().manual_seed(11)
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


def noise(*shape: int, scale: float = 0.5) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=G)


X = noise(40, D, scale=1.0)
ENC, DEC = noise(N, D), noise(D, N)  # as torch.nn.Linear keeps them
B_ENC, B_DEC, GATE, MAG, R_MAG = noise(N), noise(D), noise(N), noise(N), noise(N)
THRESHOLD = noise(N).abs()
LINEAR = {"encoder.weight": ENC, "encoder.bias": B_ENC, "decoder.weight": DEC}
CANONICAL = {
    "W_enc": ENC.T.contiguous(),
    "b_enc": B_ENC,
    "W_dec": DEC.T.contiguous(),
    "b_dec": B_DEC,
}


def jump(pre: torch.Tensor, threshold: Any) -> torch.Tensor:
    return F.relu(pre * (pre > threshold))


def top(f: torch.Tensor) -> torch.Tensor:
    value, kept = f.topk(K, dim=-1)
    return torch.zeros_like(f).scatter(-1, kept, value)


def gated(x: torch.Tensor) -> torch.Tensor:
    z = x @ ENC.T
    return (z + GATE > 0) * F.relu(R_MAG.exp() * z + MAG)


def linear(x: torch.Tensor) -> torch.Tensor:
    return x @ ENC.T + B_ENC


def check(found: Dictionary, features: torch.Tensor, x_hat: torch.Tensor, x=X) -> None:
    torch.testing.assert_close(found.encode(x), features, **TOLERANCE)
    torch.testing.assert_close(found.decode(found.encode(x)), x_hat, **TOLERANCE)


# -- dictionary_learning -------------------------------------------------------------------------

DL: dict[str, tuple[dict[str, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "AutoEncoder": (LINEAR | {"bias": B_DEC}, lambda x: F.relu(linear(x - B_DEC))),
    "AutoEncoderNew": (LINEAR | {"decoder.bias": B_DEC}, lambda x: F.relu(linear(x))),
    "GatedAutoEncoder": (
        {"encoder.weight": ENC, "decoder.weight": DEC, "decoder_bias": B_DEC}
        | {"r_mag": R_MAG, "gate_bias": GATE, "mag_bias": MAG},
        lambda x: gated(x - B_DEC),
    ),
    "JumpReluAutoEncoder": (
        CANONICAL | {"threshold": THRESHOLD},
        lambda x: jump(linear(x), THRESHOLD),
    ),
    "AutoEncoderTopK": (
        LINEAR | {"b_dec": B_DEC, "k": torch.tensor(K), "threshold": torch.tensor(-1.0)},
        lambda x: top(F.relu(linear(x - B_DEC))),
    ),
    "BatchTopKSAE": (
        LINEAR | {"b_dec": B_DEC, "k": torch.tensor(K), "threshold": torch.tensor(0.4)},
        lambda x: jump(F.relu(linear(x - B_DEC)), 0.4),
    ),
    "MatryoshkaBatchTopKSAE": (
        CANONICAL
        | {
            "k": torch.tensor(K),
            "threshold": torch.tensor(0.4),
            "group_sizes": torch.tensor([4, 8]),
        },
        lambda x: jump(F.relu(linear(x - B_DEC)), 0.4),
    ),
}


def write_dl(folder: Path, name: str, *, config: bool = True, state: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(DL[name][0] if state is None else state, folder / "ae.pt")
    if config:
        trainer = {"dict_class": name, "activation_dim": D, "dict_size": N, "k": K}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    return folder


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


@pytest.mark.parametrize("name", list(DL))
def test_a_backup_is_told_from_a_finished_file_and_scaled_to_the_data(tmp_path, name):
    factor = 4.0
    optimiser = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    config = {"dict_class": name, "k": K}
    backup = {"step": 7, "ae": DL[name][0], "optimizer": optimiser, "config": config}
    write_dl(tmp_path, name, config=False, state=backup | {"norm_factor": factor})
    found = load_from(str(tmp_path), "dictionary_learning", normalize_decoder=False)
    # Training there divides what it reads by the factor.
    f = DL[name][1](X / factor)
    check(found, f * factor, (f @ DEC.T + B_DEC) * factor)


def test_a_file_with_pickled_objects_is_refused(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "ae.pt")
    with pytest.raises(FormatError, match="unpickling objects"):
        load_from(str(tmp_path), "dictionary_learning")
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FormatError, match="unpickling objects"):
        load_from(str(tmp_path), "gemma_scope")


def test_a_threshold_that_was_never_measured_is_refused(tmp_path):
    state = DL["BatchTopKSAE"][0] | {"threshold": torch.tensor(-1.0)}
    write_dl(tmp_path, "BatchTopKSAE", state=state)
    with pytest.raises(FormatError, match="before it was measured"):
        load_from(str(tmp_path), "dictionary_learning")


def test_the_released_set_is_read_by_its_paths(tmp_path):
    root = tmp_path / "dictionaries" / "pythia-70m-deduped"
    for site in ("embed", "attn_out_layer0", "mlp_out_layer0", "resid_out_layer5"):
        write_dl(root / site / "10_32768", "AutoEncoder", config=False)
    found = load_all(
        str(tmp_path),
        "dictionary_learning",
        ["embed", "attn_0", "mlp_0", "resid_5"],
        path="dictionaries/pythia-70m-deduped/{site}/10_32768",
    )
    assert list(found) == ["embed", "attn_0", "mlp_0", "resid_5"]
    with pytest.raises(FormatError, match=r"resid_out_layer1/10_32768' does not exist"):
        load_from(
            str(tmp_path),
            "dictionary_learning",
            path="dictionaries/pythia-70m-deduped/{site}/10_32768",
            submodule="resid_1",
        )


def test_a_hub_repository_is_read_by_the_same_paths(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        return str(tmp_path)

    write_dl(tmp_path / "sets" / "resid_out_layer2", "AutoEncoder", config=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_from(
        "someone/dictionaries",
        "dictionary_learning",
        path="sets/{kind}_out_layer{layer}",
        submodule="resid_2",
        revision="v1",
    )
    patterns = ["sets/resid_out_layer2", "sets/resid_out_layer2/*"]
    assert asked == [("someone/dictionaries", "v1", patterns)]


def test_a_hub_out_of_reach_says_what_to_do(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(FormatError, match="without a network, download"):
        load_from("someone/dictionaries", "saelens", path="x")


# -- SAELens -------------------------------------------------------------------------------------

SL: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], Callable]] = {
    "standard": (CANONICAL, {}, lambda x: F.relu(linear(x))),
    "jumprelu": (
        CANONICAL | {"threshold": THRESHOLD},
        {},
        lambda x: jump(linear(x), THRESHOLD),
    ),
    "topk": (CANONICAL, {"k": K}, lambda x: top(F.relu(linear(x)))),
    "gated": (
        {key: CANONICAL[key] for key in ("W_enc", "W_dec", "b_dec")}
        | {"b_gate": GATE, "b_mag": MAG, "r_mag": R_MAG},
        {},
        gated,
    ),
}


def write_sl(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": N, **config}))
    return folder


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
        ({}, {"normalize_activations": "layer_norm"}, "normalised by 'layer_norm'"),
        ({}, {"normalize_activations": True}, "expected_average_only_in"),
        ({"scaling_factor": 2 * torch.ones(N)}, {}, "scaling_factor"),
        ({}, {"architecture": "temporal"}, "none of standard"),
        ({}, {"architecture": "jumprelu"}, "lacks threshold"),
        ({}, {"architecture": "topk"}, "how large k is"),
    ],
)
def test_what_cannot_stand_for_a_submodule_is_refused(tmp_path, tensors, config, reason):
    write_sl(tmp_path, CANONICAL | tensors, config)
    with pytest.raises(FormatError, match=reason):
        load_from(str(tmp_path), "saelens")


# -- sparsify and Gemma Scope --------------------------------------------------------------------

SPARSIFY = {
    "encoder.weight": ENC,
    "encoder.bias": B_ENC,
    "W_dec": CANONICAL["W_dec"],
    "b_dec": B_DEC,
}


def test_sparsify_is_read_without_turning_its_decoder(tmp_path):
    save_file(SPARSIFY, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"activation": "topk", "k": K, "d_in": D}))
    f = top(F.relu(linear(X - B_DEC)))
    check(load_from(str(tmp_path), "sparsify"), f, f @ DEC.T + B_DEC)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"k": K, "transcode": True}, "transcoder"),
        ({"k": K, "skip_connection": True}, "transcoder"),
        ({"k": K, "activation": "groupmax"}, "groupmax"),
        ({}, "how large k is"),
    ],
)
def test_sparsify_files_of_other_things_are_refused(tmp_path, config, reason):
    save_file(SPARSIFY, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=reason):
        load_from(str(tmp_path), "sparsify")


def test_gemma_scope_is_read_from_both_of_its_layouts(tmp_path):
    tensors = CANONICAL | {"threshold": THRESHOLD}
    first, second = tmp_path / "one", tmp_path / "two"
    first.mkdir()
    second.mkdir()
    np.savez(first / "params.npz", **{key: value.numpy() for key, value in tensors.items()})
    lower = {key.lower(): value for key, value in tensors.items()}
    save_file(lower, second / "params.safetensors")
    f = jump(linear(X), THRESHOLD)
    for folder in (first, second, first / "params.npz"):
        check(load_from(str(folder), "gemma_scope"), f, f @ DEC.T + B_DEC)


def test_gemma_scope_of_embeddings_is_moved_to_where_the_model_has_scaled_them(tmp_path):
    tensors = CANONICAL | {"threshold": THRESHOLD}
    np.savez(tmp_path / "params.npz", **{key: value.numpy() for key, value in tensors.items()})
    found = load_from(str(tmp_path), "gemma_scope", scaled_embedding=True)
    f = jump(linear(X), THRESHOLD)
    torch.testing.assert_close(found.encode(X * D**0.5), f, **TOLERANCE)
    torch.testing.assert_close(found.decode(f), (f @ DEC.T + B_DEC) * D**0.5, **TOLERANCE)


# -- writing, and the rest -----------------------------------------------------------------------

ZERO = torch.zeros(D)
OURS = {
    f"{kind}, {where}": Dictionary(ENC, B_ENC, DEC.T, B_DEC, input_bias, activation)
    for kind, activation in {
        "relu": ReLU(),
        "topk": TopK(K),
        "jumprelu": JumpReLU(THRESHOLD),
        "gated": Gated(GATE, R_MAG.exp(), MAG),
    }.items()
    for where, input_bias in {"own bias": B_DEC, "no bias": ZERO, "another": B_DEC + 1}.items()
}


@pytest.mark.parametrize("name", list(OURS))
@pytest.mark.parametrize(
    ("write", "format"),
    [(save_as_dictionary_learning, "dictionary_learning"), (save_as_saelens, "saelens")],
)
def test_a_dictionary_comes_back_from_other_projects_files(tmp_path, write, format, name):
    write(OURS[name], tmp_path)
    options = {} if format == "saelens" else {"normalize_decoder": False}
    found = load_from(str(tmp_path), format, **options)
    f = OURS[name].encode(X)
    check(found, f, OURS[name].decode(f))


def test_written_files_have_the_other_projects_layout(tmp_path):
    save_as_dictionary_learning(OURS["relu, own bias"], tmp_path, submodule="resid_0")
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "encoder.weight": (N, D),
        "encoder.bias": (N,),
        "decoder.weight": (D, N),
        "bias": (D,),
    }
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    assert (trainer["dict_class"], trainer["submodule_name"]) == ("AutoEncoder", "resid_0")
    save_as_saelens(OURS["topk, own bias"], tmp_path, hook_name="blocks.0.hook_resid_post")
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    assert {key: tuple(value.shape) for key, value in tensors.items()} == {
        "W_enc": (D, N),
        "b_enc": (N,),
        "W_dec": (N, D),
        "b_dec": (D,),
    }
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["architecture"], config["k"]) == ("topk", K)
    assert config["metadata"]["hook_name"] == "blocks.0.hook_resid_post"


@pytest.mark.parametrize("write", [save_as_dictionary_learning, save_as_saelens])
def test_an_identity_dictionary_fits_no_other_format(tmp_path, write):
    with pytest.raises(FormatError, match="Linear"):
        write(identity_dictionary(D), tmp_path)


def test_our_own_file_is_read_by_the_same_door(tmp_path):
    save_dictionary(OURS["relu, own bias"], tmp_path / "dictionary.safetensors")
    found = load_from(str(tmp_path), "sfc")
    assert torch.equal(found.encoder, ENC)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"format": "onnx"}, "not one of sfc"),
        ({"format": "saelens"}, "has no sae_weights.safetensors"),
        ({"format": "saelens", "path": "missing"}, "does not exist"),
        ({"format": "saelens", "path": "{layer}"}, "placeholder"),
        ({"format": "saelens", "normalize_decoder": True, "path": "sl"}, "cannot be read with"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(tmp_path, arguments, reason):
    write_sl(tmp_path / "sl", CANONICAL, {})
    with pytest.raises(FormatError, match=reason):
        load_from(str(tmp_path), **arguments)


def test_a_truncated_file_is_refused(tmp_path):
    for write, name, format in (
        (lambda: write_sl(tmp_path, CANONICAL, {}), "sae_weights.safetensors", "saelens"),
        (lambda: write_dl(tmp_path, "AutoEncoder"), "ae.pt", "dictionary_learning"),
    ):
        write()
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:200])
        with pytest.raises(FormatError, match="truncated"):
            load_from(str(tmp_path), format)
