"""Flipped bits: no table of a finished experiment is read as something that it is not."""

from __future__ import annotations

from random import Random

import pyarrow as pa
import pytest

from assets.engine.store import ArtifactStore, content_hash
from assets.settings import Experiment, ExperimentError
from assets.tables.places import (
    ACTIVATION_CACHE,
    CONTEXTS,
    DICTIONARY_SET,
    EVALUATION_SUMMARY,
    FILTERED_TOKENS,
    Key,
    assignments,
    behaviours,
    circuit,
    clusters,
    evaluation,
    examples,
    vectors,
)
from pipelines.experiment import read_experiment
from tests.tiny_experiment import brought_up_to_date, write_experiment

TABLES = (
    CONTEXTS,
    ACTIVATION_CACHE,
    DICTIONARY_SET,
    FILTERED_TOKENS,
    vectors(),
    assignments(),
    clusters(),
    behaviours("clusters"),
    examples("clusters"),
    circuit("clusters", "k00000", "nodes"),
    evaluation("clusters", "k00000"),
    EVALUATION_SUMMARY,
)
N_FLIPS = 56  # of each: 672 in all


def same(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables hold the same values, NaN among them."""
    return content_hash(one) == content_hash(other)


@pytest.mark.parametrize("key", TABLES, ids=lambda key: key.path)
def test_a_flipped_bit_is_noticed_or_changes_nothing(finished: Experiment, key: Key) -> None:
    store, rng = ArtifactStore(finished.artifacts), Random(key.path)
    path, n_noticed = store.path(key), 0
    whole, footer, table = path.read_bytes(), store.footer(key), store.read(key)
    try:
        for _ in range(N_FLIPS):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            if store.footer(key) is None:  # counts as not there, and is made again
                n_noticed += 1
                continue
            assert store.footer(key) == footer
            try:
                read = store.read(key)
            except ExperimentError:
                n_noticed += 1
            else:
                assert same(read, table)
    finally:
        path.write_bytes(whole)
    assert n_noticed > N_FLIPS // 2
    assert same(store.read(key), table)


def test_a_damaged_dictionary_is_refused_with_a_way_out(copied: Experiment) -> None:
    weights = copied.artifacts / "saes" / "embed.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-10] ^= 16
    weights.write_bytes(damaged)
    changed = read_experiment(write_experiment(copied.path.parent, clustering={"n_last": 2}))
    with pytest.raises(ExperimentError, match=r"embed\.safetensors is damaged .* delete it"):
        brought_up_to_date(changed, "cluster_vectors")
    (copied.artifacts / "dictionary_set.parquet").unlink()
    with pytest.raises(ExperimentError, match=r"embed\.safetensors is damaged .* delete it"):
        brought_up_to_date(copied, "dictionary_set")
    weights.unlink()
    assert brought_up_to_date(copied, "dictionary_set") == {"saes": 1, "dictionary_set": 1}
