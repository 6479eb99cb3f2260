"""Passages of children's stories that are told at home or outside, about him or about her.

    python experiments/examples/labelled_stories.py STORIES OUT

STORIES is TinyStories as one text file, stories between ``<|endoftext|>``; OUT gets JSON lines with
`text`, `place` (home or outside) and `hero` (he or she), for `stories260k_shift.yaml`. A passage is
some sentences in a row. Its place is told by words of one place and none of the other, its hero by
two pronouns or more of one gender and none of the other; all other passages are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

LEAST_WORDS, MOST_WORDS = 30, 60
PLACES = {
    "home": """home house room bedroom kitchen bathroom bed sofa couch table chair floor door
    window bath stove lamp carpet pillow""",
    "outside": """outside park garden yard forest woods tree trees grass flowers beach sand sea
    river lake pond hill mountain field farm sky sun""",
}
HEROES = {"he": "he him his himself", "she": "she her hers herself"}
LEAST = {"place": 1, "hero": 2}


def passages(story: str) -> Iterator[str]:
    """Sentences in a row, as many as make 30 to 60 words, none of them in two passages."""
    kept: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(story.split())):
        kept.append(sentence)
        n_words = sum(len(one.split()) for one in kept)
        if n_words > MOST_WORDS:
            kept = []
        elif n_words >= LEAST_WORDS:
            yield " ".join(kept)
            kept = []


def told(words: Counter[str], of: Mapping[str, str], least: int) -> str | None:
    """Which of two things the words tell; None where they tell neither, or both."""
    counts = {name: sum(words[word] for word in listed.split()) for name, listed in of.items()}
    (name, most), (_, other) = Counter(counts).most_common(2)
    return name if most >= least and not other else None


def labelled(story: str) -> Iterator[dict[str, str]]:
    """The passages of a story that tell both place and hero."""
    for text in passages(story):
        words = Counter(re.findall(r"[a-z]+", text.lower()))
        place, hero = told(words, PLACES, LEAST["place"]), told(words, HEROES, LEAST["hero"])
        if place and hero:
            yield {"text": text, "place": place, "hero": hero}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stories", type=Path, help="the text of all stories")
    parser.add_argument("out", type=Path, help="file to write, .jsonl")
    arguments = parser.parse_args()
    stories = arguments.stories.read_text(encoding="utf-8").split("<|endoftext|>")
    rows = [row for story in stories for row in labelled(story)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    counts = Counter((row["place"], row["hero"]) for row in rows)
    for (place, hero), n in sorted(counts.items()):
        sys.stdout.write(f"{place}, {hero}: {n} passages\n")


if __name__ == "__main__":
    main()
