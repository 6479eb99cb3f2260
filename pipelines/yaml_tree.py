"""A YAML file as mappings, lists, text and None; what its text means is for the schema to say.

YAML 1.1 takes ``1e2`` for text, ``1234567`` and ``2020-01-02`` never for text, and the last of two
equal keys for both. Here nothing is guessed: text without quotes stays text, marked as `Plain`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import yaml

from assets.settings import Plain, Problem

MOST_BYTES = 1_000_000
"""An experiment is a page of text; a file that is longer is none."""

_MOST_LEVELS, _MOST_VALUES = 20, 100_000
_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name for name in ("str", "int", "float", "bool", "timestamp")}


class _Loader(yaml.SafeLoader):
    """Sees null and ``<<`` in text without quotes, and nothing else."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in known if tag in (_TAG + "null", _TAG + "merge")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_tree(content: bytes) -> tuple[Any, list[Problem]]:
    """The tree that a file holds, and what is wrong in it at which keys.

    Raises:
        ValueError: it is no YAML, or larger, deeper or fuller of aliases than an experiment is.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes; an experiment is a page of text.")
    try:
        root = yaml.compose(content, _Loader)
    except RecursionError:
        raise ValueError("it nests too deeply.") from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"{error}; save it as UTF-8.") from None
    except (yaml.YAMLError, OverflowError) as error:  # an escape such as "\UFFFFFFFF" overflows
        raise ValueError(str(error)) from None
    tree = _Tree()
    return (None if root is None else tree.value(root, ())), tree.problems


class _Tree:
    """Turns nodes into values, and keeps what is wrong."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.n_values = 0

    def value(self, node: yaml.Node, where: tuple[str | int, ...]) -> Any:
        self.n_values += 1  # aliases count each time
        if len(where) > _MOST_LEVELS or self.n_values > _MOST_VALUES:
            raise ValueError("it nests too deeply, or its aliases stand for too much.")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*where, i)) for i, item in enumerate(node.value)]
        if node.tag == _TAG + "null":
            return None
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self._text(node, where)
        self.problems.append((where, f"the tag {node.tag} means nothing here: leave it out."))
        return None

    def _text(self, node: yaml.ScalarNode, where: tuple[str | int, ...]) -> str:
        if "\0" in node.value or any("\ud800" <= c <= "\udfff" for c in node.value):
            self.problems.append((where, "holds a character that no text can hold."))
            return ""
        return Plain(node.value) if node.style is None else node.value

    def _mapping(self, node: yaml.MappingNode, where: tuple[str | int, ...]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _TAG + "merge":
                merged = self._merged(value_node, where) | merged
                continue
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _SCALARS:
                self.problems.append((where, f"line {line}: a key must be text."))
                continue
            key = str(self._text(key_node, where))
            if key in lines:
                told = f"is given twice, in line {lines[key]} and in line {line}."
                self.problems.append(((*where, key), told))
            lines[key] = line
            values[key] = self.value(value_node, (*where, key))
        return merged | values

    def _merged(self, node: yaml.Node, where: tuple[str | int, ...]) -> dict[str, Any]:
        """What ``<<`` brings: a mapping, or several of which the first counts most."""
        parts = self.value(node, (*where, "<<"))
        merged: dict[str, Any] = {}
        for part in parts if isinstance(parts, list) else [parts]:
            if isinstance(part, dict):
                merged = part | merged
            else:
                self.problems.append(((*where, "<<"), "brings no mapping."))
        return merged
