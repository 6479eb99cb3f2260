"""Dead features are planted, and live again after resampling; without it they stay dead."""

import dataclasses

import pytest
import torch

from core.training import Learner, TrainingSettings
from tests.core.training.sources import sparse_mixtures

SETTINGS = TrainingSettings(
    n_features=16,
    n_steps=200,
    batch_size=256,
    learning_rate=2e-3,
    sparsity=0.05,
    warmup_steps=1,
    decay_steps=0,
    sparsity_warmup_steps=0,
    resample_every=20,
    dead_after=10,
)
DEAD = [3, 7, 8]


def trained(settings: TrainingSettings = SETTINGS, n_steps: int = 20):
    """A learner with three features that cannot fire, after some steps, and its data."""
    x = sparse_mixtures().values["resid_0"]
    learner = Learner("resid_0", x.shape[1], settings)
    learner.start(x[:256])
    learner.weights.encoder_bias[DEAD] = -1e9
    for step in range(n_steps):
        learner.step(step, x[step * 20 : step * 20 + 256])
    return learner, x


def living(learner: Learner, x: torch.Tensor) -> torch.Tensor:
    return (learner.dictionary().encode(x) > 0).any(0)


def test_dead_features_live_after_resampling():
    learner, x = trained()
    assert not living(learner, x)[DEAD].any()
    assert learner.resample(20, x[:256]).tolist() == DEAD
    for step in range(21, 40):
        learner.step(step, x[step * 20 : step * 20 + 256])
    assert living(learner, x)[DEAD].all()


def test_dead_features_stay_dead_without_resampling():
    learner, x = trained(dataclasses.replace(SETTINGS, resample_every=0), n_steps=40)
    assert not living(learner, x)[DEAD].any()


def test_resampling_happens_on_its_own_at_its_step():
    learner, x = trained()
    report = learner.step(20, x[:256])
    assert report.n_dead == 0
    assert learner.state["fired_at"][DEAD].min() >= 20


def test_resampled_features_point_at_rows_of_the_batch_and_their_moments_are_reset():
    learner, x = trained()
    batch, weights = x[:256], learner.weights
    seen = batch * learner.state["scale"] - weights.bias
    seen = seen / seen.norm(dim=1, keepdim=True)
    alive = [i for i in range(16) if i not in DEAD]
    norm = weights.encoder[alive].norm(dim=1).mean()
    learner.resample(20, batch)
    assert ((weights.decoder[DEAD] @ seen.T).max(1).values - 1).abs().max() < 1e-5
    torch.testing.assert_close(weights.encoder[DEAD], 0.2 * norm * weights.decoder[DEAD])
    assert weights.encoder_bias[DEAD].abs().max() == 0
    for moment in learner.moments:
        for part in (moment.encoder, moment.decoder, moment.encoder_bias):
            assert part[DEAD].abs().max() == 0


def test_resampling_leaves_the_other_features_untouched():
    learner, x = trained()
    alive = [i for i in range(16) if i not in DEAD]

    def others() -> list[torch.Tensor]:
        sets = (learner.weights, *learner.moments)
        return [
            part[alive].clone() for w in sets for part in (w.encoder, w.decoder, w.encoder_bias)
        ] + [w.bias.clone() for w in sets]

    before = others()
    learner.resample(20, x[:256])
    assert all(torch.equal(one, other) for one, other in zip(before, others(), strict=True))


def test_rows_are_drawn_in_proportion_to_their_squared_loss():
    learner, x = trained()
    batch = x[:256].clone()
    # Only these rows are explained badly, so only they can be drawn.
    batch[5:8] += 1e6 * torch.eye(x.shape[1])[:3]
    learner.resample(20, batch)
    seen = batch * learner.state["scale"] - learner.weights.bias
    seen = seen / seen.norm(dim=1, keepdim=True)
    drawn = (learner.weights.decoder[DEAD] @ seen.T).argmax(1)
    assert sorted(drawn.tolist()) == [5, 6, 7]


@pytest.mark.parametrize("n_rows", [1, 2])
def test_no_more_features_are_resampled_than_there_are_rows(n_rows):
    learner, x = trained()
    assert len(learner.resample(20, x[:n_rows])) == n_rows
