"""Read an experiment's YAML file, and say everything that is wrong with it at once.

`read_experiment` looks at the file alone: no network, no torch, no other file. `check_places` then
looks whether the folders and files it names are there.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from assets.settings import (
    CHOSEN,
    Experiment,
    ExperimentError,
    GroupingSettings,
    ImportSettings,
    PairFiles,
    Section,
    Settings,
    TaskSettings,
    TrainSettings,
    is_path,
    submodule_names,
)

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_UNIONS: Mapping[tuple[str, str], type[Section]] = {
    ("dictionaries", "train"): TrainSettings,
    ("dictionaries", "import"): ImportSettings,
}
_MAPPINGS: Mapping[tuple[type[BaseModel], str], type[Section]] = {
    (TaskSettings, "pairs"): PairFiles,
    (Settings, "comparisons"): GroupingSettings,
}

_RENAMED = {
    "agreement": "tasks",
    "tasks.n_train": "tasks.n_examples",
    "tasks.n_test": "tasks.n_evaluated",
    "tasks.n_thresholds": "evaluations.n_thresholds",
    "dictionaries.l1": "dictionaries.sparsity",
    "evaluations.errors": "evaluations.error_nodes",
}
"""Keys by what they were called; in this order."""

Problem = tuple[str, str]
"""Where in the file, and what is wrong there."""


def read_experiment(path: Path) -> Experiment:
    """The experiment that a YAML file describes.

    Raises:
        ExperimentError: the file cannot be read, or says something impossible; every problem is
            listed with its place in the file.
    """
    path = path.expanduser().resolve()
    if not _NAME.fullmatch(path.stem):
        raise ExperimentError(
            f"{path.name}: the file's name becomes part of every asset key: use letters, digits, "
            "_ and - only."
        )
    content = _content(path)
    raw = _parse(path, content)
    if problems := list(_rename(raw)):
        raise _listed(path, problems)
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise _listed(path, _shape_problems(error)) from None
    if problems := list(_impossible(settings)):
        raise _listed(path, problems)
    folder = Path(settings.artifacts or ROOT / "artifacts" / path.stem).expanduser()
    return Experiment(
        name=path.stem,
        path=path,
        settings=settings,
        artifacts=Path(os.path.abspath(path.parent / folder)),
        digest=hashlib.sha256(content).hexdigest(),
    )


def shipped_experiments() -> list[Path]:
    """The files directly in ``experiments/``, by name."""
    return sorted(EXPERIMENTS.glob("*.yaml"))


def check_places(experiment: Experiment) -> None:
    """Raise if a folder or file that the experiment names is not there.

    Raises:
        ExperimentError: every missing place, with where the file names it.
    """
    missing = [
        (where, f"{place} does not exist.{advice}")
        for where, place, advice in _places(experiment)
        if not Path(place).exists()
    ]
    if missing:
        raise _listed(experiment.path, missing)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        near = difflib.get_close_matches(path.stem, [p.stem for p in shipped_experiments()], n=1)
        hint = f" Did you mean {EXPERIMENTS.name}/{near[0]}.yaml?" if near else ""
        raise ExperimentError(f"{path} cannot be read: {error.strerror}.{hint}") from None


def _parse(path: Path, content: bytes) -> Any:
    try:
        raw = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ExperimentError(f"{path} must hold sections such as model: and corpus:.")
    return raw


def _rename(raw: dict[str, Any]) -> Iterator[Problem]:
    """Give keys that were renamed their new names, in place."""
    for old, new in _RENAMED.items():
        *sections, key = old.split(".")
        *new_sections, new_key = new.split(".")
        before = raw.get(sections[0]) if sections else raw
        if not isinstance(before, dict) or key not in before:
            continue
        after = raw.setdefault(new_sections[0], {}) if new_sections else raw
        if not isinstance(after, dict):
            continue
        if new_key in after:
            yield new, f"is given twice: {old} is what it was called."
        else:
            after[new_key] = before.pop(key)


def _listed(path: Path, problems: Iterable[Problem]) -> ExperimentError:
    lines = [f"  {where}: {what}" for where, what in problems]
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return ExperimentError("\n".join([f"{path} has {count}:", *lines]))


# -- what pydantic finds: unknown and missing keys, values of the wrong kind -----------------------


def _shape_problems(error: ValidationError) -> Iterator[Problem]:
    seen: set[str] = set()
    for detail in error.errors():
        where = _key_path(detail["loc"])
        if where in seen:  # a union reports one problem for each of its members
            continue
        seen.add(where)
        yield where, _shape_problem(detail)


def _shape_problem(detail: Any) -> str:
    if detail["type"] == "extra_forbidden":
        return _unknown_key(detail["loc"])
    if detail["type"] == "missing":
        return "is missing."
    if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return "needs source: train or source: import."
    given = detail["input"]
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{given!r} will not do: {message}." + _nearest_value(given, detail)


def _nearest_value(given: Any, detail: Any) -> str:
    if detail["type"] != "literal_error":
        return ""
    near = difflib.get_close_matches(str(given), re.findall(r"'(\w+)'", detail["msg"]), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _key_path(location: tuple[int | str, ...]) -> str:
    parts: list[str] = []
    for part in location:
        if parts[:1] == ["dictionaries"] and len(parts) == 1 and part in ("train", "import"):
            continue
        if isinstance(part, int):
            parts[-1] += f"[{part}]"
        elif re.fullmatch(r"[\w -]+", part):  # not the name of a union's member
            parts.append(part)
    return ".".join(parts)


def _unknown_key(location: tuple[int | str, ...]) -> str:
    known = list(_section_at(location[:-1]).model_fields)
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; here the keys are {', '.join(known)}."


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    if location[:1] == ("dictionaries",):
        return _UNIONS[("dictionaries", str(location[1]))]
    section: type[BaseModel] = Settings
    for part in location:
        if (section, part) in _MAPPINGS:  # what follows is a name, and then a key
            return _MAPPINGS[section, str(part)]
        annotation = section.model_fields[str(part)].annotation
        members = [annotation, *getattr(annotation, "__args__", ())]
        section = next(m for m in members if isinstance(m, type) and issubclass(m, BaseModel))
    return section


# -- what the sections say together ---------------------------------------------------------------


def _impossible(settings: Settings) -> Iterator[Problem]:
    yield from _submodule_problems(settings)
    yield from _dictionary_problems(settings)
    if not _DEVICE.fullmatch(settings.model.device):
        yield "model.device", f"'{settings.model.device}' is none of auto, cpu, cuda, cuda:1."
    yield from _clustering_problems(settings)
    layers = settings.model.n_layers
    for where, section in (
        ("evaluations", settings.evaluations),
        ("tasks", settings.tasks),
    ):
        if section is not None and section.start_layer >= layers:
            yield f"{where}.start_layer", f"the model has layers 0 to {layers - 1}."
    length = settings.circuits.max_length
    if length is not None and length > settings.corpus.n_positions:
        yield (
            "circuits.max_length",
            f"contexts have at most {settings.corpus.n_positions} tokens (corpus.n_positions).",
        )


def _clustering_problems(settings: Settings) -> Iterator[Problem]:
    n_samples = settings.filter.n_samples
    all_of_them = {"clustering": settings.clustering} | {
        f"comparisons.{name}": grouping for name, grouping in settings.comparisons.items()
    }
    for name in settings.comparisons:
        if not re.fullmatch(r"\w+", name) or name == CHOSEN:
            yield (
                f"comparisons.{name}",
                f"a name is made of letters, digits and underscores, and is not {CHOSEN}.",
            )
    for where, grouping in all_of_them.items():
        yield from _place_problems(f"{where}.submodules", grouping, settings)
        most = max(grouping.k)
        if n_samples is not None and n_samples < most:
            yield f"{where}.k", f"{most} clusters cannot be made of {n_samples} samples (filter)."
        if n_samples is None and grouping.algorithm == "spectral":
            yield (
                "filter.n_samples",
                "spectral clustering compares every sample with every other: give a number, 8192 "
                f"in the paper, or {where}.algorithm: kmeans.",
            )


def _place_problems(
    where: str, grouping: GroupingSettings, settings: Settings
) -> Iterator[Problem]:
    if grouping.submodules is None:
        return
    if grouping.representation == "gradients":
        yield where, "gradients are those of all layers' weights: leave submodules out."
        return
    known = submodule_names(settings.model.n_layers)
    of_features = grouping.representation in ("features", "feature_effects")
    if of_features and settings.submodules is not None:
        known = [name for name in known if name in settings.submodules]
    layers = settings.model.n_layers
    why = "no dictionary sits at" if of_features else f"a model of {layers} layers has no"
    yield from _name_problems(where, grouping.submodules, known, why)


def _submodule_problems(settings: Settings) -> Iterator[Problem]:
    if settings.submodules is not None:
        layers = settings.model.n_layers
        why = f"a model of {layers} layers has no"
        yield from _name_problems("submodules", settings.submodules, submodule_names(layers), why)


def _name_problems(
    where: str, names: Sequence[str], known: Sequence[str], why: str
) -> Iterator[Problem]:
    """Names of submodules that are not among the known ones, or are there twice."""
    for i, name in enumerate(names):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            yield f"{where}[{i}]", f"{why} '{name}'.{hint}"
        elif name in names[:i]:
            yield f"{where}[{i}]", f"'{name}' is there twice."


def _dictionary_problems(settings: Settings) -> Iterator[Problem]:
    dictionaries = settings.dictionaries
    if isinstance(dictionaries, TrainSettings):
        if dictionaries.warmup >= dictionaries.steps:
            yield (
                "dictionaries.warmup",
                f"{dictionaries.warmup} steps of warm-up leave none of {dictionaries.steps}.",
            )
        n_features, k = dictionaries.n_features, dictionaries.k
        if dictionaries.kind in ("topk", "batchtopk") and n_features is not None and k > n_features:
            yield "dictionaries.k", f"there are only {n_features} features."
        return
    known = submodule_names(settings.model.n_layers)
    chosen = known if settings.submodules is None else settings.submodules
    for name in chosen:
        if dictionaries.path_of(name) is None:
            yield "dictionaries.path", f"is missing, and paths has none for {name}."
    yield from _unknown_paths(dictionaries.paths, known)


def _unknown_paths(paths: Mapping[str, str], known: Sequence[str]) -> Iterator[Problem]:
    kinds = {name.split("_")[0] for name in known}
    for name in paths:
        if name not in known and name not in kinds:
            near = difflib.get_close_matches(name, [*known, *kinds], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            yield f"dictionaries.paths.{name}", f"names no submodule and no kind.{hint}"


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
