"""Which code makes a result, and a digest of it: a changed line makes stale what runs it.

Starting from a stage's function, the definitions it names are followed through `core` and `assets`,
as the source files say, nothing being imported: functions, classes (with their methods and
subclasses), constants, what is decorated or registered by something reached, modules that are
handed on whole or named in a text, and the files beside a module that it names or could find.
Comments, docstrings and the way lines are broken do not count. Neither does what a stage writes its
tables with (`assets.engine`), nor the tables' descriptions: a new layout of those has a number of
its own.
"""

from __future__ import annotations

import ast
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

from assets.settings import ExperimentError

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("core", "assets")
_ASIDE = ("assets.engine", "assets.settings", "assets.tables.schemas")
_REST = ""
"""Stands for the statements of a module that define nothing."""

Name = tuple[str, str]
"""A definition: its module, and its name there."""


class ChangedCode(ExperimentError):
    """A source file is not what it was when the process began."""


@dataclass
class _Module:
    """A source file: its top-level definitions, and what its imports name.

    Attributes:
        definitions: statements that define each name.
        imports: ``(module, name)`` by local name, several where functions import different things
            under one name; name is empty for a module itself.
        stars: modules of which everything is imported.
        loose: statements that define nothing, run when the module is imported.
        beside: digest of the files beside it that it reads, as far as its text tells.
    """

    definitions: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[str, set[Name]] = field(default_factory=lambda: defaultdict(set))
    stars: list[str] = field(default_factory=list)
    loose: list[ast.stmt] = field(default_factory=list)
    beside: str = ""


_parsed = cache(ast.parse)


def _read(path: Path, text: str, package: str) -> _Module:
    tree, module = _parsed(text), _Module(beside=_beside(path, text))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.split(".")[0]
                module.imports[local].add((alias.name if alias.asname else local, ""))
        elif isinstance(node, ast.ImportFrom):
            owner = _absolute(node, package)
            for alias in node.names:
                if alias.name == "*":
                    module.stars.append(owner)
                else:
                    module.imports[alias.asname or alias.name].add((owner, alias.name))
    for statement in tree.body:
        names = list(_defined(statement))
        for name in names:
            module.definitions[name].append(statement)
        if not names and not _says_nothing(statement):
            module.loose.append(statement)
    return module


