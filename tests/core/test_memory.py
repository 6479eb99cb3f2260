"""Memory of edges, from the sizes of the tensors that are made on the way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import core.budget
from core.ablate import run_edited
from core.budget import Passes, plan_passes
from core.dictionaries import Dictionary
from core.dictionaries.quality import DictionaryMetrics, measure_dictionaries
from core.edges import EdgeEffects, edge_effects
from core.effects import Effects, node_effects
from core.estimators import Attribution, IntegratedGradients
from core.evaluate import Evaluator
from core.models import LanguageModel
from core.types import ERROR, Node
from tests.core.tiny import D, make_model, make_pairs, make_single, random_dictionary


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.made_by = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            # A view of something larger, expanded or not, takes no memory of its own.
            if isinstance(leaf, torch.Tensor) and not leaf._is_view():
                held = leaf.numel() if leaf.layout == torch.strided else leaf._nnz()
                if held > self.numel:
                    self.numel, self.made_by = held, str(func)
        return out


def largest(work: Callable[[], object]) -> int:
    with Largest() as seen:
        work()
    return seen.numel


def wide_dictionaries(model: LanguageModel, n_features: int) -> dict[str, Dictionary]:
    """Dictionaries in which about five features are active, however many there are."""
    return {
        name: random_dictionary(D, seed, kind="topk", n=n_features)
        for seed, name in enumerate(model.submodules)
    }


def edges_of(n_features: int) -> tuple[int, int]:
    """Largest tensor made while finding all edges, and the number of edges."""
    model = make_model("gpt_neox_sequential")
    dictionaries = wide_dictionaries(model, n_features)
    effects = node_effects(
        model, dictionaries, make_pairs(4, 8), estimator=IntegratedGradients(steps=2)
    )
    found: list[EdgeEffects] = []
    size = largest(lambda: found.extend(edge_effects(model, dictionaries, effects).values()))
    return size, sum(len(edges.weight) for edges in found)


def test_edges_do_not_grow_with_the_width_of_dictionaries() -> None:
    """Eight times as many features, the same number active: nothing is of width squared."""
    (narrow, n_narrow), (wide, n_wide) = edges_of(256), edges_of(2048)
    assert n_wide > 0.5 * n_narrow > 1000
    # The encoder itself is n_features . d, and only rows of it are ever taken.
    assert wide < 8 * narrow
    assert wide < 2048 * 2048 / 8


def kept_effects(n_positions: int) -> tuple[LanguageModel, dict[str, Dictionary], Effects]:
    model = make_model("gpt_neox")
    dictionaries = wide_dictionaries(model, 512)
    return model, dictionaries, node_effects(model, dictionaries, make_single(4, n_positions))


@pytest.mark.parametrize("by_position", [False, True])
def test_edges_stay_within_their_blocks(monkeypatch: pytest.MonkeyPatch, by_position: bool) -> None:
    """Neither pairs of nodes nor nodes . batch . length . width are ever held at once."""
    model, dictionaries, effects = kept_effects(16)
    monkeypatch.setattr("core.edges._BLOCK", 4096)
    monkeypatch.setattr("core.edges.plan_passes", lambda *_args: Passes(4, torch.device("cpu")))
    found: list[EdgeEffects] = []
    size = largest(
        lambda: found.extend(
            edge_effects(model, dictionaries, effects, by_position=by_position).values()
        )
    )
    n_tokens, n_active = 4 * 16, 6
    # The cotangent of every place where a node acts, one block of sums, and the edges themselves.
    answer = max(len(edges.weight) for edges in found)
    assert size <= max(2 * n_tokens * n_active * D, 2 * 4096, answer)
    n_nodes = len(effects["mlp_1"].clean.features.feature.unique()) * (16 if by_position else 1)
    assert size < n_nodes * n_tokens * D


def test_nodes_are_encoded_without_holding_every_feature_of_every_token() -> None:
    model, dictionaries, _ = kept_effects(4)
    inputs = make_single(64, 16)  # 1,024 tokens: twice what is encoded at once
    size = largest(lambda: node_effects(model, dictionaries, inputs, estimator=Attribution()))
    assert size <= 512 * 512


def test_edits_hold_no_second_decoder_and_few_features_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A circuit that keeps an error encodes every feature; so do runs of all features."""
    monkeypatch.setattr("core.ablate.DENSE", 16 * 512)
    model, dictionaries, _ = kept_effects(4)
    inputs = make_single(4, 16)
    nodes = [Node(name, ERROR, None, 0.0) for name in dictionaries]
    nodes += [Node(name, 3, None, 0.0) for name in dictionaries]
    evaluator = Evaluator(model, dictionaries, inputs)
    one = evaluator.evaluate(nodes)
    assert largest(lambda: evaluator.edits(nodes)) < 512 * D
    edits = evaluator.edits(nodes)
    (runs,) = evaluator.runs()
    assert largest(lambda: run_edited(runs, edits)) == 16 * 512
    monkeypatch.setattr("core.ablate.DENSE", 1 << 24)
    whole = Evaluator(model, dictionaries, inputs).evaluate(nodes)
    assert one.m_circuit == pytest.approx(whole.m_circuit, rel=1e-12)


