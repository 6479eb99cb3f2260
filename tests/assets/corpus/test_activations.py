import hashlib
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from assets.corpus import writing
from assets.corpus.activations import CacheManifest
from assets.corpus.text import Context
from assets.corpus.writing import estimate_cache, open_cache, write_cache
from core.errors import FormatError, InputError, NotFinite, OutOfBudget
from core.training import ModelRows, ShuffledBuffer
from tests.assets.corpus.toy_model import WIDTHS, ToyModel, contexts


def write(folder: Path, model=None, texts=None, **options) -> CacheManifest:
    model = model or ToyModel()
    options = {"model_fingerprint": "toy", "contexts_per_shard": 10, "batch_contexts": 4} | options
    texts = contexts() if texts is None else texts
    return write_cache(folder, model, texts, model.submodules, **options)


def content(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def test_every_token_is_there_with_its_place_and_its_activation(tmp_path):
    texts = contexts()
    manifest = write(tmp_path, texts=texts)
    n_tokens = sum(len(context.tokens) for context in texts)
    assert (manifest.n_rows, manifest.n_documents) == (n_tokens, 40)
    assert len(manifest.shards) == 4
    model = ToyModel()
    for name, d in WIDTHS.items():
        table = pa.concat_tables(
            pq.read_table(file) for file in sorted((tmp_path / name).glob("*.parquet"))
        )
        assert table["token"].to_pylist() == [t for context in texts for t in context.tokens]
        assert table["pos"].to_pylist() == [i for c in texts for i in range(len(c.tokens))]
        assert table["document"].to_pylist() == [c.document for c in texts for _ in c.tokens]
        assert table.schema.field("activation").type.list_size == d
        token, pos = (torch.tensor(table[column].to_pylist()) for column in ("token", "pos"))
        expected = (model.tables[name][token] + 0.01 * pos[:, None]).half()
        values = np.array(table["activation"].to_pylist(), dtype=np.float16)
        assert torch.equal(torch.from_numpy(values), expected)


def test_the_reader_gives_what_was_written_aligned_over_submodules(tmp_path):
    texts = contexts()
    write(tmp_path, texts=texts)
    found = open_cache(tmp_path)
    direct = ModelRows(ToyModel(), [c.tokens for c in texts], list(WIDTHS), contexts_per_unit=10)
    assert found.unit_rows == direct.unit_rows
    for unit in range(4):
        (ours, document), (theirs, expected) = found.load(unit), direct.load(unit)
        assert torch.equal(document, expected)
        assert all(torch.equal(ours[name], theirs[name]) for name in WIDTHS)


def test_some_submodules_may_be_read_alone(tmp_path):
    write(tmp_path)
    assert open_cache(tmp_path, ["attn_0"]).load(0)[0].keys() == {"attn_0"}
    with pytest.raises(InputError, match="has no mlp_3, only embed, attn_0, resid_0"):
        open_cache(tmp_path, ["mlp_3"])


def test_a_row_group_is_a_unit(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "ROW_GROUP", 8)
    manifest = write(tmp_path, texts=contexts(3))
    manifest = CacheManifest(manifest.key, manifest.widths, manifest.shards, row_group=8)
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    found = open_cache(tmp_path)
    assert sum(found.unit_rows) == manifest.n_rows
    assert max(found.unit_rows) == 8
    assert [len(found.load(i)[1]) for i in range(len(found.unit_rows))] == found.unit_rows


def test_the_estimate_is_close_to_what_is_written(tmp_path):
    texts = [Context(i, [1, 2, 3, 4, 5, 6, 7, 8] * 16) for i in range(300)]
    manifest = write(tmp_path, texts=texts, contexts_per_shard=100)
    assert estimate_cache(texts, WIDTHS) == pytest.approx(manifest.n_bytes, rel=0.1)


def test_a_finished_cache_is_left_alone(tmp_path):
    first, model = write(tmp_path), ToyModel()
    before = content(tmp_path)
    assert write(tmp_path, model) == first
    assert model.n_runs == 0
    assert content(tmp_path) == before


class Killed(Exception):
    """Stands for whatever ends a process."""


def stop_after(n: int):
    def progress(line: str) -> None:
        if line.startswith(f"cache: shard {n} "):
            raise Killed

    return progress


@pytest.mark.parametrize("n", [1, 3, 4])
def test_an_interrupted_pass_goes_on_and_ends_in_the_same_bytes(tmp_path, n):
    write(tmp_path / "whole")
    model = ToyModel()
    with pytest.raises(Killed):
        write(tmp_path / "cut", model, progress=stop_after(n))
    (tmp_path / "cut" / "embed" / ".00003.parquet.1.tmp").write_bytes(b"half a shard")
    with pytest.raises(FormatError, match="no finished activation cache"):
        open_cache(tmp_path / "cut")
    n_runs, model = model.n_runs, ToyModel()
    write(tmp_path / "cut", model)
    # The shard that the model ran for while the last one was written is lost.
    assert 12 <= n_runs + model.n_runs <= 15
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_shards_of_another_model_are_written_again(tmp_path):
    write(tmp_path, ToyModel(1), model_fingerprint="other")
    model = ToyModel()
    write(tmp_path, model)
    assert model.n_runs == 12
    write(tmp_path / "fresh")
    fresh = content(tmp_path / "fresh")
    assert {name: value for name, value in content(tmp_path).items() if name in fresh} == fresh


def test_shards_before_a_change_of_the_corpus_are_kept(tmp_path):
    write(tmp_path)
    model = ToyModel()
    write(tmp_path, model, [*contexts()[:-1], Context(99, [1, 2])])
    assert model.n_runs == 3


@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign"])
def test_a_damaged_shard_is_named_and_written_again(tmp_path, damage):
    write(tmp_path)
    before, file = content(tmp_path), tmp_path / "attn_0" / "00001.parquet"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-50])
    elif damage == "missing":
        file.unlink()
    else:
        pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(FormatError, match=r"attn_0/00001\.parquet"):
        open_cache(tmp_path)
    write(tmp_path)
    assert content(tmp_path) == before


