"""Samples put into batches, and runs that samples of one window share."""

import numpy as np
import pytest

from core.discovery import represent
from core.discovery.batches import batches
from core.discovery.filter import Sample
from tests.core.tiny import make_model, random_dictionaries, random_tokens


def windows() -> list[Sample]:
    """Samples of three windows, shuffled: the last one's contexts do not belong together."""
    tokens = [tuple(row) for row in random_tokens(4, 9, 3).tolist()]
    places = [(0, 3), (1, 9), (0, 7), (0, 5), (1, 2)]
    found = [Sample(d, d, n, tokens[d][:n], 1, 0.0) for d, n in places]
    return [*found, Sample(2, 2, 4, tokens[2][:4], 1, 0.0), Sample(2, 2, 6, tokens[3][:6], 1, 0.0)]


def test_samples_of_a_window_share_its_longest_run() -> None:
    samples = windows()
    (batch,) = batches(samples, batch_tokens=1000, max_positions=16, share=True)
    assert len(batch.tokens) == 4  # the contexts of window 2 do not begin alike
    for row, run, last in zip(
        *(t.tolist() for t in (batch.rows, batch.run, batch.last)), strict=True
    ):
        context = samples[row].context
        assert tuple(batch.tokens[run, : last + 1].tolist()) == context
    assert sorted(batch.rows.tolist()) == list(range(len(samples)))


@pytest.mark.parametrize("batch_tokens", [1, 14, 1000])
def test_every_sample_comes_once_and_batches_keep_their_size(batch_tokens: int) -> None:
    found = list(batches(windows(), batch_tokens=batch_tokens, max_positions=16, share=True))
    rows = [i for batch in found for i in batch.rows.tolist()]
    assert sorted(rows) == list(range(7))
    assert all(len(b.tokens) == 1 or b.tokens.numel() <= batch_tokens for b in found)


def test_a_window_of_many_samples_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.discovery.batches._MOST", 2)
    found = list(batches(windows(), batch_tokens=1000, max_positions=16, share=True))
    assert max(len(batch.rows) for batch in found) == 2


def test_without_sharing_each_sample_has_its_own_run() -> None:
    (batch,) = batches(windows(), batch_tokens=1000, max_positions=16)
    assert batch.run.tolist() == list(range(7))
    assert len(batch.tokens) == 7


@pytest.mark.parametrize("representation", ["activations", "features"])
@pytest.mark.parametrize("n_last", [1, 3])
def test_shared_runs_change_no_vector(representation: str, n_last: int) -> None:
    model, samples = make_model("gpt_neox"), windows()
    dictionaries = random_dictionaries(model)

    def vectors(some: list[Sample]) -> np.ndarray:
        found = represent(
            model,
            dictionaries,
            some,
            representation=representation,
            reduction="last",
            n_last=n_last,
        )
        return found if isinstance(found, np.ndarray) else found.toarray()

    apart = np.concatenate([vectors([sample]) for sample in samples])
    np.testing.assert_allclose(vectors(samples), apart, rtol=1e-6, atol=1e-7)
    assert np.abs(apart[0] - apart[2]).max() > 1e-3  # of one window, but not alike


def test_effects_are_never_read_from_a_shared_run() -> None:
    batch = next(batches(windows(), batch_tokens=1000, max_positions=16, share=True))
    with pytest.raises(AssertionError, match="several metrics"):
        batch.record(make_model("gpt_neox"))
