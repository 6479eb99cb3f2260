"""The documentation does what it says: its code runs, its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]
WITH_EXPERIMENT = [page for page in PAGES if "```yaml" in page.read_text()]
_YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
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
def test_files_that_a_page_names_exist(page: Path):
    named = re.findall(
        r"`((?:core|assets|pipelines|tests|benchmarks|testbed|experiments|docs)/[\w/.-]+)`",
        page.read_text(),
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
