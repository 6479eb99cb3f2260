"""However a definition is named, what names it changes with it: trees of a few lines."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from assets.engine.code import Tree
from assets.engine.stage import code_of

WORKER = "def work():\n    return 1\n"
REACHING = {
    "another name": ("from core.a import work as w\n\ndef make():\n    return w()\n", {}),
    "a dotted name": ("import core.a\n\ndef make():\n    return core.a.work()\n", {}),
    "a module under another name": ("import core.a as a\n\ndef make():\n    return a.work()\n", {}),
    "a module of a package": ("from core import a\n\ndef make():\n    return a.work()\n", {}),
    "everything of a module": ("from core.a import *\n\ndef make():\n    return work()\n", {}),
    "a module handed on": (
        "from core import a\n\ndef make():\n    return getattr(a, 'wo' + 'rk')()\n",
        {},
    ),
    "a module named in a text": (
        "from importlib import import_module\n\n"
        "def make():\n    return import_module('core.a').work()\n",
        {},
    ),
    "an import from beside": (
        "from core.b import step\n\ndef make():\n    return step()\n",
        {"core/b.py": "from .a import work\n\ndef step():\n    return work()\n"},
    ),
    "a module from beside": (
        "from core.b import step\n\ndef make():\n    return step()\n",
        {"core/b.py": "from . import a\n\ndef step():\n    return a.work()\n"},
    ),
    "two functions that import one name from two places": (
        "def make():\n    from core.a import work\n    return work()\n\n"
        "def other():\n    from core.b import work\n    return work()\n",
        {"core/b.py": "def work():\n    return 2\n"},
    ),
    "a name that a branch defines": (
        "from core.b import chosen\n\ndef make():\n    return chosen()\n",
        {
            "core/b.py": "import core.a\n\n"
            "if True:\n    def chosen():\n        return core.a.work()\n",
        },
    ),
    "a name that a fallback defines": (
        "from core.b import chosen\n\ndef make():\n    return chosen()\n",
        {
            "core/b.py": "try:\n    import nothing\nexcept ImportError:\n"
            "    from core.a import work\n    chosen = work\n",
        },
    ),
    "a table that another module adds to": (
        "from core.b import TABLE\n\ndef make():\n    return TABLE['w']()\n",
        {
            "core/b.py": "TABLE = {}\n",
            "core/c.py": "from core.a import work\nfrom core.b import TABLE\n\nTABLE['w'] = work\n",
        },
    ),
    "a table that another module calls to be added to": (
        "from core.b import TABLE\n\ndef make():\n    return TABLE['w']()\n",
        {
            "core/b.py": "TABLE = {}\n\ndef add(name, f):\n    TABLE[name] = f\n",
            "core/c.py": "from core.a import work\nfrom core.b import add\n\nadd('w', work)\n",
        },
    ),
    "a table that a decorator adds to": (
        "from core.b import TABLE\n\ndef make():\n    return TABLE['w']()\n",
        {
            "core/b.py": "TABLE = {}\n\ndef add(f):\n    TABLE['w'] = f\n    return f\n",
            "core/c.py": "from core.a import work\nfrom core.b import add\n\n"
            "@add\ndef step():\n    return work()\n",
        },
    ),
}  # fmt: skip


def _tree(root: Path, files: dict[str, str]) -> Tree:
    for name, text in {"core/__init__.py": "", "assets/__init__.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return Tree(root)


@pytest.mark.parametrize("way", REACHING)
def test_a_definition_counts_however_it_is_named(tmp_path: Path, way: str) -> None:
    make, others = REACHING[way]
    entry = [("assets.stages", "make")]
    files = {"core/a.py": WORKER, "assets/stages.py": make, **others}
    before = _tree(tmp_path, files).digest(entry)
    changed = {**files, "core/a.py": WORKER.replace("1", "2")}
    assert _tree(tmp_path, changed).digest(entry) != before
    aside = {**files, "core/idle.py": "def idle():\n    return 1\n"}
    assert _tree(tmp_path, aside).digest(entry) == before


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("Path('words.json').read_text()", "assets/words.json"),
        ("Path(__file__).with_name('wo' + 'rds.json').read_text()", "assets/words.json"),
        ("loader('templates')", "assets/templates/page.html"),
        ("loader('templates')", "assets/templates/parts/head.html"),
    ],
)
def test_a_file_beside_a_module_that_reads_it_counts(tmp_path: Path, code: str, data: str) -> None:
    entry = [("assets.stages", "make")]
    files = {"assets/stages.py": f"def make():\n    return {code}\n", data: "one"}
    before = _tree(tmp_path, files).digest(entry)
    assert _tree(tmp_path, {**files, data: "two"}).digest(entry) != before


def make_twice(times: int, work: Any, jobs: Any) -> Any:
    """A stage's function with something to be filled in."""


def test_what_is_filled_into_a_stages_function_counts() -> None:
    entries, bound = code_of(partial(make_twice, 2))
    assert entries == [(__name__, "make_twice")]
    assert code_of(partial(make_twice, 3))[1] != bound
    assert code_of(partial(make_twice, 2)) == (entries, bound)
    within, _ = code_of(partial(make_twice, test_what_is_filled_into_a_stages_function_counts))
    assert within[1] == (__name__, "test_what_is_filled_into_a_stages_function_counts")
