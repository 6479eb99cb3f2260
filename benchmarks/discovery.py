"""Which clustering recovers the behaviours of the test bed, and what each representation costs.

    python -m benchmarks.discovery recovery      # every algorithm of App. H against the truth
    python -m benchmarks.discovery mechanism     # agreement within answers, over several seeds
    python -m benchmarks.discovery growth        # samples per second, 1,000 to 16,000 samples
    python -m benchmarks.discovery projection    # projected gradients against the full vector
    python -m benchmarks.discovery clustering    # planted clusters of up to 100,000 samples
    ... --note                                   # also append dated rows to benchmarks/README.md

All on the test bed's model and corpus. Dictionaries are trained on the spot, or read from
`--dictionaries FOLDER`, one file SUBMODULE.safetensors each, where they are put after training.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.record import append_row, machine
from core.dictionaries import Dictionary
from core.dictionaries.files import load_dictionary, save_dictionary
from core.discovery import (
    Projection,
    Recovery,
    Sample,
    cluster,
    compare_with_truth,
    filter_tokens,
    represent,
)
from core.discovery.clustering import unit_rows
from core.models import LanguageModel, load_model
from core.options import ALGORITHMS, REDUCTIONS, REPRESENTATIONS, Algorithm, Representation
from core.training import ModelRows, TrainingSettings, train_dictionaries
from testbed.grammar import documents
from testbed.tokenizer import vocabulary

MODEL = Path(__file__).parent.parent / "testbed" / "model"
N_POSITIONS = 128


class Corpus(NamedTuple):
    """Contexts of the test bed, and for each the behaviour that determines each token."""

    contexts: list[tuple[int, list[int]]]
    labels: list[list[str]]


def corpus(n_documents: int, seed: int = 1) -> Corpus:
    """The first tokens of so many documents."""
    ids = {token: index for index, token in enumerate(vocabulary())}
    found = Corpus([], [])
    for index, document in enumerate(documents(n_documents, seed)):
        tokens = [ids[token] for token in document.tokens[:N_POSITIONS]]
        found.contexts.append((index, tokens))
        found.labels.append(document.labels[:N_POSITIONS])
    return found


def get_dictionaries(model: LanguageModel, folder: Path | None) -> dict[str, Dictionary]:
    """Dictionaries of every submodule: read from `folder`, or trained (and put there)."""
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    if files:
        return {file.stem: load_dictionary(file) for file in files}
    print("training dictionaries")
    contexts = [tokens for _, tokens in corpus(1500, seed=2).contexts]
    settings = TrainingSettings(
        n_features=512,
        n_steps=400,
        batch_size=1024,
        learning_rate=2e-3,
        sparsity=0.13,
        warmup_steps=100,
        sparsity_warmup_steps=100,
        decay_steps=100,
        resample_every=0,
    )
    source = ModelRows(model, contexts, model.submodules)
    trained = train_dictionaries(source, settings, progress=print)
    dictionaries = {name: one.dictionary for name, one in trained.items()}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, dictionary in dictionaries.items():
            save_dictionary(dictionary, folder / f"{name}.safetensors", {})
    return dictionaries


def get_samples(
    model: LanguageModel, n_samples: int, options: argparse.Namespace, corpus_seed: int = 1
) -> tuple[list[Sample], list[str]]:
    """Filtered samples and the behaviour that generated each."""
    text = corpus(max(50, 2 * n_samples // options.max_per_document), corpus_seed)
    found = filter_tokens(
        model,
        text.contexts,
        max_loss=options.max_loss,
        min_context=options.min_context,
        stride=options.stride,
        max_per_document=options.max_per_document,
        n_samples=n_samples,
        seed=options.seed,
    )
    truth = [text.labels[s.window][s.pos] for s in found.samples]
    return found.samples, truth


def choices(representations: Sequence[Representation]) -> list[tuple[Representation, Any]]:
    """Every (representation, reduction); gradients have no positions to reduce."""
    return [
        (representation, reduction)
        for representation in representations
        for reduction in (("all",) if representation == "gradients" else REDUCTIONS)
    ]


def vectors_of(
    model: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    samples: Sequence[Sample],
    representation: Representation,
    reduction: Any,
    options: argparse.Namespace,
) -> Any:
    """`represent` with the options of the command line."""
    return represent(
        model,
        dictionaries,
        samples,
        representation=representation,
        reduction="sum" if reduction == "all" else reduction,
        n_last=options.n_last,
        seed=options.seed,
        budget_bytes=16 << 30,
    )


def recovery(model: LanguageModel, options: argparse.Namespace) -> list[dict[str, str]]:
    """Adjusted mutual information with the truth for every algorithm and number of clusters."""
    dictionaries = get_dictionaries(model, options.dictionaries)
    samples, truth = get_samples(model, options.samples, options)
    counts = Counter(truth)
    print(f"{len(samples)} samples of {len(counts)} behaviours: {counts.most_common()}")
    rows = [answer_tokens([sample.answer for sample in samples], truth, options.k)]
    for representation, reduction in choices(options.representations):
        started = time.perf_counter()
        vectors = vectors_of(model, dictionaries, samples, representation, reduction, options)
        of_vectors = time.perf_counter() - started
        for algorithm in ALGORITHMS:
            started = time.perf_counter()
            scores = {}
            for k in options.k:
                clustering = cluster(vectors, algorithm=algorithm, k=k, seed=options.seed)
                answers = [sample.answer for sample in samples]
                scores[k] = compare_with_truth(clustering.labels, truth, answers)
            of_clusters = (time.perf_counter() - started) / len(options.k)
            row = {"input": representation, "reduction": reduction, "algorithm": algorithm}
            row |= {f"k={k}": f"{a.ami:.2f} ({a.purity:.2f})" for k, a in scores.items()}
            row |= {"vectors, s": f"{of_vectors:.1f}", "clusters, s": f"{of_clusters:.1f}"}
            print(" | ".join(row.values()), flush=True)
            rows.append(row)
    return rows


def answer_tokens(answers: list[int], truth: list[str], ks: list[int]) -> dict[str, str]:
    """The baseline: one cluster for each answer token, whatever stands before it."""
    import numpy as np

    found = compare_with_truth(np.unique(answers, return_inverse=True)[1], truth, answers)
    row = {"input": "none", "reduction": "-", "algorithm": "one for each answer token"}
    row |= {f"k={k}": f"{found.ami:.2f} ({found.purity:.2f})" for k in ks}
    row |= {"vectors, s": "-", "clusters, s": "-"}
    print(" | ".join(row.values()), flush=True)
    return row


class Way(NamedTuple):
    """A way to make vectors, for `mechanism`; several representations stand side by side."""

    representations: tuple[Representation, ...]
    kinds: tuple[str, ...] = ("embed", "attn", "mlp", "resid")
    equal: bool = False
    n_last: int = 1
    last_layer: bool = True

    @property
    def submodules(self) -> str:
        """In words."""
        kinds = ", ".join(self.kinds) if len(self.kinds) < 4 else "all"
        return kinds if self.last_layer else f"{kinds}, without the last layer's"

    def vectors(
        self, model: LanguageModel, dictionaries: Mapping[str, Dictionary], samples: Any
    ) -> Any:
        """One for each sample; of several representations each has length 1."""
        from scipy import sparse

        last = f"_{model.n_layers - 1}"
        names = [
            name
            for name in model.submodules
            if name.split("_")[0] in self.kinds and (self.last_layer or not name.endswith(last))
        ]
        parts = [
            represent(
                model,
                dictionaries,
                samples,
                representation=representation,
                submodules=names,
                equal_submodules=self.equal,
                n_last=self.n_last,
            )
            for representation in self.representations
        ]
        if len(parts) == 1:
            return parts[0]
        return sparse.hstack([sparse.csr_array(unit_rows(part)) for part in parts], format="csr")


_WRITERS = ("attn", "mlp")
WAYS = [
    Way(("activations",)),
    Way(("activations",), equal=True),
    Way(("mlp_neurons",), kinds=("mlp",)),
    Way(("mlp_neurons",), kinds=("mlp",), equal=True),
    Way(("features",)),
    Way(("features",), equal=True),
    Way(("features",), kinds=_WRITERS, equal=True),
    Way(("feature_effects",), equal=True),
    Way(("active_features", "feature_effects"), equal=True),
    Way(("active_features",)),
    Way(("active_features",), equal=True),
    Way(("active_features",), n_last=2),
    Way(("active_features",), last_layer=False),
    Way(("active_features",), last_layer=False, n_last=2),
    Way(("active_features",), kinds=_WRITERS),
    Way(("active_features",), kinds=_WRITERS, equal=True),
    Way(("active_features",), kinds=_WRITERS, n_last=2),
]


def mechanism(model: LanguageModel, options: argparse.Namespace) -> list[dict[str, str]]:
    """Agreement within answers of each way, mean and range over seeds of text and clustering."""
    dictionaries = get_dictionaries(model, options.dictionaries)
    drawn = [get_samples(model, options.samples, options, 10 + seed) for seed in options.seeds]
    rows = []
    for way in WAYS if options.ways is None else [WAYS[i] for i in options.ways]:
        scores: dict[tuple[Algorithm, int], list[Recovery]] = {}
        for seed, (samples, truth) in zip(options.seeds, drawn, strict=True):
            vectors = way.vectors(model, dictionaries, samples)
            answers = [sample.answer for sample in samples]
            for algorithm in options.algorithms:
                for k in options.k:
                    labels = cluster(vectors, algorithm=algorithm, k=k, seed=seed).labels
                    found = compare_with_truth(labels, truth, answers)
                    scores.setdefault((algorithm, k), []).append(found)
        for (algorithm, k), found in scores.items():
            within = [one.ami_within_answers for one in found]
            row = {
                "input": " + ".join(way.representations),
                "submodules": way.submodules,
                "equal": "yes" if way.equal else "no",
                "positions": str(way.n_last),
                "algorithm": algorithm,
                "k": str(k),
                "within answers": f"{np.mean(within):.2f} ({min(within):.2f} to {max(within):.2f})",
                "AMI": f"{np.mean([one.ami for one in found]):.2f}",
                "with answer": f"{np.mean([one.ami_with_answer for one in found]):.2f}",
                "purity": f"{np.mean([one.purity for one in found]):.2f}",
            }
            print(" | ".join(row.values()), flush=True)
            rows.append(row)
    return rows


def growth(model: LanguageModel, options: argparse.Namespace) -> list[dict[str, str]]:
    """Samples per second of each representation, as their number grows."""
    dictionaries = get_dictionaries(model, options.dictionaries)
    every, _ = get_samples(model, max(options.sizes), options)
    rows = []
    for representation, reduction in choices(options.representations):
        row = {"input": representation, "reduction": reduction}
        for size in options.sizes:
            started = time.perf_counter()
            # Spread over the corpus, so that contexts are of the same lengths at every size.
            some = every[:: len(every) // size][:size]
            vectors_of(model, dictionaries, some, representation, reduction, options)
            row[f"{size:,} samples"] = f"{size / (time.perf_counter() - started):,.0f}/s"
        row["peak memory, GiB"] = f"{peak_gib():.1f}"
        print(" | ".join(row.values()), flush=True)
        rows.append(row)
    return rows


def peak_gib() -> float:
    """Most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class FullGradients:
    """The plain way: one sample at a time, its whole gradient vector, then the projection."""

    def __init__(self, model: LanguageModel, projection: Projection) -> None:
        self.model, self.projection = model, projection
        self.named = {
            f"{layer}.{path}": parameter
            for layer, block in enumerate(model.layers)
            for path, parameter in block.named_parameters()
            if "norm" not in path
        }
        model.hf.requires_grad_(True)

    def gradient(self, sample: Sample) -> np.ndarray:
        """``(parameter,)``."""
        logits = self.model.hf(torch.tensor([sample.context])).logits[0, -1]
        metric = -logits.log_softmax(0)[sample.answer]
        gradients = torch.autograd.grad(metric, list(self.named.values()))
        return torch.cat([g.flatten() for g in gradients]).numpy()

    def entries(self) -> np.ndarray:
        """Where every parameter goes, as `Projection.entries` says."""
        parts = [self.projection.entries(name, 0, p.numel()) for name, p in self.named.items()]
        return torch.cat(parts).numpy()

    def by_sparse_matrix(self, samples: Sequence[Sample]) -> np.ndarray:
        """The whole matrix held as a sparse one."""
        from scipy import sparse

        entries, n = self.entries(), self.projection.n_outputs
        signs = np.where(entries < n, 1, -1).astype(np.float32)
        places = (np.arange(len(entries)), entries % n)
        matrix: Any = sparse.coo_array((signs, places), (len(entries), n)).T.tocsr()
        return np.stack([matrix @ self.gradient(sample) for sample in samples])

    def by_dense_blocks(self, samples: Sequence[Sample], *, height: int = 2048) -> np.ndarray:
        """The matrix multiplied out, a block of its rows at a time for all samples together."""
        gradients = np.stack([self.gradient(sample) for sample in samples])
        entries, n = self.entries(), self.projection.n_outputs
        block = np.zeros((height, n), dtype=np.float32)
        total = np.zeros((len(samples), n), dtype=np.float32)
        for start in range(0, len(entries), height):
            some = entries[start : start + height]
            places = (np.arange(len(some)), some % n)
            block[places] = np.where(some < n, 1, -1)
            total += gradients[:, start : start + height] @ block[: len(some)]
            block[places] = 0
        return total


