"""Pages of clusters: everything in one file, nothing of the text lost or taken for markup."""

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from assets.discovery.pages import (
    plot_curve,
    plot_similarity,
    plot_sizes,
    spread,
    token_text,
    write_cluster_pages,
)
from core.discovery import Clustering, CurvePoint, Sample, summarize

WORDS = ["", "The", " cat", " <b>", "\n", " sat", " &", "."]
CLUSTERING = Clustering(
    labels=np.array([0, 0, 0, 1]),
    similarity=np.array([0.5, 0.9, 0.7, np.nan]),
    k=2,
    curve=[CurvePoint(1, 1), CurvePoint(2, 1)],
    method="spectral",
)
SAMPLES = [
    Sample(4, 0, 3, (1, 2, 3), 5, 0.01),
    Sample(5, 1, 3, (1, 2, 4), 5, 0.02),
    Sample(5, 1, 4, (1, 2, 4, 5), 7, 0.03),
    Sample(6, 2, 100, (2,) * 100, 6, 0.04),
]
TRUTH = ["verb", "verb", "stop", "and"]


class _Page(HTMLParser):
    """Text of a page and of its highlighted answers; complains of tags that are not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.answers, self.links = "", [], []
        self.in_answer = False
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named: Mapping[str, str | None] = dict(attrs)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.links += [value for key, value in attrs if key in ("href", "src")]
        self.in_answer = named.get("class") == "answer"
        if self.in_answer:
            self.answers.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.in_answer = False

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data
        if self.in_answer:
            self.answers[-1] += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    summaries = summarize(CLUSTERING, SAMPLES)
    index = write_cluster_pages(
        tmp_path / "pages",
        SAMPLES,
        CLUSTERING,
        summaries,
        WORDS.__getitem__,
        title="A < B",
        plots={"Sizes": plot_sizes(CLUSTERING), "Choice of k": plot_curve(CLUSTERING)},
        truth=TRUTH,
    )
    return index.parent


def page(folder: Path, name: str) -> _Page:
    return _Page((folder / name).read_text())


def test_there_is_a_page_for_each_cluster_and_the_overview_links_to_it(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["index.html", "k00000.html", "k00001.html"]
    links = [link for link in page(folder, "index.html").links if link.endswith(".html")]
    assert links == ["k00000.html", "k00001.html"]


def test_pages_need_no_other_file(folder: Path) -> None:
    for path in folder.iterdir():
        own = {p.name for p in folder.iterdir()}
        assert all(
            link in own or link.startswith("data:image/png")
            for link in _Page(path.read_text()).links
        )


def test_contexts_come_most_typical_first_with_the_answer_highlighted(folder: Path) -> None:
    found = page(folder, "k00000.html")
    assert found.answers == [" sat", ".", " sat"]
    assert re.findall(r"sample (\d)", found.text) == ["1", "2", "0"]


def test_markup_and_line_ends_in_the_text_are_shown_as_they_are(folder: Path) -> None:
    text = page(folder, "k00000.html").text
    assert "The cat <b> sat" in text
    assert "The cat↵\n sat" in text
    assert "A < B" in page(folder, "index.html").text


def test_a_page_counts_answers_and_behaviours(folder: Path) -> None:
    text = page(folder, "k00000.html").text
    assert "3 samples from 2 documents; 2 answers, entropy 0.64 nats" in text
    assert "“ sat”267%" in text
    assert "verb267%" in text


def test_a_lone_sample_has_no_similarity_and_a_long_context_is_cut(folder: Path) -> None:
    text = page(folder, "k00001.html").text
    assert "1 sample from 1 document; 1 answer, entropy 0.00" in text
    assert "similarity \u2013" in text
    assert "… cat" in text
    assert text.count(" cat") == 80


def test_pages_of_an_earlier_clustering_do_not_stay(folder: Path) -> None:
    one = Clustering(np.zeros(4, dtype=int), np.ones(4), 1, [CurvePoint(1, 1)], "kmeans")
    write_cluster_pages(folder, SAMPLES, one, summarize(one, SAMPLES), WORDS.__getitem__, title="")
    assert sorted(p.name for p in folder.iterdir()) == ["index.html", "k00000.html"]


def test_samples_are_spread_over_all_clusters() -> None:
    labels = np.array([2, 0, 1, 0, 1, 2])
    assert spread(labels).tolist() == [1, 3, 2, 4, 0, 5]
    assert labels[spread(labels, n_most=3)].tolist() == [0, 1, 2]


def test_plots_are_the_same_file_each_time() -> None:
    vectors = np.eye(4)
    for draw in (
        lambda: plot_sizes(CLUSTERING),
        lambda: plot_curve(CLUSTERING),
        lambda: plot_similarity(vectors[spread(CLUSTERING.labels, n_most=3)]),
    ):
        png = draw()
        assert png.startswith(b"\x89PNG")
        assert draw() == png


class _Tokenizer:
    """Decodes like SentencePiece: the space before a lone word is lost."""

    pieces = ("\u2581cat", "s", "\u0120dog")

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.pieces[token]

    def decode(self, tokens: list[int]) -> str:
        return ("cat", "s", " dog")[tokens[0]]


def test_a_token_keeps_the_space_before_it() -> None:
    text = token_text(_Tokenizer())
    assert [text(token) for token in range(3)] == [" cat", "s", " dog"]
