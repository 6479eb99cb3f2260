"""What circuits are worth with one set of dictionaries or another, with error nodes and without.

    python -m benchmarks.dictionaries circuits FOLDER ...     # circuits of clusters with each set
    python -m benchmarks.dictionaries circuits FOLDER --ablated again linear gated clean
    python -m benchmarks.dictionaries finetune FOLDER TO      # end to end; writes a new set
    ... --note                                                # dated rows to benchmarks/README.md

A set is a folder with SUBMODULE.safetensors, as an experiment leaves them in artifacts/NAME/saes.
Samples and clusters are those of a finished experiment (`--artifacts`). Circuits are found on some
examples of a cluster by log odds, judged on others by zero ablation, and medians over clusters are
printed. What is not kept stands at zero; `--ablated` says what a kept feature's value is in a run
whose stream is no longer the model's own:

    again     encoded again from the stream as it is (section 3.2, and the default everywhere)
    linear    its clean value plus the encoder row times the stream's change, where it was active
    gated     the same, not below zero
    clean     its clean value

Fine-tuning trains a finished set through the model: KL from the model to the model with every
dictionary in series, on half of the contexts; in the other half features are dropped at random, so
that dictionaries meet a shrunken stream. Each dictionary's own loss (App. B) counts on what it
reads in both halves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from assets.tables.conversions import read_samples
from benchmarks.record import append_row, machine
from core.circuit import attribute
from core.dictionaries import Dictionary
from core.dictionaries.files import load_dictionary, save_dictionary
from core.discovery import Sample
from core.estimators import IntegratedGradients
from core.inputs import Inputs, pad
from core.models import LanguageModel, Recording, load_model
from core.models.replay import read_metric

ROOT = Path(__file__).parent.parent
CONTEXT = 48
ABLATED = ("again", "linear", "gated", "clean")
Dictionaries = Mapping[str, Dictionary]


def read_set(folder: Path) -> dict[str, Dictionary]:
    """The dictionaries in a folder, by submodule."""
    files = sorted(folder.glob("*.safetensors"))
    assert files, f"no dictionaries in {folder}"
    return {file.stem: load_dictionary(file) for file in files}


# -- circuits -------------------------------------------------------------------------------------


def halves(
    samples: Sequence[Sample], labels: np.ndarray, n_clusters: int, n_examples: int
) -> list[tuple[Inputs, Inputs]]:
    """For clusters of all sizes, examples to find a circuit from and others to judge it on."""
    found = []
    for number in np.unique(labels):
        distinct = {
            (samples[i].context[-CONTEXT:], samples[i].answer): i
            for i in np.flatnonzero(labels == number).tolist()
        }
        chosen = np.random.default_rng(int(number)).permutation(list(distinct.values()))
        if len(chosen) >= 2 * n_examples:
            found.append([chosen[:n_examples], chosen[n_examples : 2 * n_examples]])
    spaced = [found[i * len(found) // n_clusters] for i in range(n_clusters)]
    return [(_inputs(samples, a), _inputs(samples, b)) for a, b in spaced]


def _inputs(samples: Sequence[Sample], chosen: np.ndarray) -> Inputs:
    some = [samples[i] for i in chosen.tolist()]
    tokens, mask = pad([sample.context[-CONTEXT:] for sample in some])
    return Inputs.single(tokens, torch.tensor([sample.answer for sample in some]), mask)


@dataclass(frozen=True)
class Run:
    """Runs of some inputs in which only some nodes are kept."""

    model: LanguageModel
    dictionaries: Dictionaries
    inputs: Inputs
    recording: Recording
    clean: Mapping[str, Tensor]

    @torch.no_grad()
    def __call__(self, keep: Mapping[str, Tensor], ablated: str) -> float:
        """Mean metric with the nodes in `keep`, by submodule ``(feature + 1,)`` bool."""

        def visit(name: str, x: Tensor) -> Tensor:
            if name not in keep:
                return x
            dictionary, kept = self.dictionaries[name], keep[name][:-1]
            features = self._features(name, x, ablated)
            if keep[name][-1]:
                return x - (features * ~kept) @ dictionary.decoder
            return dictionary.decode(features * kept)

        stream = self.recording.stream_before(0)
        for layer in range(self.model.n_layers):
            stream = self.model.layer(layer, stream, self.recording.context[layer], visit)
        metric = read_metric(self.model, stream, self.inputs.last, self.inputs.metric)
        return float(metric.mean())

    def _features(self, name: str, x: Tensor, ablated: str) -> Tensor:
        dictionary, clean = self.dictionaries[name], self.clean[name]
        if ablated == "again":
            return dictionary.encode(x)
        if ablated == "clean":
            return clean
        change = (x - self.recording.outputs[name]) @ dictionary.encoder.T
        features = clean + (clean > 0) * change
        return features.clamp(min=0) if ablated == "gated" else features


def judge(
    model: LanguageModel,
    dictionaries: Dictionaries,
    found: Inputs,
    judged: Inputs,
    options: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Faithfulness of one cluster's circuits, by kind of ablated run."""
    estimator = IntegratedGradients(steps=options.steps)
    nodes = attribute(model, dictionaries, found, estimator=estimator).effects.nodes
    ranked = sorted(
        (-abs(effect), name, feature)
        for name, effects in nodes.items()
        for feature, effect in enumerate(effects.tolist())
        if effect and name != "embed"
    )
    placed = {name: d for name, d in dictionaries.items() if name != "embed"}
    recording = model.record(judged.clean, judged.mask)
    clean = {name: d.encode(recording.outputs[name]) for name, d in placed.items()}
    run = Run(model, placed, judged, recording, clean)
    nothing = {name: torch.zeros(d.n_features + 1, dtype=torch.bool) for name, d in placed.items()}
    features = {name: ~zero for name, zero in nothing.items()}
    for kept in features.values():
        kept[-1] = False
    full, empty = run({}, "again"), run(nothing, "again")
    first = [name for _, name, _ in ranked[:100]]
    writers = sum(name[:3] in ("att", "mlp") and not name.endswith("_0") for name in first)
    rows = {}
    for ablated in options.ablated:
        rows[ablated] = {"attention, MLP": writers / max(1, len(first))}
        rows[ablated]["in series"] = (run(features, ablated) - empty) / (full - empty)
        for errors in (True, False):
            usable = [(n, j) for _, n, j in ranked if errors or j < placed[n].n_features]
            for size in options.sizes:
                keep = {name: zero.clone() for name, zero in nothing.items()}
                for name, feature in usable[:size]:
                    keep[name][feature] = True
                faithful = (run(keep, ablated) - empty) / (full - empty)
                rows[ablated][f"{size} {'with' if errors else 'without'}"] = faithful
    return rows


