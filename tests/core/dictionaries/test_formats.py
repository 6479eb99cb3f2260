"""What all formats share: folders and the hub, refusals, writing; sparsify and Gemma Scope."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from core.dictionaries import Dictionary, Gated, JumpReLU, ReLU, TopK, identity_dictionary
from core.dictionaries.files import save_dictionary
from core.dictionaries.formats import (
    READERS,
    load_all,
    load_from,
    save_as_dictionary_learning,
    save_as_saelens,
)
from core.errors import FormatError
from core.options import FORMATS
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
    check,
    jump,
    linear,
    top,
    write_dl,
    write_sl,
)

# -- folders and the hub -------------------------------------------------------------------------


def test_a_file_with_pickled_objects_is_refused(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "ae.pt")
    with pytest.raises(FormatError, match="unpickling objects"):
        load_from(str(tmp_path), "dictionary_learning")
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FormatError, match="unpickling objects"):
        load_from(str(tmp_path), "gemma_scope")


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


def test_a_file_on_the_hub_is_fetched_with_what_says_what_it_is(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repo_id, *, revision, allow_patterns):
        asked.extend(allow_patterns)
        return str(tmp_path)

    write_sl(tmp_path / "a/b", CANONICAL, {"architecture": "topk", "k": K})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = load_from("someone/saes", "saelens", path="a/b/sae_weights.safetensors")
    assert found.activation == TopK(K)
    assert {"a/b/cfg.json", "a/b/config.json", "a/config.json"} <= set(asked)


def test_a_hub_out_of_reach_says_what_to_do(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(FormatError, match="without a network, download"):
        load_from("someone/dictionaries", "saelens", path="x")


# -- sparsify and Gemma Scope --------------------------------------------------------------------

SPARSIFY = {
    "encoder.weight": ENC,
    "encoder.bias": B_ENC,
    "W_dec": CANONICAL["W_dec"],
    "b_dec": B_DEC,
}


@pytest.mark.parametrize(
    "config",
    [
        {"activation": "topk", "k": K, "d_in": D, "num_latents": 0, "transcode": False},
        {"k": K, "d_in": D, "expansion_factor": 2, "normalize_decoder": True, "signed": False},
        {"k": K, "d_in": D, "multi_topk": True},
    ],
)
def test_sparsify_of_every_version_is_read_without_turning_its_decoder(tmp_path, config):
    save_file(SPARSIFY, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    f = top(F.relu(linear(X - B_DEC)))
    check(load_from(str(tmp_path), "sparsify"), f, f @ DEC.T + B_DEC)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"k": K, "transcode": True}, "transcoder"),
        ({"k": K, "skip_connection": True}, "transcoder"),
        ({"k": K, "activation": "groupmax"}, "groupmax"),
        ({"k": K, "signed": True}, "magnitude"),
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
    options = {"path": "params.npz", "scaled_embedding": True}
    embedding = load_from(str(tmp_path), "gemma_scope", submodule="embed", **options)
    assert torch.equal(embedding.encoder, found.encoder)
    other = load_from(str(tmp_path), "gemma_scope", submodule="resid_0", **options)
    check(other, f, f @ DEC.T + B_DEC)


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
    with pytest.raises(FormatError, match="linear"):
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


def test_every_format_that_is_offered_has_a_reader_and_no_other():
    assert tuple(READERS) == FORMATS
