from itertools import chain, islice

import pytest
import torch

from core.errors import InputError
from core.training.buffer import RowStream, ShuffledBuffer, apart, rows_within
from tests.core.training.sources import numbered

UNITS = [40, 24, 64, 32, 40]
N_ROWS = sum(UNITS)


def buffer(*, rows: int = N_ROWS, seed: int = 0, batch_size: int = 8) -> ShuffledBuffer:
    source = numbered(UNITS)
    return ShuffledBuffer(source, batch_size=batch_size, buffer_rows=rows, seed=seed)


def drawn(buffer: ShuffledBuffer, n: int, start: int = 0) -> list[list[float]]:
    batches = islice(buffer.batches(start), n)
    return [batch["embed"].flatten().tolist() for batch in batches]


def test_a_pass_of_a_buffer_that_holds_everything_draws_every_row_once():
    one = buffer()
    rows = list(chain(*drawn(one, one.batches_per_block)))
    assert sorted(rows) == list(range(N_ROWS))


def test_a_refilled_buffer_draws_rows_about_equally_often():
    one = buffer(rows=64)
    rows = list(chain(*drawn(one, 10 * N_ROWS // 8)))
    counts = torch.tensor(rows).long().bincount(minlength=N_ROWS)
    assert one.batches_per_block == 4
    assert 8 <= int(counts.min()) <= int(counts.max()) <= 12


@pytest.mark.parametrize("rows", [N_ROWS, 64])
def test_reading_from_the_middle_gives_what_reading_from_the_start_gives(rows):
    whole = drawn(buffer(rows=rows), 60)
    for start in (0, 1, 7, 33, 59):
        assert drawn(buffer(rows=rows), 60 - start, start) == whole[start:]


@pytest.mark.parametrize("rows", [N_ROWS, 64])
def test_the_order_depends_on_the_seed(rows):
    assert drawn(buffer(rows=rows, seed=1), 5) != drawn(buffer(rows=rows, seed=2), 5)


@pytest.mark.parametrize("rows", [N_ROWS, 64])
def test_all_submodules_give_the_same_rows(rows):
    for batch in islice(buffer(rows=rows).batches(), 50):
        assert torch.equal(batch["resid_0"], batch["embed"] + 0.5)


@pytest.mark.parametrize("rows", [N_ROWS, 64])
def test_neighbouring_rows_of_a_batch_are_not_from_one_document(rows):
    for batch in islice(buffer(rows=rows).batches(), 50):
        document = batch["embed"].flatten() // 4
        assert not bool((document[1:] == document[:-1]).any())


def test_batches_mix_units():
    unit_of = torch.arange(len(UNITS)).repeat_interleave(torch.tensor(UNITS))
    batch = next(buffer(rows=64).batches())["embed"].flatten().long()
    assert len(unit_of[batch].unique()) > 1


def test_rows_of_a_single_document_are_left_as_they_are():
    order = apart(torch.arange(6), torch.zeros(6), torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(6))


def test_a_pass_reads_each_unit_once_and_the_next_in_another_order():
    stream = RowStream(UNITS, seed=3)
    unit, row = stream.locate(torch.arange(2 * N_ROWS))
    first, second = unit[:N_ROWS], unit[N_ROWS:]
    assert torch.equal(first.bincount(), torch.tensor(UNITS))
    assert torch.equal(second.bincount(), torch.tensor(UNITS))
    assert not torch.equal(first, second)
    assert torch.equal(row[:N_ROWS][first == 2], torch.arange(64))


def test_a_unit_is_loaded_no_more_often_than_it_is_met():
    one = buffer(rows=64)
    drawn(one, 4 * N_ROWS // 8)
    assert one.source.n_loaded <= 4 * len(UNITS) + 4


@pytest.mark.parametrize(("rows", "batch_size"), [(N_ROWS, 101), (20, 16)])
def test_too_few_rows_for_two_batches_are_refused(rows, batch_size):
    with pytest.raises(InputError, match="fewer than two batches"):
        buffer(rows=rows, batch_size=batch_size)


def test_a_row_takes_two_bytes_for_each_axis_and_eight_for_its_document():
    assert rows_within(3000, {"embed": 64, "resid_0": 128}) == 3000 // (2 * 64 + 2 * 128 + 8)