def circuits(model: LanguageModel, options: argparse.Namespace) -> list[dict[str, str]]:
    """Medians over clusters, for each set and each kind of ablated run."""
    samples = read_samples(pq.read_table(options.artifacts / "filtered_tokens.parquet"))
    assigned = options.artifacts / "clusterings" / "chosen" / "assignments.parquet"
    labels = pq.read_table(assigned)["cluster"].to_numpy()
    clusters = halves(samples, labels, options.clusters, options.examples)
    rows = []
    for folder in options.folders:
        dictionaries = read_set(folder)
        judged = [judge(model, dictionaries, a, b, options) for a, b in clusters]
        for ablated in options.ablated:
            medians = {
                name: float(np.median([of_one[ablated][name] for of_one in judged]))
                for name in judged[0][ablated]
            }
            sizes = options.sizes
            row = {
                "dictionaries": options.names.get(folder, folder.name),
                "kept features": ablated,
                "nodes": " / ".join(map(str, sizes)),
                "with errors": " / ".join(f"{medians[f'{n} with']:.2f}" for n in sizes),
                "without": " / ".join(f"{medians[f'{n} without']:.2f}" for n in sizes),
                "all features in series": f"{medians['in series']:.2f}",
                "of 100 in attention, MLPs above layer 0": f"{medians['attention, MLP']:.0%}",
            }
            print(" | ".join(row.values()), flush=True)
            rows.append(row)
    return rows


# -- fine-tuning ----------------------------------------------------------------------------------


