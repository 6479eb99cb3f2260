"""Read an experiment's YAML file, and say everything that is wrong with it at once.

`read_experiment` looks at the file alone: no network, no torch, no other file. `check_places` then
looks whether the folders and files it names are there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from assets.engine.remote import copy_of
from assets.settings import (
    RENAMED,
    Experiment,
    ExperimentError,
    ImportSettings,
    Problem,
    Settings,
    TrainSettings,
    is_address,
    is_path,
    nearest,
)
from pipelines.yaml_tree import MOST_BYTES, read_tree

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_PROBLEMS, _LONGEST_LINE = 50, 500


def read_experiment(path: Path) -> Experiment:
    """The experiment that a YAML file describes.

    Raises:
        ExperimentError: the file cannot be read, or says something impossible; every problem is
            listed with its place in the file.
    """
    path = Path(os.path.realpath(os.path.expanduser(path)))
    if not _NAME.fullmatch(path.stem):
        raise _error(
            f"{path.name}: the file's name becomes part of every asset key: use letters, digits, "
            "_ and - only, at most 64."
        )
    content = _content(path)
    try:
        raw, problems = read_tree(content)
    except ValueError as error:
        raise _error(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise _error(f"{path} must hold sections such as model: and corpus:.")
    problems += _rename(raw)
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise _listed(path, [*problems, *_shape_problems(error)]) from None
    if problems:
        raise _listed(path, problems)
    written = settings.artifacts or str(ROOT / "artifacts" / path.stem)
    try:
        artifacts = (
            copy_of(written)
            if is_address(written)
            else Path(os.path.abspath(path.parent / os.path.expanduser(written)))
        )
    except ExperimentError as error:
        raise _listed(path, [(("artifacts",), str(error))]) from None
    return Experiment(
        name=path.stem,
        path=path,
        settings=settings,
        artifacts=artifacts,
        digest=hashlib.sha256(content).hexdigest(),
    )


def read_all(paths: Iterable[Path]) -> tuple[list[Experiment], list[ExperimentError]]:
    """The experiments that can be read, and why the others cannot; none hides another.

    Files whose names Dagster cannot tell apart (``a-b.yaml`` and ``a_b.yaml``), and files that
    write to one artifacts folder, are one error, and none of them is among the experiments.
    """
    experiments: list[Experiment] = []
    errors: list[ExperimentError] = []
    for path in paths:
        try:
            experiments.append(read_experiment(path))
        except ExperimentError as error:
            errors.append(error)
    clashing: set[str] = set()
    clashes = {
        "would both be the group {}: rename one of them.": lambda one: one.group,
        "would both write to {}, each over what the other made: give one of them another folder "
        "with artifacts.": lambda one: str(one.artifacts),
    }
    for told, of in clashes.items():
        for shared, members in _together(experiments, of).items():
            names = " and ".join(str(member.path) for member in members)
            errors.append(_error(f"{names} {told.format(shared)}"))
            clashing |= {str(member.path) for member in members}
    return [one for one in experiments if str(one.path) not in clashing], errors


def _together(
    experiments: Iterable[Experiment], of: Callable[[Experiment], str]
) -> dict[str, list[Experiment]]:
    """Experiments that have something in common with another, by what that is."""
    groups: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(of(experiment), []).append(experiment)
    return {shared: members for shared, members in groups.items() if len(members) > 1}


def shipped_experiments() -> list[Path]:
    """The files directly in ``experiments/``, by name."""
    return sorted(EXPERIMENTS.glob("*.yaml"))


def check_places(experiment: Experiment) -> None:
    """Raise if a folder or file that the experiment names is not there, or would be written into.

    Raises:
        ExperimentError: every such place, with where the file names it.
    """
    wrong = [
        (tuple(where.split(".")), f"{place} does not exist.{advice}")
        for where, place, advice in _places(experiment)
        if not os.path.exists(place)
    ]
    written = os.path.realpath(experiment.artifacts)
    wrong += [
        (
            ("artifacts",),
            f"{written} is also {where}: what is written there would be read as input.",
        )
        for where, place, _ in _places(experiment)
        if os.path.realpath(place) == written
    ]
    if wrong:
        raise _listed(experiment.path, wrong)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except OSError as error:
        shipped = [f"{EXPERIMENTS.name}/{file.name}" for file in shipped_experiments()]
        hint = nearest(f"{EXPERIMENTS.name}/{path.name}", shipped, cutoff=0.9)
        raise _error(f"{path} cannot be read: {error.strerror}.{hint}") from None


def _rename(raw: dict[str, Any]) -> Iterator[Problem]:
    """Give keys that were renamed their new names, in place."""
    for old, new in RENAMED.items():
        *sections, key = old.split(".")
        *new_sections, new_key = new.split(".")
        before = raw.get(sections[0]) if sections else raw
        if not isinstance(before, dict) or key not in before:
            continue
        after = raw.setdefault(new_sections[0], {}) if new_sections else raw
        if not isinstance(after, dict):
            continue
        value = before.pop(key)
        if after.setdefault(new_key, value) is not value:
            yield tuple(new.split(".")), f"is given twice: {old} is what it was called."


def _listed(path: Path, problems: Sequence[Problem]) -> ExperimentError:
    lines = [
        f"  {_printable(_key_path(where))}: {_printable(told)}"
        for where, told in problems[:_MOST_PROBLEMS]
    ]
    if n_more := len(problems) - len(lines):
        lines.append(f"  and {n_more} more.")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return _error("\n".join([f"{path} has {count}:", *lines]))


def _error(message: str) -> ExperimentError:
    """Lines of a length that a log can show, in characters that any terminal can."""
    lines = message.encode(errors="backslashreplace").decode().split("\n")
    return ExperimentError("\n".join(_shortened(_printable(line), _LONGEST_LINE) for line in lines))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _key_path(where: Sequence[str | int]) -> str:
    parts = "".join(
        f"[{part}]" if isinstance(part, int) else f".{_shortened(part, 100)}" for part in where
    )
    return parts.removeprefix(".") or "the file"


# -- what pydantic finds --------------------------------------------------------------------------


def _shape_problems(error: ValidationError) -> Iterator[Problem]:
    details = error.errors()
    places = [detail["loc"] for detail in details]
    for detail in details:
        n = len(detail["loc"])
        if detail["type"] == "too_short" and any(p[:n] == detail["loc"] != p for p in places):
            continue  # short of what is wrong itself
        where = [part for part in detail["loc"] if part != "[key]"]
        if where[:2] in (["dictionaries", "train"], ["dictionaries", "import"]):
            del where[1]  # which of two sections it is, and no key
        yield tuple(where), _shape_problem(detail)


def _shape_problem(detail: Any) -> str:
    if detail["type"] == "clash":
        return detail["msg"]
    if detail["type"] == "extra_forbidden":
        return _unknown_key(detail["loc"])
    if detail["type"] == "missing":
        return "is missing."
    if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return "needs source: train or source: import."
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{_shown(detail['input'])} will not do: keys are needed here, or leave it out."
    given, message = detail["input"], detail["msg"][0].lower() + detail["msg"][1:]
    choices = re.findall(r"'(\w+)'", message) if detail["type"] == "literal_error" else []
    hint = nearest(str(given), choices)
    return f"{_shown(given)} will not do: {message}.{hint}"


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "null" if value is None else _shortened(repr(value), 100)


def _unknown_key(location: tuple[int | str, ...]) -> str:
    known = _keys_beside(location)
    near = nearest(str(location[-1]), known, cutoff=0.5)
    if near:
        return f"unknown key;{near.lower()}"
    return f"unknown key; here the keys are {', '.join(known)}."


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section where the last key of a location is unknown."""
    place: Any = Settings
    for part in location[:-1]:
        if isinstance(place, type):  # a section, and one of its keys
            place = place.model_fields[str(part)].annotation
        elif get_origin(place) is dict:  # a name of the file's own
            place = get_args(place)[1]
        else:  # which of two sections it is
            place = {"train": TrainSettings, "import": ImportSettings}[str(part)]
        if type(None) in get_args(place):
            place = get_args(place)[0]
    return list(place.model_fields)


# -- what the file points at ----------------------------------------------------------------------


def _places(experiment: Experiment) -> Iterator[tuple[str, str, str]]:
    """Where the file names a place on disk, the place, and what to do if it is missing."""
    settings = experiment.settings
    sources = [("model.source", settings.model.source), ("corpus.source", settings.corpus.source)]
    if isinstance(settings.dictionaries, ImportSettings):
        sources.append(("dictionaries.repository", settings.dictionaries.repository))
    for where, source in sources:
        if is_path(source):
            advice = " make corpus writes the test bed's." if "testbed" in source else ""
            yield where, experiment.resolve(source), advice
    if settings.tasks is not None:
        for name, files in settings.tasks.pairs.items():
            for side in ("train", "test"):
                place = experiment.resolve(getattr(files, side))
                yield f"tasks.pairs.{name}.{side}", place, ""
