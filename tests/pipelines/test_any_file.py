"""Whatever a file holds, reading it gives an experiment or an `ExperimentError`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.settings import Experiment, ExperimentError
from pipelines.experiment import EXPERIMENTS, read_experiment

SHIPPED = [path.read_bytes().splitlines() for path in sorted(EXPERIMENTS.rglob("*.yaml"))]
NASTY = [
    *["", "~", "null", "[]", "{}", "[[[[]]]]", "{a: {b: {c: d}}}", "- 1", "text", "true", "on"],
    *["-1", "0", "1e2", "1e400", "1" * 5000, ".inf", "-.inf", ".nan", "0x1F", "0o17", "1:30:00"],
    *["2020-13-45", "2020-01-02", "!!int abc", "!!float x", "!!set {a}", "!!python/none", "!x y"],
    *["&a [*a]", "*a", "<<: {a: 1}", "<<: 3", "? [1]", '"\\ud800"', '"\\0"', '"\\UFFFFFFFF"'],
    *["../../x", "k00003", "clustering", "a b", "\u2028", "\u00e4" * 300, "x" * 2000, "\t"],
    *["---", "...", "| ", "> ", "{", "[" * 2000, "'", '"', "#", ": :", "\0", "\ufeff", "~nobody/x"],
    *["%YAML 9", '"\\e[2J"', "extra: 1", "agreement: {}", "tasks: {pairs: {a: {}}}"],
]
NAMES = ["..", ".", "", "../x", "/x", "a/b", "a\\b", "k00003", "good_Name1", "A" * 64, "x\n"]
KINDS = ["tasks", "comparisons"]
nasty = st.sampled_from([text.encode() for text in NASTY])


def _changed(line: bytes, how: str, new: bytes, at: int) -> list[bytes]:
    key, colon, value = line.partition(b":")
    indent = line[: len(line) - len(line.lstrip())]
    return {
        "deleted": [],
        "doubled": [line, line],
        "indented": [b"  " + line],
        "value": [key + b": " + new],
        "key": [indent + new + colon + value],
        "spliced": [line[:at] + new + line[at + 2 :]],
    }[how]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A shipped file with up to four lines, keys, scalars or pieces changed."""
    lines = list(draw(st.sampled_from(SHIPPED)))
    hows = st.sampled_from(["deleted", "doubled", "indented", "value", "key", "spliced"])
    for _ in range(draw(st.integers(1, 4))):
        i = draw(st.integers(0, len(lines) - 1))
        new = draw(st.one_of(nasty, nasty, nasty, st.binary(max_size=8)))
        lines[i : i + 1] = _changed(lines[i], draw(hows), new, draw(st.integers(0, 80)))
    content = b"\n".join(lines)
    encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-16", "latin-1", "utf-32"]))
    return content if encoding == "utf-8" else content.decode("latin-1").encode(encoding)


def _read(folder: Path, content: bytes) -> None:
    path = folder / "mutated.yaml"
    path.write_bytes(content)
    try:
        experiment = read_experiment(path)
    except ExperimentError as error:
        lines = str(error).split("\n")
    else:
        lines = []
        _assert_sound(experiment)
    assert all(line.isprintable() and len(line) <= 500 for line in lines)


def _assert_sound(experiment: Experiment) -> None:
    assert len(experiment.clusters) <= 100_000
    tasks = experiment.settings.tasks
    folder = experiment.artifacts.resolve() / "any"
    for name in [*experiment.settings.comparisons, *(tasks.pairs if tasks else ())]:
        assert (folder / name).resolve().parent == folder
        assert name not in experiment.clusters


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(content=mutated())
def test_any_file_gives_an_experiment_or_says_why_not(folder: Path, content: bytes) -> None:
    _read(folder, content)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(name=st.text(max_size=70) | st.sampled_from(NAMES), kind=st.sampled_from(KINDS))
def test_no_name_that_is_accepted_leads_out_of_its_folder(
    folder: Path, name: str, kind: str
) -> None:
    content = yaml.safe_load((EXPERIMENTS / "testbed.yaml").read_bytes())
    named = content["tasks"]["pairs"] if kind == "tasks" else content["comparisons"]
    named[name] = named.popitem()[1]
    _read(folder, yaml.safe_dump(content).encode())


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None, database=None)
@given(content=mutated())
def test_any_of_many_files_gives_an_experiment_or_says_why_not(
    folder: Path, content: bytes
) -> None:
    _read(folder, content)
