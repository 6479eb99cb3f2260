"""What does each stage cost at Pythia-70M's shape, in CPU seconds and memory?

    python -m benchmarks.pythia_shape FOLDER --text TEXT --tokenizer FOLDER   # every stage
    python -m benchmarks.pythia_shape FOLDER --only dictionary_set circuits   # these once more
    python -m benchmarks.pythia_shape FOLDER --small ...                      # a small shape
    python -m benchmarks.pythia_shape FOLDER --device cuda ...                # on a GPU
    python -m benchmarks.pythia_shape FOLDER --note                           # also write the table

FOLDER gets a model of random weights (6 layers, width 512, vocabulary 50,304), 19 dictionaries
512 -> 32,768 in the layout of the paper's released set (2.4 GiB), the paragraphs of a text file in
place of the Pile and of Bias in Bios, and `experiments/examples/pythia-70m.yaml` with these for its
sources and fewer samples. Each stage runs in a process of its own. A random model is sure of
nothing, so every token passes the filter; shapes, and so memory, are Pythia's.

Besides: the peak of a stage's resident memory, without the weights that the stage loads and what
the interpreter and its libraries take before (`import` in the output).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerFast

from assets.engine.loading import Loader
from assets.engine.stage import PartitionedStage, Stage
from assets.settings import Experiment
from benchmarks.effects import Shape, random_dictionary, random_model
from benchmarks.record import append_row, machine
from core.models import LanguageModel
from pipelines.experiment import ROOT, read_experiment
from pipelines.stages import stages_of

EXAMPLE = ROOT / "experiments/examples/pythia-70m.yaml"
SMALL = Shape(layers=6, d=64, heads=4, features=512, active=20)
_RELEASED = "dictionaries/pythia-70m-deduped/{site}/10_32768"
_LEAST = 600
"""Characters of a paragraph that is taken for a document."""


def settings(clusters: int, examples: int, points: int, device: str) -> dict[str, Any]:
    """The paper's experiment with local sources, and as much work as is asked for."""
    said = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    changed: dict[str, Any] = {
        "description": "Pythia-70M's shape with random weights.",
        "model": {"source": "./model", "device": device, "workers": 1},
        "corpus": {"source": "./corpus.jsonl", "n_documents": 160, "n_held_out": 16},
        "dictionaries": {"repository": ".", "archive": None},
        "filter": {"max_loss": 100.0, "n_samples": 80, "min_context": 100},
        "clustering": {"k": [2], "max_clusters": clusters, "n_projected": 2000},
        "circuits": {"n_examples": examples, "n_evaluated": examples, "steps": points},
        "evaluations": {"n_thresholds": 2, "n_random": 1, "n_minimal": 4},
        "checks": {"min_variance_explained": None},
        "artifacts": "./artifacts",
    }
    classifier: dict[str, Any] = {
        "data": {
            "source": "./corpus.jsonl",
            "test_split": None,
            "text_column": "text",
            "n_ambiguous": 64,
            "n_balanced_train": 64,
            "n_balanced_test": 64,
        },
        "circuit": {"n_examples": examples, "steps": points},
        "judgements": {"judge": "truth"},
    }
    for name, section in changed.items():
        said[name] = {**said[name], **section} if isinstance(said.get(name), dict) else section
    for name, section in classifier.items():
        said["classifier"][name] |= section
    return said


