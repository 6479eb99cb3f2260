"""The documentation does what it says: its code runs, its links lead somewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.tiny_experiment import tiny_experiment, write_experiment

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXTEND = ROOT / "docs" / "extend.md"
WITH_CODE = [page for page in PAGES if "```python" in page.read_text() and page != EXTEND]
WITH_EXPERIMENT = [page for page in PAGES if "```yaml" in page.read_text()]
_YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(?:python|diff)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\S+\.py)\n")
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
_NAMED = re.compile(r"`(core(?:\.\w+)+)`")


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    code = "\n".join(_CODE.findall(page.read_text()))
    namespace: dict[str, object] = {"__name__": f"docs_{page.stem}"}
    exec(compile(code, str(page), "exec"), namespace)
    assert len(namespace) > 1


@pytest.mark.parametrize("page", WITH_EXPERIMENT, ids=lambda page: page.name)
def test_an_experiment_in_a_page_is_sound(page: Path, tmp_path: Path):
    from pipelines.experiment import read_experiment

    for i, text in enumerate(_YAML.findall(page.read_text())):
        (tmp_path / f"block{i}.yaml").write_text(text)
        experiment = read_experiment(tmp_path / f"block{i}.yaml")
        assert experiment.submodules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path):
    missing = [
        link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()
    ]
    assert not missing


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "benchmarks" / "README.md"],
    ids=lambda page: page.parent.name + page.name,
)
def test_a_row_has_as_many_cells_as_its_head(page: Path):
    odd, n_cells = [], 0
    for line in page.read_text().splitlines():
        # A bar in code ends a cell too, unless it is escaped.
        n = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        odd += [line] if 0 not in (n, n_cells) and n != n_cells else []
        n_cells = n
    assert not odd


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_sections_lead_to_a_heading(page: Path):
    missing = []
    for file, section in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.+)$", (page.parent / (file or page.name)).read_text(), re.M)
        slugs = [re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings]
        if section not in slugs:
            missing.append(f"{file}#{section}")
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_core_that_a_page_mentions_exist(page: Path):
    from importlib import import_module

    for dotted in set(_NAMED.findall(page.read_text())):
        parts = dotted.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                value = import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            break
        for part in parts[cut:]:
            value = getattr(value, part)
        assert value is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_a_page_names_exist(page: Path):
    named = re.findall(r"python3? -m ([\w.]+)", page.read_text())
    missing = [name for name in named if find_spec(name) is None]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path):
    named = re.findall(
        r"`((?:core|assets|pipelines|tests|benchmarks|testbed|experiments|docs)/[\w/.-]+)`",
        page.read_text(),
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_page_on_dagster_has_every_stage_and_says_which_run_by_themselves(tmp_path: Path):
    from assets.engine.stage import PartitionedStage
    from pipelines.experiment import read_experiment
    from pipelines.stages import stages_of

    rows = re.findall(
        r"^\| (`[\w`, ]+`) \| (.+) \| (.+) \|$",
        (ROOT / "docs/dagster.md").read_text(),
        re.MULTILINE,
    )
    listed = {
        name: (partitions != "-", by_itself.startswith("yes"))
        for names, partitions, by_itself in rows
        for name in re.findall(r"\w+", names)
    }
    other = {"other": {"representation": "activations", "k": 3}}
    data = {"source": "./a", "label_column": "a", "attribute_column": "b", "labels": [0, 1]}
    trained = write_experiment(tmp_path, comparisons=other, classifier={"data": data})
    imported = write_experiment(tmp_path, "imported", dictionaries=None)
    section = "dictionaries: {source: import, format: sfc, repository: r, path: p}"
    imported.write_text(f"{imported.read_text()}{section}\n")
    assert listed == {
        stage.name: (
            isinstance(stage, PartitionedStage),
            not stage.waits_for_a_request(experiment),
        )
        for experiment in (read_experiment(path) for path in (imported, trained))
        for stage in stages_of(experiment)
    }


# -- docs/extend.md: pasted into a copy of the project, and run there ------------------------------


def changed(text: str, diff: str) -> str:
    """The text with the lines of a diff, which has no line numbers, put in."""
    for hunk in diff.split("@@\n"):
        lines = [(line[:1], line[1:] + "\n") for line in hunk.splitlines()]
        before, after = (
            "".join(text for sign, text in lines if sign != other) for other in ("+", "-")
        )
        assert text.count(before) == 1, f"these lines are not there, or more than once:\n{before}"
        text = text.replace(before, after)
    return text


_FORKS = """
import json, os, sys, traceback
import dagster, matplotlib.figure, pandas, pyarrow.parquet, torch, transformers
for line in sys.stdin:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        try:
            exec(json.loads(line), {"__name__": "__main__"})
        except BaseException:
            os.write(write, traceback.format_exc()[-4000:].encode())
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, errors="replace") as pipe:
        told = pipe.read()
    print(json.dumps([os.waitpid(child, 0)[1], told]), flush=True)