def _beside(path: Path, text: str) -> str:
    """Digest of the files beside a module, and in folders there that are no packages.

    Those count whose name, or whose folder's, stands in the module's text; all of them where it
    asks for its own place, for their names may then be put together.
    """
    folders = [path.parent]
    folders += [f for f in path.parent.iterdir() if f.is_dir() and not any(f.rglob("*.py"))]
    files = [f for i, d in enumerate(folders) for f in (d.rglob("*") if i else d.glob("*"))]
    data = [f for f in files if f.is_file() and f.suffix not in (".py", ".pyc")]
    every = "__file__" in text or "importlib.resources" in text
    counted = []
    for file in sorted(data):
        parts = file.relative_to(path.parent).parts
        if not parts[0].startswith(".") and (every or any(part in text for part in parts)):
            counted.append(f"{parts} {hashlib.sha256(file.read_bytes()).hexdigest()}")
    return "\n".join(counted)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that ``from ... import`` names, whether it says so from its own package or not."""
    if not node.level:
        return node.module or ""
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def _defined(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement binds, those in its branches included."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    for target in targets:
        yield from _bound(target)
    for inner in ast.iter_child_nodes(statement):
        for part in [inner, *getattr(inner, "body", [])]:  # handlers of exceptions, cases
            if isinstance(part, ast.stmt):
                yield from _defined(part)


def _bound(target: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from _bound(part)
    elif isinstance(target, ast.Starred):
        yield from _bound(target.value)


def _says_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If):  # if TYPE_CHECKING: imports
        as_command = any(
            isinstance(part, ast.Name) and part.id == "__name__"
            for part in ast.walk(statement.test)
        )
        return as_command or (all(map(_says_nothing, statement.body)) and not statement.orelse)
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_text or isinstance(statement, ast.Import | ast.ImportFrom)


def _sources(root: Path) -> dict[Path, str]:
    files = [file for package in _PACKAGES for file in sorted((root / package).rglob("*.py"))]
    return {file: file.read_text(encoding="utf-8") for file in files}


_AT_START = _sources(ROOT)
"""The source files when this module was imported: what is imported now is what they say."""


class Tree:
    """The project's source files below a folder, as they are now or were when they were read."""

    def __init__(self, root: Path = ROOT, files: Mapping[Path, str] | None = None) -> None:
        self._files = _sources(root) if files is None else files
        self.modules: dict[str, _Module] = {}
        for file, text in self._files.items():
            name = _module_name(file.relative_to(root))
            package = name if file.stem == "__init__" else name.rpartition(".")[0]
            self.modules[name] = _read(file, text, package)
        self._followers: dict[Name, set[Name]] = defaultdict(set)
        for module, source in self.modules.items():
            for name, statements in source.definitions.items():
                for leader in self._leaders(module, statements):
                    self._followers[leader].add((module, name))
            for leader in self._registries(module, source.loose):
                if leader[0] != module:
                    self._followers[leader].add((module, _REST))
        self._digest = cache(self._digest_of)
        self._next = cache(self._next_of)
        self._together = cache(self._together_of)

    def hold(self) -> None:
        """Import all of it, so that files changed from now on change nothing in this process.

        Raises:
            ChangedCode: one has changed since it was read, so that what runs would not be what
                results are said to be made by.
        """
        for module in self.modules:
            import_module(module)
        changed = [
            str(file)
            for file, text in self._files.items()
            if not file.is_file() or file.read_text(encoding="utf-8") != text
        ]
        if changed:
            raise ChangedCode(
                f"{', '.join(changed)} changed after this process had begun, so it cannot be told "
                "which code a result would be made by: start again."
            )

    def _leaders(self, module: str, statements: Iterable[ast.stmt]) -> Iterator[Name]:
        """Base classes and decorators of a definition, and what the decorators put it in."""
        for statement in statements:
            for base in statement.bases if isinstance(statement, ast.ClassDef) else []:
                yield from self._named(module, base)
            yield from self._registries(module, getattr(statement, "decorator_list", ()))

    def _registries(self, module: str, nodes: Iterable[ast.AST]) -> Iterator[Name]:
        """What pieces of code name, and what that names: a function, and the table it fills."""
        for node in nodes:
            for owner, name in self._named(module, node):
                yield owner, name
                for statement in self.modules[owner].definitions[name]:
                    if not isinstance(statement, ast.ClassDef):
                        yield from self._named(owner, statement)

    def _named(self, module: str, node: ast.AST) -> Iterator[Name]:
        """The project's definitions that a piece of code of a module names."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if "." in node.value and node.value in self.modules:  # import_module("core.edges")
                yield from self._all_of(node.value)
            return
        if isinstance(node, ast.Name | ast.Attribute):
            chain, root = _chain(node)
            if root is not None:
                if chain or isinstance(node.ctx, ast.Load):
                    yield from self._meant(module, root, chain)
                return
        for child in ast.iter_child_nodes(node):
            yield from self._named(module, child)

    def _meant(self, module: str, root: str, chain: list[str]) -> Iterator[Name]:
        """What ``root.a.b`` in a module stands for: a definition, or a whole module."""
        yield from self._resolve(module, root)
        for owner, original in self.modules[module].imports.get(root, ()):
            place, rest = f"{owner}.{original}" if original else owner, list(chain)
            while rest and f"{place}.{rest[0]}" in self.modules:
                place = f"{place}.{rest.pop(0)}"
            if place in self.modules:
                yield from self._resolve(place, rest[0]) if rest else self._all_of(place)

    def _all_of(self, module: str) -> Iterator[Name]:
        return ((module, name) for name in self.modules[module].definitions)

    def _resolve(self, module: str, name: str, seen: frozenset[Name] = frozenset()) -> set[Name]:
        """Where a name of a module is defined; nowhere if that is not in the project."""
        source = self.modules.get(module)
        if source is None or (module, name) in seen:
            return set()
        seen = seen | {(module, name)}
        places = {(module, name)} if name in source.definitions else set[Name]()
        for owner, original in source.imports.get(name, ()):
            places |= self._resolve(owner, original, seen)
        for owner in source.stars:
            places |= self._resolve(owner, name, seen)
        return places

    def reached(self, entries: Iterable[Name]) -> set[Name]:
        """Every definition that these run or are made of, themselves included."""
        waiting = [name for entry in entries for name in self._entry(entry)]
        seen: set[Name] = set()
        while waiting:
            name = waiting.pop()
            if name in seen or _is_aside(name[0]):
                continue
            seen.add(name)
            waiting += self._next(name)
        return seen

    def _next_of(self, name: Name) -> set[Name]:
        """The definitions that one names, and those that it is a base class or decorator of."""
        module = self.modules[name[0]]
        statements = (*module.definitions.get(name[1], ()), *module.loose)
        named = {other for statement in statements for other in self._named(name[0], statement)}
        return named | self._followers.get(name, set())

    def _entry(self, entry: Name) -> set[Name]:
        names = self._resolve(*entry)
        if not names:
            raise LookupError(f"{entry[0]} defines no {entry[1]}.")
        return names

    def _digest_of(self, name: Name) -> str:
        module = self.modules[name[0]]
        text = "".join(map(_text_of, (*module.definitions.get(name[1], ()), *module.loose)))
        text += module.beside
        return hashlib.sha256(text.encode()).hexdigest()

    def digest(self, entries: Iterable[Name]) -> str:
        """Digest of everything these reach, as 16 hexadecimal digits."""
        return self._together(tuple(entries))

    def _together_of(self, entries: tuple[Name, ...]) -> str:
        parts = sorted(f"{m}:{n} {self._digest((m, n))}" for m, n in self.reached(entries))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _chain(node: ast.expr) -> tuple[list[str], str | None]:
    """The attributes of ``root.a.b``, and its root; no root where that is no name."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return names, node.id if isinstance(node, ast.Name) else None


def _is_aside(module: str) -> bool:
    return any(module == aside or module.startswith(f"{aside}.") for aside in _ASIDE)


def is_ours(module: str) -> bool:
    """Whether a module is one whose code counts."""
    return module.split(".")[0] in _PACKAGES and not _is_aside(module)


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


@cache
def _text_of(statement: ast.stmt) -> str:
    """The same, once for each: what is loose counts for all of its module, in every tree."""
    return _written(statement)


def _is_text(statement: object) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


@cache
def installed() -> Tree:
    """The code that runs here."""
    return Tree(ROOT, _AT_START)


@cache
def hold_code() -> None:
    """`Tree.hold` of what runs here, once in a process."""
    installed().hold()
