"""Bad input: one clear error each, before any long work."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from core.ablate import ablation_values
from core.budget import plan_passes
from core.circuit import attribute, find_circuit
from core.dictionaries import Dictionary
from core.edges import edge_effects
from core.effects import node_effects
from core.errors import (
    AnswerError,
    CircuitError,
    InputError,
    MissingSubmodule,
    NotFinite,
    OutOfBudget,
    ShapeMismatch,
    WidthMismatch,
)
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients
from core.evaluate import Evaluator, evaluate_circuit
from core.inputs import Inputs, tokenize_pairs, tokenize_single
from core.metrics import LogitDifference, NegativeLogit
from core.models import LanguageModel, Recording
from core.types import Node, Submodule
from tests.core.tiny import (
    N_VOCAB,
    make_hf,
    make_model,
    make_pairs,
    make_single,
    random_dictionaries,
    random_dictionary,
    random_tokens,
)

LONG_WORK = ("core.lines._integrate", "core.effects.exact_effects", "core.circuit.edge_effects")


@pytest.fixture
def no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any step of the long work fails the test instead."""

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("long work began before the error was raised")

    for path in LONG_WORK:
        monkeypatch.setattr(path, refuse)


def find(inputs: Inputs | None = None, dictionaries: Any = None, **options: Any) -> Any:
    model = make_model("gpt_neox")
    found = random_dictionaries(model) if dictionaries is None else dictionaries
    defaults: dict[str, Any] = {"node_threshold": 0.1, "edge_threshold": 0.1}
    return find_circuit(model, found, inputs or make_pairs(), **(defaults | options))


def padded() -> Inputs:
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return Inputs.single(random_tokens(3, 5, 1), random_tokens(1, 3, 3)[0], mask)


def with_answers(*answers: int) -> Inputs:
    return Inputs.single(random_tokens(len(answers), 5, 1), torch.tensor(answers))


WRONG_CALLS: dict[str, tuple[dict[str, Any], type[CircuitError], str]] = {
    "node threshold below zero": ({"node_threshold": -0.1}, InputError, r"node threshold -0\.1"),
    "edge threshold below zero": ({"edge_threshold": -1e-9}, InputError, r"edge threshold -1e-09"),
    "threshold not a number": ({"node_threshold": float("nan")}, InputError, r"threshold nan"),
    "an estimator's name": (
        {"estimator": "ig"},
        InputError,
        r"estimator is 'ig', .*pass core\.IntegratedGradients\(steps=10\), core\.Attribution",
    ),
    "an estimator's class": ({"estimator": Exact}, InputError, r"estimator is <class .*Exact"),
    "edges of exact effects": ({"estimator": Exact()}, InputError, r"edges need gradients"),
    "positions apart but padded": (
        {"inputs": padded(), "by_position": True},
        ShapeMismatch,
        r"by position need examples of one length",
    ),
    "no dictionaries": ({"dictionaries": {}}, MissingSubmodule, r"no dictionaries"),
    "a layer too many": (
        {"dictionaries": {"attn_9": random_dictionary(12, 0)}},
        MissingSubmodule,
        r"'attn_9' does not exist: the model has layers 0 to 1",
    ),
    "no submodule's name": (
        {"dictionaries": {"mlp.0": random_dictionary(12, 0)}},
        MissingSubmodule,
        r"'mlp\.0' names no submodule.*embed, attn_L",
    ),
    "a dictionary of another width": (
        {"dictionaries": {"mlp_1": random_dictionary(13, 0)}},
        WidthMismatch,
        r"'mlp_1' reads vectors of width 13.*width 12",
    ),
    "an answer beyond the vocabulary": (
        {"inputs": with_answers(1, 2, N_VOCAB)},
        AnswerError,
        rf"answers run from 1 to {N_VOCAB} .*vocabulary has {N_VOCAB}",
    ),
    "a negative answer": ({"inputs": with_answers(1, -1)}, AnswerError, r"answers run from -1"),
    "a token beyond the vocabulary": (
        {"inputs": Inputs.single(torch.tensor([[1, N_VOCAB]]), torch.tensor([1]))},
        InputError,
        rf"ids run from 1 to {N_VOCAB} .*vocabulary has {N_VOCAB}",
    ),
    "a negative token": (
        {"inputs": Inputs.single(torch.tensor([[1, -5]]), torch.tensor([1]))},
        InputError,
        r"ids run from -5",
    ),
    "a context longer than the model takes": (
        {"inputs": Inputs.single(random_tokens(1, 33, 1), torch.tensor([1]))},
        InputError,
        r"33 tokens, but the model has 32 positions",
    ),
    "a budget too small": ({"budget_bytes": 1000}, OutOfBudget, r"needs about .* budget of 0 MiB"),
}


