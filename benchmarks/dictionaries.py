"""What circuits are worth with one set of dictionaries or another, with error nodes and without.

    python -m benchmarks.dictionaries train TO --set kind=topk k=16   # as the experiment, but ...
    python -m benchmarks.dictionaries tune FROM TO                    # in series; a new set
    python -m benchmarks.dictionaries circuits FOLDER ...             # circuits with each set
    ... --experiment experiments/testbed.yaml                         # which it all belongs to
    ... --note                                                        # dated rows to README.md

A set is a folder with SUBMODULE.safetensors, as an experiment leaves them in artifacts/NAME/saes.
Contexts, activations, samples, clusters and pairs are those of the experiment, which has been run
that far. Circuits of clusters are found on 16 examples by four midpoints and judged on 8 others by
zero ablation; means over clusters are printed. Those of tasks are judged by mean ablation, at every
size of a grid whose neighbours differ by 15 %. Without errors the same nodes are kept but for
error nodes (clusters), or as many features (tasks).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
import yaml

from assets.circuits.behaviours import Behaviour, read_behaviours
from assets.corpus.stages import held_out_tokens, training_contexts
from assets.corpus.writing import open_cache
from assets.dictionaries.stages import Training, reads_dictionary, training_settings
from assets.engine.stage import Work
from assets.settings import Experiment, TrainSettings
from assets.tables.places import ACTIVATION_CACHE
from benchmarks.clusters import POLICIES, Bench, Way, ranked, spread
from benchmarks.record import append_row, machine
from core.circuit import attribute
from core.dictionaries import Dictionary
from core.dictionaries.files import load_dictionary, save_dictionary
from core.dictionaries.quality import measure_dictionaries
from core.estimators import IntegratedGradients
from core.evaluate import Evaluator
from core.inputs import pad
from core.training import TuningSettings, train_dictionaries, tune_in_series
from pipelines.experiment import read_experiment

ROOT = Path(__file__).parent.parent
N_EXAMPLES, N_JUDGED = 16, 8
GRID = sorted({round(20 * 1.15**i) for i in range(36)})
SHARES = (0.5, 0.9)
Row = Mapping[str, str]


def read_set(folder: Path) -> dict[str, Dictionary]:
    """The dictionaries in a folder, by submodule."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SystemExit(f"{folder} holds no dictionaries: a set is SUBMODULE.safetensors each.")
    return {file.stem: load_dictionary(file) for file in files}


def write_set(dictionaries: Mapping[str, Dictionary], folder: Path) -> None:
    """Write dictionaries to a folder, by submodule."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, dictionary in dictionaries.items():
        save_dictionary(dictionary, folder / f"{name}.safetensors", {})


# -- making sets ----------------------------------------------------------------------------------


def train(experiment: Experiment, options: argparse.Namespace) -> None:
    """Train a set as the experiment does, but for what `--set` says, and without tuning."""
    pairs = (pair.split("=", 1) for pair in options.set)
    changed = {name: yaml.safe_load(value) for name, value in pairs}
    how = TrainSettings.model_validate(
        experiment.settings.dictionaries.model_dump(exclude_unset=True) | changed
    )
    sections = experiment.settings.model_copy(update={"dictionaries": how})
    work = Work.on(experiment)
    model = work.load.model()
    widths = {name: model.width(name) for name in experiment.submodules}
    training = reads_dictionary(replace(experiment, settings=sections), experiment.submodules[0])
    assert isinstance(training, Training)
    settings = training_settings(training, model.d_model)
    source = open_cache(work.store.here(ACTIVATION_CACHE, ""), list(widths))
    trained = train_dictionaries(
        source, settings, ks=training.ks, all_widths=widths, progress=print
    )
    write_set({name: one.dictionary for name, one in trained.items()}, options.folders[0])


def tune(experiment: Experiment, options: argparse.Namespace) -> None:
    """Tune a finished set in series and write it to another folder."""
    folder, to = options.folders
    work = Work.on(experiment)
    contexts = training_contexts(work.store, experiment.settings.corpus.n_held_out).tokens
    dictionaries = read_set(folder)
    chosen_k = any(d.activation.name == "topk" for d in dictionaries.values())
    settings = TuningSettings(
        n_steps=options.n_steps,
        learning_rate=options.lr,
        in_part=options.in_part,
        with_errors=options.with_errors,
        passes_on=options.passes_on,
        sparsity=0.0 if chosen_k else options.sparsity,
        seed=options.seed,
    )
    used = [tokens for tokens in contexts if len(tokens)]
    write_set(tune_in_series(work.load.model(), dictionaries, used, settings, progress=print), to)


# -- circuits -------------------------------------------------------------------------------------


def clusters(bench: Bench, options: argparse.Namespace) -> dict[str, str]:
    """Mean faithfulness of clusters' circuits of each size, from each start layer on."""
    every = {c: bench.draws(c, N_EXAMPLES, N_JUDGED) for c in sorted(bench.members)}
    draws = {c: drawn for c, drawn in every.items() if drawn is not None}
    way = Way("log_odds", IntegratedGradients(4), N_EXAMPLES, "zero")
    found: dict[tuple[int, str, int], list[float]] = {}
    for cluster in spread(list(draws), options.clusters):
        effects = bench.effects(cluster, draws[cluster].first, way)
        inputs = bench.inputs(draws[cluster].judged, "log_odds")
        for start in options.start_layers:
            evaluator = bench.evaluator(cluster, inputs, "zero", start)
            for size in options.sizes:
                nodes = ranked(effects, start, size)
                for policy in POLICIES:
                    faithfulness = evaluator.evaluate(nodes, policy).faithfulness
                    found.setdefault((start, policy, size), []).append(faithfulness)
    row = {"clusters, nodes": " / ".join(map(str, options.sizes))}
    for start in options.start_layers:
        for policy, said in zip(POLICIES, ("with errors", "without"), strict=True):
            values = [f"{mean(found[start, policy, size]):.2f}" for size in options.sizes]
            row[f"from layer {start}, {said}"] = " / ".join(values)
    return row