class Tuned:
    """A ReLU set in training, and the losses of one run through it."""

    def __init__(self, dictionaries: Dictionaries, options: argparse.Namespace) -> None:
        self.start, self.options = dictionaries, options
        self.weights = {
            name: {
                part: getattr(dictionary, part).clone().requires_grad_()
                for part in ("encoder", "encoder_bias", "decoder", "bias")
            }
            for name, dictionary in dictionaries.items()
            if name != "embed"
        }
        every = [tensor for of_one in self.weights.values() for tensor in of_one.values()]
        self.adam = torch.optim.Adam(every, lr=options.lr)
        self.generator = torch.Generator().manual_seed(options.seed)

    def step(self, model: LanguageModel, tokens: Tensor, rate: float) -> str:
        """One step on some contexts; what to print of it."""
        recording = model.record(tokens)
        last = model.n_layers - 1
        wanted = model.logits(recording.outputs[f"resid_{last}"])
        n_dropped = int(len(tokens) * self.options.dropped)
        kept = 0.05 + 0.95 * torch.rand(n_dropped, 1, 1, generator=self.generator)
        own: list[Tensor] = []

        def visit(name: str, x: Tensor) -> Tensor:
            weights = self.weights.get(name)
            if weights is None:
                return x
            scale = recording.outputs[name].square().sum(-1).mean().sqrt()
            features, x_hat = _through(weights, x.detach())
            error = (x.detach() - x_hat).norm(dim=-1)
            own.append((error + self.options.sparsity * features.sum(-1)).mean() / scale)
            features, x_hat = _through(weights, x)
            if not n_dropped:
                return x_hat
            features = features[-n_dropped:].detach()
            stays = torch.rand(n_dropped, 1, features.shape[-1], generator=self.generator) < kept
            dropped = (features * stays) @ weights["decoder"] + weights["bias"]
            return torch.cat([x_hat[:-n_dropped], dropped.detach()])

        stream = recording.stream_before(0)
        for layer in range(model.n_layers):
            stream = model.layer(layer, stream, recording.context[layer], visit)
        n = len(tokens) - n_dropped
        kl = F.kl_div(
            model.logits(stream[:n]).log_softmax(-1),
            wanted[:n].log_softmax(-1),
            log_target=True,
            reduction="none",
        )
        kl = kl.sum(-1).mean()
        loss = torch.stack(own).sum() + self.options.kl * kl
        self.adam.param_groups[0]["lr"] = self.options.lr * rate
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        with torch.no_grad():
            for weights in self.weights.values():
                weights["decoder"].div_(weights["decoder"].norm(dim=1, keepdim=True))
        return f"KL {kl.item():.4f}, own loss {sum(map(float, own)) / len(own):.3f}"

    def dictionaries(self) -> dict[str, Dictionary]:
        """The set as it is now."""
        out = dict(self.start)
        for name, weights in self.weights.items():
            values = {part: tensor.detach() for part, tensor in weights.items()}
            out[name] = replace(self.start[name], **values, input_bias=values["bias"])
        return out


def _through(weights: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Features of x, and what they decode to."""
    pre = F.linear(x - weights["bias"], weights["encoder"], weights["encoder_bias"])
    features = F.relu(pre)
    return features, features @ weights["decoder"] + weights["bias"]


def finetune(model: LanguageModel, options: argparse.Namespace) -> list[dict[str, str]]:
    """Train a finished set end to end and write it to another folder."""
    folder, to = options.folders
    table = pq.read_table(options.artifacts / "contexts.parquet", columns=["tokens"])
    contexts = [tokens[:40] for tokens in table["tokens"].to_pylist() if len(tokens) >= 40]
    tuned = Tuned(read_set(folder), options)
    started = time.perf_counter()
    for step in range(options.n_steps):
        rows = torch.randint(len(contexts) - 100, (options.contexts,), generator=tuned.generator)
        left = (options.n_steps - step) / (0.3 * options.n_steps)
        said = tuned.step(
            model, torch.tensor([contexts[i] for i in rows]), min(1.0, (step + 1) / 10, left)
        )
        if step % 20 == 0 or step == options.n_steps - 1:
            print(f"step {step}: {said}, {time.perf_counter() - started:.0f} s", flush=True)
    to.mkdir(parents=True, exist_ok=True)
    for name, dictionary in tuned.dictionaries().items():
        save_dictionary(dictionary, to / f"{name}.safetensors", {})
    return []


COMMANDS: dict[str, Callable[[LanguageModel, argparse.Namespace], list[dict[str, str]]]] = {
    "circuits": circuits,
    "finetune": finetune,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--names", nargs="+", default=[], help="what to call the sets")
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts" / "testbed")
    parser.add_argument("--model", type=Path, default=ROOT / "testbed" / "model")
    parser.add_argument("--ablated", nargs="+", choices=ABLATED, default=["again"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--clusters", type=int, default=8)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="of integrated gradients")
    parser.add_argument("--n-steps", type=int, default=100, help="of fine-tuning")
    parser.add_argument("--contexts", type=int, default=16)
    parser.add_argument("--dropped", type=float, default=0.5, help="share with features dropped")
    parser.add_argument("--kl", type=float, default=1.0)
    parser.add_argument("--sparsity", type=float, default=0.13)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", action="store_true")
    options = parser.parse_args(arguments)
    options.names = dict(zip(options.folders, options.names, strict=False))
    torch.set_num_threads(options.threads)
    rows = COMMANDS[options.command](load_model(str(options.model), device="cpu"), options)
    if options.note:
        about = machine()
        for row in rows:
            append_row("Dictionaries: circuits of clusters", about | row)


if __name__ == "__main__":
    main()
