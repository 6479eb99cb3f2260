"""An experiment of a few seconds: a random two-layer model, sixty sentences, ten of its files."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

from assets.engine.stage import PartitionedStage
from assets.settings import Experiment
from pipelines.experiment import read_experiment
from pipelines.stages import stages_of

NOUNS = ("cat", "cats", "dog", "dogs", "bird", "birds")
WORDS = ("the", "a", "near", "old", "sees", "see", "is", "are", "runs", "run", ".", *NOUNS)
N_LAYERS, WIDTH = 2, 16
QUICK: Any = {"evaluations": {"variants": ["neurons"], "n_minimal": 0}}
"""Changed settings with which little is judged closely: for tests of what runs when."""


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(("<end>", "<unknown>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>")


def write_model(folder: Path, n_layers: int = N_LAYERS) -> None:
    """A random GPT-NeoX and its tokenizer, as save_pretrained writes them."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(1)
    model = GPTNeoXForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def write_corpus(file: Path, n_documents: int = 60) -> None:
    """Sentences of these words, each word labelled as a noun or not."""
    rng = Random(0)
    lines = []
    for _ in range(n_documents):
        words = [rng.choice(WORDS) for _ in range(rng.randint(8, 12))]
        labels = ["noun" if word in NOUNS else "other" for word in words]
        lines.append(json.dumps({"text": " ".join(words), "labels": labels}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_pairs(file: Path, nouns: tuple[str, str], n: int = 4) -> None:
    """Contrastive pairs that differ in the number of a noun."""
    one, many = nouns
    rows = []
    for i in range(n):
        start = ("the", "a", "the old", "a old")[i]
        row = {"clean_prefix": f"{start} {one}", "patch_prefix": f"{start} {many}"}
        rows.append(row | {"clean_answer": " is", "patch_answer": " are"})
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def settings(**changed: Any) -> dict[str, Any]:
    """What the file says; `changed` sections are merged in, None removes a key."""
    base: dict[str, Any] = {
        "model": {"source": "./model", "n_layers": N_LAYERS, "device": "cpu", "workers": 1},
        "corpus": {"source": "./corpus.jsonl", "labels_column": "labels", "n_positions": 12},
        "submodules": ["embed", "attn_0", "resid_0", "resid_1"],
        "dictionaries": {
            "source": "train",
            "n_features": 32,
            "steps": 40,
            "batch": 64,
            "lr": 0.03,
            "sparsity": 0.001,
            "warmup": 2,
            "resample_every": 0,
        },
        "filter": {"max_loss": 30.0, "n_samples": 24, "max_per_document": 2},
        "clustering": {"k": 3, "max_clusters": 4},
        "circuits": {"steps": 2, "node_threshold": 0.01, "edge_threshold": 0.01, "n_examples": 4},
        "evaluations": {
            "error_nodes": ["circuit"],
            "n_thresholds": 2,
            "n_edges_measured": 1,
            "n_edge_examples": 2,
            "edge_shares": [0.1, 0.4],
            "approximations": {"n_examples": 2},
            "n_random": 1,
            "n_minimal": 4,
        },
        "tasks": {
            "pairs": {"simple": {"train": "./train.json", "test": "./test.json"}},
        },
        "artifacts": "./artifacts",
    }
    for name, section in changed.items():
        merged = base.get(name)
        together = isinstance(section, dict) and isinstance(merged, dict)
        base[name] = {**merged, **section} if together else section
    return {name: section for name, section in base.items() if section is not None}


def write_experiment(folder: Path, name: str = "tiny", **changed: Any) -> Path:
    """The YAML file alone."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings(**changed)), encoding="utf-8")
    return path


def tiny_experiment(folder: Path, **changed: Any) -> Experiment:
    """The experiment with all the files it names."""
    write_model(folder / "model")
    write_corpus(folder / "corpus.jsonl")
    write_pairs(folder / "train.json", ("cat", "cats"))
    write_pairs(folder / "test.json", ("dog", "dogs"))
    return read_experiment(write_experiment(folder, **changed))


def begun(finished: Experiment, folder: Path, **changed: Any) -> Experiment:
    """A changed experiment where all of the finished one lies: what both share is not made again.

    Of another corpus or other submodules there is nothing to share.
    """
    experiment = tiny_experiment(folder, **changed)
    if not {"corpus", "submodules"} & changed.keys():
        shutil.copytree(finished.artifacts, experiment.artifacts)
    return experiment


def brought_up_to_date(experiment: Experiment, last: str = "evaluation_summary") -> dict[str, int]:
    """Run all stages to the last one, without Dagster; for each, how many tables it made anew."""
    made = {}
    for stage in stages_of(experiment):
        if isinstance(stage, PartitionedStage):
            made[stage.name] = stage.run(experiment, stage.partitions(experiment))
        else:
            made[stage.name] = int(stage.run(experiment))
        if stage.name == last:
            break
    return {name: n for name, n in made.items() if n}