def projection(model: LanguageModel, options: argparse.Namespace) -> list[dict[str, str]]:
    """Projected gradients from outer products against projecting each full gradient vector."""
    samples, _ = get_samples(model, options.samples, options)
    before, started = peak_gib(), time.perf_counter()
    ours: Any = represent(model, {}, samples, representation="gradients", seed=options.seed)
    rate, added = len(samples) / (time.perf_counter() - started), peak_gib() - before
    plain = FullGradients(model, Projection(30_000, options.seed))
    row = {
        "parameters": f"{sum(p.numel() for p in plain.named.values()):,}",
        "outer products": f"{rate:,.0f} samples/s",
        "memory added, GiB": f"{added:.2f}",
    }
    ways = {
        "sparse matrix": (plain.by_sparse_matrix, 100),
        "dense blocks": (plain.by_dense_blocks, 20),
    }
    for name, (way, n_samples) in ways.items():
        some = list(range(0, len(samples), max(1, len(samples) // n_samples)))
        started = time.perf_counter()
        theirs = way([samples[i] for i in some])
        their_rate = len(some) / (time.perf_counter() - started)
        difference = float(np.abs(ours[some] - theirs).max() / np.abs(theirs).max())
        row[f"full vector, {name}"] = f"{their_rate:.2g} samples/s"
        row[f"faster than {name}"] = f"{rate / their_rate:.1f}x"
        row[f"largest difference from {name}"] = f"{difference:.1e}"
    print(row)
    return [row]


def planted(n_samples: int, seed: int) -> tuple[Any, np.ndarray]:
    """Sparse vectors of the size that dictionaries give, around planted directions.

    Returns:
        ``(n_samples, 13,312)``, about 260 entries each, and the direction of each sample.
    """
    from scipy import sparse

    rng = np.random.default_rng(seed)
    width, n_active, n_planted = 13_312, 440, 500
    features = rng.integers(width, size=(n_planted, n_active))
    values = rng.exponential(size=(n_planted, n_active)).astype(np.float32)
    truth = rng.integers(n_planted, size=n_samples)
    sample, place = (rng.random((n_samples, n_active)) < 0.5).nonzero()
    noise = rng.integers(n_samples, size=40 * n_samples)
    rows = np.concatenate([sample, noise])
    columns = np.concatenate([features[truth[sample], place], rng.integers(width, size=len(noise))])
    entries = np.concatenate(
        [values[truth[sample], place], rng.exponential(size=len(noise)).astype(np.float32)]
    )
    return sparse.coo_array((entries, (rows, columns)), (n_samples, width)).tocsr(), truth


def clustering(_model: LanguageModel, options: argparse.Namespace) -> list[dict[str, str]]:
    """Seconds and memory of both algorithms, as the number of samples grows."""
    from sklearn.metrics import adjusted_mutual_info_score

    rows = []
    sizes_of: dict[Algorithm, Sequence[int]] = {"spectral": (2048, 8192), "kmeans": (8192, 100_000)}
    for algorithm, sizes in sizes_of.items():
        for size in sizes:
            vectors, truth = planted(size, options.seed)
            started = time.perf_counter()
            found = cluster(vectors, algorithm=algorithm, k=500, seed=options.seed)
            row = {
                "algorithm": algorithm,
                "samples": f"{size:,}",
                "k": "500",
                "seconds": f"{time.perf_counter() - started:.0f}",
                "most memory so far, GiB": f"{peak_gib():.1f}",
                "AMI with what was planted": (
                    f"{adjusted_mutual_info_score(truth, found.labels):.2f}"
                ),
            }
            print(" | ".join(row.values()), flush=True)
            rows.append(row)
    return rows


COMMANDS = {
    "recovery": recovery,
    "mechanism": mechanism,
    "growth": growth,
    "projection": projection,
    "clustering": clustering,
}
TITLES = {
    "recovery": "Discovery: adjusted mutual information (purity) with the test bed's behaviours",
    "mechanism": "Discovery: agreement with the behaviours within answers",
    "growth": "Discovery: samples per second of each representation",
    "projection": "Discovery: projected gradients",
    "clustering": "Discovery: clustering many samples",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one comparison and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16_000])
    parser.add_argument(
        "--representations", nargs="+", choices=REPRESENTATIONS, default=REPRESENTATIONS
    )
    parser.add_argument("--k", type=int, nargs="+", default=[20, 40, 80])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=["kmeans"])
    parser.add_argument("--ways", type=int, nargs="+", help="places in WAYS; all if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-last", type=int, default=1)
    parser.add_argument("--max-loss", type=float, default=0.3)
    parser.add_argument("--min-context", type=int, default=8)
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--max-per-document", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dictionaries", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--note", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = COMMANDS[options.command](load_model(str(options.model), device="cpu"), options)
    if options.note:
        about = machine()
        for row in rows:
            append_row(TITLES[options.command], about | row)


if __name__ == "__main__":
    main()
