"""Writes contrastive pairs for the model of stories260k.yaml: a pronoun after a girl or a boy.

    python experiments/examples/story_pairs.py experiments/examples/pairs

writes pronoun_train.json and pronoun_test.json, JSON lines in the layout of the authors' pairs.
"""

import json
import sys
from itertools import product
from pathlib import Path
from random import Random

OPENINGS = ("One day, a", "Once upon a time, a", "Once there was a", "In the park, a")
KINDS = ("little", "happy", "sad", "good", "small")
DEEDS = (
    "went to the park.",
    "saw a big dog.",
    "found a red ball.",
    "played with a toy.",
    "wanted to help.",
    "was very happy.",
    "had a big box.",
    "liked to run and jump.",
)
ENDS = (("", " He", " She"), (" One day,", " he", " she"))
"""What stands between the deed and the pronoun, and the pronoun there."""

N_TEST = 80


def pairs() -> list[dict[str, str]]:
    """Every pair, girls and boys in turn the clean side."""
    found = []
    texts = product(OPENINGS, KINDS, DEEDS, ENDS)
    for i, (opening, kind, deed, (end, he, she)) in enumerate(texts):
        boy, girl = (f"{opening} {kind} {hero} {deed}{end}" for hero in ("boy", "girl"))
        both = ((girl, she), (boy, he))
        (clean, answer), (patch, patch_answer) = both if i % 2 else both[::-1]
        found.append(
            {
                "clean_prefix": clean,
                "patch_prefix": patch,
                "clean_answer": answer,
                "patch_answer": patch_answer,
                "case": "girl_boy" if i % 2 else "boy_girl",
            }
        )
    return found


def main(folder: Path) -> None:
    """Write both files; no pair is in both."""
    every = pairs()
    Random(0).shuffle(every)
    for name, part in (("train", every[N_TEST:]), ("test", every[:N_TEST])):
        lines = "".join(json.dumps(pair) + "\n" for pair in part)
        (folder / f"pronoun_{name}.json").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
