"""Files of dictionaries as others write them: each is read for what it is, or refused.

The configurations are written anew for each test; where a folder of the same inputs lies beside the
checkout, those very files are tried as well.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from core.dictionaries import TopK
from core.dictionaries.formats import load_from, read_from
from core.errors import FormatError
from core.options import Format
from tests.core.dictionaries.published import (
    B_DEC,
    CANONICAL,
    DEC,
    DL,
    LINEAR,
    THRESHOLD,
    D,
    K,
    N,
    X,
    check,
    linear,
    top,
    write_dl,
    write_sl,
)

TRIALS = Path(__file__).resolve().parents[3] / "shared/trials/dictionaries"
INPUTS: dict[str, dict[str, Any]] = {
    "topk_a_cfg.json": {
        "architecture": "standard",
        "activation_fn": "relu",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 8},
    },
    "topk_b_cfg.json": {
        "architecture": "standard",
        "k": 8,
        "metadata": {"activation_fn": "topk", "sae_lens_version": "6.44.0"},
    },
    "transcoder_config.json": {
        "hf_hook_point_in": "model.layers.12.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output",
        "width": 64,
        "model_name": "gemma-v3-270m-pt",
        "architecture": "jump_relu",
        "l0": 10,
        "affine_connection": False,
        "type": "transcoder",
    },
}


@pytest.fixture(params=["generated", "shared"])
def trial(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """The text of an input, written here or where it lies."""
    if request.param == "shared":
        if not TRIALS.is_dir():
            pytest.skip("needs ../shared/trials")
        return lambda name: TRIALS.joinpath(name).read_text()
    return lambda name: json.dumps(INPUTS[name])


def write_scope(folder: Path, config: dict[str, Any] | str | None, **changed: Any) -> Path:
    """The five tensors of Gemma Scope 2, and what they are said to be."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key.lower(): value for key, value in CANONICAL.items()}
    save_file(tensors | {"threshold": THRESHOLD} | changed, folder / "params.safetensors")
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
    return folder


# -- TopK in SAELens's dialects -------------------------------------------------------------------


def saelens(folder: Path, width: int, config: str) -> str:
    """64 features of one dictionary whose configuration says what it says."""
    generator = torch.Generator().manual_seed(5)
    encoder = torch.randn(width, 64, generator=generator)
    tensors = {"W_enc": encoder, "W_dec": encoder.T.contiguous(), "b_enc": torch.zeros(64)}
    save_file(tensors | {"b_dec": torch.zeros(width)}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(config)
    return str(folder)


@pytest.mark.parametrize("name", ["topk_a_cfg.json", "topk_b_cfg.json"])
def test_topk_is_topk_whatever_key_says_so(
    tmp_path: Path, trial: Callable[[str], str], name: str
) -> None:
    found = load_from(saelens(tmp_path, 16, trial(name)), "saelens")
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(6))
    assert found.activation == TopK(8)
    assert int((found.encode(x) != 0).sum(1).max()) == 8


KWARGS = {"activation_fn_kwargs": {"k": K}}
DIALECTS = {
    "version 6": {"architecture": "topk", "k": K, "metadata": {}},
    "before, by activation_fn": {"activation_fn": "topk", **KWARGS},
    "before, by activation_fn_str": {"activation_fn_str": "topk", **KWARGS},
    "before, by architecture": {"architecture": "topk", **KWARGS},
    "the default beside it": {"activation_fn": "relu", "activation_fn_str": "topk", **KWARGS},
    "in metadata": {
        "architecture": "standard",
        "metadata": {"activation_fn": "topk", **KWARGS},
    },
    "at the top of version 6": {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "metadata": {"sae_lens_version": "6.1.0"},
        **KWARGS,
    },
}


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_every_dialect_of_topk_gives_the_same_features(tmp_path: Path, dialect: str) -> None:
    write_sl(tmp_path, CANONICAL, DIALECTS[dialect])
    f = top(F.relu(linear(X - B_DEC)))
    check(load_from(str(tmp_path), "saelens"), f, f @ DEC.T + B_DEC)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architecture": "standard", "k": K, "metadata": {}}, "a ReLU dictionary has no k"),
        ({"architecture": "topk", "k": K, "activation_fn_kwargs": {"k": 9}}, r"each of \[3, 9\]"),
        ({"architecture": "topk", "k": K + 0.5}, "no whole number"),
        ({"architecture": "topk", "k": N + 1, "metadata": {}}, "where there are fewer"),
        ({"d_in": D + 1}, f"width: '{D + 1}', the file says {D + 1}, its weights say {D}"),
        ({"d_sae": N + 1}, f"its weights say {N}"),
    ],
)
def test_a_configuration_against_itself_or_its_weights_is_refused(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    write_sl(tmp_path, CANONICAL, config)
    with pytest.raises(FormatError, match=reason):
        load_from(str(tmp_path), "saelens")


def test_two_numbers_of_features_in_one_file_are_refused(tmp_path: Path) -> None:
    write_dl(tmp_path, "AutoEncoderTopK")
    config = json.loads((tmp_path / "config.json").read_text())
    config["trainer"]["k"] = K + 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=f"the file says {K + 1}, its weights say {K}"):
        load_from(str(tmp_path), "dictionary_learning")