def task(bench: Bench, behaviour: Behaviour, start_layer: int) -> str:
    """Fewest nodes for half and nine tenths of a task, with error nodes; and without."""
    found = attribute(
        bench.model,
        bench.dictionaries,
        behaviour.inputs("found"),
        estimator=IntegratedGradients(4),
        by_position=behaviour.by_position,
    )
    nodes = found.circuit(node_threshold=1e-5, edge_threshold=0.0, edges=False).nodes
    ranking = sorted(nodes, key=lambda node: -abs(node.effect))
    evaluator = Evaluator(
        bench.model,
        bench.dictionaries,
        behaviour.inputs("evaluated"),
        ablation="mean",
        start_layer=start_layer,
    )
    said = []
    for errors in (True, False):
        usable = [n for n in ranking if n.submodule != "embed" and (errors or not n.is_error)]
        fewest: dict[float, int] = {}
        for size in GRID:
            faithfulness = evaluator.evaluate(usable[:size]).faithfulness
            fewest |= {s: size for s in SHARES if faithfulness >= s and s not in fewest}
            if len(fewest) == len(SHARES):
                break
        said.append(" / ".join(str(fewest.get(share, "-")) for share in SHARES))
    return "; ".join(said)


def quality(bench: Bench, experiment: Experiment) -> dict[str, str]:
    """Means over dictionaries, on contexts that none was trained on."""
    store = Work.on(experiment).store
    held_out, _ = held_out_tokens(store, experiment.settings.corpus.n_held_out)
    measured = measure_dictionaries(bench.model, bench.dictionaries, *pad(held_out))
    every = list(measured.values())
    return {
        "variance explained": f"{mean(m.variance_explained for m in every):.1%}",
        "L0": f"{mean(m.l0 for m in every):.0f}",
        "alive": f"{mean(m.alive for m in every):.0%}",
        "all in series": f"{every[-1].in_series:.2f}",
    }


def circuits(experiment: Experiment, options: argparse.Namespace) -> None:
    """A row for each set: its circuits of clusters and of tasks, and its quality."""
    bench = Bench(experiment)
    how = experiment.settings.tasks
    tasks: Mapping[str, Behaviour] = {}
    if how is not None:
        tasks = read_behaviours(Work.on(experiment).store, "tasks", list(how.pairs))
    for folder, name in zip(options.folders, options.names or options.folders, strict=True):
        bench.dictionaries = read_set(folder)
        row = {"dictionaries": str(name), **clusters(bench, options)}
        for about, behaviour in tasks.items():
            assert how is not None
            row[f"{about}, .5 / .9; without errors"] = task(bench, behaviour, how.start_layer)
        row |= quality(bench, experiment)
        print("; ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
        if options.note:
            append_row(f"Dictionaries for circuits: {experiment.name}", {**machine(), **row})


COMMANDS = {"train": train, "tune": tune, "circuits": circuits}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--experiment", type=Path, default=ROOT / "experiments" / "testbed.yaml")
    parser.add_argument("--set", nargs="*", default=[], help="kind=topk 'ks={attn: 6}'")
    parser.add_argument("--n-steps", type=int, default=TuningSettings.n_steps, help="of tuning")
    parser.add_argument("--lr", type=float, default=TuningSettings.learning_rate)
    parser.add_argument("--sparsity", type=float, default=TuningSettings.sparsity)
    parser.add_argument("--in-part", type=float, default=TuningSettings.in_part)
    parser.add_argument("--with-errors", type=float, default=TuningSettings.with_errors)
    parser.add_argument("--passes-on", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--names", nargs="+", default=[], help="what to call the sets")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument("--start-layers", type=int, nargs="+", default=[1])
    parser.add_argument("--clusters", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    began = time.process_time()
    COMMANDS[options.command](read_experiment(options.experiment), options)
    print(f"{time.process_time() - began:.0f} CPU s")


if __name__ == "__main__":
    main()
