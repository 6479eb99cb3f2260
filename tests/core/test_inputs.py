"""Inputs: padding moved to the right, answers of one token, pairs that line up."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import AnswerError, InputError
from core.inputs import (
    Inputs,
    answer_token,
    by_reason,
    pad,
    tokenize_pairs,
    tokenize_single,
)
from core.metrics import (
    OF_SINGLE,
    LogitDifference,
    NegativeLogit,
    NegativeLogOdds,
    NegativeLogProb,
    NegativeMargin,
)
from core.types import (
    Node,
    SparseFeatures,
    Submodule,
    causal_order,
)
from tests.core.tiny import make_pairs, random_tokens

WORDS = ["The", " dog", " dogs", " that", " is", " are", " run", "s", " ran", " big"]


def tokenize(text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
    """Longest word first; " runs" is two tokens, " run" and "s"."""
    assert not add_special_tokens
    ids = []
    while text:
        word = max((w for w in WORDS if text.startswith(w)), key=len)
        ids.append(WORDS.index(word))
        text = text[len(word) :]
    return {"input_ids": ids}


def row(clean: str, patch: str, clean_answer: str = " is", patch_answer: str = " are") -> Any:
    return {
        "clean_prefix": clean,
        "patch_prefix": patch,
        "clean_answer": clean_answer,
        "patch_answer": patch_answer,
        "case": "singular",
    }


# -- inputs --------------------------------------------------------------------------------------


def test_padding_is_moved_to_the_right_with_the_patch_and_order_kept() -> None:
    clean = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6]])
    patch = torch.tensor([[0, 0, 7, 8], [9, 10, 11, 12]])
    mask = torch.tensor([[False, False, True, True], [True] * 4])
    answers = torch.tensor([1, 2])
    inputs = Inputs.pairs(clean, patch, answers, answers, mask)
    assert inputs.patch is not None
    assert inputs.clean[0, :2].tolist() == [1, 2]
    assert inputs.patch[0, :2].tolist() == [7, 8]
    assert inputs.clean[1].tolist() == [3, 4, 5, 6]
    assert inputs.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert inputs.last.tolist() == [1, 3]


def test_selected_examples_drop_padding_they_do_not_need() -> None:
    tokens, mask = pad([[1, 2], [3, 4, 5, 6], [7, 8, 9]])
    inputs = Inputs.single(tokens, torch.tensor([1, 2, 3]), mask)
    some = inputs.select(torch.tensor([2, 0]))
    assert some.clean.tolist() == [[7, 8, 9], [1, 2, 0]]
    assert some.metric.answers.flatten().tolist() == [3, 1]
    assert some.last.tolist() == [2, 1]


def test_batches_hold_every_example_once_and_in_order() -> None:
    inputs = make_pairs(5)
    parts = list(inputs.batches(2))
    assert [part.n_examples for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.clean for part in parts]), inputs.clean)
    assert torch.equal(torch.cat([p.metric.answers for p in parts]), inputs.metric.answers)


def test_rows_of_any_lengths_are_padded_on_the_right() -> None:
    tokens, mask = pad([[5], [6, 7]])
    assert tokens.tolist() == [[5, 0], [6, 7]]
    assert mask.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("rows", [[], [[1], []]])
def test_nothing_to_pad_is_refused(rows: list[list[int]]) -> None:
    with pytest.raises(InputError, match="without tokens"):
        pad(rows)


# -- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [" runs", "", " dogs big"])
def test_an_answer_of_several_tokens_or_none_is_refused(text: str) -> None:
    assert answer_token(tokenize, "The dog", " is") == 4
    message = r"after 'The dog' cannot be read: an answer is not one token \(\[0, 1\] becomes"
    with pytest.raises(AnswerError, match=message):
        answer_token(tokenize, "The dog", text)
    with pytest.raises(AnswerError, match="leading space"):
        tokenize_single(tokenize, ["The dog"], [text])


def test_an_answer_is_what_it_is_after_its_text() -> None:
    """Alone, "s" is a word of its own; after " run" it is one piece, after " dog" it is none."""
    assert tokenize_single(tokenize, ["The dogs run"], ["s"]).metric.answers.tolist() == [[7]]
    with pytest.raises(AnswerError, match="melts into its prefix"):
        tokenize_single(tokenize, ["The dog"], ["s"])


def test_single_texts_become_padded_tokens_and_a_log_probability() -> None:
    inputs = tokenize_single(tokenize, ["The dog", "The big dogs that"], [" is", " ran"], bos=9)
    assert inputs.clean.tolist() == [[9, 0, 1, 0, 0], [9, 0, 9, 2, 3]]
    assert inputs.mask.sum(1).tolist() == [3, 5]
    assert isinstance(inputs.metric, NegativeLogOdds)
    assert inputs.metric.answer.tolist() == [4, 8]
    assert inputs.patch is None


def test_texts_and_answers_must_be_as_many() -> None:
    with pytest.raises(InputError, match="2 texts but 1 answers"):
        tokenize_single(tokenize, ["The dog", "The dogs"], [" is"])


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(InputError, match="without tokens"):
        tokenize_single(tokenize, ["The", ""], [" is", " is"])


def test_pairs_that_cannot_be_compared_are_left_out() -> None:
    rows = [
        row("The dog", "The dogs"),
        row("The big dog", "The dogs"),  # lengths differ
        row("The dog", "The dogs", " runs", " run"),  # an answer of two tokens
        row("The dog", "The dogs", " is", " runs"),
        row("", ""),
        row("The dogs", "The dog", " are", " is"),
        row("The dog that run", "The dogs that run", "s", " is"),
        row("The dog", "The dog"),
        row("The dog", "The dogs", " is", " is"),
        row("The dog", "The dogs", "s", " is"),  # " dog" and "s" are one token together
    ]
    pairs = tokenize_pairs(tokenize, rows)
    inputs = pairs.inputs
    assert pairs.kept == [0, 5, 6]
    assert pairs.dropped == [
        (1, "the prefixes differ in length"),
        (2, "an answer is not one token"),
        (3, "an answer is not one token"),
        (4, "a prefix has no tokens"),
        (7, "both prefixes are the same"),
        (8, "both answers are the same"),
        (9, "an answer melts into its prefix"),
    ]
    assert by_reason(pairs.dropped).startswith("2 x an answer is not one token; 1 x the prefixes")
    assert inputs.clean.tolist() == [[0, 1, 0, 0], [0, 2, 0, 0], [0, 1, 3, 6]]
    assert inputs.patch is not None
    assert inputs.patch.tolist() == [[0, 2, 0, 0], [0, 1, 0, 0], [0, 2, 3, 6]]
    assert inputs.metric.answers.tolist() == [[4, 5], [5, 4], [7, 4]]


def test_no_usable_pair_is_refused_with_the_reasons() -> None:
    rows = [row("The big dog", "The dogs"), row("The dog", "The dogs", " runs")]
    message = r"none of 2 pairs .*\(1 x the prefixes differ in length; 1 x an answer is not one"
    with pytest.raises(InputError, match=message):
        tokenize_pairs(tokenize, rows)


# -- metrics -------------------------------------------------------------------------------------


def read(metric: Any, logits: Tensor) -> list[float]:
    columns = metric.tokens
    return metric(logits if columns is None else logits.gather(1, columns)).tolist()


def test_metrics_are_their_formulas() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 3.0, -1.0]])
    a, b = torch.tensor([0, 1]), torch.tensor([2, 0])
    assert read(LogitDifference(a, b), logits) == [4 - 1, 0 - 3]
    assert read(NegativeLogit(a), logits) == [-1, -3]
    log_p = logits.log_softmax(1).tolist()
    assert read(NegativeLogProb(a), logits) == pytest.approx([-log_p[0][0], -log_p[1][1]])
    odds = [p / (1 - p) for p in (math.exp(log_p[0][0]), math.exp(log_p[1][1]))]
    assert read(NegativeLogOdds(a), logits) == pytest.approx([-math.log(x) for x in odds])
    assert read(NegativeMargin(a), logits) == [4 - 1, 0 - 3]


def test_a_certain_answer_keeps_its_odds_where_its_probability_rounds_to_one() -> None:
    """float32 has no number between 1 - 6e-8 and 1: P is 1 from 17 nats on."""
    logits = torch.tensor([[40.0, 10.0, 10.0], [90.0, 0.0, 0.0], [3e38, 0.0, 0.0]])
    answer = torch.zeros(3, dtype=torch.long)
    assert logits.softmax(1)[:, 0].tolist() == [1, 1, 1]
    odds = read(NegativeLogOdds(answer), logits)
    assert odds == pytest.approx([math.log(2) - 30, math.log(2) - 90, -3e38], rel=1e-6)
    # -log P = log(1 + exp(-log odds)), below float32's smallest number in the last row alone.
    log_p = read(NegativeLogProb(answer), logits)
    assert log_p == pytest.approx([2 * math.exp(-30), 2 * math.exp(-90), 0], rel=1e-5)
    assert log_p[1] > 0
    impossible = read(NegativeLogProb(answer + 1), logits)
    assert impossible == pytest.approx([30, 90, 3e38], rel=1e-6)


def test_log_odds_have_a_gradient_where_log_probabilities_have_none() -> None:
    gradients = {}
    for name, make in OF_SINGLE.items():
        logits = torch.tensor([[40.0, 10.0, 9.0]], requires_grad=True)
        make(torch.tensor([0]))(logits).sum().backward()
        assert logits.grad is not None
        assert logits.grad.sum().abs() < 1e-6  # raising every logit changes nothing
        gradients[name] = logits.grad[0].abs().max().item()
    assert gradients["log_odds"] == gradients["margin"] == 1
    assert gradients["log_prob"] < 1e-12


def test_a_metric_of_single_inputs_has_a_name() -> None:
    tokens, answer = random_tokens(2, 3, 1), torch.tensor([1, 2])
    assert isinstance(Inputs.single(tokens, answer).metric, NegativeLogOdds)
    assert type(Inputs.single(tokens, answer, metric="margin").metric) is NegativeMargin
    wrong: Any = "odds"
    with pytest.raises(InputError, match="metric 'odds' is not one of log_odds, log_prob, margin"):
        Inputs.single(tokens, answer, metric=wrong)


def test_a_log_probability_is_not_the_raw_logit() -> None:
    """Raising every logit changes the logit and no probability."""
    logits = torch.randn(2, 5)
    metric = NegativeLogProb(torch.tensor([1, 3]))
    assert read(metric, logits + 7) == pytest.approx(read(metric, logits), abs=1e-5)
    raw = NegativeLogit(torch.tensor([1, 3]))
    assert read(raw, logits + 7) == pytest.approx([x - 7 for x in read(raw, logits)], abs=1e-5)


@pytest.mark.parametrize("make", [NegativeLogit, *OF_SINGLE.values()])
def test_a_selected_metric_reads_its_own_examples(make: Any) -> None:
    metric, logits = make(random_tokens(1, 4, 1)[0]), torch.randn(4, 40)
    rows = torch.tensor([3, 0, 0, 2])
    whole = torch.tensor(read(metric, logits))
    assert read(metric.select(rows), logits[rows]) == whole[rows].tolist()


# -- nouns ---------------------------------------------------------------------------------------


def test_submodules_are_named_and_ordered_as_the_run_meets_them() -> None:
    names = ["resid_10", "mlp_0", "embed", "resid_1", "attn_2", "attn_0", "resid_0"]
    ordered = ["embed", "attn_0", "mlp_0", "resid_0", "resid_1", "attn_2", "resid_10"]
    assert causal_order(names) == ordered
    assert [Submodule.parse(name).name for name in ordered] == ordered
    assert Submodule.parse("mlp_12") == ("mlp", 12)


def test_sparse_features_stand_for_their_dense_tensor() -> None:
    dense = torch.randn(2, 3, 4) * (torch.rand(2, 3, 4) > 0.5)
    sparse = SparseFeatures.from_dense(dense)
    assert torch.equal(sparse.to_dense(), dense)
    assert torch.equal(sparse.with_value(-sparse.value).to_dense(), -dense)
    at = dense[sparse.example, sparse.pos, sparse.feature]
    assert torch.equal(at, sparse.value)
    torch.testing.assert_close(sparse.total(), dense.sum((1, 2)))


def test_an_error_nodes_feature_is_minus_one() -> None:
    assert Node("mlp_0", -1, None, 0.5).is_error
    assert not Node("mlp_0", 0, None, 0.5).is_error
