"""Files for containers and clusters name what is there."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def _copied() -> list[str]:
    lines = re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)
    return [name for line in lines for name in line.split()[:-1]]


def test_the_image_copies_what_there_is_and_every_package() -> None:
    assert _copied()
    for name in _copied():
        assert (ROOT / name).exists(), name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {p.rstrip("*") for p in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {project["project"]["readme"], "requirements.lock"} <= set(_copied())


def test_what_the_image_copies_is_sent_to_the_builder() -> None:
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert sent[0] == "*"
    assert {f"!{name}" for name in _copied()} == {line for line in sent if line.startswith("!")}


@pytest.mark.parametrize("text", [DOCKERFILE, (ROOT / "deploy/kubernetes.yaml").read_text()])
def test_the_module_that_is_served_is_there(text: str) -> None:
    named = re.findall(r"pipelines\.\w+", text)
    assert named
    for name in named:
        assert import_module(name).defs


def test_the_image_has_the_python_that_the_project_asks_for() -> None:
    (image,) = re.findall(r"^FROM python:(\d+)\.(\d+)", DOCKERFILE, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    least = project["project"]["requires-python"].removeprefix(">=").split(".")
    assert [int(n) for n in image] >= [int(n) for n in least]


def test_workers_and_the_user_code_of_the_chart_are_of_one_image() -> None:
    said = yaml.safe_load((ROOT / "deploy/kubernetes.yaml").read_text(encoding="utf-8"))
    (code,) = said["dagster-user-deployments"]["deployments"]
    runs = said["runLauncher"]["config"]["k8sRunLauncher"]
    assert code["image"] == runs["image"]
    assert code["volumeMounts"] == runs["volumeMounts"]
