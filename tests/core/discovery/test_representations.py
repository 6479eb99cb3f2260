"""The inputs of App. H.2, against each sample run alone through the model's own forward pass."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from core.dictionaries import Dictionary, identity_dictionary
from core.discovery import filter_tokens, represent
from core.discovery.batches import batches
from core.discovery.filter import Sample
from core.errors import InputError, MissingSubmodule, NotFinite, OutOfBudget, WidthMismatch
from core.models import LanguageModel, load_model, load_tokenizer
from core.options import REPRESENTATIONS, WITH_DICTIONARIES
from tests.core.tiny import D, make_hf, make_model, random_dictionaries, random_tokens

NAMES = ["embed", "attn_0", "resid_0", "mlp_1"]
SHARED = Path(__file__).parents[4] / "shared"


def some_samples() -> list[Sample]:
    """Contexts of three lengths in no order, one shorter than the positions asked for."""
    lengths = (8, 2, 5, 8, 3)
    tokens = random_tokens(5, 8, 5).tolist()
    return [
        Sample(i, i, n, tuple(row[:n]), i + 1, 0.0)
        for i, (row, n) in enumerate(zip(tokens, lengths, strict=True))
    ]


def alone(model: LanguageModel, sample: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and metric gradients ``(pos, d)`` of NAMES from one hooked forward pass."""
    values: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        def hook(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]):
            whole = output if isinstance(output, tuple) else (output,)
            values[name] = whole[0] if whole[0].requires_grad else whole[0].requires_grad_()
            return (values[name], *whole[1:]) if isinstance(output, tuple) else values[name]

        return hook

    modules = {
        "embed": model.hf.get_input_embeddings(),
        "attn_0": model.layers[0].attention,
        "resid_0": model.layers[0],
        "mlp_1": model.layers[1].mlp,
    }
    handles = [m.register_forward_hook(keep(name)) for name, m in modules.items()]
    logits = model.hf(torch.tensor([sample.context])).logits[0, -1]
    for handle in handles:
        handle.remove()
    metric = -logits.log_softmax(0)[sample.answer]
    gradients = torch.autograd.grad(metric, [values[name] for name in NAMES])
    by_name = {name: g[0] for name, g in zip(NAMES, gradients, strict=True)}
    return {name: values[name][0].detach() for name in NAMES}, by_name


def per_token(
    representation: str, dictionary: Dictionary, x: Tensor, gradient: Tensor, errors: bool = False
) -> Tensor:
    """The definition, ``(pos, width)``."""
    features = dictionary.encode(x)
    error = x - dictionary.decode(features)
    effects = -features * (gradient @ dictionary.decoder.T)
    if errors:
        effects = torch.cat([effects, -(gradient * error).sum(1, keepdim=True)], 1)
    whole = {
        "activations": x,
        "features": features,
        "active_features": (features > 0).to(features),
        "linear_effects": -x * gradient,
    }
    return whole.get(representation, effects)


def reduce(values: Tensor, reduction: str, n_last: int) -> Tensor:
    if reduction == "sum":
        return values.sum(0)
    missing = max(0, n_last - len(values))
    return torch.cat([values.new_zeros(missing, values.shape[1]), values[-n_last:]]).flatten()


def dense(vectors: np.ndarray | sparse.csr_array) -> np.ndarray:
    return vectors if isinstance(vectors, np.ndarray) else vectors.toarray()


@pytest.mark.parametrize(("reduction", "n_last"), [("last", 1), ("last", 3), ("sum", 1)])
@pytest.mark.parametrize(
    "representation", [r for r in REPRESENTATIONS if r not in ("gradients", "mlp_neurons")]
)
def test_vectors_are_what_each_sample_gives_alone(
    representation: str, reduction: str, n_last: int
) -> None:
    model, samples = make_model("gpt_neox"), some_samples()
    dictionaries = random_dictionaries(model, names=NAMES)
    errors = representation == "feature_effects"
    found = represent(
        model,
        dictionaries,
        samples,
        representation=representation,
        reduction=reduction,
        n_last=n_last,
        error_effects=errors,
    )
    assert sparse.issparse(found) == (representation in WITH_DICTIONARIES)
    for row, sample in zip(dense(found), samples, strict=True):
        outputs, gradients = alone(model, sample)
        expected = [
            reduce(
                per_token(representation, dictionaries[n], outputs[n], gradients[n], errors),
                reduction,
                n_last,
            )
            for n in NAMES
        ]
        assert row == pytest.approx(torch.cat(expected).numpy(), abs=1e-5)


