"""Everything that core computes, on a device that is not the CPU: nothing mixed, the same numbers.

Each way is gone twice, on the CPU and elsewhere: on a pretended device (`tests.elsewhere`), and on
a GPU where there is one (``pytest -m gpu``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.ablate import ablated
from core.baselines import mlp_neurons
from core.cards.collect import Units, collect
from core.cards.meaning import moved, promoted, readout
from core.circuit import attribute
from core.dictionaries import Dictionary
from core.dictionaries.quality import measure_dictionaries
from core.dictionaries.random import random_dictionary
from core.discovery import filter_tokens, represent
from core.edge_evaluate import EdgeEvaluator
from core.edge_interventions import edge_interventions
from core.estimators import Attribution, Exact, IntegratedGradients
from core.evaluate import Evaluator
from core.inputs import Inputs, pad
from core.minimality import losses_without
from core.models import LanguageModel
from core.options import DICTIONARY_KINDS, REPRESENTATIONS, WITH_DICTIONARIES
from core.probe import pooled_vectors, train_probe
from core.readout import Readout
from core.sweep import active_nodes
from core.training import TrainingSettings, TuningSettings, train_dictionaries, tune_in_series
from core.training.model_rows import ModelRows
from tests.core.tiny import (
    KINDS,
    make_hf,
    make_pairs,
    make_single,
    random_dictionaries,
    random_tokens,
)
from tests.elsewhere import Elsewhere, MixedDevices, pretended

Numbers = list[Any]
CONTEXTS = [row[: (9, 5, 7, 9)[i % 4]] for i, row in enumerate(random_tokens(8, 9, 4).tolist())]


class Bench:
    """A model and its dictionaries somewhere."""

    def __init__(self, device: torch.device, family: str = "gpt_neox", kind: str = "relu") -> None:
        self.model = LanguageModel(make_hf(family).to(device))
        made = random_dictionaries(self.model, kind=kind)
        self.dictionaries: dict[str, Dictionary] = {n: d.to(device) for n, d in made.items()}

    def circuit(self, inputs: Inputs, **how: Any) -> Any:
        quick = {"estimator": IntegratedGradients(rule="midpoint", steps=2)}
        attributed = attribute(self.model, self.dictionaries, inputs, **(quick | how))
        return attributed.circuit(node_threshold=0.3, edge_threshold=0.1)


def _numbers(circuit: Any) -> Numbers:
    nodes = [[node.effect, node.stderr or 0.0] for node in circuit.nodes]
    return [nodes, [edge.weight for edge in circuit.edges], circuit.metric_clean]


def _circuits(device: torch.device, family: str, kind: str) -> Numbers:
    bench = Bench(device, family, kind)
    found: Numbers = []
    for inputs, by_position in ((make_pairs(2, 4), True), (_padded(), False)):
        found += _numbers(bench.circuit(inputs, by_position=by_position))
    return found


def _padded() -> Inputs:
    tokens, mask = pad(CONTEXTS[:3])
    return Inputs.single(tokens, random_tokens(1, 3, 3)[0], mask)


def _estimates(device: torch.device) -> Numbers:
    bench, found = Bench(device), []
    for estimator in (Attribution(), IntegratedGradients(steps=2), Exact()):
        effects = attribute(bench.model, bench.dictionaries, make_pairs(2, 2), estimator=estimator)
        found += list(effects.effects.nodes.values())
    return found


_ABLATED = {"mean": make_pairs(2, 3), "zero": _padded(), "resample": make_single(2, 3)}


def _evaluations(device: torch.device) -> Numbers:
    bench, found = Bench(device), []
    for ablation, inputs in _ABLATED.items():
        circuit = bench.circuit(inputs)
        evaluator = Evaluator(bench.model, bench.dictionaries, inputs, ablation=ablation)
        for error_nodes in ("circuit", "drop"):
            one = evaluator.evaluate(circuit, error_nodes)
            found += [one.faithfulness, one.completeness, one.faithfulness_low]
        found.append(losses_without(evaluator, circuit.nodes, circuit.nodes[::40]))
        found.append(len(active_nodes(bench.model, bench.dictionaries, inputs)))
    return found


def _edges(device: torch.device) -> Numbers:
    bench, inputs = Bench(device, "gpt_neox_sequential"), make_pairs(2, 3)
    circuit = bench.circuit(inputs)
    some = [edge for edge in circuit.edges if edge.downstream is not None][::80]
    measured = edge_interventions(bench.model, bench.dictionaries, inputs, circuit.nodes, some)
    judge = EdgeEvaluator(Evaluator(bench.model, bench.dictionaries, inputs), circuit)
    kept = judge.evaluate(circuit.edges[::2])
    return [*[list(value) for value in vars(measured).values()], kept.faithfulness]


def _ablated(device: torch.device) -> Numbers:
    bench = Bench(device)
    nodes = bench.circuit(make_single()).nodes[:5]
    with ablated(bench.model, bench.dictionaries, nodes) as hf:
        tokens = torch.tensor(CONTEXTS[:1], device=device)
        return [hf(tokens).logits, hf.generate(tokens, max_new_tokens=3, do_sample=False)]


def _quality(device: torch.device) -> Numbers:
    bench = Bench(device)
    found = measure_dictionaries(bench.model, bench.dictionaries, *pad(CONTEXTS), batch_contexts=3)
    return [list(map(torch.as_tensor, vars(one).values())) for one in found.values()]


def _discovered(device: torch.device) -> Numbers:
    bench, found = Bench(device), []
    samples = filter_tokens(bench.model, enumerate(CONTEXTS), max_loss=100.0).samples[:12]
    for name in REPRESENTATIONS:
        dictionaries = bench.dictionaries if name in WITH_DICTIONARIES else {}
        for reduction in ("last", "sum"):
            vectors = represent(
                bench.model,
                dictionaries,
                samples,
                representation=name,
                reduction=reduction,
                n_projected=50,
            )
            found.append(vectors if isinstance(vectors, np.ndarray) else vectors.toarray())
    return found


def _trained(device: torch.device, kind: str) -> Numbers:
    model = LanguageModel(make_hf("gpt_neox").float().to(device))
    rows = ModelRows(model, CONTEXTS * 8, ["mlp_0", "resid_1"], model_fingerprint="tiny")
    settings = TrainingSettings(
        kind=kind,
        n_features=16,
        n_steps=8,
        batch_size=32,
        learning_rate=1e-3,
        warmup_steps=2,
        decay_steps=2,
        resample_every=5,
        dead_after=2,
        k=3,
    )
    trained = train_dictionaries(rows, settings, device=device)
    return [list(one.dictionary.tensors().values()) for one in trained.values()]


def _tuned(device: torch.device) -> Numbers:
    bench = Bench(device)
    settings = TuningSettings(n_steps=3, n_contexts=4, n_positions=6)
    tuned = tune_in_series(bench.model, bench.dictionaries, CONTEXTS, settings)
    return [list(one.tensors().values()) for one in tuned.values()]


def _probed(device: torch.device) -> Numbers:
    bench, label = Bench(device), torch.tensor([0, 1] * 4)
    pooled = pooled_vectors(bench.model, CONTEXTS, Readout("resid_0", "mean"))
    probe = train_probe(pooled, label, epochs=3, batch=4)
    tokens, mask = pad(CONTEXTS)
    inputs = probe.inputs(tokens, label, Readout("resid_0", "mean"), mask)
    return [probe.weight, probe(pooled), *_numbers(bench.circuit(inputs))]


def _described(device: torch.device) -> Numbers:
    bench = Bench(device)
    every = torch.arange(bench.dictionaries["mlp_1"].n_features)
    wanted = {"mlp_1": Units("mlp_1", bench.dictionaries["mlp_1"], every)}
    found = collect(bench.model, wanted, CONTEXTS)
    streams = bench.model.record(*pad(CONTEXTS)).outputs["resid_1"].flatten(0, 1)
    reads = readout(bench.model, streams)
    excerpts = {name: one.excerpts for name, one in found.items()}
    changes = moved(bench.model, wanted, excerpts, CONTEXTS)["mlp_1"]
    up, down = promoted(bench.model, wanted["mlp_1"], reads, 3)
    tables = [list(vars(one).values()) for one in (changes, up, down)]
    return [found["mlp_1"].excerpts.row, *tables]


def _neurons(device: torch.device) -> Numbers:
    bench = Bench(device)
    basis = mlp_neurons(bench.model)
    effects = attribute(basis.model, basis.dictionaries, make_single())
    x = bench.model.record(*pad(CONTEXTS)).outputs["mlp_0"].flatten(0, 1)
    drawn = random_dictionary(bench.dictionaries["mlp_0"], x, seed=0)
    return [*effects.effects.nodes.values(), drawn.encoder]


WAYS: dict[str, Callable[[torch.device], Numbers]] = {
    "circuits": lambda device: _circuits(device, "gpt_neox", "relu"),
    "estimators": _estimates,
    "evaluations": _evaluations,
    "edges": _edges,
    "ablated runs": _ablated,
    "dictionary metrics": _quality,
    "representations": _discovered,
    "training, topk": lambda device: _trained(device, "topk"),
    "tuning": _tuned,
    "probe": _probed,
    "cards": _described,
    "baselines": _neurons,
}
OTHERS: dict[str, Callable[[torch.device], Numbers]] = {
    **{kind: lambda d, kind=kind: _circuits(d, "gpt_neox", kind) for kind in KINDS[1:]},
    **{name: lambda d, name=name: _circuits(d, name, "relu") for name in ("gpt2", "llama")},
    **{f"training, {k}": lambda d, k=k: _trained(d, k) for k in DICTIONARY_KINDS if k != "topk"},
}


def _flat(numbers: Any) -> Iterator[float]:
    if isinstance(numbers, Tensor):
        yield from numbers.detach().double().cpu().flatten().tolist()
    elif isinstance(numbers, np.ndarray):
        yield from numbers.astype(float).ravel().tolist()
    elif isinstance(numbers, list | tuple):
        for one in numbers:
            yield from _flat(one)
    else:
        yield float(numbers)


def _check(way: Callable[[torch.device], Numbers], elsewhere: Elsewhere, tolerance: float) -> None:
    here = list(_flat(way(torch.device("cpu"))))
    with elsewhere as device:
        there = list(_flat(way(device)))
    assert len(here) > 1
    assert there == pytest.approx(here, rel=tolerance, abs=tolerance, nan_ok=True)


@pytest.mark.parametrize("way", WAYS)
def test_another_device_gives_the_numbers_of_the_cpu(way: str, elsewhere: Elsewhere) -> None:
    _check(WAYS[way], elsewhere, _tolerance(way))


@pytest.mark.slow
@pytest.mark.parametrize("way", OTHERS)
def test_every_kind_and_family_goes_along(way: str, elsewhere: Elsewhere) -> None:
    _check(OTHERS[way], elsewhere, _tolerance(way))


def _tolerance(way: str) -> float:
    """Training is in float32; norms of some families are, whatever the model."""
    return 1e-3 if way.startswith("training") else 2e-5


# -- what the pretended device refuses and allows -------------------------------------------------


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: here @ there,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: here[there.long()],
        lambda there, here: here.index_add_(0, here.long(), there),
        lambda there, here: torch.where(there > 0, here, 0.0),
        lambda there, _here: there.numpy(),
        lambda there, _here: np.asarray(there),
        lambda there, _here: torch.rand(2, generator=torch.Generator(), device=there.device),
    ],
)
def test_a_mixture_of_devices_is_refused(mix: Callable[[Tensor, Tensor], Any]) -> None:
    with pretended() as device, pytest.raises(MixedDevices):
        mix(torch.zeros(3, device=device), torch.zeros(3))


def test_what_cuda_allows_is_allowed() -> None:
    with pretended() as device:
        there, here = torch.zeros(3, device=device, requires_grad=True), torch.ones(3)
        assert (there + torch.tensor(1.0)).device == there[here.long()].device == device
        (there * here.to(there)).sum().backward()
        assert there.grad is not None
        assert there.grad.device == device
        here.copy_(there.detach())
        assert here.device.type == there.cpu().device.type == "cpu"
        assert (here + 1).numpy().sum() == 3  # what is on the CPU is seen as ever