# -- transcoders and crosscoders ------------------------------------------------------------------


def test_a_transcoder_of_gemma_scope_2_is_no_dictionary(
    tmp_path: Path, trial: Callable[[str], str]
) -> None:
    write_scope(tmp_path, trial("transcoder_config.json"))
    with pytest.raises(
        FormatError, match=r"reads one place .*pre_feedforward.* and writes another"
    ):
        load_from(str(tmp_path), "gemma_scope", submodule="mlp_12")


@pytest.mark.parametrize(
    "config",
    [{"type": "crosscoder"}, {"affine_connection": True}, {"hf_hook_point_out": "model.layers.1"}],
)
def test_each_sign_of_a_transcoder_is_enough(tmp_path: Path, config: dict[str, Any]) -> None:
    write_scope(tmp_path, {"hf_hook_point_in": "model.layers.0.output", **config})
    with pytest.raises(FormatError, match="reads one place"):
        load_from(str(tmp_path), "gemma_scope")


@pytest.mark.parametrize("place", ["top", "metadata"])
def test_saelens_says_where_a_transcoder_writes(tmp_path: Path, place: str) -> None:
    hooks = {"hook_name": "blocks.1.hook_mlp_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    config = {"architecture": "standard"}
    write_sl(tmp_path, CANONICAL, config | (hooks if place == "top" else {"metadata": hooks}))
    with pytest.raises(FormatError, match=r"hook_mlp_in.* writes another .*hook_mlp_out"):
        load_from(str(tmp_path), "saelens")


def test_dictionary_learning_says_that_its_buffer_was_of_two_places(tmp_path: Path) -> None:
    write_dl(tmp_path, "AutoEncoder")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"buffer": {"io": "in_and_out"}}))
    with pytest.raises(FormatError, match="reads one place"):
        load_from(str(tmp_path), "dictionary_learning")


def test_tensors_of_several_places_are_refused(tmp_path: Path) -> None:
    state = LINEAR | {"bias": B_DEC, "encoder.weight": torch.zeros(2, N, D)}
    write_dl(tmp_path / "dl", "AutoEncoder", state=state)
    write_sl(tmp_path / "sl", CANONICAL | {"W_dec": torch.zeros(N, 2, D)}, {})
    write_scope(tmp_path / "gs", None, w_enc=torch.zeros(2, D, N))
    for folder, format in (("dl", "dictionary_learning"), ("sl", "saelens"), ("gs", "gemma_scope")):
        with pytest.raises(FormatError, match=r"reads one place \(\(\d+, \d+, \d+\) numbers in"):
            load_from(str(tmp_path / folder), format)  # type: ignore[arg-type]


# -- another place, broken numbers ----------------------------------------------------------------


def at_hook(folder: Path, hook: str, **config: Any) -> Path:
    write_sl(folder, CANONICAL, {"architecture": "standard", "hook_name": hook, **config})
    return folder


@pytest.mark.parametrize(
    ("hook", "submodule"),
    [
        ("blocks.3.hook_resid_post", "resid_4"),
        ("blocks.3.hook_resid_pre", "resid_3"),
        ("blocks.3.hook_mlp_out", "attn_3"),
        ("blocks.3.hook_resid_mid", "resid_3"),
        ("blocks.3.mlp.hook_post", "mlp_3"),
    ],
)
def test_a_dictionary_of_another_place_is_refused(
    tmp_path: Path, hook: str, submodule: str
) -> None:
    at_hook(tmp_path, hook)
    with pytest.raises(FormatError, match=f"hook: '{hook}', that place is"):
        load_from(str(tmp_path), "saelens", submodule=submodule)