@pytest.mark.usefixtures("no_long_work")
@pytest.mark.parametrize("case", WRONG_CALLS)
def test_a_wrong_call_is_refused_before_any_long_work(case: str) -> None:
    options, error, message = WRONG_CALLS[case]
    with pytest.raises(error, match=message):
        find(**options)


@pytest.mark.usefixtures("no_long_work")
@pytest.mark.parametrize(("key", "error"), [("patch", InputError), ("clean", InputError)])
def test_a_token_outside_the_vocabulary_is_found_on_either_side(
    key: str, error: type[CircuitError]
) -> None:
    inputs = make_pairs()
    getattr(inputs, key)[1, 1] = 1000
    with pytest.raises(error, match="vocabulary"):
        find(inputs)


def test_pairs_of_different_lengths_are_refused() -> None:
    answers = torch.tensor([1])
    with pytest.raises(ShapeMismatch, match=r"clean is \(1, 4\) tokens but patch is \(1, 5\)"):
        Inputs.pairs(random_tokens(1, 4, 1), random_tokens(1, 5, 1), answers, answers)


def test_a_different_number_of_clean_and_patch_inputs_is_refused() -> None:
    answers = torch.tensor([1, 1])
    with pytest.raises(ShapeMismatch, match="position by position"):
        Inputs.pairs(random_tokens(2, 4, 1), random_tokens(1, 4, 1), answers, answers)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (4,)])
def test_an_empty_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least one of each"):
        Inputs.single(torch.zeros(shape, dtype=torch.long), torch.zeros(shape[0]).long())


def test_an_example_without_tokens_is_refused_by_its_number() -> None:
    mask = torch.tensor([[True, True], [False, False]])
    with pytest.raises(InputError, match=r"examples \[1\] have no token"):
        Inputs.single(random_tokens(2, 2, 1), torch.tensor([1, 1]), mask)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"mask is \(2, 3\) but tokens are \(2, 2\)"):
        Inputs.single(random_tokens(2, 2, 1), torch.tensor([1, 1]), torch.ones(2, 3))


def test_answers_of_another_number_than_examples_are_refused() -> None:
    with pytest.raises(InputError, match="3 examples but answers for 1"):
        Inputs.single(random_tokens(3, 2, 1), torch.tensor([1]))


@pytest.mark.parametrize("answers", [torch.tensor([[1, 2]]), torch.tensor([1.0]), torch.tensor(1)])
def test_answers_that_are_not_one_token_each_are_refused(answers: torch.Tensor) -> None:
    with pytest.raises(InputError, match="one per example"):
        NegativeLogit(answers)
    with pytest.raises(InputError, match="one per example"):
        LogitDifference(torch.tensor([1]), answers)


@pytest.mark.usefixtures("no_long_work")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["clean", "patch"])
@pytest.mark.parametrize("estimator", [IntegratedGradients(), Exact()])
def test_activations_that_are_not_finite_are_refused_on_either_side(
    side: str, bad: float, estimator: Estimator
) -> None:
    inputs = make_pairs()
    hf = make_hf("gpt_neox")
    # A token that only one side has, whose embedding overflows.
    odd = N_VOCAB - 1
    inputs.clean[inputs.clean == odd] = 1
    assert inputs.patch is not None
    inputs.patch[inputs.patch == odd] = 1
    getattr(inputs, side)[0, 1] = odd
    model = LanguageModel(hf)
    with torch.no_grad():
        hf.get_input_embeddings().weight[odd, 0] = bad
    with pytest.raises(NotFinite, match="NaN or infinit"):
        node_effects(model, random_dictionaries(model), inputs, estimator=estimator)