def test_a_shard_damaged_after_opening_is_refused(tmp_path):
    write(tmp_path)
    found, file = open_cache(tmp_path), tmp_path / "embed" / "00000.parquet"
    shutil.copy(tmp_path / "resid_0" / "00000.parquet", file)
    with pytest.raises(FormatError, match="no shard of this cache"):
        found.load(0)
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(FormatError, match="no column 'activation'"):
        found.load(0)
    file.write_bytes(b"PAR1")
    with pytest.raises(FormatError, match="damaged, cut or no Parquet file"):
        found.load(0)


def test_a_changed_value_is_refused_when_it_is_read(tmp_path):
    write(tmp_path)
    cache, file = open_cache(tmp_path), tmp_path / "resid_0" / "00000.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError, match="damaged, cut or no Parquet file"):
        cache.load(0)


def test_changed_bytes_are_found_by_their_hash(tmp_path):
    write(tmp_path)
    found, file = open_cache(tmp_path), tmp_path / "embed" / "00002.parquet"
    found.verify()
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError, match="content changed"):
        found.verify()


def test_nan_in_a_shard_is_named_with_its_row(tmp_path):
    write(tmp_path)
    file = tmp_path / "resid_0" / "00000.parquet"
    table = pq.read_table(file)
    values = np.stack(table["activation"].to_numpy())
    values[5, 2] = np.nan
    column = pa.FixedSizeListArray.from_arrays(values.reshape(-1), type=table.schema.types[3])
    pq.write_table(table.set_column(3, table.schema.field(3), column), file)
    manifest = open_manifest_with_sizes(tmp_path)
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(NotFinite, match=r"resid_0/00000\.parquet' holds NaN or infinity in row 5"):
        open_cache(tmp_path).load(0)


def open_manifest_with_sizes(folder: Path) -> CacheManifest:
    """The manifest as if the files of the first shard had always had their present sizes."""
    manifest = CacheManifest.from_json((folder / "manifest.json").read_text())
    first = manifest.shards[0]
    sizes = {n: (folder / n / "00000.parquet").stat().st_size for n in first.n_bytes}
    changed = type(first)(first.n_rows, first.n_documents, sizes, first.sha256)
    return CacheManifest(manifest.key, manifest.widths, (changed, *manifest.shards[1:]))


def test_activations_beyond_float16_are_refused(tmp_path):
    model = ToyModel()
    model.tables["attn_0"] *= 1e6
    with pytest.raises(NotFinite, match="'attn_0' is NaN, infinite or beyond float16"):
        write(tmp_path, model)


def test_a_cache_beyond_its_budget_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(OutOfBudget, match="more than its budget"):
        write(tmp_path / "c", budget_bytes=1000)
    assert not (tmp_path / "c").exists()


def test_a_cache_beyond_the_free_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(OutOfBudget, match="free"):
        write(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_disk_that_fills_up_leaves_finished_shards_valid(tmp_path, monkeypatch):
    write(tmp_path / "whole")
    own = pq.write_table

    def until_full(table, file, **options):
        if "00002" in file.name:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        own(table, file, **options)

    monkeypatch.setattr(pq, "write_table", until_full)
    with pytest.raises(OutOfBudget, match="what was finished before is whole"):
        write(tmp_path / "c")
    assert not list((tmp_path / "c").rglob("*.tmp"))
    monkeypatch.setattr(pq, "write_table", own)
    model = ToyModel()
    write(tmp_path / "c", model)
    assert model.n_runs == 6
    assert content(tmp_path / "c") == content(tmp_path / "whole")


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(InputError, match="no contexts"):
        write(tmp_path, texts=[])


@pytest.mark.parametrize(
    "text", ["", '{"a": 1}', "[1]", "\0", '{"key": 3, "widths": 1, "shards": []}']
)
def test_a_damaged_manifest_is_written_again(tmp_path, text):
    write(tmp_path)
    before, model = content(tmp_path), ToyModel()
    (tmp_path / "manifest.json").write_text(text)
    write(tmp_path, model)
    assert content(tmp_path) == before
    assert model.n_runs == 0


def test_a_file_that_is_no_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"a": 1}')
    with pytest.raises(FormatError, match="not a manifest"):
        open_cache(tmp_path)


ORDER = """
import sys
from itertools import islice
from pathlib import Path
from assets.corpus.writing import open_cache
from core.training import ShuffledBuffer
buffer = ShuffledBuffer(open_cache(Path(sys.argv[1])), batch_size=16, buffer_rows=75, seed=4)
for batch in islice(buffer.batches(), 30):
    print(batch["resid_0"].view(-1).tolist())
"""


def test_two_processes_read_one_cache_in_the_same_order(tmp_path):
    write(tmp_path)
    command = [sys.executable, "-c", ORDER, str(tmp_path)]
    root = Path(__file__).parents[3]
    run = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=True, env={**os.environ}
    )
    source = open_cache(tmp_path)
    buffer = ShuffledBuffer(source, batch_size=16, buffer_rows=75, seed=4)
    assert not buffer.holds_all
    here = [str(b["resid_0"].view(-1).tolist()) for b in islice(buffer.batches(), 30)]
    assert run.stdout.splitlines() == here
