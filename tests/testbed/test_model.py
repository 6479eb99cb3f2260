import json

import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from testbed.evaluate import MODEL, Evaluation, agreement_accuracy, evaluate, load_model, report
from testbed.grammar import BEHAVIOURS
from testbed.pairs import STRUCTURES


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.set_num_threads(1)
    return load_model()


@pytest.fixture(scope="module")
def found(model: PreTrainedModel) -> Evaluation:
    return evaluate(model, n_documents=100, n_pairs=100)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_verb_agrees_in_99_of_100_test_pairs(model: PreTrainedModel, structure: str) -> None:
    assert agreement_accuracy(model, structure, 300) >= 0.99


def test_the_loss_is_near_the_grammars_entropy(found: Evaluation) -> None:
    assert found.entropy <= found.loss <= 1.05 * found.entropy


def test_the_model_has_learnt_every_behaviour(found: Evaluation) -> None:
    assert not {name for name in BEHAVIOURS if found.behaviours[name].accuracy < 0.7}


def test_free_tokens_stay_uncertain(found: Evaluation) -> None:
    assert found.behaviours["free"].loss > 2


def test_the_report_names_every_structure_and_behaviour(found: Evaluation) -> None:
    text = report(found)
    assert all(f"| {name} |" in text for name in (*STRUCTURES, *BEHAVIOURS))


def test_the_weights_are_small_and_load_in_float32(model: PreTrainedModel) -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 4_000_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert json.loads((MODEL / "config.json").read_text())["dtype"] == "float32"
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.offset_keys()} == {"F16"}


def test_the_model_is_a_parallel_untied_rotary_gpt_neox(model: PreTrainedModel) -> None:
    config = model.config
    assert config.model_type == "gpt_neox"
    assert config.use_parallel_residual
    assert not config.tie_word_embeddings
    assert 0.9e6 < model.num_parameters() < 1.3e6