"""
"""Runs each piece of code as a new process would, but imports what is not ours once for all."""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the project with the page's files and lines, and the code that it runs."""
    project, sections = tmp_path_factory.mktemp("project"), []
    for folder in ("core", "assets", "pipelines", "tests"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("*.pyc"))
    for shared in ("testbed", "experiments", "pyproject.toml"):
        (project / shared).symlink_to(ROOT / shared)
    for block in _BLOCK.findall(EXTEND.read_text()):
        named = _FILE.match(block)
        if named is None:
            sections.append(block)
            continue
        file, content = project / named[1], block[named.end() :]
        file.write_text(changed(file.read_text(), content) if file.exists() else content)
    run = "".join(f"exec({block!r}, {{'__name__': '__main__'}})\n" for block in sections)
    return project, run


@pytest.fixture(scope="module")
def run(extended: tuple[Path, str]) -> Iterator[Callable[[str], None]]:
    """Runs code in a process that knows the copy of the project alone, as its files are now."""
    project, _ = extended
    environment = os.environ | {"PYTHONPATH": str(project), "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, "-c", _FORKS],
        cwd=project,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as forks:

        def run_in_a_fork(code: str) -> None:
            assert forks.stdin is not None
            assert forks.stdout is not None
            forks.stdin.write(json.dumps(code) + "\n")
            forks.stdin.flush()
            status, told = json.loads(forks.stdout.readline())
            assert status == 0, told

        yield run_in_a_fork


def test_everything_in_the_page_on_extending_works_as_pasted(
    extended: tuple[Path, str], run: Callable[[str], None]
):
    run(extended[1])


def test_what_is_pasted_keeps_the_style_of_the_project(extended: tuple[Path, str]):
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check"], ["format", "--check"]):
        ran = subprocess.run(
            [*ruff, *command, "core", "assets", "pipelines"],
            cwd=extended[0],
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout


def test_a_changed_line_of_a_pasted_stage_makes_it_again_and_a_comment_does_not(
    extended: tuple[Path, str], run: Callable[[str], None], tmp_path: Path
):
    project, _ = extended
    file = project / "assets/corpus/token_counts.py"
    tiny_experiment(tmp_path)
    code = f"""
from pathlib import Path
from pipelines.stages import stages_of
from pipelines.experiment import read_experiment
experiment = read_experiment(Path({str(tmp_path / "tiny.yaml")!r}))
stages = {{stage.name: stage for stage in stages_of(experiment)}}
assert [stages[name].run(experiment) for name in ("contexts", "token_counts")] == """
    run(code + "[True, True]")
    file.write_text(file.read_text().replace("    rows = [", "    # in order\n    rows = ["))
    run(code + "[False, False]")
    file.write_text(file.read_text().replace("counts.update(tokens)", "counts.update(set(tokens))"))
    run(code + "[False, True]")
