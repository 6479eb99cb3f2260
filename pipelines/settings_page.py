"""The page and the editors' schema of what an experiment's file may say, from the settings alone.

`python -m pipelines.settings_page` prints ``docs/settings.md``, with ``--schema`` it prints
``experiments/schema.json``; a test compares both with what is committed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from assets.settings import Settings

_HEAD = """# Settings

Every key of an experiment's file, with its default: `python -m pipelines.settings_page` prints
this page. A dash means that the key must be given. Relative paths are taken from the folder of the
file. Editors that know `experiments/schema.json`, named in the first line of a shipped file,
complete keys and mark mistakes. Names of your own are made of letters, digits and underscores.
"""
_BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
_NO_BOUND = 1e9
_TITLES = {
    "TrainSettings": "dictionaries, trained",
    "ImportSettings": "dictionaries, imported",
    "GroupingSettings": "comparisons",
    "CheckSettings": "checks",
    "CircuitSettings": "circuits",
    "EvaluationSettings": "evaluations",
    "TaskSettings": "tasks",
    "PairFiles": "pairs of a task",
    "LabelledTextSettings": "labelled texts",
    "ClassifierCircuitSettings": "circuit of a classifier",
    "JudgementSettings": "judgements",
}


def editor_schema() -> dict[str, Any]:
    """The JSON schema of a file."""
    schema = _tidied(Settings.model_json_schema())
    schema["$defs"]["TrainSettings"]["required"] = ["source"]  # says which of two sections it is
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def describe_settings() -> str:
    """The page docs/settings.md."""
    schema = editor_schema()
    sections = schema["$defs"]
    # In the order of the file, each section below the first that names it.
    names = list(dict.fromkeys(_named(schema, sections)))
    parts = [_HEAD, _section("The file", schema)]
    parts += [_section(_title(name), sections[name]) for name in names]
    return "\n".join(parts)


def _tidied(node: Any) -> Any:
    """Bounds under their standard names, text on one line, and no titles made of names."""
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if isinstance(node, str):
        return node.replace("\n", " ")
    if not isinstance(node, dict):
        return node
    return {
        _BOUNDS.get(key, key): {name: _tidied(part) for name, part in value.items()}
        if key in ("properties", "$defs")
        else _tidied(value)
        for key, value in node.items()
        if key != "title"
    }


def _named(node: Any, sections: dict[str, Any]) -> Iterator[str]:
    """Sections that a schema refers to, with those that these refer to."""
    if isinstance(node, list):
        for item in node:
            yield from _named(item, sections)
    elif isinstance(node, dict):
        if "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[1]
            yield name
            yield from _named(sections[name], sections)
        for key, value in node.items():
            if key != "$defs":
                yield from _named(value, sections)


def _title(name: str) -> str:
    return _TITLES.get(name, name.removesuffix("Settings").lower())


def _section(title: str, section: dict[str, Any]) -> str:
    rows = [
        f"| {key} | {_type(part)} | {_default(part, key in section.get('required', ()))} | "
        f"{part['description']} |"
        for key, part in section["properties"].items()
    ]
    head = ["| key | what it is | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {title}\n", f"{section['description']}\n", *head, *rows, ""])


def _default(part: dict[str, Any], required: bool) -> str:
    if required or "default" not in part:
        return "-" if required else "none"
    value = part["default"]
    if isinstance(value, dict):
        return "as below"
    if isinstance(value, list):
        return ", ".join(map(str, value)) if any(value) else "none"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "not given"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value) or "empty"


def _type(part: dict[str, Any]) -> str:
    """A schema in plain words."""
    for key in ("anyOf", "oneOf"):
        if key in part:
            return " or ".join(_type(p) for p in part[key] if p.get("type") != "null")
    if "$ref" in part:
        title = _title(part["$ref"].rsplit("/", 1)[1])
        return f"[{title}](#{title.replace(',', '').replace(' ', '-')})"
    if "const" in part or "enum" in part:
        return ", ".join(part.get("enum", [part.get("const")]))
    if part["type"] == "array" and "prefixItems" in part:
        return f"two of: {_type(part['prefixItems'][0])}"
    if part["type"] == "array":
        every = part["items"] if "items" in part else part["prefixItems"][0]  # of one kind
        return f"list of: {_type(every)}"
    if part["type"] == "object":
        return f"by name: {_type(part['additionalProperties'])}"
    if part["type"] in ("integer", "number"):
        return _number(part)
    return {"string": "text", "boolean": "true or false"}[part["type"]]


def _number(part: dict[str, Any]) -> str:
    words = ["whole number" if part["type"] == "integer" else "number"]
    if part.get("minimum", -_NO_BOUND) > -_NO_BOUND:
        words.append(f"from {part['minimum']:,}")
    if "exclusiveMinimum" in part:
        words.append(f"above {part['exclusiveMinimum']:,}")
    if part.get("maximum", _NO_BOUND) < _NO_BOUND:
        words.append(f"up to {part['maximum']:,}")
    return " ".join(words)


def schema_text() -> str:
    """What experiments/schema.json holds."""
    return json.dumps(editor_schema(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text() if "--schema" in sys.argv[1:] else describe_settings())
