"""Linear probes: training, their metric, and what they read of texts of any length."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from core.ablate import ablated
from core.errors import InputError, MissingSubmodule, NotFinite
from core.probe import Probe, ProbeMargin, pooled_vectors, similarities, train_probe
from core.readout import Readout
from core.types import Node
from tests.core.tiny import make_model, random_dictionaries, random_tokens


def two_classes(n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors of two overlapping classes, apart along the first of four axes."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    vectors = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    vectors[:, 0] += 2 * label - 1
    return vectors, label


def test_training_settles_where_the_gradient_of_the_cross_entropy_is_zero() -> None:
    vectors, label = two_classes()
    probe = train_probe(vectors, label, epochs=500, lr=0.05, batch=400, weight_decay=0.0)
    residual = torch.sigmoid(probe(vectors)) - label
    assert float((residual @ vectors).abs().max()) / len(label) < 1e-3
    assert abs(float(residual.mean())) < 1e-3
    before, after = probe.loss
    assert 0 <= before - after < 1e-4
    # Of unit normals whose means are 2 apart, the log odds rise by 2 along that axis.
    assert probe.weight.tolist() == pytest.approx([2, 0, 0, 0], abs=0.5)


def test_every_step_is_that_of_autograd_and_adamw() -> None:
    vectors, label = two_classes(30)
    ours = train_probe(vectors, label, epochs=2, batch=8, seed=3)
    generator = torch.Generator().manual_seed(3)
    linear = torch.nn.Linear(4, 1).double()
    with torch.no_grad():
        linear.weight.copy_((2 * torch.rand(4, generator=generator) - 1) / 2)
        linear.bias.copy_((2 * torch.rand(1, generator=generator) - 1) / 2)
    optimiser = torch.optim.AdamW(linear.parameters(), lr=1e-2, weight_decay=0.01)
    for _ in range(2):
        for rows in torch.randperm(30, generator=generator).split(8):
            optimiser.zero_grad()
            logits = linear(vectors[rows])[:, 0]
            binary_cross_entropy_with_logits(logits, label[rows].double()).backward()
            optimiser.step()
    torch.testing.assert_close(ours.weight, linear.weight.detach()[0], rtol=0, atol=1e-12)
    assert ours.bias == pytest.approx(float(linear.bias.detach()), abs=1e-12)


def test_the_seed_alone_decides_what_a_probe_becomes() -> None:
    one, same, other = (train_probe(*two_classes(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.weight, same.weight)
    assert one.bias == same.bias
    assert not torch.equal(one.weight, other.weight)


def test_a_margin_is_positive_where_the_class_is_right_and_the_metric_is_minus_it() -> None:
    probe = Probe(torch.tensor([1.0, -2.0]), 0.5)
    pooled = torch.tensor([[3.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert probe(pooled).tolist() == [1.5, -1.5, 0.5]
    assert probe.predict(pooled).tolist() == [1, 0, 1]
    metric = ProbeMargin(probe.weight, probe.bias, torch.tensor([1, 0, 0]))
    assert metric(pooled).tolist() == [-1.5, -1.5, 0.5]
    assert metric.select(torch.tensor([2, 2]))(pooled[[2, 2]]).tolist() == [0.5, 0.5]


def test_a_centred_probe_gives_either_class_to_as_many_where_the_median_is_the_mean() -> None:
    vectors, label = two_classes()
    lopsided = Probe(torch.tensor([2.0, 0, 0, 0], dtype=torch.float64), 40.0)
    assert bool((lopsided.predict(vectors) == 1).all())
    centred = lopsided.centred(vectors)
    assert float(centred(vectors).mean()) == pytest.approx(0, abs=1e-12)
    assert float((centred.predict(vectors) == label).double().mean()) > 0.8


@pytest.mark.parametrize("site", ["embed", "attn_1", "resid_0", "resid_1"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_texts_are_pooled_as_if_each_were_run_alone(site: str, pooling: str) -> None:
    model = make_model("gpt2")
    texts = [random_tokens(1, n, n)[0].tolist() for n in (5, 1, 9, 3, 5, 2)]
    found = pooled_vectors(model, texts, Readout(site, pooling), batch_tokens=12)
    for text, vector in zip(texts, found, strict=True):
        values = model.record(torch.tensor([text])).outputs[site][0]
        alone = values.mean(0) if pooling == "mean" else values[-1]
        torch.testing.assert_close(vector, alone.float())


def test_pooled_vectors_of_an_ablated_run_are_its_own() -> None:
    model = make_model("gpt_neox")
    dictionaries = random_dictionaries(model)
    nodes = [Node("resid_0", feature, None, 0.0) for feature in range(24)]
    texts, readout = [[1, 2, 3], [4, 5]], Readout("resid_0", "mean")
    plain = pooled_vectors(model, texts, readout)
    with ablated(model, dictionaries, nodes):
        edited = pooled_vectors(model, texts, readout)
    for text, before, after in zip(texts, plain, edited, strict=True):
        x = model.record(torch.tensor([text])).outputs["resid_0"]
        features = dictionaries["resid_0"].encode(x) @ dictionaries["resid_0"].decoder
        torch.testing.assert_close(before - after, features[0].mean(0).float(), rtol=0, atol=1e-5)


def test_a_bottleneck_of_concepts_sees_directions_alone() -> None:
    concepts = torch.eye(3)[:2]
    found = similarities(torch.tensor([[2.0, 0, 0], [3.0, 4, 0], [0, 0, 5]]), concepts)
    torch.testing.assert_close(found, torch.tensor([[1, 0], [0.6, 0.8], [0, 0]]))


@pytest.mark.parametrize(
    ("label", "how", "error", "message"),
    [
        (torch.ones(4, dtype=torch.long), {}, InputError, "all 4 texts are of one class"),
        (torch.tensor([0, 1, 2, 1]), {}, InputError, "labels must be 0 or 1"),
        (torch.tensor([0, 1, 1]), {}, InputError, "one for each text"),
        (torch.tensor([0.0, 1, 0, 1]), {}, InputError, "whole numbers"),
        (torch.tensor([0, 1, 0, 1]), {"epochs": 0}, InputError, "0 epochs"),
    ],
)
def test_what_no_probe_learns_from_is_refused(
    label: Tensor, how: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train_probe(torch.randn(4, 3), label, **how)


def test_vectors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NotFinite, match="NaN or infinity"):
        train_probe(torch.full((2, 3), torch.nan), torch.tensor([0, 1]))


def test_texts_that_cannot_be_pooled_are_refused() -> None:
    model = make_model("gpt2")
    with pytest.raises(InputError, match="one without tokens"):
        pooled_vectors(model, [[1, 2], []], Readout("resid_0", "mean"))
    with pytest.raises(InputError, match="32 positions"):
        pooled_vectors(model, [[1] * 33], Readout("resid_0", "mean"))
    with pytest.raises(InputError, match="name its submodule"):
        pooled_vectors(model, [[1]], Readout())
    with pytest.raises(MissingSubmodule, match="layers 0 to 1"):
        pooled_vectors(model, [[1]], Readout("resid_2", "mean"))
