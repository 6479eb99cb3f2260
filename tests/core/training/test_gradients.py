"""The hand-written gradients against autograd through each kind's loss as its paper writes it."""

import pytest
import torch
import torch.nn.functional as F

from core.training import entries, kinds
from core.training.learner import Learner
from core.training.settings import TrainingSettings
from core.training.weights import Weights

N, D, N_FEATURES, K, SPARSITY = 32, 6, 24, 4, 0.1


def settings(kind: str, **changes) -> TrainingSettings:
    given = {"sparsity_warmup_steps": 0, "resample_every": 0, "dead_after": 5} | changes
    return TrainingSettings(kind=kind, n_features=N_FEATURES, k=K, sparsity=SPARSITY, **given)


def learner(kind: str, **changes) -> tuple[Learner, torch.Tensor]:
    """A learner with weights away from their start, and a batch."""
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x = noise(N, D) + 1
    one = Learner("resid_0", D, settings(kind, **changes))
    one.start(x)
    one.weights.encoder.add_(0.2 * noise(N_FEATURES, D))
    if one.kind.has_encoder_bias:
        one.weights.encoder_bias.add_(0.05 * noise(N_FEATURES))
    for extra in one.weights.extra.values():
        extra.add_(0.1 * noise(N_FEATURES))
    if kind == "jumprelu":
        one.weights.extra["log_threshold"].fill_(0.1).log_()
    return one, x * one.state["scale"]


def relu_loss(w: Weights, x: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    f = F.relu((x - w.bias) @ w.encoder.T + w.encoder_bias)
    error = f @ w.decoder + w.bias - x
    return error.norm(dim=1).mean() + SPARSITY * f.sum(1).mean()


def topk_loss(w: Weights, x: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    pre = F.relu((x - w.bias) @ w.encoder.T + w.encoder_bias)
    kept = torch.zeros_like(pre).scatter(1, pre.topk(K, dim=1).indices, 1.0)
    return squared_with_aux(w, x, pre, kept, dead)


def batchtopk_loss(w: Weights, x: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    pre = F.relu((x - w.bias) @ w.encoder.T + w.encoder_bias)
    floor = pre.flatten().sort(descending=True).values[K * len(x) - 1]
    return squared_with_aux(w, x, pre, (pre >= floor).float(), dead)


def squared_with_aux(w: Weights, x, pre, kept, dead) -> torch.Tensor:
    error = (pre * kept) @ w.decoder + w.bias - x
    loss = error.square().sum(1).mean()
    if dead.any():
        own = pre * dead
        chosen = torch.zeros_like(pre).scatter(1, own.topk(min(int(dead.sum()), D // 2)).indices, 1)
        rebuilt = (own * chosen) @ w.decoder
        loss = loss + (rebuilt + error.detach()).square().sum(1).mean() / 32
    return loss


class Jump(torch.autograd.Function):
    """Value and count of JumpReLU features with the gradients of eqs 11 and 12."""

    @staticmethod
    def forward(ctx, pre, threshold):
        ctx.save_for_backward(pre, threshold)
        on = (pre > threshold).float()
        return pre * on, on

    @staticmethod
    def backward(ctx, d_value, d_count):
        pre, threshold = ctx.saved_tensors
        window = ((pre - threshold).abs() < kinds.BANDWIDTH / 2).float() / kinds.BANDWIDTH
        d_threshold = -(threshold * window * d_value) - window * d_count
        return d_value * (pre > threshold), d_threshold.sum(0)


def jumprelu_loss(w: Weights, x: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    f, on = Jump.apply(x @ w.encoder.T + w.encoder_bias, w.extra["log_threshold"].exp())
    error = f @ w.decoder + w.bias - x
    return error.square().sum(1).mean() + SPARSITY * on.sum(1).mean()


def gated_loss(w: Weights, x: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    projected = (x - w.bias) @ w.encoder.T
    gate = projected + w.extra["gate_bias"]
    magnitude = projected * w.extra["log_scale"].exp() + w.extra["magnitude_bias"]
    error = ((gate > 0) * F.relu(magnitude)) @ w.decoder + w.bias - x
    opened = F.relu(gate)
    of_gate = opened @ w.decoder.detach() + w.bias.detach() - x
    penalty = SPARSITY * opened.sum(1).mean()
    return error.square().sum(1).mean() + penalty + of_gate.square().sum(1).mean()


LOSSES = {
    "relu": relu_loss,
    "topk": topk_loss,
    "batchtopk": batchtopk_loss,
    "jumprelu": jumprelu_loss,
    "gated": gated_loss,
}


def difference_from_autograd(one: Learner, x: torch.Tensor, step: int) -> tuple[float, float]:
    """Relative difference of the loss, and of the whole gradient, from autograd's."""
    p = one._forward(step, x / one.state["scale"])
    ours = float(one._backward(p))
    flat = one.weights.flat.clone().requires_grad_()
    loss = LOSSES[one.settings.kind](one._named(flat), x, p.dead)
    (theirs,) = torch.autograd.grad(loss, flat)
    difference = (one.gradient.flat - theirs).norm() / theirs.norm()
    return abs(ours / float(loss.detach()) - 1), float(difference)


@pytest.mark.parametrize("dense_above", [0.0, 1.1], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", list(LOSSES))
def test_gradients_are_those_of_the_papers_loss(kind, dense_above, monkeypatch):
    monkeypatch.setattr(entries, "DENSE_ABOVE", dense_above)
    # A window wide enough that the thresholds of this small batch feel something.
    monkeypatch.setattr(kinds, "BANDWIDTH", 0.1)
    one, x = learner(kind)
    loss, gradient = difference_from_autograd(one, x, step=0)
    assert loss < 1e-5
    assert gradient < 1e-5
    if kind == "jumprelu":
        assert one.gradient.extra["log_threshold"].abs().max() > 0


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_dead_features_learn_to_rebuild_the_error(kind):
    one, x = learner(kind, dead_after=5)
    one.weights.encoder_bias[::3] = -1.0
    one.weights.encoder_bias[3] = -0.1
    one._forward(0, x / one.state["scale"])
    silent = one.state["fired_at"] == 0
    one.state["fired_at"][::3] = -100
    loss, gradient = difference_from_autograd(one, x, step=1)
    assert silent.any()
    assert loss < 1e-5
    assert gradient < 1e-5


def test_both_representations_of_the_active_pairs_give_the_same_products():
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(16, N_FEATURES, generator=generator) < 0.2
    weight = torch.randn(16, N_FEATURES, generator=generator) * mask
    left = torch.randn(16, D, generator=generator)
    rows = torch.randn(N_FEATURES, D, generator=generator)
    sparse, dense = entries.SparseEntries(mask), entries.DenseEntries(mask)
    values = sparse.take(weight)
    assert torch.equal(sparse.count(), dense.count())
    torch.testing.assert_close(sparse.decode(values, rows), dense.decode(weight, rows))
    torch.testing.assert_close(sparse.products(left, rows), sparse.take(dense.products(left, rows)))
    torch.testing.assert_close(sparse.outer(values, left), dense.outer(weight, left))
    torch.testing.assert_close(sparse.per_feature(values), dense.per_feature(weight))


@pytest.mark.parametrize("n_features", [24, 21])
def test_active_places_are_found_in_order(n_features):
    mask = torch.rand(7, n_features, generator=torch.Generator().manual_seed(2)) < 0.1
    found = entries.SparseEntries(mask)
    assert torch.equal(found.place, mask.flatten().nonzero().flatten())
    assert torch.equal(found.token * n_features + found.feature, found.place)
