"""Write what the default experiment reads: `python -m testbed.generate --out DIR --documents N`.

    corpus.jsonl                      text and labels, one document a line
    agreement/STRUCTURE_SPLIT.json    contrastive pairs, one a line
    biographies.jsonl                 text, profession, gender, and which each token tells
    settings.json                     what the rest was written from

A folder whose settings.json says the same is left alone.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from testbed.grammar import documents
from testbed.labelled import labelled_biographies
from testbed.pairs import SPLITS, STRUCTURES, agreement_pairs

N_DOCUMENTS = 6000
N_PAIRS = 1000
N_BIOGRAPHIES = 4000
SEED = 1
SETTINGS = "settings.json"


def write_corpus(path: Path, n_documents: int, seed: int) -> None:
    """Write documents as JSON lines: `text`, and `labels`, one for each token of the text."""
    _write_lines(path, ({"text": d.text, "labels": d.labels} for d in documents(n_documents, seed)))


def write_pairs(folder: Path, n_pairs: int = N_PAIRS, seed: int = SEED) -> None:
    """Write `folder/STRUCTURE_SPLIT.json` for the four structures and both splits."""
    for structure in STRUCTURES:
        for split in SPLITS:
            pairs = agreement_pairs(structure, n_pairs, split, seed)
            _write_lines(folder / f"{structure}_{split}.json", pairs)


def generate(
    out: Path,
    n_documents: int = N_DOCUMENTS,
    n_pairs: int = N_PAIRS,
    n_biographies: int = N_BIOGRAPHIES,
    seed: int = SEED,
) -> bool:
    """Write everything under `out`, unless it is there; whether anything was written.

    It is written in a folder inside `out` and moved into place at the end, `settings.json` last, so
    that a run that is interrupted leaves nothing that looks complete.
    """
    settings = {
        "n_documents": n_documents,
        "n_pairs": n_pairs,
        "n_biographies": n_biographies,
        "seed": seed,
        "grammar": grammar_digest(),
    }
    if _read_settings(out) == settings:
        return False
    unfinished = out / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "agreement").mkdir(parents=True)
    (out / "agreement").mkdir(exist_ok=True)
    write_corpus(unfinished / "corpus.jsonl", n_documents, seed)
    write_pairs(unfinished / "agreement", n_pairs, seed)
    _write_lines(unfinished / "biographies.jsonl", labelled_biographies(n_biographies, seed))
    _write_lines(unfinished / SETTINGS, [settings])
    # From here on the files are of two runs, until the new settings are in place.
    (out / SETTINGS).unlink(missing_ok=True)
    written = [file.relative_to(unfinished) for file in unfinished.rglob("*.json*")]
    for file in sorted(written, key=lambda file: file == Path(SETTINGS)):
        (unfinished / file).replace(out / file)
    shutil.rmtree(unfinished)
    return True


def grammar_digest() -> str:
    """A digest of the modules that decide what is written."""
    digest = hashlib.sha256()
    for module in sorted(Path(__file__).parent.glob("*.py")):
        if module.stem not in ("train", "evaluate", "data", "tokenizer"):
            digest.update(module.read_bytes())
    return digest.hexdigest()[:16]


def _read_settings(out: Path) -> dict[str, object] | None:
    try:
        return json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--documents", type=int, default=N_DOCUMENTS, help="size of the corpus")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    written = generate(arguments.out, arguments.documents, seed=arguments.seed)
    what = f"{arguments.documents} documents, agreement pairs and biographies"
    print(f"{arguments.out}: {what} {'written' if written else 'already there'}")


if __name__ == "__main__":
    main()
