"""Which code makes a result, and a digest of it: a changed line makes stale what runs it.

Starting from a stage's function, the definitions it names are followed through `core` and `assets`,
as the source files say, nothing being imported: functions, classes (with their methods and
subclasses), constants, what is decorated by something reached, as registries do, and the templates
beside a module that is reached. Comments, docstrings and the way lines are broken do not count.
Neither does what a stage writes its tables with (`assets.engine`), nor the tables' descriptions: a
new layout of those has a number of its own.
"""

from __future__ import annotations

import ast
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("core", "assets")
_ASIDE = ("assets.engine", "assets.settings", "assets.tables.schemas", "assets.plots")

Name = tuple[str, str]
"""A definition: its module, and its name there."""


@dataclass
class _Module:
    """A source file: its top-level definitions, and what its imports name.

    Attributes:
        definitions: statements that define each name.
        imports: ``(module, name)`` by local name; name is empty for a module itself.
        loose: statements that define nothing, run when the module is imported.
        templates: digest of the files in the folder ``templates`` beside it, if it names that.
    """

    definitions: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[str, Name] = field(default_factory=dict)
    loose: list[ast.stmt] = field(default_factory=list)
    templates: str = ""


_parsed = cache(ast.parse)


def _read(path: Path) -> _Module:
    text = path.read_text(encoding="utf-8")
    tree, module = _parsed(text), _Module()
    beside = sorted((path.parent / "templates").glob("*")) if "templates" in text else []
    module.templates = "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in beside)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.split(".")[0]
                module.imports[local] = (alias.name if alias.asname else local, "")
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                module.imports[alias.asname or alias.name] = (node.module, alias.name)
    for statement in tree.body:
        names = list(_defined(statement))
        for name in names:
            module.definitions[name].append(statement)
        if not names and not _says_nothing(statement):
            module.loose.append(statement)
    return module


def _defined(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    for target in targets:
        yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def _says_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If):  # if TYPE_CHECKING: imports
        return all(map(_says_nothing, statement.body)) and not statement.orelse
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_text or isinstance(statement, ast.Import | ast.ImportFrom)


class Tree:
    """The project's source files below a folder."""

    def __init__(self, root: Path = ROOT) -> None:
        files = [file for package in _PACKAGES for file in sorted((root / package).rglob("*.py"))]
        self.modules = {_module_name(file.relative_to(root)): _read(file) for file in files}
        self._followers: dict[Name, set[Name]] = defaultdict(set)
        for module, source in self.modules.items():
            for name, statements in source.definitions.items():
                for leader in self._leaders(module, statements):
                    self._followers[leader].add((module, name))
        # Every stage asks, and partitions each: one walk through the files serves all.
        self._digest = cache(self._digest_of)
        self._next = cache(self._next_of)

    def _leaders(self, module: str, statements: Iterable[ast.stmt]) -> Iterator[Name]:
        """Base classes and decorators of a definition."""
        for statement in statements:
            bases = statement.bases if isinstance(statement, ast.ClassDef) else []
            for node in (*bases, *getattr(statement, "decorator_list", ())):
                yield from self._named(module, node)

    def _named(self, module: str, node: ast.AST) -> Iterator[Name]:
        """The project's definitions that a piece of code of a module names."""
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
                if name := self._resolve(module, part.id):
                    yield name
            elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                owner, empty = self.modules[module].imports.get(part.value.id, ("", "-"))
                if f"{owner}.{empty}" in self.modules:  # from package import module
                    owner, empty = f"{owner}.{empty}", ""
                if not empty and (name := self._resolve(owner, part.attr)):
                    yield name

    def _resolve(self, module: str, name: str) -> Name | None:
        """Where a name of a module is defined; None where that is not in the project."""
        source = self.modules.get(module)
        if source is None:
            return None
        if name in source.definitions:
            return module, name
        if name not in source.imports or source.imports[name] == (module, name):
            return None
        owner, original = source.imports[name]
        return self._resolve(owner, original)

    def reached(self, entries: Iterable[Name]) -> set[Name]:
        """Every definition that these run or are made of, themselves included."""
        waiting, seen = [self._entry(entry) for entry in entries], set()
        while waiting:
            name = waiting.pop()
            if name in seen or name[0].startswith(_ASIDE):
                continue
            seen.add(name)
            waiting += self._next(name)
        return seen

    def _next_of(self, name: Name) -> set[Name]:
        """What a definition names, what its module runs, and what follows it."""
        module = self.modules[name[0]]
        statements = (*module.definitions[name[1]], *module.loose)
        named = {other for one in statements for other in self._named(name[0], one)}
        return named | self._followers.get(name, set())

    def _entry(self, entry: Name) -> Name:
        name = self._resolve(*entry)
        if name is None:
            raise LookupError(f"{entry[0]} defines no {entry[1]}.")
        return name

    def _digest_of(self, name: Name) -> str:
        module = self.modules[name[0]]
        text = "".join(map(_written, (*module.definitions[name[1]], *module.loose)))
        text += module.templates
        return hashlib.sha256(text.encode()).hexdigest()

    def digest(self, entries: Iterable[Name]) -> str:
        """Digest of everything these reach, as 16 hexadecimal digits."""
        parts = sorted(f"{m}:{n} {self._digest((m, n))}" for m, n in self.reached(entries))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _module_name(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _written(node: object) -> str:
    """A statement without its places, docstrings and whatever is empty: alike in every Python."""
    if isinstance(node, list):
        return "[" + ",".join(map(_written, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list):
            value = [s for s in value if not _is_text(s)]
        if value is not None and value != [] and name not in ("ctx", "type_comment", "kind"):
            parts.append(f"{name}={_written(value)}")
    return f"{type(node).__name__}({','.join(parts)})"


def _is_text(statement: object) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


@cache
def installed() -> Tree:
    """The code that runs here."""
    return Tree()
