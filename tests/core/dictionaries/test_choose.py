"""Which of several published dictionaries is meant: Gemma Scope's folders, local and on the hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from core.dictionaries.formats import choose, is_open, load_from, resolved_path
from core.errors import FormatError
from tests.core.dictionaries.published import (
    B_DEC,
    CANONICAL,
    DEC,
    THRESHOLD,
    X,
    check,
    jump,
    linear,
)

FOLDERS = (
    "layer_0/width_16k/average_l0_13",
    "layer_0/width_16k/average_l0_105",
    "layer_0/width_16k/average_l0_226",
    "layer_0/width_65k/average_l0_100",
    "layer_1/width_16k/average_l0_102",
    "embedding/width_4k/average_l0_6",
    "embedding/width_4k/average_l0_44",
)
FILES = (*(f"{folder}/params.npz" for folder in FOLDERS), "README.md", "layer_0/notes.txt")
PATH = "layer_{layer}/width_16k/average_l0_{l0}/params.npz"


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    choose._hub_files.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for file in FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return str(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A hub with one repository; what it was asked for."""
    import huggingface_hub

    asked: list[tuple[str, str | None]] = []

    def list_repo_files(_self, repo_id, *, revision=None):
        asked.append((repo_id, revision))
        return list(FILES)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    return asked


CHOICES = [
    (PATH, "resid_0", 100, FILES[1]),
    (PATH, "resid_0", 1, FILES[0]),
    (PATH, "resid_0", 1e6, FILES[2]),
    (PATH, "resid_1", None, FILES[4]),
    (PATH, "resid_1", 7, FILES[4]),
    ("layer_{layer}/width_16k/average_l0_{l0}", "resid_0", 100, FOLDERS[1]),
    ("/layer_{layer}/width_16k/average_l0_{l0}/", "resid_0", 100, FOLDERS[1]),
    ("layer_{layer}/width_16k/average_l0_*/params.npz", "resid_0", 200, FILES[2]),
    ("layer_{layer}/width_16k/*", "resid_0", 200, FOLDERS[2]),
    ("layer_{layer}/*/average_l0_{l0}", "resid_0", 100, FOLDERS[3]),
    ("embedding/width_4k/average_l0_{l0}", "embed", 25, FOLDERS[5]),
]


@pytest.mark.parametrize(("path", "submodule", "l0", "expected"), CHOICES)
def test_the_nearest_sparsity_is_taken_from_a_folder(folder, path, submodule, l0, expected):
    assert resolved_path(folder, path, submodule=submodule, l0=l0) == expected


@pytest.mark.parametrize(("path", "submodule", "l0", "expected"), CHOICES)
def test_the_hub_is_asked_once_and_gives_the_same(hub, path, submodule, l0, expected):
    for _ in range(2):
        found = resolved_path("some/scope", path, submodule=submodule, l0=l0, revision="v1")
        assert found == expected
    assert hub == [("some/scope", "v1")]


def test_a_path_that_leaves_nothing_open_asks_nobody(hub):
    path = "layer_{layer}/width_16k/average_l0_71"
    assert resolved_path("some/scope", path, submodule="resid_3", l0=100) == path.format(layer=3)
    assert not is_open(path)
    assert hub == []


@pytest.mark.parametrize(
    ("path", "l0", "reason"),
    [
        (PATH, None, r"3 places that fit.*average_l0_105/.*average_l0_13/.*options: {l0: 100}"),
        (PATH, True, "must be a number"),
        (PATH, "many", "must be a number"),
        ("layer_{layer}/width_1m/average_l0_{l0}", 100, "nothing that fits 'layer_0/width_1m"),
        ("layer_{layer}/*", 100, r"layer_0/notes.txt, layer_0/width_16k.* say no L0"),
        ("*/width_16k/average_l0_{l0}/*", None, "4 places"),
    ],
)
def test_a_choice_that_cannot_be_made_lists_what_there_is(folder, hub, path, l0, reason):
    for source in (folder, "some/scope"):
        with pytest.raises(FormatError, match=reason):
            resolved_path(source, path, submodule="resid_0", l0=l0)


def test_two_places_with_the_same_sparsity_are_not_drawn_between(tmp_path):
    for width in ("16k", "65k"):
        (tmp_path / f"width_{width}" / "average_l0_50").mkdir(parents=True)
    with pytest.raises(FormatError, match="have the same L0: width_16k"):
        resolved_path(str(tmp_path), "width_*/average_l0_{l0}", l0=100)


def test_without_the_hub_what_its_cache_holds_is_chosen_from(monkeypatch, folder):
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    def offline(*_args, **_options):
        raise OfflineModeIsEnabled("off")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_options: folder)
    assert resolved_path("some/scope", PATH, submodule="resid_0", l0=100) == FILES[1]
    choose._hub_files.cache_clear()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FormatError, match="without a network, download"):
        resolved_path("some/scope", PATH, submodule="resid_0", l0=100)


def test_a_failing_network_is_no_reason_to_choose_from_the_cache(monkeypatch, folder):
    import huggingface_hub

    def broken(*_args, **_options):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", broken)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_options: folder)
    with pytest.raises(FormatError, match="could not be fetched"):
        resolved_path("some/scope", PATH, submodule="resid_0", l0=100)


def test_the_chosen_file_is_what_is_read(folder):
    tensors = CANONICAL | {"threshold": THRESHOLD}
    np.savez(Path(folder) / FILES[1], **{key: value.numpy() for key, value in tensors.items()})
    found = load_from(folder, "gemma_scope", path=PATH, submodule="resid_0", l0=100)
    f = jump(linear(X), THRESHOLD)
    check(found, f, f @ DEC.T + B_DEC)
    assert torch.equal(found.bias, B_DEC)
