"""What is told about the settings is what they are: the page, and the editors' schema."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from assets.settings import RENAMED
from pipelines.experiment import EXPERIMENTS, ROOT
from pipelines.settings_page import describe_settings, editor_schema, schema_text
from tests.tiny_experiment import settings

SHIPPED = sorted(EXPERIMENTS.rglob("*.yaml"))


def _mistakes(content: object) -> list[str]:
    validator = jsonschema.Draft202012Validator(editor_schema())
    return [error.message for error in validator.iter_errors(content)]  # pyright: ignore


def test_the_committed_page_and_schema_are_the_generated_ones() -> None:
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == describe_settings()
    assert (EXPERIMENTS / "schema.json").read_text(encoding="utf-8") == schema_text()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_names_its_schema_and_keeps_to_it(path: Path) -> None:
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == EXPERIMENTS / "schema.json"
    assert _mistakes(yaml.safe_load(path.read_bytes())) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"layers": 2}},
        {"circuits": {"steps": 0}},
        {"clustering": {"k": [3, 0]}},
        {"dictionaries": {"source": "download"}},
        {"evaluations": {"error_nodes": ["none"]}},
        {"agreement": {"pairs": {}}},
        {"dictionaries": {"l1": 0.1}},
    ],
)
def test_the_schema_marks_what_is_refused_and_old_words(changed: dict[str, object]) -> None:
    assert _mistakes(settings()) == []
    assert _mistakes(settings(**changed))


def test_the_page_has_every_new_word_and_no_old_one() -> None:
    page = describe_settings()
    keys = {line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")}
    assert {f"| {new.split('.')[-1]}" for new in RENAMED.values()} <= keys
    assert not {"| agreement", "| n_train", "| n_test", "| l1", "| errors"} & keys