def test_a_dictionary_of_its_place_is_read(tmp_path: Path) -> None:
    at_hook(tmp_path, "blocks.3.hook_resid_pre")
    assert load_from(str(tmp_path), "saelens", submodule="resid_2").n_features == N


def test_a_dictionary_of_one_head_is_refused(tmp_path: Path) -> None:
    at_hook(tmp_path, "blocks.3.attn.hook_z", hook_head_index=2)
    with pytest.raises(FormatError, match="one attention head"):
        load_from(str(tmp_path), "saelens", submodule="attn_3")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", list(DL))
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, name: str, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in DL[name][0].items()}
    key = "encoder.weight" if "encoder.weight" in state else "W_enc"
    state[key][1, 2] = value
    write_dl(tmp_path, name, state=state)
    with pytest.raises(FormatError, match=f"1 of {N * D} numbers in encoder that are NaN"):
        load_from(str(tmp_path), "dictionary_learning", normalize_decoder=False)


def test_weights_that_were_centred_are_told(tmp_path: Path) -> None:
    kwargs = {"center_writing_weights": True}
    at_hook(tmp_path, "blocks.3.hook_resid_post", model_from_pretrained_kwargs=kwargs)
    found = read_from(str(tmp_path), "saelens")
    assert "centred" in (found.claims.doubt or "")
    at_hook(tmp_path, "blocks.3.hook_resid_post")
    assert read_from(str(tmp_path), "saelens").claims.doubt is None


@pytest.mark.parametrize(
    ("version", "doubted"), [("6.54.8", True), ("6.54.9", False), ("7.0.0", False)]
)
def test_versions_with_wrong_thresholds_are_told(
    tmp_path: Path, version: str, doubted: bool
) -> None:
    tensors = CANONICAL | {"threshold": THRESHOLD}
    metadata = {"sae_lens_training_version": version, "training_architecture": "batchtopk"}
    write_sl(tmp_path, tensors, {"architecture": "jumprelu", "metadata": metadata})
    doubt = read_from(str(tmp_path), "saelens").claims.doubt
    assert bool(doubt) is doubted


# -- configurations with something else in them ---------------------------------------------------

STRANGE = (None, "x", "", -1, 0, 10**30, 0.5, True, [], [1], {}, {"k": "x"}, "topk")
SAID: dict[str, tuple[str, str, dict[str, Any]]] = {
    "saelens": (
        "sl",
        "cfg.json",
        {
            "architecture": "topk",
            "k": K,
            "d_in": D,
            "d_sae": N,
            "activation_fn": "topk",
            "activation_fn_kwargs": {"k": K},
            "normalize_activations": "none",
            "apply_b_dec_to_input": True,
            "metadata": {"hook_name": "blocks.3.hook_resid_post", "sae_lens_version": "6.1.0"},
            "model_from_pretrained_kwargs": {},
            "hook_head_index": None,
            "prepend_bos": True,
        },
    ),
    "dictionary_learning": (
        "dl",
        "config.json",
        {
            "trainer": {"dict_class": "AutoEncoderTopK", "k": K, "layer": 3, "lm_name": "gpt2"},
            "buffer": {"io": "out"},
        },
    ),
    "gemma_scope": (
        "gs",
        "config.json",
        {"hf_hook_point_in": "model.layers.3.output", "width": N, "l0": 3, "type": "sae"},
    ),
}


def mutations(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration with one value replaced, at every depth."""
    for key, value in config.items():
        yield from ({**config, key: strange} for strange in STRANGE)
        if isinstance(value, dict):
            yield from ({**config, key: inner} for inner in mutations(value))


@pytest.mark.parametrize("format", list(SAID))
def test_a_strange_configuration_is_refused_or_read_never_a_traceback(
    tmp_path: Path, format: Format
) -> None:
    write_sl(tmp_path / "sl", CANONICAL, {})
    write_dl(tmp_path / "dl", "AutoEncoderTopK")
    write_scope(tmp_path / "gs", None)
    folder, name, config = SAID[format]
    assert load_from(str(tmp_path / folder), format, submodule="resid_3").n_features == N
    refused = 0
    for mutated in mutations(config):
        (tmp_path / folder / name).write_text(json.dumps(mutated))
        try:
            found = load_from(str(tmp_path / folder), format, submodule="resid_3")
        except FormatError:
            refused += 1
        else:
            assert torch.isfinite(found.encode(X)).all()
    assert refused > 10