@pytest.mark.usefixtures("no_long_work")
@pytest.mark.parametrize("side", ["clean", "patch"])
def test_activations_that_overflow_late_are_refused_before_the_early_layers_are_worked_on(
    monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    model, inputs = make_model("gpt_neox"), make_pairs()
    record = model.record

    def overflowing(tokens: torch.Tensor, mask: Any = None, **how: Any) -> Recording:
        recording = record(tokens, mask, **how)
        if torch.equal(tokens, getattr(inputs, side)):
            recording.outputs["mlp_1"][2, 1, 3] = torch.inf
        return recording

    monkeypatch.setattr(model, "record", overflowing)
    with pytest.raises(NotFinite, match="NaN or infinit"):
        node_effects(model, random_dictionaries(model), inputs)


def test_edges_of_exact_effects_are_refused() -> None:
    model = make_model("gpt_neox")
    dictionaries = random_dictionaries(model, names=["mlp_1", "resid_1"])
    exact = node_effects(model, dictionaries, make_pairs(), estimator=Exact())
    with pytest.raises(InputError, match="the estimator Exact has none"):
        edge_effects(model, dictionaries, exact)


def test_effects_of_a_submodule_that_was_left_out_are_refused_by_name() -> None:
    model = make_model("gpt_neox")
    dictionaries = random_dictionaries(model, names=["mlp_1", "resid_1"])
    effects = node_effects(model, dictionaries, make_pairs(), estimator=Attribution())
    with pytest.raises(MissingSubmodule, match="no effects at 'mlp_0': there are mlp_1, resid_1"):
        effects["mlp_0"]


def test_aggregation_checks_what_finding_a_circuit_does() -> None:
    model = make_model("gpt_neox")
    with pytest.raises(ShapeMismatch, match="by position need examples of one length"):
        attribute(model, random_dictionaries(model), padded(), by_position=True)


def test_a_budget_says_what_is_needed() -> None:
    with pytest.raises(OutOfBudget, match=r"one example of 2000 tokens needs about \d+ MiB"):
        plan_passes(make_model("gpt_neox"), 2000, 1 << 20)


# -- evaluation ----------------------------------------------------------------------------------

WRONG_EVALUATIONS: dict[str, tuple[dict[str, Any], type[CircuitError], str]] = {
    "unknown ablation": ({"ablation": "median"}, InputError, r"'median' is not one of mean, zero"),
    "unknown error nodes": (
        {"error_nodes": "none"},
        InputError,
        r"error_nodes 'none' is not one of circuit, drop",
    ),
    "a start layer too late": (
        {"start_layer": 2},
        InputError,
        r"that the metric reads is 1",
    ),
    "resampling one example": (
        {"inputs": make_pairs(1), "ablation": "resample"},
        InputError,
        r"two examples or more",
    ),
    "resampling unequal lengths": (
        {"inputs": padded(), "ablation": "resample"},
        InputError,
        r"all of one length",
    ),
    "nothing to ablate": (
        {"dictionaries": {"embed": random_dictionary(12, 0)}},
        InputError,
        r"nothing can be ablated",
    ),
    "a dictionary of another width": (
        {"dictionaries": {"mlp_1": random_dictionary(13, 0)}},
        WidthMismatch,
        r"width 13",
    ),
    "a layer too many": (
        {"dictionaries": {"mlp_9": random_dictionary(12, 0)}},
        MissingSubmodule,
        r"'mlp_9' does not exist",
    ),
    "an answer beyond the vocabulary": ({"inputs": with_answers(N_VOCAB)}, AnswerError, r"answers"),
    "a node at a position the inputs lack": (
        {"circuit": [Node("mlp_0", 3, 5, 1.0)]},
        InputError,
        r"position",
    ),
    "nodes by position on padded inputs": (
        {"circuit": [Node("mlp_0", 3, 1, 1.0)], "inputs": padded()},
        ShapeMismatch,
        r"position",
    ),
    "a node of a submodule without a dictionary": (
        {"circuit": [Node("mlp_7", 3, None, 1.0)]},
        MissingSubmodule,
        r"mlp_7",
    ),
    "a feature the dictionary lacks": (
        {"circuit": [Node("mlp_0", 24, None, 1.0)]},
        InputError,
        r"feature",
    ),
}


@pytest.mark.parametrize("case", WRONG_EVALUATIONS)
def test_a_wrong_evaluation_is_refused(case: str) -> None:
    options, error, message = WRONG_EVALUATIONS[case]
    model = make_model("gpt_neox")
    arguments = {
        "dictionaries": random_dictionaries(model),
        "circuit": [],
        "inputs": make_single(),
    }
    with pytest.raises(error, match=message):
        evaluate_circuit(model, **(arguments | options))


@pytest.mark.parametrize(
    ("ablation", "others"),
    [("resample", make_pairs(4)), ("mean", make_pairs(3, 6)), ("mean", make_pairs(3, 4))],
)
def test_ablation_values_from_inputs_that_do_not_match_are_refused(
    ablation: str, others: Inputs
) -> None:
    model = make_model("gpt_neox")
    with pytest.raises(ShapeMismatch):
        Evaluator(
            model, random_dictionaries(model), make_pairs(3), ablation=ablation, values_from=others
        )


def test_activations_that_are_not_finite_have_no_mean() -> None:
    hf = make_hf("gpt_neox")
    model = LanguageModel(hf)
    with torch.no_grad():
        hf.gpt_neox.layers[0].mlp.dense_4h_to_h.bias[0] = torch.nan
    dictionaries: dict[str, Dictionary] = random_dictionaries(model)
    with pytest.raises(NotFinite, match="NaN or infinity"):
        ablation_values(model, dictionaries, make_pairs(), "mean")
    with pytest.raises(NotFinite):
        Evaluator(model, dictionaries, make_pairs(), ablation="zero")


@pytest.mark.parametrize("name", ["attn", "attn_", "mlp_x", "resid_-1", "embed_0", "hook_resid_0"])
def test_a_name_that_is_no_submodules_is_refused(name: str) -> None:
    with pytest.raises(MissingSubmodule, match=f"'{name}' names no submodule"):
        Submodule.parse(name)


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the checks of annotations, which only tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# -- objects of one's own ------------------------------------------------------------------------


@dataclass(frozen=True)
class Own:
    """A metric with all six members, which a test spoils."""

    answer: Tensor
    reduce: Callable[[Tensor], Any] = lambda logits: -logits[:, 0]
    name = "own"

    @property
    def answers(self) -> Tensor:
        return self.answer[:, None]

    @property
    def tokens(self) -> Tensor | None:
        return self.answer[:, None]

    def __call__(self, logits: Tensor) -> Any:
        return self.reduce(logits)

    def select(self, rows: Tensor) -> "Own":
        return replace(self, answer=self.answer[rows])

    def to(self, device: Any) -> "Own":
        return replace(self, answer=self.answer.to(device))


def own(reduce: Callable[[Tensor], Any]) -> Inputs:
    return replace(make_pairs(), metric=Own(random_tokens(1, 3, 3)[0], reduce))


def test_a_metric_of_ones_own_gives_what_the_same_one_of_core_does() -> None:
    answer = random_tokens(1, 3, 3)[0]
    theirs = find(replace(make_pairs(), metric=NegativeLogit(answer)))
    assert find(own(lambda logits: -logits[:, 0])).nodes == theirs.nodes


@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        (lambda logits: -logits.mean(), r"'own' must give one value .*of 3 examples.*shape \(\)"),
        (lambda logits: -logits, r"shape \(3, 1\) was given: do not average"),
        (lambda logits: 0.5, "float was given"),
        (lambda logits: -logits[:, 0].detach(), "'own' has no gradient"),
    ],
)
def test_a_metric_of_ones_own_that_gives_something_else_is_refused(
    reduce: Callable[[Tensor], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        find(own(reduce))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda logits: logits[:, 0], "is no metric, it has no name, answers, tokens, select, to:"),
        (NegativeLogit, "is no metric"),
        (Own(torch.tensor([1, 2])), "3 examples but answers for 2"),
        (
            Own(torch.tensor([1.0, 2.0, 3.0])),
            r"answers must be \(batch, n\) token ids, torch.float",
        ),
    ],
)
def test_what_is_no_metric_is_refused_where_inputs_are_made(metric: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(make_pairs(), metric=metric)


def test_a_column_beyond_the_vocabulary_is_refused() -> None:
    class Beyond(Own):
        answers = torch.ones(3, 1, dtype=torch.long)  # type: ignore[assignment]

    inputs = replace(make_pairs(), metric=Beyond(torch.tensor([1, 2, N_VOCAB])))
    with pytest.raises(AnswerError, match=f"run from 1 to {N_VOCAB}"):
        find(inputs)


@pytest.mark.usefixtures("as_users_run_it")
def test_effects_are_a_mapping_and_a_mapping_is_not_effects() -> None:
    model = make_model("gpt2")
    dictionaries = random_dictionaries(model, names=["embed", "mlp_1"])
    effects = node_effects(model, dictionaries, make_pairs())
    assert list(effects) == ["embed", "mlp_1"] == list(dict(effects))
    assert "mlp_0" not in effects
    assert effects.get("mlp_0") is None
    assert effects.get("embed") is effects["embed"]
    with pytest.raises(InputError, match=r"effects are dict, and edges need what core\.node_eff"):
        edge_effects(model, dictionaries, dict(effects))  # type: ignore[arg-type]
    del dictionaries["embed"]
    with pytest.raises(MissingSubmodule, match="effects but no dictionary at embed"):
        edge_effects(model, dictionaries, effects)


def test_a_mask_with_holes_is_read_as_if_nothing_stood_there() -> None:
    model, tokens = make_model("gpt_neox"), random_tokens(2, 4, 1)
    wide = torch.cat([tokens[:, :2], torch.full((2, 2), 9), tokens[:, 2:]], 1)
    mask = torch.tensor([[True, True, False, False, True, True]] * 2)
    alone = model.record(tokens)
    recording = model.record(wide, mask)
    assert recording.last.tolist() == [5, 5]
    for name, value in recording.outputs.items():
        torch.testing.assert_close(
            value[mask].view(2, 4, -1), alone.outputs[name], rtol=0, atol=1e-10
        )
    inputs = Inputs.single(wide, torch.tensor([1, 2]), mask)
    whole = Inputs.single(tokens, torch.tensor([1, 2]))
    assert torch.equal(inputs.clean[:, :4], tokens)
    assert find(inputs).nodes == find(whole).nodes


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Inputs.single([[1, 2]], torch.tensor([1])), "tokens must be a tensor.*not list"),
        (lambda: Inputs.single(torch.ones(1, 2), torch.tensor([1])), "whole numbers, not torch.fl"),
        (
            lambda: Inputs.single(torch.ones(1, 2).long(), [1]),
            "answers must be a tensor .*not list",
        ),
        (
            lambda: Inputs.single(
                torch.ones(1, 2).long(), torch.tensor([1]), torch.tensor([[1, 2]])
            ),
            "mask must be True",
        ),
        (lambda: find(dictionaries="mlp_0"), "must be a mapping from submodule names, not str"),
        (lambda: find(dictionaries={"mlp_0": "mlp_0"}), "dictionaries must not hold str: 'mlp_0'"),
        (lambda: find(tokens="the cat"), "tokens must be a list, not str"),
        (lambda: tokenize_single(None, "The cat", [" is"]), "texts must be a list, not str"),
        (lambda: tokenize_single(None, ["The cat"], " is"), "answers must be a list, not str"),
        (lambda: tokenize_single(None, [3], [" is"]), "texts must not hold int: 3"),
        (lambda: tokenize_pairs(None, {"clean_prefix": "The"}), "rows must be a list, not dict"),
        (lambda: tokenize_pairs(None, [{"clean_prefix": None}]), "row 0 of the pairs must have"),
        (lambda: an_evaluator().evaluate("mlp_0"), "nodes must be a list, not str"),
        (lambda: an_evaluator().evaluate(["mlp_0"]), "nodes must not hold str: 'mlp_0'"),
        (lambda: an_evaluator().curve([], 0.1), "thresholds must be a list, not float"),
    ],
)
def test_one_thing_in_the_place_of_a_list_is_refused_by_name(
    call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call()


def an_evaluator() -> Evaluator:
    model = make_model("gpt_neox")
    return Evaluator(model, random_dictionaries(model), make_pairs())
