"""Ablated runs, faithfulness and completeness, against runs hooked by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from core.ablate import AblationValues, ablation_values, keep_edit, parts_of, run_edited
from core.circuit import find_circuit
from core.dictionaries import Dictionary
from core.errors import InputError
from core.evaluate import Evaluation, Evaluator, area, evaluate_circuit
from core.inputs import Inputs
from core.models import LanguageModel
from core.models.replay import Resumed
from core.options import ERROR_NODES
from core.types import ERROR, Circuit, Node
from tests.core.reference import Reference
from tests.core.tiny import (
    KINDS,
    N_FEATURES,
    VARIANTS,
    make_model,
    make_pairs,
    make_single,
    random_dictionaries,
    random_tokens,
    rounding,
)

ABLATIONS = ("mean", "zero", "resample")


def all_nodes(model: LanguageModel) -> list[Node]:
    """Every feature and error of a model with `random_dictionaries`."""
    return [
        Node(name, feature, None, 1.0)
        for name in model.submodules
        for feature in [*range(N_FEATURES), ERROR]
    ]


def some_nodes(model: LanguageModel) -> list[Node]:
    """About half of them, in no pattern."""
    return [node for i, node in enumerate(all_nodes(model)) if (i * i) % 7 < 3]


def evaluate(nodes: Any, inputs: Inputs, family: str = "gpt_neox", **options: Any) -> Evaluation:
    model = make_model(family)
    return evaluate_circuit(model, random_dictionaries(model), nodes, inputs, **options)


def by_hand(
    model: LanguageModel,
    dictionaries: dict[str, Dictionary],
    inputs: Inputs,
    nodes: list[Node],
    ablation: str,
) -> float:
    """The mean metric with all nodes but `nodes` ablated, every submodule but embed hooked."""
    reference = Reference(model)
    tokens = inputs.clean if inputs.patch is None else inputs.patch
    with torch.no_grad():
        patch = reference.run_tokens(tokens, inputs, {}).values

    def ablated(name: str) -> tuple[Tensor, Tensor]:
        features = dictionaries[name].encode(patch[name])
        error = patch[name] - dictionaries[name].decode(features)
        if ablation == "zero":
            return torch.zeros_like(features), torch.zeros_like(error)
        return features.mean(0, keepdim=True), error.mean(0, keepdim=True)

    def hook(name: str) -> Any:
        dictionary, (features_off, error_off) = dictionaries[name], ablated(name)
        kept = {node.feature for node in nodes if node.submodule == name}
        keep = torch.tensor([float(i in kept) for i in range(N_FEATURES)], dtype=torch.float64)

        def change(x: Tensor) -> Tensor:
            features = dictionary.encode(x)
            error = x - dictionary.decode(features) if ERROR in kept else error_off
            return dictionary.decode(features * keep + features_off * (1 - keep)) + error

        return change

    names = [name for name in dictionaries if name != "embed"]
    with torch.no_grad():
        return float(reference.run(inputs, {name: hook(name) for name in names}).metric.mean())


@pytest.mark.parametrize("ablation", ["mean", "zero"])
@pytest.mark.parametrize(("family", "attn_input"), VARIANTS)
def test_circuit_and_complement_are_what_hooks_on_the_model_give(
    family: str, attn_input: bool, ablation: str
) -> None:
    model = make_model(family, attn_input)
    inputs = make_single() if attn_input else make_pairs()
    dictionaries, nodes = random_dictionaries(model), some_nodes(model)
    rest = [node for node in all_nodes(model) if node not in nodes]
    found = Evaluator(model, dictionaries, inputs, ablation=ablation).evaluate(nodes)
    tolerance = rounding(family)
    for ours, kept in (
        (found.m_circuit, nodes),
        (found.m_complement, rest),
        (found.m_empty, []),
        (found.m_full, all_nodes(model)),
    ):
        hooked = by_hand(model, dictionaries, inputs, kept, ablation)
        assert ours == pytest.approx(hooked, abs=tolerance)
    span = found.m_full - found.m_empty
    assert found.faithfulness == pytest.approx((found.m_circuit - found.m_empty) / span)
    assert found.completeness == pytest.approx((found.m_complement - found.m_empty) / span)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_dictionaries_of_every_kind_are_ablated_as_hooks_do_it(kind: str, ablation: str) -> None:
    model, inputs = make_model("gpt_neox"), make_pairs()
    dictionaries = random_dictionaries(model, kind=kind)
    nodes = [node for node in some_nodes(model) if node.submodule != "mlp_1" or not node.is_error]
    found = Evaluator(model, dictionaries, inputs, ablation=ablation).evaluate(nodes)
    hooked = by_hand(model, dictionaries, inputs, nodes, ablation)
    assert found.m_circuit == pytest.approx(hooked, abs=1e-10)


def test_resampling_two_examples_gives_each_the_others_patch() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs(2)
    assert inputs.patch is not None
    swapped = Reference(model).run_tokens(inputs.patch.flip(0), inputs, {}).metric.mean()
    found = evaluate([], inputs, ablation="resample")
    assert found.m_empty == pytest.approx(float(swapped), abs=1e-12)


@pytest.mark.parametrize("make", [make_pairs, make_single])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_all_nodes_are_faithful_and_none_are_not(ablation: str, make: Any) -> None:
    model = make_model("gpt_neox")
    whole = evaluate(all_nodes(model), make(), ablation=ablation)
    assert (whole.faithfulness, whole.completeness) == pytest.approx((1, 0), abs=1e-10)
    none = evaluate([], make(), ablation=ablation)
    assert (none.faithfulness, none.completeness) == pytest.approx((0, 1), abs=1e-10)
    assert whole.m_full == none.m_full
    assert whole.m_empty == none.m_empty


def test_a_circuit_found_is_evaluated_as_its_nodes_are() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs()
    circuit = find_circuit(
        model, random_dictionaries(model), inputs, node_threshold=0.2, edge_threshold=0.1
    )
    assert isinstance(circuit, Circuit)
    assert evaluate(circuit, inputs) == evaluate(list(circuit.nodes), inputs)


@pytest.mark.parametrize(
    ("policy", "stays"),
    [
        ("drop", lambda node: not node.is_error),
        ("drop_but_resid", lambda node: not node.is_error or node.submodule.startswith("resid")),
    ],
)
def test_dropping_errors_is_leaving_them_out_of_the_circuit(policy: str, stays: Any) -> None:
    nodes = some_nodes(make_model("gpt_neox"))
    dropped = evaluate(nodes, make_pairs(), error_nodes=policy)
    assert dropped == evaluate([node for node in nodes if stays(node)], make_pairs())
    assert dropped.n_nodes < len(nodes)


def test_errors_kept_or_removed_are_so_in_the_circuit_and_its_complement() -> None:
    model = make_model("gpt_neox")
    features = [node for node in some_nodes(model) if not node.is_error]
    errors = [node for node in all_nodes(model) if node.is_error]
    plain, with_errors = evaluate(features, make_pairs()), evaluate(features + errors, make_pairs())
    kept = evaluate(some_nodes(model), make_pairs(), error_nodes="keep")
    removed = evaluate(some_nodes(model), make_pairs(), error_nodes="remove")
    # A complement holds the errors that its circuit does not.
    assert (kept.m_circuit, kept.m_complement) == pytest.approx(
        (with_errors.m_circuit, plain.m_complement), abs=1e-12
    )
    assert (removed.m_circuit, removed.m_complement) == pytest.approx(
        (plain.m_circuit, with_errors.m_complement), abs=1e-12
    )


def test_error_nodes_are_chosen_for_each_evaluation_on_one_evaluator() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs()
    shared = Evaluator(model, random_dictionaries(model), inputs)
    for error_nodes in ERROR_NODES:
        alone = evaluate(some_nodes(model), inputs, error_nodes=error_nodes)
        assert shared.evaluate(some_nodes(model), error_nodes) == alone


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with each ablated run of a batch."""
    runs: list[int] = []

    def counted(*args: Any) -> Tensor:
        runs.append(1)
        return run_edited(*args)

    monkeypatch.setattr("core.evaluate.run_edited", counted)
    return runs


