"""Model folders and tokenizers as they come: read as they are meant, or refused with the reason."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from core.errors import AdapterMismatch, InputError, ModelError, NotFinite
from core.models import FAMILIES, LanguageModel, load_model, load_tokenizer
from core.models.load import PROBES, probe_ids
from tests.core.tiny import make_hf

Weights = dict[str, Tensor]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def save(folder: Path, family: str = "llama", **config: Any) -> Path:
    make_hf(family).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def change(folder: Path, changed: Callable[[Weights], Weights]) -> str:
    """Write a folder's weights again; the folder's path."""
    file = folder / "model.safetensors"
    save_file(changed(load_file(file)), file, metadata={"format": "pt"})
    return str(folder)


def refused(source: str, error: type[Exception] = ModelError) -> str:
    with pytest.raises(error) as caught:
        load_model(source, device="cpu")
    return str(caught.value)


def without(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: w for name, w in weights.items() if name not in names}


def test_a_folder_without_its_head_is_refused(tmp_path: Path) -> None:
    source = change(save(tmp_path, "gpt_neox"), without("embed_out.weight"))
    message = refused(source)
    assert "not those of a GPTNeoXForCausalLM" in message
    assert "Missing, and random if loaded: lm_head.weight." in message
    assert "tie_word_embeddings: true" in message


def test_a_folder_without_a_head_that_is_tied_is_read(tmp_path: Path) -> None:
    source = str(save(tmp_path, "gpt2"))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = load_model(source, dtype="float64", device="cpu")
    assert model.unembedding.weight is model.hf.get_input_embeddings().weight


def test_a_head_of_its_own_is_read_whatever_the_configuration_says(tmp_path: Path) -> None:
    head = torch.randn(40, 12, dtype=torch.float64)
    source = change(save(tmp_path, "gpt2"), lambda weights: weights | {"lm_head.weight": head})
    model = load_model(source, dtype="float64", device="cpu")
    assert torch.equal(model.unembedding.weight, head)
    assert not torch.equal(model.hf.get_input_embeddings().weight, head)


def test_one_matrix_missing_is_refused_by_name(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    message = refused(change(save(tmp_path), without(name)))
    assert f"random if loaded: {name}." in message
    assert "In the files but not in the model: none." in message


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_of_a_wrapper_are_refused_with_the_prefix(tmp_path: Path, prefix: str) -> None:
    source = change(save(tmp_path), lambda w: {prefix + name: x for name, x in w.items()})
    message = refused(source)
    assert f"not in the model: {prefix}" in message
    assert f"The names begin with '{prefix}': take it off" in message
    assert "and 16 more" in message  # 21 names, five of them written out


def test_weights_that_the_configuration_has_no_place_for_are_refused(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.bias"
    extra = {name: torch.ones(16, dtype=torch.float64)}
    message = refused(change(save(tmp_path / "bias"), lambda w: w | extra))
    assert f"not in the model: {name}." in message
    message = refused(str(save(tmp_path / "layers", num_hidden_layers=1)))
    assert "not in the model: model.layers.1.input_layernorm.weight" in message


def test_masks_of_old_files_and_heads_for_other_ends_are_left_out(tmp_path: Path) -> None:
    masks = {f"transformer.h.0.attn.{name}": torch.ones(1) for name in ("bias", "masked_bias")}
    source = change(save(tmp_path / "masks", "gptj"), lambda weights: weights | masks)
    with warnings.catch_warnings(action="error"):
        assert load_model(source, device="cpu").n_layers == 2
    head = {"v_head.weight": torch.ones(1, 12)}
    source = change(save(tmp_path / "head"), lambda weights: weights | head)
    with pytest.warns(UserWarning, match=r"left out of .*: v_head\.weight\."):
        load_model(source, device="cpu")


def test_weights_of_another_shape_are_refused_with_both_shapes(tmp_path: Path) -> None:
    message = refused(str(save(tmp_path, intermediate_size=24)))
    assert "mlp.down_proj.weight is (12, 20) in the file and (12, 24) in the model" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_by_name(tmp_path: Path, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def spoil(weights: Weights) -> Weights:
        weights[name][3, 4] = value
        return weights

    assert f"weight '{name}'" in refused(change(save(tmp_path), spoil), NotFinite)


def test_damaged_and_unfetched_files_are_refused_without_a_traceback(tmp_path: Path) -> None:
    file = save(tmp_path) / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole[:-100], whole[:50], b"", b"\xff" * 100):
        file.write_bytes(content)
        message = refused(str(tmp_path))
        assert message.startswith(f"the model in '{tmp_path}' cannot be read (SafetensorError")
        assert "Is every file whole?" in message
    file.write_bytes(POINTER)
    message = refused(str(tmp_path))
    assert message.startswith(f"'{file}' is a Git LFS pointer")
    assert "git lfs pull" in message
    file.write_bytes(whole)
    for content in ("{", "[]", '{"model_type": "llama", "hidden_size": "wide"}'):
        (tmp_path / "config.json").write_text(content)
        assert "cannot be read" in refused(str(tmp_path))


# -- families ------------------------------------------------------------------------------------

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("bloom", "are given the residual stream and add it themselves"),
        ("opt", "its MLP is two matrices of the layer"),
        ("olmo2", "without a norm before them"),
    ],
)
def test_architectures_that_cannot_be_described_are_refused_with_the_reason(
    tmp_path: Path, model_type: str, reason: str
) -> None:
    config = AutoConfig.for_model(model_type, **SIZES, pad_token_id=0)
    hf = AutoModelForCausalLM.from_config(config)
    with pytest.raises(AdapterMismatch, match=f"'{model_type}' cannot be read: .*{reason}"):
        LanguageModel(hf)
    # From a folder, before its weights are read.
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert reason in refused(str(tmp_path), AdapterMismatch)


@pytest.mark.parametrize("model_type", ["bloom", "opt", "olmo2", "cohere", "mamba"])
@pytest.mark.parametrize("like", ["llama", "gpt2", "falcon", "gemma2"])
def test_a_description_that_does_not_fit_is_refused_as_such(
    monkeypatch: pytest.MonkeyPatch, model_type: str, like: str
) -> None:
    from dataclasses import replace

    (family, *_) = [family for family in FAMILIES if like in family.model_types]
    wrong = replace(family, model_types=(model_type,), when=lambda _config: True)
    monkeypatch.setattr("core.models.families.FAMILIES", [wrong])
    hf = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **SIZES, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    )
    with pytest.raises(AdapterMismatch, match=r"does not fit the model \(.*families\.py"):
        LanguageModel(hf)


def test_outputs_that_are_changed_after_they_were_recorded_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Falcon adds attention to what its MLP puts out, in place: its logits alone would be right."""
    from dataclasses import replace

    wrong = [replace(family, in_place=False) for family in FAMILIES]
    monkeypatch.setattr("core.models.families.FAMILIES", wrong)
    with pytest.raises(AdapterMismatch):
        LanguageModel(make_hf("falcon_7b"))


