import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from testbed import generate as module
from testbed.evaluate import MODEL
from testbed.generate import write_pairs
from testbed.pairs import SPLITS, STRUCTURES


def generate(out: Path, n_documents: int) -> bool:
    return module.generate(out, n_documents, n_pairs=10, n_biographies=8)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_labels_in_the_corpus_are_those_of_the_models_tokens(tmp_path: Path) -> None:
    generate(tmp_path, 30)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    corpus = lines(tmp_path / "corpus.jsonl")
    assert len(corpus) == 30
    for row in corpus:
        assert len(tokenizer(row["text"])["input_ids"]) == len(row["labels"])


def test_everything_the_default_experiment_reads_is_written(tmp_path: Path) -> None:
    generate(tmp_path / "deep" / "data", 5)
    written = {
        str(path.relative_to(tmp_path / "deep" / "data"))
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    pairs = {f"agreement/{name}_{split}.json" for name in STRUCTURES for split in SPLITS}
    assert written == {"corpus.jsonl", "biographies.jsonl", "settings.json"} | pairs
    assert not list(tmp_path.rglob(".unfinished"))


def test_a_second_run_writes_nothing_and_another_setting_does(tmp_path: Path) -> None:
    assert generate(tmp_path, 5)
    before = (tmp_path / "corpus.jsonl").stat().st_mtime_ns
    assert not generate(tmp_path, 5)
    assert (tmp_path / "corpus.jsonl").stat().st_mtime_ns == before
    assert generate(tmp_path, 6)
    assert len(lines(tmp_path / "corpus.jsonl")) == 6


def test_an_interrupted_run_is_not_taken_for_a_complete_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "labelled_biographies", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "data", 5)
    monkeypatch.undo()
    assert not (tmp_path / "data" / "corpus.jsonl").exists()
    assert generate(tmp_path / "data", 5)


def test_pairs_are_written_in_the_authors_form(tmp_path: Path) -> None:
    write_pairs(tmp_path, 10)
    row = lines(tmp_path / "across_pp_train.json")[0]
    assert list(row) == ["clean_prefix", "patch_prefix", "clean_answer", "patch_answer", "case"]