def test_choices_of_error_nodes_that_keep_the_same_nodes_run_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, runs = make_model("gpt_neox"), count_runs(monkeypatch)
    features = [node for node in some_nodes(model) if not node.is_error]
    evaluator = Evaluator(model, random_dictionaries(model), make_pairs())
    assert len(runs) == 1  # nothing kept; the whole model needs no ablated run
    first = evaluator.evaluate(features)
    assert len(runs) == 3
    assert evaluator.evaluate(features, "drop") == first
    assert evaluator.evaluate(list(reversed(features)), "drop_but_resid") == first
    assert len(runs) == 3
    # Without error nodes the circuit's run is the same; its complement's is not.
    removed = evaluator.evaluate(features, "remove")
    assert removed.m_circuit == first.m_circuit
    assert removed.m_complement != first.m_complement
    assert len(runs) == 4


def test_a_curve_is_an_evaluation_at_each_threshold_and_runs_each_set_of_nodes_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, runs = make_model("gpt_neox"), count_runs(monkeypatch)
    nodes = [node._replace(effect=(-1) ** i * i / 100) for i, node in enumerate(all_nodes(model))]
    evaluator = Evaluator(model, random_dictionaries(model), make_pairs())
    thresholds = [0.5, 0.505, 1.2, 0.0, 9.0]
    curve = evaluator.curve(nodes, thresholds)
    # 0.5 and 0.505 leave the same nodes, 9.0 none: the run of nothing was there already.
    assert len(runs) == 1 + 2 * 3 + 1
    for threshold, found in zip(thresholds, curve, strict=True):
        kept = [node for node in nodes if abs(node.effect) > threshold]
        assert found == evaluator.evaluate(kept) == evaluate(kept, make_pairs())
    assert len({found.faithfulness for found in curve}) == 4
    assert evaluator.curve(nodes, [0.5], "drop") == [
        evaluator.evaluate([n for n in nodes if abs(n.effect) > 0.5], "drop")
    ]


