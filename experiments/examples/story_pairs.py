"""Writes contrastive pairs for the model of stories260k.yaml: which pronoun a story goes on with.

    python experiments/examples/story_pairs.py experiments/examples/pairs

Two tasks, NAME_train.json and NAME_test.json each, JSON lines in the layout of the authors' pairs:
`pronoun` (he or she, after a boy or a girl) and `number` (they, or he or she, after Tim and Tom or
Tim the dog). Both texts of a pair have as many tokens of that model.
"""

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random

OPENINGS = ("One day,", "Once upon a time,", "One morning,", "One sunny day,")
KINDS = ("little", "happy", "sad", "good", "small")
DEEDS = (
    "went to the park.",
    "saw a big dog.",
    "found a red ball.",
    "played with a toy.",
    "wanted to help.",
    "had a big box.",
    "liked to run and jump.",
)
ENDS = {"": str.capitalize, " Then,": str}
"""What stands between the deed and the pronoun, and how the pronoun is written there."""

NAMES = {"Tim": "he", "Max": "he", "Sam": "he", "Lily": "she", "Sue": "she", "Mia": "she"}
COMPANIONS = {"Tom": "dog", "Ben": "cat"}
"""Names, and animals of as many tokens."""

N_TEST = 80


def pairs(heroes: list[tuple[str, str, str, str]]) -> list[dict[str, str]]:
    """Every pair of two heroes, each in turn the clean side.

    Args:
        heroes: who a story is about and the pronoun that goes with it, twice.
    """
    found = []
    texts = product(OPENINGS, heroes, DEEDS, ENDS.items())
    for i, (opening, (one, pronoun, other, its), deed, (end, written)) in enumerate(texts):
        sides = [
            (f"{opening} {hero} {deed}{end}", f" {written(its_pronoun)}", its_pronoun)
            for hero, its_pronoun in ((one, pronoun), (other, its))
        ]
        (clean, answer, case), (patch, patch_answer, patch_case) = sides[:: -1 if i % 2 else 1]
        found.append(
            {
                "clean_prefix": clean,
                "patch_prefix": patch,
                "clean_answer": answer,
                "patch_answer": patch_answer,
                "case": f"{case}_{patch_case}",
            }
        )
    return found


def boy_or_girl() -> Iterator[tuple[str, str, str, str]]:
    """A boy and a girl of every kind."""
    for kind in KINDS:
        yield f"a {kind} boy", "he", f"a {kind} girl", "she"


def one_or_two() -> Iterator[tuple[str, str, str, str]]:
    """Each hero with another, and as an animal alone."""
    for (name, pronoun), (other, animal) in product(NAMES.items(), COMPANIONS.items()):
        yield f"{name} and {other}", "they", f"{name} the {animal}", pronoun


def main(folder: Path) -> None:
    """Write the files of both tasks; no pair is in two."""
    for task, heroes in {"pronoun": boy_or_girl, "number": one_or_two}.items():
        every = pairs(list(heroes()))
        Random(0).shuffle(every)
        for name, part in (("train", every[N_TEST : 4 * N_TEST]), ("test", every[:N_TEST])):
            lines = "".join(json.dumps(pair) + "\n" for pair in part)
            (folder / f"{task}_{name}.json").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
