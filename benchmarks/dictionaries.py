"""What circuits are worth with one set of dictionaries or another, with error nodes and without.

    python -m benchmarks.dictionaries circuits FOLDER ...     # circuits of clusters with each set
    python -m benchmarks.dictionaries circuits FOLDER --ablated again linear gated clean
    python -m benchmarks.dictionaries tune FOLDER TO          # in series; writes a new set
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
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
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
from core.models.replay import Resumed
from core.training import TuningSettings, tune_in_series

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
        runs = Resumed(self.model, self.recording, self.inputs.metric, self.inputs.last)
        return float(runs.read(stream).mean())

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


# -- tuning ---------------------------------------------------------------------------------------


def tune(model: LanguageModel, options: argparse.Namespace) -> list[dict[str, str]]:
    """Tune a finished set in series and write it to another folder."""
    folder, to = options.folders
    table = pq.read_table(options.artifacts / "contexts.parquet", columns=["tokens"])
    contexts = table["tokens"].to_pylist()[: -options.n_held_out]
    settings = TuningSettings(
        n_steps=options.n_steps,
        learning_rate=options.lr,
        dropped=options.dropped,
        sparsity=options.sparsity,
        seed=options.seed,
    )
    started = time.perf_counter()
    tuned = tune_in_series(model, read_set(folder), contexts, settings, progress=print)
    print(f"{time.perf_counter() - started:.0f} s")
    to.mkdir(parents=True, exist_ok=True)
    for name, dictionary in tuned.items():
        save_dictionary(dictionary, to / f"{name}.safetensors", {})
    return []


COMMANDS: dict[str, Callable[[LanguageModel, argparse.Namespace], list[dict[str, str]]]] = {
    "circuits": circuits,
    "tune": tune,
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
    parser.add_argument("--n-steps", type=int, default=120, help="of tuning")
    parser.add_argument("--n-held-out", type=int, default=64)
    parser.add_argument("--dropped", type=float, default=0.75, help="share with features dropped")
    parser.add_argument("--sparsity", type=float, default=0.13)
    parser.add_argument("--lr", type=float, default=1e-3)
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