def test_the_area_under_a_curve_of_three_points() -> None:
    # (0.1 - 0) (0 + 0.5) / 2 + (1 - 0.1) (0.5 + 1) / 2, in any order of the points.
    assert area([0.1, 1.0, 0.0], [0.5, 1.0, 0.0]) == pytest.approx(0.025 + 0.675)
    assert area([0.0, 1.0], [1.0, 1.0]) == 1
    # Nothing is counted beyond the last point.
    assert area([0.0, 0.5], [1.0, 1.0]) == 0.5


@pytest.mark.parametrize(
    ("fractions", "faithfulness", "message"),
    [
        ([0.1], [1.0], "two points or more"),
        ([0.1, 0.2], [1.0], "2 fractions and 1 values"),
        ([0.1, 1.1], [1.0, 1.0], "outside"),
    ],
)
def test_a_curve_without_an_area_is_refused(
    fractions: list[float], faithfulness: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        area(fractions, faithfulness)


@pytest.mark.parametrize(("make", "ablation"), [(make_pairs, "mean"), (make_single, "zero")])
def test_pairs_are_ablated_to_means_and_single_inputs_to_zero_unless_told(
    make: Any, ablation: str
) -> None:
    nodes = some_nodes(make_model("gpt_neox"))
    assert evaluate(nodes, make()) == evaluate(nodes, make(), ablation=ablation)
    other = {"mean": "zero", "zero": "mean"}[ablation]
    assert evaluate(nodes, make()) != evaluate(nodes, make(), ablation=other)


@pytest.mark.parametrize(("family", "attn_input"), VARIANTS)
@pytest.mark.parametrize("kept", ["mlp_0", "resid_0", "attn_1", "mlp_1", "resid_1"])
def test_submodules_that_are_ablated_whole_are_what_hooks_give(
    family: str, attn_input: bool, kept: str
) -> None:
    """Runs begin behind the last stream that is ablated whole, and skip what is not looked at."""
    model, inputs = make_model(family, attn_input), make_pairs()
    dictionaries = random_dictionaries(model)
    nodes = [node for node in some_nodes(model) if node.submodule == kept]
    rest = [node for node in all_nodes(model) if node not in nodes]
    found = Evaluator(model, dictionaries, inputs).evaluate(nodes)
    for ours, hooked in ((found.m_circuit, nodes), (found.m_complement, rest)):
        expected = by_hand(model, dictionaries, inputs, hooked, "mean")
        assert ours == pytest.approx(expected, abs=rounding(family))


def test_a_node_of_all_positions_stands_beside_nodes_by_position() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs()
    features = [n for n in some_nodes(model) if not n.is_error]
    errors = [n for n in some_nodes(model) if n.is_error]
    apart = [node._replace(pos=pos) for node in features for pos in range(5)]
    mixed, plain = evaluate(apart + errors, inputs), evaluate(features + errors, inputs)
    assert mixed.m_circuit == pytest.approx(plain.m_circuit, abs=1e-12)
    assert mixed.m_complement == pytest.approx(plain.m_complement, abs=1e-12)


def test_the_embedding_can_be_edited_too() -> None:
    model, inputs = make_model("gpt2"), make_single()
    dictionary = random_dictionaries(model)["embed"]
    nodes = [Node("embed", feature, None, 1.0) for feature in range(0, N_FEATURES, 2)]
    part = parts_of(nodes, ["embed"], 5, model.device, torch.float64)["embed"]
    values = AblationValues(dictionary.bias, None, None)
    edit = keep_edit(dictionary, values, part, complement=True)
    runs = Resumed(model, model.record(inputs.clean), inputs.metric, inputs.last)

    def without(x: Tensor) -> Tensor:
        features = dictionary.encode(x)
        return x - features[..., ::2] @ dictionary.decoder[::2]

    hooked = Reference(model).run(inputs, {"embed": without}).metric
    assert float(features_used(dictionary, runs).abs().max()) > 0.1
    torch.testing.assert_close(run_edited(runs, {"embed": edit}), hooked, rtol=0, atol=1e-10)


def features_used(dictionary: Dictionary, runs: Resumed) -> Tensor:
    return dictionary.encode(runs.recording.outputs["embed"])[..., ::2]


def test_layers_before_the_start_are_left_alone() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs()
    late = [node for node in some_nodes(model) if node.submodule.endswith("1")]
    early = [n for n in all_nodes(model) if n.submodule.endswith("0") or n.submodule == "embed"]
    found = evaluate(late, inputs, start_layer=1)
    assert found.n_nodes == len(late)
    assert found == evaluate(late + early, inputs, start_layer=1)
    # Keeping every early node, error included, is leaving its layer alone.
    everywhere = evaluate(late + early, inputs)
    assert found.m_circuit == pytest.approx(everywhere.m_circuit, abs=1e-12)


def test_the_embedding_is_never_ablated_nor_counted() -> None:
    model = make_model("gpt_neox")
    nodes = some_nodes(model)
    rest = [node for node in nodes if node.submodule != "embed"]
    assert evaluate(nodes, make_pairs()) == evaluate(rest, make_pairs())
    assert evaluate(nodes, make_pairs()).n_nodes == len(rest)


def test_nodes_by_position_at_every_position_are_nodes_of_all_positions() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs()
    nodes = some_nodes(model)
    apart = [node._replace(pos=pos) for node in nodes for pos in range(5)]
    ours, theirs = evaluate(apart, inputs), evaluate(nodes, inputs)
    assert ours.m_circuit == pytest.approx(theirs.m_circuit, abs=1e-12)
    assert ours.m_complement == pytest.approx(theirs.m_complement, abs=1e-12)
    assert ours.n_nodes == 5 * theirs.n_nodes


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_padding_and_its_side_do_not_matter(ablation: str) -> None:
    tokens, answers = random_tokens(3, 5, 1), random_tokens(1, 3, 3)[0]
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    right = Inputs.single(tokens, answers, mask)
    shifted = tokens.clone()
    shifted[1] = tokens[1].roll(2)
    left = Inputs.single(shifted, answers, mask.flip(1))
    wide = Inputs.single(
        torch.nn.functional.pad(tokens, (0, 2)), answers, torch.nn.functional.pad(mask, (0, 2))
    )
    nodes = some_nodes(make_model("gpt_neox"))
    expected = evaluate(nodes, right, ablation=ablation)
    for inputs in (left, wide):
        found = evaluate(nodes, inputs, ablation=ablation)
        assert found.m_circuit == pytest.approx(expected.m_circuit, abs=1e-10)
        assert found.m_complement == pytest.approx(expected.m_complement, abs=1e-10)
        assert found.m_empty == pytest.approx(expected.m_empty, abs=1e-10)


def test_means_over_examples_of_unequal_lengths_are_over_real_tokens() -> None:
    model, mask = make_model("gpt_neox"), torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = mask[2, 1:] = False
    inputs = Inputs.single(random_tokens(3, 5, 1), random_tokens(1, 3, 3)[0], mask)
    dictionaries = random_dictionaries(model, names=["mlp_0"])
    x = model.record(inputs.clean, mask).outputs["mlp_0"][mask]
    assert len(x) == 5 + 3 + 1
    found = ablation_values(model, dictionaries, inputs, "mean")["mlp_0"]
    features = dictionaries["mlp_0"].encode(x)
    error = x - dictionaries["mlp_0"].decode(features)
    assert found.features is not None
    assert found.error is not None
    torch.testing.assert_close(found.base, x.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.features, features.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.error, error.mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_evaluations_do_not_depend_on_the_memory_they_were_given(ablation: str) -> None:
    model, inputs = make_model("gpt_neox"), make_pairs(4)
    dictionaries, nodes = random_dictionaries(model), some_nodes(model)
    found = [
        Evaluator(model, dictionaries, inputs, ablation=ablation, budget_bytes=budget).evaluate(
            nodes
        )
        for budget in (24 * 1024, 2 << 30)
    ]
    assert found[0].m_circuit == pytest.approx(found[1].m_circuit, abs=1e-12)
    assert found[0].m_empty == pytest.approx(found[1].m_empty, abs=1e-12)


def test_ablation_values_may_come_from_other_inputs() -> None:
    model, dictionaries = make_model("gpt_neox"), random_dictionaries(make_model("gpt_neox"))
    inputs, others = make_pairs(3), make_pairs(4)
    found = Evaluator(model, dictionaries, inputs, values_from=others)
    with torch.no_grad():
        assert others.patch is not None
        patch = model.record(others.patch).outputs
    base = found.values["mlp_0"].base
    torch.testing.assert_close(base, patch["mlp_0"].mean(0), rtol=0, atol=1e-12)
    assert found.m_full == Evaluator(model, dictionaries, inputs).m_full
    assert found.m_empty != pytest.approx(Evaluator(model, dictionaries, inputs).m_empty)


def test_where_ablation_changes_nothing_there_is_nothing_to_explain() -> None:
    model = make_model("gpt_neox")
    one = make_single(1)  # the mean over one example is that example
    found = evaluate(some_nodes(model), one, ablation="mean")
    assert found.m_empty == pytest.approx(found.m_full, abs=1e-10)
    assert found.faithfulness != found.faithfulness  # NaN
    assert found.completeness != found.completeness


def test_resampling_is_the_same_for_a_seed() -> None:
    model, inputs = make_model("gpt_neox"), make_pairs(5)
    dictionaries = random_dictionaries(model)

    def empty(seed: int) -> float:
        return Evaluator(model, dictionaries, inputs, ablation="resample", seed=seed).m_empty

    assert empty(1) == empty(1)
    assert len({empty(seed) for seed in range(8)}) > 1