# -- tokenizers ----------------------------------------------------------------------------------


def byte_level() -> Any:
    """A tokenizer of bytes, words cut as GPT-2 cuts them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def write_tokenizer(folder: Path, kind: str) -> str:
    """A folder with a tokenizer and nothing else, whose class is said to be `kind`."""
    folder.mkdir()
    byte_level().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": kind, "bos_token": "!", "unk_token": "!", "eos_token": "!"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_a_folder_with_a_tokenizer_alone_is_read(tmp_path: Path) -> None:
    source = write_tokenizer(tmp_path / "whole", "PreTrainedTokenizerFast")
    assert probe_ids(load_tokenizer(source)) == probe_ids(_as_it_is())
    (tmp_path / "whole/tokenizer_config.json").unlink()
    assert probe_ids(load_tokenizer(source)) == probe_ids(_as_it_is())


def _as_it_is() -> Any:
    """tokenizer.json by the tokenizers library alone."""

    def tokenize(text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": byte_level().encode(text, add_special_tokens=add_special_tokens).ids}

    return tokenize


def test_a_class_that_reads_otherwise_than_its_file_is_refused_with_both_and_a_choice(
    tmp_path: Path,
) -> None:
    # GPT-2's class puts no space before a text, this file does.
    source = write_tokenizer(tmp_path / "gpt2", "GPT2Tokenizer")
    of_file = load_tokenizer(source, reading="file")
    of_class = load_tokenizer(source, reading="class")
    assert probe_ids(of_file) == probe_ids(_as_it_is())
    first, second = probe_ids(of_class)[0], probe_ids(of_file)[0]
    assert second[1:] == first
    with pytest.raises(ModelError) as caught:
        load_tokenizer(source)
    message = str(caught.value)
    assert f"reads {PROBES[0]!r} in two ways: as {first} by the class GPT2Tokenizer" in message
    assert f"as {second} by its tokenizer.json" in message
    assert "model.tokenizer" in message
    with pytest.raises(InputError, match="reading 'fast' is not one of file, class"):
        load_tokenizer(source, reading="fast")  # type: ignore[arg-type]


def test_folders_without_a_tokenizer_and_unfetched_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_tokenizer(str(save(tmp_path / "model")))
    source = write_tokenizer(tmp_path / "pointer", "PreTrainedTokenizerFast")
    (tmp_path / "pointer/tokenizer.json").write_bytes(POINTER)
    with pytest.raises(ModelError, match=r"tokenizer\.json' is a Git LFS pointer"):
        load_tokenizer(source)
    (tmp_path / "pointer/tokenizer.json").write_bytes(b"{}")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(source)
