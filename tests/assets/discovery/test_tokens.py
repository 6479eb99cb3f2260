"""Tokens worth explaining, as a person reads them."""

from __future__ import annotations

from assets.discovery.tokens import example
from tests.tiny_experiment import _tokenizer


def test_an_example_is_one_line_with_its_answer_in_brackets() -> None:
    tokenizer = _tokenizer()
    ids = tokenizer("the old cat is")["input_ids"]
    assert example(tokenizer, ids[:-1], ids[-1]) == "…the old cat [is]"
