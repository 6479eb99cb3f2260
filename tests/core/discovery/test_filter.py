"""Which tokens are kept, against a search written from the definition."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from core.discovery import filter_tokens
from core.discovery.filter import repeated_bigrams
from core.errors import InputError, NotFinite
from core.models import LanguageModel
from tests.core.tiny import make_hf, make_model

# Random weights predict nothing well: a loose threshold lets about half of the tokens through.
LOOSE = 4.5


def contexts(n: int = 12, n_vocab: int = 40) -> list[tuple[int, list[int]]]:
    """Contexts of several lengths, three to a document, over so few ids that pairs recur."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(5, 30, (n,), generator=generator).tolist()
    return [
        (i // 3, torch.randint(1, n_vocab, (length,), generator=generator).tolist())
        for i, length in enumerate(lengths)
    ]


def occurred_before(tokens: list[int], pos: int) -> bool:
    pair = tokens[pos - 1], tokens[pos]
    return any((tokens[i - 1], tokens[i]) == pair for i in range(1, pos))


def test_repeated_bigrams_are_those_a_brute_force_search_finds() -> None:
    tokens = torch.randint(0, 4, (50, 20))
    expected = [
        [pos > 0 and occurred_before(row, pos) for pos in range(20)] for row in tokens.tolist()
    ]
    assert repeated_bigrams(tokens).tolist() == expected
    assert sum(map(sum, expected)) > 300


def test_a_pair_that_overlaps_itself_counts_as_repeated() -> None:
    assert repeated_bigrams(torch.tensor([[5, 5, 5]])).tolist() == [[False, False, True]]


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "gemma2"])
def test_kept_tokens_are_those_the_definition_keeps(family: str) -> None:
    model, corpus = make_model(family), contexts(n_vocab=8)
    expected = []
    for window, (document, tokens) in enumerate(corpus):
        logits = model.hf(torch.tensor([tokens])).logits[0]
        losses = F.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="none")
        for pos in range(4, len(tokens)):
            if losses[pos - 1] < LOOSE and not occurred_before(tokens, pos):
                context = tuple(tokens[:pos])
                expected.append((document, window, pos, context, tokens[pos]))
    found = filter_tokens(model, corpus, max_loss=LOOSE, batch_size=5)
    assert [sample[:5] for sample in found.samples] == expected
    assert len(expected) > 10
    assert found.dropped["repeated bigram"] > 10


def test_kept_and_dropped_tokens_add_up() -> None:
    settings = {"max_loss": LOOSE, "stride": 3, "max_per_document": 4, "ignore": {3, 4}}
    found = filter_tokens(make_model("llama"), contexts(n_vocab=12), **settings)
    assert found.n_tokens == sum(len(tokens) for _, tokens in contexts(n_vocab=12))
    assert len(found.samples) + sum(found.dropped.values()) == found.n_tokens
    assert all(n > 0 for reason, n in found.dropped.items() if reason != "enough samples")
    assert found.dropped["enough samples"] == 0


def test_batches_and_logit_chunks_do_not_change_what_is_kept() -> None:
    model = make_model("gpt_neox")
    settings = {"max_loss": LOOSE, "stride": 2, "max_per_document": 3}
    one = filter_tokens(model, contexts(), batch_size=1, budget_bytes=1, **settings)
    all_at_once = filter_tokens(model, contexts(), batch_size=64, **settings)
    assert [s[:5] for s in one.samples] == [s[:5] for s in all_at_once.samples]
    assert one.dropped == all_at_once.dropped
    losses = [[s.loss for s in found.samples] for found in (one, all_at_once)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_stride_keeps_samples_of_a_window_apart_and_takes_the_first() -> None:
    model = make_model("gpt_neox")
    dense = filter_tokens(model, contexts(), max_loss=LOOSE)
    apart = filter_tokens(model, contexts(), max_loss=LOOSE, stride=5)
    for window in range(12):
        places = [s.pos for s in apart.samples if s.window == window]
        assert all(b - a >= 5 for a, b in pairwise(places))
        assert places[:1] == [s.pos for s in dense.samples if s.window == window][:1]


def test_the_cap_draws_the_same_samples_of_a_document_whatever_else_is_read() -> None:
    model = make_model("gpt_neox")
    whole = filter_tokens(model, contexts(), max_loss=LOOSE, max_per_document=2)
    last = filter_tokens(model, contexts()[9:], max_loss=LOOSE, max_per_document=2)
    drawn = [s.context for s in whole.samples if s.document == 3]
    assert len(drawn) == 2
    assert [s.context for s in last.samples] == drawn
    assert max(sum(s.document == d for s in whole.samples) for d in range(4)) == 2


def test_reading_stops_when_enough_are_kept() -> None:
    def read():
        for number, item in enumerate(contexts()):
            assert number < 9, "read on for no reason"
            yield item

    model = make_model("gpt_neox")
    found = filter_tokens(model, read(), max_loss=LOOSE, n_samples=10, batch_size=3)
    assert found.samples == filter_tokens(model, contexts(), max_loss=LOOSE).samples[:10]
    assert found.dropped["enough samples"] > 0
    assert len(found.samples) + sum(found.dropped.values()) == found.n_tokens


def test_when_nothing_passes_the_error_says_which_thresholds_would_keep_how_many() -> None:
    model = make_model("gpt_neox")
    n_below = len(filter_tokens(model, contexts(), max_loss=3.0).samples)
    with pytest.raises(InputError, match=rf"max_loss=0\.0001.*3 keeps {n_below}"):
        filter_tokens(model, contexts(), max_loss=1e-4)


def test_contexts_too_short_to_give_a_sample_are_reported_as_such() -> None:
    with pytest.raises(InputError, match=r"short context.*lower min_context"):
        filter_tokens(make_model("gpt_neox"), [(0, [1, 2, 3])], max_loss=LOOSE)


@pytest.mark.parametrize("corpus", [[], [(0, [])]])
def test_a_corpus_without_tokens_is_refused(corpus: list[tuple[int, list[int]]]) -> None:
    with pytest.raises(InputError, match="is the text empty"):
        filter_tokens(make_model("gpt_neox"), corpus)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_loss": 0.0}, "no token has a loss below zero"),
        ({"stride": 0}, "stride is 0"),
        ({"min_context": 0}, "min_context is 0"),
        ({"max_per_document": 0}, "max_per_document is 0"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        filter_tokens(make_model("gpt_neox"), contexts(), **settings)


def test_a_context_longer_than_the_models_positions_is_refused() -> None:
    with pytest.raises(InputError, match=r"document 5 has 33 tokens.*32 positions"):
        filter_tokens(make_model("gpt_neox"), [(5, [1] * 33)])


def test_a_model_that_gives_no_numbers_is_refused() -> None:
    hf = make_hf("gpt_neox")
    model = LanguageModel(hf)
    hf.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(NotFinite, match="wider dtype"):
        filter_tokens(model, contexts(), max_loss=LOOSE)