@pytest.mark.parametrize("reduction", ["last", "sum"])
def test_neurons_are_what_the_down_projection_makes_the_output_of(reduction: str) -> None:
    model, samples = make_model("gpt_neox"), some_samples()
    found = dense(represent(model, {}, samples, representation="mlp_neurons", reduction=reduction))
    written = represent(
        model, {}, samples, representation="activations", reduction=reduction, submodules=["mlp_1"]
    )
    down = model.hf.gpt_neox.layers[1].mlp.dense_4h_to_h
    neurons = found[:, found.shape[1] // 2 :]
    n_summed = 1 if reduction == "last" else np.array([[len(s.context)] for s in samples])
    expected = neurons @ down.weight.numpy().T + n_summed * down.bias.numpy()
    assert dense(written) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("representation", ["activations", "features"])
def test_equal_submodules_all_have_length_one(representation: str) -> None:
    model, samples = make_model("gpt_neox"), some_samples()
    dictionaries = random_dictionaries(model, names=NAMES)
    settings = {"representation": representation, "n_last": 2, "submodules": NAMES}
    plain = dense(represent(model, dictionaries, samples, **settings))
    equal = dense(represent(model, dictionaries, samples, **settings, equal_submodules=True))
    for one, other in zip(np.split(plain, 4, 1), np.split(equal, 4, 1), strict=True):
        length = np.linalg.norm(one, axis=1, keepdims=True)
        assert other == pytest.approx(one / np.where(length > 0, length, 1), abs=1e-5)
    assert np.linalg.norm(equal, axis=1).max() <= 2 + 1e-5


def test_neurons_of_what_is_no_mlp_are_refused() -> None:
    for family, names in (("gpt_neox", ["attn_0"]), ("mixtral", None)):
        with pytest.raises(MissingSubmodule, match="no hidden neurons that are known here"):
            represent(
                make_model(family),
                {},
                some_samples(),
                representation="mlp_neurons",
                submodules=names,
            )


def test_identity_dictionaries_give_the_dense_representations() -> None:
    model, samples = make_model("gemma2"), some_samples()
    neurons = {
        name: identity_dictionary(model.width(name), dtype=torch.float64)
        for name in model.submodules
    }
    for of_neurons, of_features in (
        ("activations", "features"),
        ("linear_effects", "feature_effects"),
    ):
        a = represent(model, {}, samples, representation=of_neurons, reduction="last", n_last=2)
        b = represent(
            model, neurons, samples, representation=of_features, reduction="last", n_last=2
        )
        assert dense(b) == pytest.approx(a, abs=1e-6)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_batches_do_not_change_the_vectors(representation: str) -> None:
    model = make_model("llama")
    dictionaries = random_dictionaries(model)
    settings = {"representation": representation, "n_projected": 40}
    alone_ = represent(model, dictionaries, some_samples(), batch_tokens=1, **settings)
    together = represent(model, dictionaries, some_samples(), **settings)
    assert dense(alone_) == pytest.approx(dense(together), abs=1e-5)


def test_chosen_submodules_come_in_causal_order() -> None:
    model, samples = make_model("gpt_neox"), some_samples()
    found = represent(
        model, {}, samples, representation="activations", submodules=["resid_1", "attn_0"]
    )
    parts = [
        represent(model, {}, samples, representation="activations", submodules=[name])
        for name in ("attn_0", "resid_1")
    ]
    assert (found == np.concatenate(parts, 1)).all()


def ablated_by_hand(
    model: LanguageModel, samples: list[Sample], neurons: list[int]
) -> dict[str, np.ndarray]:
    """Change of -log P(answer) with one neuron set to zero at the last position, each in turn."""
    changes: dict[str, list[np.ndarray]] = {name: [] for name in model.submodules}
    for sample in samples:
        (batch,) = batches([sample], batch_tokens=1, max_positions=model.max_positions)
        runs = batch.record(model)
        copies = runs.select(torch.zeros(len(neurons), dtype=torch.long))
        with torch.no_grad():
            clean = runs.finish(runs.recording.stream_before(0), 0)
            for name in model.submodules:
                value = copies.recording.outputs[name].clone()
                value[range(len(neurons)), -1, neurons] = 0
                changes[name].append((copies.metric_with(name, value) - clean).numpy())
    return {name: np.stack(rows) for name, rows in changes.items()}


@pytest.mark.weights
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_linear_effects_agree_with_ablating_by_hand_at_every_submodule() -> None:
    model = load_model(str(SHARED / "models/stories260K"), device="cpu")
    tokenizer = load_tokenizer(str(SHARED / "models/stories260K"))
    stories = (SHARED / "text/tinystories.txt").read_text()[:20_000].split("<|endoftext|>")
    contexts = [(i, tokenizer(story.strip()).input_ids[:40]) for i, story in enumerate(stories)]
    samples = filter_tokens(model, contexts, max_per_document=1, n_samples=20).samples
    neurons = list(range(0, 64, 8))
    exact = ablated_by_hand(model, samples, neurons)
    effects = represent(model, {}, samples, representation="linear_effects", reduction="last")
    for name, found in zip(exact, np.split(effects, len(exact), 1), strict=True):
        correlation = np.corrcoef(found[:, neurons].ravel(), exact[name].ravel())[0, 1]
        assert correlation > 0.8, (name, correlation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"representation": "embeddings"}, "representation 'embeddings' is not one of activations"),
        (
            {"representation": "activations", "reduction": "mean"},
            "reduction 'mean' is not one of last, sum",
        ),
        ({"representation": "activations", "n_last": 0}, "n_last is 0"),
        ({"representation": "features", "error_effects": True}, "feature_effects"),
    ],
)
def test_impossible_choices_are_refused(arguments: dict[str, object], message: str) -> None:
    model = make_model("gpt_neox")
    with pytest.raises(InputError, match=message):
        represent(model, random_dictionaries(model), some_samples(), **arguments)


