"""Writes contrastive pairs for the model of stories260k.yaml: which pronoun a story goes on with.

    python experiments/examples/story_pairs.py experiments/examples/pairs

Two tasks, NAME_train.json and NAME_test.json each, JSON lines in the layout of the authors' pairs:
`pronoun` (he or she, after a boy or a girl) and `number` (they, or he or she, after Max and Tom or
Max the dog). The words that stand in one place have as many tokens of that model as each other, so
that all texts of a task are equally long and a position means the same in each.
"""

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random

OPENINGS = ("Once upon a time,", "That day,")
KINDS = ("good", "small", "nice", "kind", "young", "clever", "tired", "cute", "shy", "poor")
DEEDS = (
    "played with a toy.",
    "played with a ball.",
    "played with the dog.",
    "played in the sun.",
    "wanted to help.",
    "liked the park.",
    "had a big box.",
    "had a red ball.",
    "had a new toy.",
    "saw a big tree.",
    "saw a big box.",
    "saw a little bird.",
)
NAMES = {"Max": "He", "Bob": "He", "Mark": "He", "Sue": "She", "Mia": "She", "Amy": "She"}
COMPANIONS = {"Tom": "dog", "Ben": "cat", "Sam": "bear"}
N_TEST = 60

Hero = tuple[str, str]
"""Who a text is about, and the pronoun that goes on with it."""


def boy_or_girl() -> Iterator[tuple[Hero, Hero]]:
    """A boy and a girl of every kind."""
    for kind in KINDS:
        yield (f"a {kind} boy", "He"), (f"a {kind} girl", "She")


def one_or_two() -> Iterator[tuple[Hero, Hero]]:
    """Everybody with a companion, and as an animal alone."""
    for (name, pronoun), (other, animal) in product(NAMES.items(), COMPANIONS.items()):
        yield (f"{name} and {other}", "They"), (f"{name} the {animal}", pronoun)


def pairs(heroes: Iterator[tuple[Hero, Hero]]) -> list[dict[str, str]]:
    """Every pair, each of its heroes in turn the clean side."""
    found = []
    for i, (both, opening, deed) in enumerate(product(heroes, OPENINGS, DEEDS)):
        (clean, answer), (patch, patch_answer) = both[:: -1 if i % 2 else 1]
        found.append(
            {
                "clean_prefix": f"{opening} {clean} {deed}",
                "patch_prefix": f"{opening} {patch} {deed}",
                "clean_answer": f" {answer}",
                "patch_answer": f" {patch_answer}",
                "case": f"{answer}_{patch_answer}".lower(),
            }
        )
    return found


def main(folder: Path) -> None:
    """Write the files of both tasks; no pair is in two."""
    for task, heroes in {"pronoun": boy_or_girl, "number": one_or_two}.items():
        every = pairs(heroes())
        Random(0).shuffle(every)
        for name, part in (("test", every[:N_TEST]), ("train", every[N_TEST : 4 * N_TEST])):
            lines = "".join(json.dumps(pair) + "\n" for pair in part)
            (folder / f"{task}_{name}.json").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
