"""Models: what is recorded, layers run again, adapters that are checked."""

from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import AdapterMismatch, InputError, MissingSubmodule, ModelError, UnknownFamily
from core.models import FAMILIES, LanguageModel, load_model, pick_device
from core.models.families import family_of
from core.types import Submodule
from tests.core.reference import Reference
from tests.core.tiny import (
    FAMILY_NAMES,
    MIXTURES,
    N_VOCAB,
    VARIANTS,
    make_hf,
    make_model,
    make_pairs,
    random_tokens,
    rounding,
)


@pytest.mark.parametrize(("family", "attn_input"), VARIANTS)
def test_outputs_are_those_the_models_own_run_uses(family: str, attn_input: bool) -> None:
    model, inputs = make_model(family, attn_input), make_pairs()
    recording = model.record(inputs.clean)
    with torch.no_grad():
        values = Reference(model).run(inputs).values
    assert list(recording.outputs) == model.submodules == ["embed", *list(values)[1:]]
    for name, value in values.items():
        assert value.shape[-1] == model.width(name)
        torch.testing.assert_close(recording.outputs[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("family", "attn_input"), VARIANTS)
def test_layers_run_again_from_the_recorded_stream_give_the_models_logits(
    family: str, attn_input: bool
) -> None:
    model, inputs = make_model(family, attn_input), make_pairs()
    recording = model.record(inputs.clean)
    with torch.no_grad():
        logits = Reference(model).run(inputs).logits
        stream = recording.stream_before(0)
        for layer in range(model.n_layers):
            torch.testing.assert_close(stream, recording.stream_before(layer), rtol=0, atol=1e-12)
            stream = model.layer(layer, stream, recording.context[layer])
        torch.testing.assert_close(model.logits(stream), logits, rtol=0, atol=1e-12)
        columns = random_tokens(3, 2, 5)
        some = model.logits(stream[:, -1], columns)
        torch.testing.assert_close(some, logits[:, -1].gather(1, columns), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("family", "attn_input"), VARIANTS)
def test_what_layers_add_makes_the_stream(family: str, attn_input: bool) -> None:
    model, inputs = make_model(family, attn_input), make_pairs()
    recording = model.record(inputs.clean)
    for layer in range(model.n_layers):
        attn = model.write_attn(layer, recording.outputs[f"attn_{layer}"])
        added = recording.stream_before(layer) + attn + recording.outputs[f"mlp_{layer}"]
        torch.testing.assert_close(added, recording.outputs[f"resid_{layer}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if name != "gemma2"])
def test_tokens_padded_on_the_left_are_recorded_as_if_they_were_not(family: str) -> None:
    # Not Gemma 2: in float64 its attention gives padding on the left, which sees no token, NaN.
    model, tokens = make_model(family), random_tokens(2, 4, 1)
    alone = model.record(tokens).outputs
    wide = torch.cat([torch.full((2, 2), 9), tokens], 1)
    mask = torch.tensor([[False] * 2 + [True] * 4] * 2)
    recording = model.record(wide, mask)
    assert recording.last.tolist() == [5, 5]
    for name, value in recording.outputs.items():
        torch.testing.assert_close(value[:, 2:], alone[name], rtol=0, atol=rounding(family))


@pytest.mark.parametrize("n_examples", [1, 3])
def test_selected_examples_may_repeat_and_be_selected_again(n_examples: int) -> None:
    model = make_model("gpt2")
    recording = model.record(random_tokens(n_examples, 4, 1))
    rows = torch.tensor([0, n_examples - 1, 0, n_examples - 1])
    twice = recording.select(rows).select(torch.tensor([1, 1, 2]))
    assert twice.n_examples == 3
    again = model.record(recording.tokens[rows][[1, 1, 2]])
    for name in model.submodules:
        torch.testing.assert_close(twice.outputs[name], again.outputs[name], rtol=0, atol=1e-12)
    with torch.no_grad():
        out = model.layer(1, twice.stream_before(1), twice.context[1])
    torch.testing.assert_close(out, again.outputs["resid_1"], rtol=0, atol=1e-12)


def test_one_token_alone_is_recorded() -> None:
    model, tokens = make_model("gpt_neox"), random_tokens(2, 4, 1)
    alone, all_four = model.record(tokens[:, :1]), model.record(tokens)
    for name in model.submodules:
        torch.testing.assert_close(
            alone.outputs[name], all_four.outputs[name][:, :1], rtol=0, atol=1e-12
        )


def test_recording_leaves_no_hooks_behind() -> None:
    model = make_model("gemma3_text", True)
    model.record(random_tokens(1, 3, 1))
    with torch.no_grad():
        model.attn(
            0, torch.randn(1, 3, 12).double(), model.record(random_tokens(1, 3, 1)).context[0]
        )
    modules = list(model.hf.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_parameters_want_no_gradients_and_dropout_is_off() -> None:
    hf = make_hf("gpt2").train()
    model = LanguageModel(hf)
    assert not any(p.requires_grad for p in hf.parameters())
    assert not any(module.training for module in model.hf.modules())


def test_widths_are_the_streams_but_at_the_projections_input() -> None:
    output, projected = make_model("llama"), make_model("llama", True)
    assert {output.width(name) for name in output.submodules} == {12}
    assert projected.width("attn_1") == 16
    assert projected.width("mlp_1") == 12


@pytest.mark.parametrize("name", ["attn_2", "resid_9", "mlp_100"])
def test_a_layer_the_model_lacks_is_refused(name: str) -> None:
    with pytest.raises(MissingSubmodule, match=f"'{name}' does not exist.*layers 0 to 1"):
        make_model("gpt2").width(name)


def test_tokens_are_checked_before_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("gpt2")
    monkeypatch.setattr(type(model.hf.base_model), "forward", None)
    for tokens, message in (
        (random_tokens(1, 33, 1), "33 tokens, but the model has 32 positions"),
        (torch.tensor([[N_VOCAB]]), f"vocabulary has {N_VOCAB}"),
        (torch.tensor([[-1]]), "ids run from -1"),
        (torch.zeros(0, 3, dtype=torch.long), "at least one of each"),
    ):
        with pytest.raises(InputError, match=message):
            model.record(tokens)


@pytest.mark.parametrize("family", [f for f in FAMILY_NAMES if f not in MIXTURES])
def test_every_family_says_where_its_neurons_are(family: str) -> None:
    model = make_model(family)
    tokens = random_tokens(2, 6, 1)
    names = [f"mlp_{layer}" for layer in range(model.n_layers)]
    for name, neurons in model.neurons(tokens, names).items():
        assert neurons.shape == (2, 6, model.n_neurons(name))
        layer = model.layers[Submodule.parse(name).layer]
        down = attrgetter(f"{model.family.mlp}.{model.family.down_proj}")(layer)
        written = down(neurons)
        if model.family.post_mlp is not None:
            written = getattr(layer, model.family.post_mlp)(written)
        torch.testing.assert_close(written, model.record(tokens).outputs[name])


# -- adapters ------------------------------------------------------------------------------------


class _Config:
    model_type = "mamba3"


def test_an_unknown_family_is_refused_with_the_lines_to_add() -> None:
    with pytest.raises(UnknownFamily) as caught:
        family_of(_Config)
    message = str(caught.value)
    assert "core/models/families.py" in message
    assert "Family(model_types=('mamba3',)" in message
    assert all(name in message for family in FAMILIES for name in family.model_types)


@pytest.mark.parametrize(
    "mistake",
    [
        {"parallel": lambda _config: True},
        {"pre_attn": "post_attention_layernorm"},
        {"pre_mlp": "input_layernorm"},
        {"post_mlp": "input_layernorm"},
    ],
)
def test_an_adapter_that_does_not_reproduce_the_logits_is_refused(
    monkeypatch: pytest.MonkeyPatch, mistake: dict[str, Any]
) -> None:
    hf = make_hf("llama")
    (family,) = [family for family in FAMILIES if "llama" in family.model_types]
    monkeypatch.setattr("core.models.families.FAMILIES", (replace(family, **mistake),))
    with pytest.raises(AdapterMismatch, match=r"other logits .*core/models/families\.py"):
        LanguageModel(hf)


def test_parallel_is_read_from_the_configuration() -> None:
    assert make_model("gpt_neox").parallel
    assert not make_model("gpt_neox_sequential").parallel
    assert not make_model("gpt2").parallel


# -- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_is_loaded_from_the_folder_it_was_saved_to(
    family: str, tmp_path: Path
) -> None:
    hf = make_hf(family)
    hf.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), dtype="float64", device="cpu")
    tokens = random_tokens(2, 5, 1)
    theirs, ours = make_model(family).record(tokens), model.record(tokens)
    assert model.dtype == torch.float64
    for name in model.submodules:
        torch.testing.assert_close(
            ours.outputs[name], theirs.outputs[name], rtol=0, atol=rounding(family)
        )


def test_folders_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        load_model(str(tmp_path))


def test_an_unknown_dtype_or_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype 'float8' is not one of float32"):
        load_model(str(tmp_path), dtype="float8")
    for name, message in (("gpu", "'gpu' is no device"), ("meta", "not supported")):
        with pytest.raises(InputError, match=message):
            pick_device(name)
    with pytest.raises(InputError, match="CUDA devices"):
        pick_device("cuda:99")