def test_a_submodule_without_a_dictionary_is_named() -> None:
    model = make_model("gpt_neox")
    with pytest.raises(MissingSubmodule, match="none at mlp_0"):
        represent(
            model,
            random_dictionaries(model, names=["attn_0"]),
            some_samples(),
            representation="features",
            submodules=["attn_0", "mlp_0"],
        )
    with pytest.raises(MissingSubmodule, match="'mlp_9' does not exist"):
        represent(model, {}, some_samples(), representation="activations", submodules=["mlp_9"])


def test_a_dictionary_of_another_width_is_refused() -> None:
    with pytest.raises(WidthMismatch):
        represent(
            make_model("gpt_neox"),
            {"attn_0": identity_dictionary(D + 1)},
            some_samples(),
            representation="features",
        )


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples"),
        ([Sample(0, 0, 0, (), 1, 0.0)], "empty context"),
        ([Sample(0, 0, 33, (1,) * 33, 1, 0.0)], "33 tokens.*32 positions"),
    ],
)
def test_samples_that_cannot_be_run_are_refused(samples: list[Sample], message: str) -> None:
    with pytest.raises(InputError, match=message):
        represent(make_model("gpt_neox"), {}, samples, representation="activations")


def test_vectors_that_do_not_fit_say_how_much_they_need() -> None:
    model = make_model("gpt_neox")
    with pytest.raises(OutOfBudget, match=r"5 vectors of 84 numbers need .*at most 2 samples"):
        represent(model, {}, some_samples(), representation="activations", budget_bytes=700)
    with pytest.raises(OutOfBudget, match="all 5 would need"):
        represent(
            model,
            random_dictionaries(model),
            some_samples(),
            representation="features",
            budget_bytes=700,
        )


def test_numbers_that_are_not_finite_are_refused() -> None:
    hf = make_hf("gpt_neox")
    model = LanguageModel(hf)
    hf.get_input_embeddings().weight.data[1:] = float("inf")
    with pytest.raises(NotFinite, match="activations hold NaN or infinity"):
        represent(model, {}, some_samples(), representation="activations")
