"""Projected gradients against the matrix written out and gradients taken one sample at a time."""

import hashlib

import pytest
import torch
from torch import Tensor, nn

from core.discovery import Projection, projected_gradients, represent
from core.discovery import projection as module
from core.discovery.batches import batches
from core.discovery.filter import Sample
from core.errors import InputError, ModelError
from core.models import LanguageModel
from tests.core.tiny import FAMILY_NAMES, MIXTURES, make_hf, make_model, random_tokens


def some_samples() -> list[Sample]:
    """Contexts of three lengths, so that a batch has padding."""
    tokens = random_tokens(6, 9, 5).tolist()
    lengths = (9, 4, 7, 9, 4, 9)
    return [
        Sample(i, i, n, tuple(row[:n]), i + 1, 0.0)
        for i, (row, n) in enumerate(zip(tokens, lengths, strict=True))
    ]


def dense_matrix(projection: Projection, name: str, n_parameters: int) -> Tensor:
    """The projection's rows for one tensor, ``(parameter, output)``."""
    entries = projection.entries(name, 0, n_parameters)
    matrix = torch.zeros(n_parameters, 2 * projection.n_outputs, dtype=torch.float64)
    matrix[torch.arange(n_parameters), entries] = 1
    positive, negative = matrix.split(projection.n_outputs, dim=1)
    return positive - negative


def one_by_one(model: LanguageModel, samples: list[Sample], projection: Projection) -> Tensor:
    """Each sample's full gradient through the model's own forward pass, times the whole matrix."""
    named = {
        f"{layer}.{path}": parameter
        for layer, block in enumerate(model.layers)
        for path, parameter in block.named_parameters()
        if "norm" not in path and "ln_" not in path
    }
    model.hf.requires_grad_(True)
    rows = []
    for sample in samples:
        logits = model.hf(torch.tensor([sample.context])).logits[0, -1]
        metric = -logits.log_softmax(0)[sample.answer]
        gradients = torch.autograd.grad(metric, list(named.values()))
        parts = [
            gradient.flatten() @ dense_matrix(projection, name, gradient.numel())
            for name, gradient in zip(named, gradients, strict=True)
        ]
        rows.append(torch.stack(parts).sum(0))
    model.hf.requires_grad_(False)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("family", "attn_input"),
    [*((name, False) for name in FAMILY_NAMES if name not in MIXTURES), ("gemma2", True)],
)
def test_projection_equals_the_dense_one_of_the_full_gradient(
    family: str, attn_input: bool
) -> None:
    model, samples = make_model(family, attn_input), some_samples()
    found = represent(model, {}, samples, representation="gradients", n_projected=50, seed=3)
    expected = one_by_one(model, samples, Projection(50, seed=3))
    assert found.shape == (6, 50)
    assert torch.from_numpy(found).double().sub(expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", MIXTURES)
def test_gradients_of_experts_are_refused_with_what_works(family: str) -> None:
    model, samples = make_model(family), some_samples()
    with pytest.raises(ModelError, match=r"'mlp\.\w+' in layer \d .*linear effects instead"):
        represent(model, {}, samples, representation="gradients", n_projected=50)
    found = represent(model, {}, samples, representation="linear_effects")
    assert len(found) == len(samples)


def test_blocks_and_batches_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = make_model("gpt2"), some_samples()
    whole = represent(model, {}, samples, representation="gradients", n_projected=50)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * 12 * 5)
    pieces = represent(
        model, {}, samples, representation="gradients", n_projected=50, batch_tokens=1
    )
    assert pieces == pytest.approx(whole, abs=1e-5 * float(abs(whole).max()))


def test_any_part_of_the_matrix_is_drawn_alone() -> None:
    projection = Projection(1000, seed=1)
    whole = projection.entries("w", 0, 500)
    for start, stop in [(0, 1), (3, 17), (8, 16), (123, 500), (499, 500)]:
        assert torch.equal(projection.entries("w", start, stop), whole[start:stop])


def philox(counter: int, key: int) -> list[int]:
    """Ten rounds of Philox4x64 (Salmon et al. 2011) on whole numbers: four 64-bit draws."""
    mask = 2**64 - 1
    word = [counter >> 64 * i & mask for i in range(4)]
    keys = [key & mask, key >> 64]
    for _ in range(10):
        high_low = [
            divmod(word[i] * factor, 2**64)
            for i, factor in ((0, 0xD2E7470EE14C6C93), (2, 0xCA5A826395121157))
        ]
        (high0, low0), (high1, low1) = high_low
        word = [high1 ^ word[1] ^ keys[0], low1, high0 ^ word[3] ^ keys[1], low0]
        keys = [
            (k + step & mask)
            for k, step in zip(keys, (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B), strict=True)
        ]
    return word


def test_entries_are_whole_number_arithmetic_that_any_machine_repeats() -> None:
    key = int.from_bytes(hashlib.sha256(b"7/0.mlp.weight").digest()[:16], "little")
    # numpy steps its counter before the first draw.
    draws = [half for c in (1, 2, 3) for v in philox(c, key) for half in (v % 2**32, v >> 32)]
    expected = [draw * 60_000 >> 32 for draw in draws]
    assert Projection(30_000, seed=7).entries("0.mlp.weight", 0, 24).tolist() == expected


def test_seeds_and_tensors_have_matrices_of_their_own() -> None:
    draws = [
        Projection(1000, seed).entries(name, 0, 50).tolist() for seed in (0, 1) for name in "ab"
    ]
    assert len({tuple(draw) for draw in draws}) == 4


def test_entries_are_plus_and_minus_one_with_the_same_small_probability() -> None:
    n_outputs, n_parameters = 20, 200_000
    counts = torch.bincount(Projection(n_outputs, 5).entries("w", 0, n_parameters))
    expected = n_parameters / (2 * n_outputs)
    assert counts.shape == (2 * n_outputs,)
    # Five standard deviations of a binomial count.
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_projection_keeps_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, 8, generator=generator, dtype=torch.float64)
    x = x + torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    projection, projected = Projection(2000, 2), torch.zeros(4000, 8, dtype=torch.float64)
    projected.index_add_(0, projection.entries("w", 0, 40_000), x)
    projected = projected[:2000] - projected[2000:]
    before, after = (v / v.norm(dim=0) for v in (x, projected))
    # A cosine's standard error is at most sqrt(2 / outputs), 0.03.
    assert (before.T @ before - after.T @ after).abs().max() < 0.1


@pytest.mark.parametrize("n_outputs", [0, -5, 2**31])
def test_impossible_dimensions_are_refused(n_outputs: int) -> None:
    with pytest.raises(InputError, match="dimensions"):
        Projection(n_outputs)


def test_parameters_that_are_neither_linear_nor_norms_are_refused() -> None:
    hf = make_hf("llama")
    model = LanguageModel(hf)
    model.layers[1].gate = nn.Bilinear(2, 2, 2)
    with pytest.raises(ModelError, match="'gate' in layer 1 belong to a Bilinear"):
        represent(model, {}, some_samples(), representation="gradients")


def test_parameters_are_left_without_gradients() -> None:
    model = make_model("gpt_neox")
    batch = next(batches(some_samples(), batch_tokens=100, max_positions=32))
    projected_gradients(batch.record(model), Projection(10))
    assert all(p.grad is None and not p.requires_grad for p in model.hf.parameters())
    assert not any(m._forward_hooks for m in model.hf.modules())