def test_reconstructions_are_made_a_few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary, x = random_dictionary(D, 0, n=512), torch.randn(9, 7, D, dtype=torch.float64)
    whole = dictionary.decode(dictionary.encode(x))
    monkeypatch.setattr("core.dictionaries.dictionary.DENSE", 20 * 512)
    torch.testing.assert_close(dictionary.reconstruct(x), whole)
    assert largest(lambda: dictionary.reconstruct(x)) == 20 * 512


def test_dictionaries_are_measured_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer contexts at a time where the budget is small, and the same metrics."""
    monkeypatch.setattr("core.dictionaries.quality.DENSE", 1 << 10)
    monkeypatch.setattr("core.dictionaries.dictionary.DENSE", 1 << 10)
    model, dictionaries, _ = kept_effects(4)
    tokens = make_single(64, 8).clean

    def measured(budget: int) -> tuple[int, dict[str, DictionaryMetrics]]:
        options: dict[str, Any] = {"batch_contexts": 64, "budget_bytes": budget}
        found: dict[str, DictionaryMetrics] = {}

        def work() -> None:
            found.update(measure_dictionaries(model, dictionaries, tokens, **options))

        return largest(work), found

    (small, one), (large, other) = measured(1 << 16), measured(1 << 30)
    assert small <= (1 << 16) // 8 < large
    for name, metrics in one.items():
        assert metrics.ce_hat == pytest.approx(other[name].ce_hat)
        assert metrics.variance_explained == pytest.approx(other[name].variance_explained)


# -- passes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_examples", "n_copies"), [(7, 3), (1, 10), (20, 1), (3, 2)])
@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_passes_cover_every_copy_once_within_their_size(
    rows: int, n_examples: int, n_copies: int
) -> None:
    passes = Passes(rows, torch.device("cpu"))
    chunks = list(passes.examples(n_examples, n_copies))
    assert torch.cat(chunks).tolist() == list(range(n_examples))
    for chunk in chunks:
        assert len(chunk) * min(n_copies, passes.copies(len(chunk))) <= max(rows, 1)


def test_a_larger_budget_takes_more_examples_in_one_pass() -> None:
    model = make_model("gpt_neox")
    small, large = plan_passes(model, 8, 1 << 18), plan_passes(model, 8, 1 << 22)
    assert 1 <= small.rows < large.rows
    assert large.rows == pytest.approx(16 * small.rows, rel=0.5)
    assert plan_passes(model, 16, 1 << 22).rows < large.rows / 2


def test_the_memory_estimate_is_near_what_a_pass_saves_for_its_backward() -> None:
    model, n_pos = make_model("gpt_neox"), 16
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}
    recording = model.record(make_single(4, n_pos).clean)
    stream = recording.stream_before(0).clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for layer in range(model.n_layers):
            stream = model.layer(layer, stream, recording.context[layer])
    found = sum(size for pointer, size in saved.items() if pointer not in weights)
    estimate = core.budget.bytes_per_token(model, n_pos) * 4 * n_pos
    assert found / 2 < estimate < found * 4
