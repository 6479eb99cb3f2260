"""What a file says of itself, held against the weights, the place and what is measured."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from core.dictionaries import Dictionary, JumpReLU, ReLU, TopK
from core.dictionaries.formats import load_from, read_from
from core.dictionaries.formats.claims import (
    Claims,
    Place,
    Where,
    check_experiment,
    check_file,
    check_measured,
    place_of,
    refuse,
)
from core.errors import FormatError
from tests.core.dictionaries.published import (
    B_DEC,
    B_ENC,
    CANONICAL,
    DEC,
    ENC,
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

RELU = Dictionary(ENC, B_ENC, DEC.T, B_DEC, B_DEC, ReLU())


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("hook_embed", Place("embed")),
        ("gpt_neox.embed_in", Place("embed")),
        ("blocks.0.hook_resid_pre", Place("embed", before_layers=True)),
        ("blocks.12.hook_resid_pre", Place("resid_11")),
        ("blocks.12.hook_resid_post", Place("resid_12")),
        ("blocks.12.hook_attn_out", Place("attn_12", attn_input=False)),
        ("blocks.12.attn.hook_z", Place("attn_12", attn_input=True)),
        ("blocks.1.ln2.hook_normalized", Place(None)),
        ("model.layers.12.output", Place("resid_12")),
        ("model.layers.12.self_attn.o_proj.input", Place("attn_12", attn_input=True)),
        ("model.layers.12.post_feedforward_layernorm.output", Place("mlp_12")),
        ("model.layers.12.pre_feedforward_layernorm.output", Place(None)),
        ("layers.10", Place("resid_10")),
        ("h.0.attn", Place("attn_0", attn_input=False)),
        ("gpt_neox.layers.3.attention", Place("attn_3", attn_input=False)),
        ("transformer.h.5.mlp", Place("mlp_5")),
        ("resid_3", Place("resid_3")),
        ("resid_post_layer_3", Place("resid_3")),
        ("resid_pre_layer_3", Place("resid_2")),
        ("attn_out_layer3", Place("attn_3")),
        ("mlp_in_3", Place(None)),
        ("model.layers.1.post_attention_layernorm", None),
        ("somewhere", None),
    ],
)
def test_a_place_is_known_by_every_name_it_has(hook: str, place: Place | None) -> None:
    assert place_of(hook) == place


def verdicts(claims: Claims, where: Where | None = None) -> dict[str, str]:
    return {f.claim: f.verdict for f in check_file(claims, RELU, where)}


def test_claims_that_hold_are_rows_too() -> None:
    claims = Claims(d=D, n_features=N, kind="relu", hook="resid_1", exporter="SAELens 7")
    assert verdicts(claims, Where("resid_1")) == dict.fromkeys(
        ("width", "features", "kind", "exporter", "hook"), "ok"
    )


def test_what_a_file_does_not_say_is_no_row() -> None:
    assert check_file(Claims(), RELU, Where("resid_1")) == []


def test_attention_is_read_where_the_model_is_told_to_have_it() -> None:
    claims = Claims(hook="blocks.1.attn.hook_z")
    assert verdicts(claims, Where("attn_1", attn_input=True)) == {"hook": "ok"}
    assert verdicts(claims, Where("attn_1")) == {"hook": "ok"}
    found = check_file(claims, RELU, Where("attn_1", attn_input=False))
    with pytest.raises(FormatError, match="set attn_input of the model to true"):
        refuse(found, "the file")


def test_the_stream_before_layer_0_is_embed_unless_positions_are_added() -> None:
    claims = Claims(hook="blocks.0.hook_resid_pre")
    assert verdicts(claims, Where("embed", positions=False)) == {"hook": "ok"}
    assert verdicts(claims, Where("embed", positions=True)) == {"hook": "refuse"}


def test_a_layer_counts_where_the_place_is_in_words_of_their_own() -> None:
    claims = Claims(hook="somewhere", layer=2)
    assert verdicts(claims, Where("resid_2")) == {"hook": "unchecked", "layer": "ok"}
    assert verdicts(claims, Where("resid_3")) == {"hook": "unchecked", "layer": "refuse"}


def test_a_claim_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(FormatError, match=r"its k is '8', which it cannot be"):
        Claims(k="8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "model", "on_hub", "verdict"),
    [
        ("gemma-v3-270m-pt", "google/gemma-3-270m-pt", True, "ok"),
        ("gpt2-small", "openai-community/gpt2", True, "ok"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m-deduped", True, "warn"),
        ("gpt2-small", "./model", False, "unchecked"),
        ("gpt2-small", "./models/gpt2", False, "ok"),
    ],
)
def test_another_model_is_told(said: str, model: str, on_hub: bool, verdict: str) -> None:
    (found,) = check_experiment(Claims(model=said), model=model, on_hub=on_hub, bos=False)
    assert found.verdict == verdict


@pytest.mark.parametrize("bos", [True, False])
def test_another_beginning_of_the_text_is_told(bos: bool) -> None:
    (found,) = check_experiment(Claims(bos=True), model="m", on_hub=True, bos=bos)
    assert found.verdict == ("ok" if bos else "warn")


@pytest.mark.parametrize(
    ("l0", "verdict"), [(8.0, "ok"), (10.0, "ok"), (10.1, "warn"), (6.4, "ok"), (6.3, "warn")]
)
def test_measured_l0_is_held_against_k_and_l0(l0: float, verdict: str) -> None:
    found = check_measured(
        Claims(k=8, l0=8.0), l0=l0, variance_explained=0.9, factor=1.25, least=0.5
    )
    assert [f.verdict for f in found] == [verdict, verdict, "ok"]
    if verdict == "warn":
        assert f"{l0 / 8:.2f} times what the file says" in found[0].message


@pytest.mark.parametrize("share", [0.4, float("nan")])
def test_a_dictionary_that_explains_little_is_told(share: float) -> None:
    (found,) = check_measured(Claims(), l0=1, variance_explained=share, factor=1.25, least=0.5)
    assert found.verdict == "warn"


# -- what each format claims ----------------------------------------------------------------------


def test_every_format_says_what_its_file_says(tmp_path) -> None:
    write_sl(
        tmp_path / "sl",
        CANONICAL,
        {
            "architecture": "topk",
            "k": K,
            "metadata": {
                "model_name": "gpt2-small",
                "hook_name": "blocks.1.hook_resid_post",
                "prepend_bos": True,
                "sae_lens_version": "6.1.0",
                "l0": 2.5,
            },
        },
    )
    assert read_from(str(tmp_path / "sl"), "saelens").claims == Claims(
        model="gpt2-small",
        hook="blocks.1.hook_resid_post",
        d=D,
        n_features=N,
        k=K,
        l0=2.5,
        bos=True,
        exporter="SAELens 6.1.0",
    )
    write_dl(tmp_path / "dl", "BatchTopKSAE")
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": D, "dict_size": N, "k": K}
    trainer |= {"lm_name": "EleutherAI/pythia-70m", "layer": 3, "submodule_name": "resid_post"}
    (tmp_path / "dl/config.json").write_text(json.dumps({"trainer": trainer}))
    assert read_from(str(tmp_path / "dl"), "dictionary_learning").claims == Claims(
        model="EleutherAI/pythia-70m", hook="resid_post", layer=3, d=D, n_features=N, k=K
    )
    folder = tmp_path / "run/layers.10.mlp"
    folder.mkdir(parents=True)
    tensors = {"encoder.weight": ENC, "encoder.bias": B_ENC, "W_dec": CANONICAL["W_dec"]}
    save_file(tensors | {"b_dec": B_DEC}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"k": K, "d_in": D, "num_latents": 0}))
    assert read_from(str(folder), "sparsify").claims == Claims(
        hook="layers.10.mlp", d=D, k=K, kind="topk"
    )
    with pytest.raises(FormatError, match="that place is mlp_10"):
        load_from(str(folder), "sparsify", submodule="mlp_1")


# -- Llama Scope, Qwen-Scope, BatchTopK -----------------------------------------------------------

HYPER = {
    "d_model": D,
    "d_sae": N,
    "hook_point_in": "blocks.2.hook_resid_post",
    "hook_point_out": "blocks.2.hook_resid_post",
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.2,
    "dataset_average_activation_norm": {"in": 3.0, "out": 3.0},
    "top_k": K,
}


def write_llama(folder, **changed):
    (folder / "checkpoints").mkdir(parents=True)
    tensors = {"encoder.weight": ENC, "encoder.bias": B_ENC, "decoder.weight": DEC}
    save_file(tensors | {"decoder.bias": B_DEC}, folder / "checkpoints/final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(HYPER | changed))
    return str(folder)


def test_llama_scope_is_read_for_inputs_as_the_model_has_them(tmp_path) -> None:
    source = write_llama(tmp_path / "l")
    scale = D**0.5 / 3.0
    f = jump(linear(X * scale), 0.2 * scale)
    assert 0 < int((f != 0).sum()) < f.numel()
    for path in ("", "checkpoints/final.safetensors"):
        found = load_from(source, "llama_scope", path=path, submodule="resid_2")
        check(found, f, (f @ DEC.T + B_DEC) / scale)
    assert read_from(source, "llama_scope").claims.k == K
    with pytest.raises(FormatError, match="that place is resid_2"):
        load_from(source, "llama_scope", submodule="resid_1")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"hook_point_out": "blocks.2.hook_mlp_out"}, "reads one place"),
        ({"act_fn": "topk"}, "only jumprelu"),
        ({"dataset_average_activation_norm": {"in": 0}}, "says dataset_average_activation_norm"),
        ({"d_sae": N + 1}, "its weights say"),
    ],
)
def test_llama_scope_of_other_things_is_refused(tmp_path, changed, reason) -> None:
    source = write_llama(tmp_path / "l", **changed)
    with pytest.raises(FormatError, match=reason):
        load_from(source, "llama_scope")


def test_qwen_scope_has_its_k_from_the_repository(tmp_path) -> None:
    folder = tmp_path / f"SAE-Res-Qwen3-1.7B-Base-W1K-L0_{K}"
    folder.mkdir()
    encoder = torch.randn(1024, D, generator=torch.Generator().manual_seed(3))
    tensors = {"W_enc": encoder, "b_enc": torch.zeros(1024), "W_dec": encoder.T, "b_dec": B_DEC}
    torch.save({k: v.contiguous() for k, v in tensors.items()}, folder / "layer3.sae.pt")
    path = "layer{layer}.sae.pt"
    found, claims = read_from(str(folder), "qwen_scope", path=path, submodule="resid_3")
    assert claims == Claims(
        model="Qwen3-1.7B-Base", hook="layers.3", n_features=1024, k=K, kind="topk"
    )
    f = top(torch.relu(X @ encoder.T))  # nothing is subtracted from the input
    torch.testing.assert_close(found.encode(X), f, **TOLERANCE)
    torch.testing.assert_close(found.decode(f), f @ encoder + B_DEC, **TOLERANCE)
    with pytest.raises(FormatError, match=f"the file says {K}, its weights say 9"):
        load_from(str(folder), "qwen_scope", path=path, submodule="resid_3", k=9)


def test_qwen_scope_without_its_repositorys_name_needs_k(tmp_path) -> None:
    tensors = {"W_enc": ENC, "b_enc": B_ENC, "W_dec": DEC, "b_dec": B_DEC}
    torch.save(tensors, tmp_path / "layer0.sae.pt")
    with pytest.raises(FormatError, match="give the option k"):
        load_from(str(tmp_path), "qwen_scope", path="layer0.sae.pt")
    found = load_from(str(tmp_path), "qwen_scope", path="layer0.sae.pt", k=K)
    assert found.activation == TopK(K)
    with pytest.raises(FormatError, match=r"layer\{layer\}\.sae\.pt"):
        load_from(str(tmp_path), "qwen_scope", k=K)


def write_batch_topk(folder, **config):
    torch.save(CANONICAL | {"num_batches_not_active": torch.zeros(N)}, folder / "sae.pt")
    said = {"sae_type": "topk", "top_k": K, "act_size": D, "dict_size": N, "layer": 8}
    said |= {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre"}
    (folder / "config.json").write_text(json.dumps(said | config))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "options"),
    [({}, {}), ({"sae_type": "batchtopk"}, {"per_token": True})],
)
def test_the_batch_top_k_repository_is_read(tmp_path, config, options) -> None:
    source = write_batch_topk(tmp_path, **config)
    f = top(torch.relu(linear(X - B_DEC)))
    found = load_from(source, "batch_topk", submodule="resid_7", **options)
    check(found, f, f @ DEC.T + B_DEC)


def test_without_its_encoders_bias_or_with_tied_weights_it_is_read_so(tmp_path) -> None:
    source = write_batch_topk(tmp_path, use_encoder_bias=False, tied_weights=True)
    f = top(torch.relu((X - B_DEC) @ ENC.T))
    check(load_from(source, "batch_topk"), f, f @ ENC + B_DEC)


def test_a_vanilla_one_is_a_relu(tmp_path) -> None:
    source = write_batch_topk(tmp_path, sae_type="vanilla", input_unit_norm=True)
    f = torch.relu(linear(X - B_DEC))  # only the top-k types normalise
    check(load_from(source, "batch_topk"), f, f @ DEC.T + B_DEC)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"sae_type": "batchtopk"}, "no rule for a single token.*per_token: true"),
        ({"sae_type": "quantile"}, "none of vanilla, topk, batchtopk"),
        ({"input_unit_norm": True}, "no affine map"),
        ({"activation": "abs"}, "only relu"),
        ({"top_k": None}, "how large top_k is"),
        ({"dict_size": N + 1}, "its weights say"),
    ],
)
def test_the_batch_top_k_repository_of_other_things_is_refused(tmp_path, config, reason) -> None:
    source = write_batch_topk(tmp_path, **config)
    with pytest.raises(FormatError, match=reason):
        load_from(source, "batch_topk")


def test_a_jumprelu_with_k_leaves_the_comparison_to_what_is_measured() -> None:
    jumprelu = Dictionary(ENC, B_ENC, DEC.T, B_DEC, B_DEC, JumpReLU(THRESHOLD))
    assert check_file(Claims(k=K), jumprelu) == []
