"""What the kill tests run in a process of its own: cache, then train, a line for each event.

Run as ``python -m tests.assets.corpus.cache_and_train FOLDER``.
"""

import sys
from pathlib import Path

import torch

from assets.corpus.writing import open_cache, write_cache
from core.dictionaries.files import save_dictionary
from core.training import TrainingSettings, train_dictionaries
from tests.assets.corpus.toy_model import ToyModel, contexts

SETTINGS = TrainingSettings(
    n_features=12,
    n_steps=40,
    batch_size=32,
    learning_rate=2e-3,
    warmup_steps=4,
    decay_steps=4,
    resample_every=16,
    dead_after=2,
    checkpoint_every=5,
    # Small enough that the buffer is refilled on the way.
    buffer_bytes=3000,
)


def cache_and_train(folder: Path) -> None:
    """Everything under `folder`; each call goes on from what earlier ones left."""
    torch.set_num_threads(1)
    model = ToyModel()
    write_cache(
        folder / "cache",
        model,  # pyright: ignore[reportArgumentType]
        contexts(60),
        model.submodules,
        model_fingerprint="toy",
        contexts_per_shard=5,
        progress=tell,
    )
    trained = train_dictionaries(
        open_cache(folder / "cache"),
        SETTINGS,
        checkpoint=folder / "training",
        on_step=lambda step, reports: tell(f"step {step}"),
    )
    for name, one in trained.items():
        save_dictionary(one.dictionary, folder / "dictionaries" / f"{name}.safetensors")
        tell(name)


def tell(line: str) -> None:
    """A line at once, for whoever watches to count."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    cache_and_train(Path(sys.argv[1]))
