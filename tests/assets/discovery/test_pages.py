"""Pages of clusters: everything in one file, nothing of the text lost or taken for markup."""

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from assets.corpus.vocabulary import token_text
from assets.discovery.pages import (
    plot_curve,
    plot_similarity,
    plot_sizes,
    spread,
    write_cluster_pages,
)
from core.discovery import Clustering, CurvePoint, Sample, summarize

WORDS = ["", "The", " cat", " <b>", "\n", " sat", " &", "."]
CLUSTERING = Clustering(
    labels=np.array([0, 0, 0, 1]),
    similarity=np.array([0.5, 0.9, 0.7, np.nan]),
    k=2,
    curve=[CurvePoint(1, 1), CurvePoint(2, 1)],
    algorithm="spectral",
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
        self.tags: list[tuple[str, ...]] = []
        self.named_links: dict[str, str | None] = {}
        self.in_answer = False
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named: Mapping[str, str | None] = dict(attrs)
        self.tags.append((tag, *named))
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
        if self.open[-1:] == ["a"]:
            self.named_links[data] = self.links[-1]
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
    return _Page((folder / name).read_text(encoding="utf-8"))


def write(folder: Path, clustering: Clustering = CLUSTERING, **options) -> None:
    summaries, words = summarize(clustering, SAMPLES), options.pop("words", WORDS)
    write_cluster_pages(
        folder, SAMPLES, clustering, summaries, words.__getitem__, title="", **options
    )


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
    assert re.search(r"Answers\s*“ sat”267%\s*“\.”133%\s", text)
    assert re.search(r"Behaviours\s*verb267%\s*stop133%\s", text)


def test_a_lone_sample_has_no_similarity_and_a_long_context_is_cut(folder: Path) -> None:
    text = page(folder, "k00001.html").text
    assert "1 sample from 1 document; 1 answer, entropy 0.00" in text
    assert "similarity \u2013" in text
    assert "… cat" in text
    assert text.count(" cat") == 80


def test_the_overview_sums_up_each_cluster(folder: Path) -> None:
    text = page(folder, "index.html").text
    assert "4 samples in 2 clusters (spectral, k = 2), 1 of them with more than one" in text
    rows = re.findall(r"k0000\d[^k]*%\s", text)
    assert [row.split() for row in rows] == [
        ["k00000", "3", "2", "2", "0.64", "0.70", "“", "sat”", "67%", "verb", "67%"],
        ["k00001", "1", "1", "1", "0.00", "\u2013", "“", "&”", "100%", "and", "100%"],
    ]


def test_without_known_behaviours_there_is_no_word_of_them(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("index.html", "k00000.html"):
        assert "behaviour" not in page(tmp_path, name).text.lower()


def test_one_goes_from_page_to_page(tmp_path: Path) -> None:
    write(tmp_path)
    assert page(tmp_path, "k00000.html").named_links == {
        "All clusters": "index.html",
        "next →": "k00001.html",
    }
    assert page(tmp_path, "k00001.html").named_links == {
        "← previous": "k00000.html",
        "All clusters": "index.html",
    }


HOSTILE = {
    "</script><script>alert(1)</script>": "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>": "</style><img src=x onerror=alert(1)>",
    '" onclick="alert(1)': '" onclick="alert(1)',
    "{{ 7 * 7 }}": "{{ 7 * 7 }}",
    "&lt;b&gt;": "&lt;b&gt;",
    "\r\n": "\u240d\u21b5",
    "\u202eright to left": "\\u202eright to left",
    "\x1b[2J\x00": "\u241b[2J\u2400",
    "\ud83d": "\\ud83d",
}


@pytest.mark.parametrize("token", HOSTILE)
def test_no_token_acts_on_a_page_and_each_is_seen(tmp_path: Path, token: str) -> None:
    for name, word in (("plain", "word"), ("hostile", token)):
        words = ["", "The", word, "", "", word, word, "."]
        write(tmp_path / name, words=words, truth=[word] * 4)
    seen = HOSTILE[token]
    found, overview = (page(tmp_path / "hostile", n) for n in ("k00000.html", "index.html"))
    assert found.tags == page(tmp_path / "plain", "k00000.html").tags
    assert overview.tags == page(tmp_path / "plain", "index.html").tags
    assert found.answers == [seen, ".", seen]
    assert f"“{seen}”" in found.text
    assert f"· {seen}" in found.text
    assert "The" + seen.replace("\u21b5", "\u21b5\n") in found.text
    assert f"{seen} 100%" in overview.text
    assert seen in overview.answers


def test_pages_of_an_earlier_clustering_do_not_stay(folder: Path) -> None:
    (folder / "k123456.html").touch()
    (folder / "keep.html").touch()
    write(folder, Clustering(np.zeros(4, dtype=int), np.ones(4), 1, [CurvePoint(1, 1)], "kmeans"))
    assert sorted(p.name for p in folder.iterdir()) == ["index.html", "k00000.html", "keep.html"]


def test_pages_are_whole_and_old_ones_stay_until_all_new_ones_are_there(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(IndexError):
        write(folder, words=WORDS[:6])  # the second cluster's answer has no text
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys()
    assert all(page.endswith(b"</html>\n") for page in after.values())
    assert after["k00001.html"] == before["k00001.html"]


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
    """Decodes as SentencePiece and byte-level BPE do: a space is lost, a lone byte is U+FFFD."""

    pieces: ClassVar = {
        "\u2581cat": "cat",
        "s": "s",
        "\u0120dog": " dog",
        "<0xF0>": "\ufffd",  # SentencePiece's byte fallback
        "\u00f0\u0141": "\ufffd",  # byte-level BPE: bytes f0 9f, the beginning of an emoji
        "a\u00e2\u0124": "a\ufffd",
        "\u00ef\u00bf\u00bd": "\ufffd",  # a character that is U+FFFD itself
        "\u4e2d\ufffd": "\u4e2d\ufffd",
    }

    def convert_ids_to_tokens(self, token: int) -> str:
        return list(self.pieces)[token]

    def decode(self, tokens: list[int]) -> str:
        return list(self.pieces.values())[tokens[0]]


def test_a_token_keeps_the_space_before_it() -> None:
    text = token_text(_Tokenizer())
    assert [text(token) for token in range(3)] == [" cat", "s", " dog"]


def test_bytes_that_are_no_character_are_spelled() -> None:
    text = token_text(_Tokenizer())
    spelled = [text(token) for token in range(3, 8)]
    assert spelled == ["\\xf0", "\\xf0\\x9f", "a\\xe2\\x82", "\ufffd", "\u4e2d\ufffd"]


def test_every_byte_is_spelled_as_the_tokenizers_library_writes_it() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    from assets.corpus.vocabulary import _BYTES

    assert set(_BYTES) == set(ByteLevel.alphabet())
    split = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    for text in ("\x00 \x7f\xa0\xad", "é中😀"):
        ((letters, _),) = split(text)
        assert bytes(_BYTES[letter] for letter in letters) == text.encode()