def write_inputs(folder: Path, shape: Shape, text: Path, tokenizer: Path) -> None:
    """The model, its dictionaries and the text."""
    hf = random_model(shape)
    hf.save_pretrained(folder / "model")
    read = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    read.save_pretrained(folder / "model")
    paragraphs = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()]
    paragraphs = [line for line in paragraphs if len(line) >= _LEAST]
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for i, line in enumerate(paragraphs):
            groups = {"profession": (21, 13)[i % 2], "gender": i // 2 % 2}
            file.write(json.dumps({"text": line, **groups}) + "\n")
    model = LanguageModel(hf)
    sample = model.record(torch.tensor([read(line)["input_ids"][:64] for line in paragraphs[:8]]))
    for name in model.submodules:
        kind, _, layer = name.partition("_")
        site = f"{kind}_out_layer{layer}" if layer else kind
        place = folder / _RELEASED.format(site=site)
        place.mkdir(parents=True)
        made = random_dictionary(sample.outputs[name].flatten(0, 1), shape)
        tensors = {
            "encoder.weight": made.encoder,
            "encoder.bias": made.encoder_bias,
            "decoder.weight": made.decoder.t().contiguous(),
            "bias": made.bias,
        }
        torch.save(tensors, place / "ae.pt")


# -- one stage, in its own process ----------------------------------------------------------------


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 2**20
    raise LookupError(field)


def run_stage(experiment: Experiment, stage: Stage) -> dict[str, float]:
    """CPU seconds, and GiB: the peak, what lay there before the stage's work, its weights."""
    before = _status("VmRSS")
    began, wall = time.process_time(), time.perf_counter()
    if isinstance(stage, PartitionedStage):
        stage.run(experiment, stage.partitions(experiment), print, force=True)
    else:
        stage.run(experiment, print, force=True)
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    peak = _status("VmHWM")
    gpu = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {
        "seconds": seconds,
        "wall": wall,
        "peak": peak,
        "import": before,
        "weights": _weights(experiment, stage),
        "gpu": gpu,
    }


def _weights(experiment: Experiment, stage: Stage) -> float:
    """GiB of what the stage loads."""
    keys = stage.partitions(experiment) if isinstance(stage, PartitionedStage) else [""]
    loads = {
        need
        for key in keys
        for need in stage.needs(
            stage.reads(experiment, key)
            if isinstance(stage, PartitionedStage)
            else stage.reads(experiment)
        )
    }
    loader, n_bytes = Loader(experiment), 0
    if "model" in loads:
        n_bytes += sum(p.nbytes for p in loader.model().hf.parameters())
    if "dictionaries" in loads or stage.name == "dictionary_set":
        for dictionary in loader.dictionaries().values():
            n_bytes += sum(t.nbytes for t in dictionary.tensors().values())
    return n_bytes / 2**30


# -- all of them ----------------------------------------------------------------------------------


def measure(path: Path, only: list[str]) -> dict[str, dict[str, float]]:
    """What each stage took, one after the other."""
    experiment, found = read_experiment(path), {}
    names = [stage.name for stage in stages_of(experiment)]
    print(f"{'stage':<26}{'CPU s':>8}{'wall s':>8}{'peak':>8}{'weights':>9}{'besides':>9}  GiB")
    for name in names:
        if only and name not in only:
            continue
        command = [sys.executable, "-m", "benchmarks.pythia_shape", str(path.parent)]
        done = subprocess.run(
            [*command, "--stage", name], capture_output=True, text=True, env=os.environ
        )
        if done.returncode:
            print(f"{name:<26}failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        one = found[name] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{name:<26}{one['seconds']:8.0f}{one['wall']:8.0f}{one['peak']:8.2f}"
            f"{one['weights']:9.2f}{besides(one):9.2f}",
            flush=True,
        )
    return found


def besides(one: dict[str, float]) -> float:
    """GiB that the work of a stage took."""
    return max(0.0, one["peak"] - one["import"] - one["weights"])


def row(name: str, one: dict[str, float]) -> dict[str, str]:
    """One stage as a row of benchmarks/README.md."""
    return {
        **machine(),
        "stage": f"`{name}`",
        "CPU s": f"{one['seconds']:.0f}",
        "peak, GiB": f"{one['peak']:.2f}",
        "of it weights": f"{one['weights']:.2f}",
        "besides weights and libraries": f"{besides(one):.2f}",
        "on the GPU": f"{one['gpu']:.2f}" if one["gpu"] else "-",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pythia_shape", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, help="a text file with a paragraph on each line")
    parser.add_argument("--tokenizer", type=Path, help="a folder with Pythia's tokenizer.json")
    parser.add_argument("--clusters", type=int, choices=(1, 2), default=2)
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--points", type=int, default=2, help="points of the integral")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="a small shape")
    parser.add_argument("--only", nargs="+", default=[], help="these stages")
    parser.add_argument("--note", action="store_true", help="write the table to the README")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args()
    path = args.folder / "shape.yaml"
    if args.stage:
        experiment = read_experiment(path)
        (stage,) = [one for one in stages_of(experiment) if one.name == args.stage]
        print(json.dumps(run_stage(experiment, stage)))
        return
    if not (args.folder / "model").is_dir():
        if args.text is None or args.tokenizer is None:
            parser.error("say --text and --tokenizer, to make the model and its dictionaries of")
        write_inputs(args.folder, SMALL if args.small else Shape(), args.text, args.tokenizer)
    said = settings(args.clusters, args.examples, args.points, args.device)
    path.write_text(yaml.safe_dump(said), encoding="utf-8")
    found = measure(path, args.only)
    for name, one in found.items() if args.note else ():
        append_row("Pythia-70M's shape", row(name, one))


if __name__ == "__main__":
    main()
