"""Which of several published dictionaries is meant: Gemma Scope's folders, local and on the hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from core.dictionaries.formats import choose, is_open, load_from, resolved_path
from core.dictionaries.formats.places import also_read
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


# -- numbers that go on, and words for numbers -----------------------------------------------------


@pytest.mark.parametrize(
    ("path", "submodule", "chosen"),
    [
        ("layer_{layer}*", "resid_1", "layer_1_width_16k"),
        ("layer_{layer}*", "resid_10", "layer_10_width_16k"),
        ("*_{layer}_width_16k", "resid_0", "layer_0_width_16k"),
        ("*{layer}_width_16k", "resid_1", "layer_1_width_16k"),
        ("layer_{layer:02d}*", "resid_1", "layer_01_b"),
    ],
)
def test_a_star_does_not_go_on_with_the_layers_number(
    tmp_path: Path, path: str, submodule: str, chosen: str
) -> None:
    names = ("layer_0_width_16k", "layer_1_width_16k", "layer_10_width_16k", "layer_11_width_16k")
    for name in (*names, "layer_01_b", "layer_011_b"):
        (tmp_path / name).mkdir()
    assert resolved_path(str(tmp_path), path, submodule=submodule) == chosen


def test_a_number_in_the_path_as_written_goes_on(tmp_path: Path) -> None:
    (tmp_path / "width_16k").mkdir()
    assert resolved_path(str(tmp_path), "width_1*") == "width_16k"


@pytest.fixture
def words(tmp_path: Path) -> str:
    for word, l0 in (("small", 11), ("medium", 47), ("big", 103)):
        folder = tmp_path / f"layer_12_width_16k_l0_{word}"
        folder.mkdir()
        (folder / "params.safetensors").touch()
        (folder / "config.json").write_text(f'{{"l0": {l0}}}')
    return str(tmp_path)


@pytest.mark.parametrize(("l0", "word"), [(1, "small"), (40, "medium"), (100, "big")])
@pytest.mark.parametrize("file", ["", "/params.safetensors"])
@pytest.mark.parametrize("free", ["{l0}", "*"])
def test_words_for_l0_stand_for_the_number_beside_the_weights(
    words: str, l0: float, word: str, file: str, free: str
) -> None:
    path = f"layer_{{layer}}_width_16k_l0_{free}{file}"
    chosen = resolved_path(words, path, submodule="resid_12", l0=l0)
    assert chosen == f"layer_12_width_16k_l0_{word}{file}"


def test_a_word_without_a_number_beside_it_does_not_choose(words: str) -> None:
    (Path(words) / "layer_12_width_16k_l0_big/config.json").unlink()
    with pytest.raises(FormatError, match=r"l0_big.* say no L0"):
        resolved_path(words, "layer_12_width_16k_l0_{l0}", l0=50)


def test_words_on_the_hub_are_looked_up_there(
    words: str, hub: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    files = [p.relative_to(words).as_posix() for p in Path(words).rglob("*") if p.is_file()]
    asked = []

    def download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns[0])
        return words

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_a, **_k: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    path = "layer_{layer}_width_16k_l0_{l0}/params.safetensors"
    chosen = resolved_path("some/scope", path, submodule="resid_12", l0=90)
    assert chosen == "layer_12_width_16k_l0_big/params.safetensors"
    assert set(asked) == {
        f"layer_12_width_16k_l0_{w}/config.json" for w in ("small", "medium", "big")
    }


@pytest.mark.parametrize(
    ("place", "file"),
    [
        ("resid/ae.pt", "resid/config.json"),
        ("resid/checkpoints/ae_100.pt", "resid/config.json"),
        ("resid/checkpoints", "resid/config.json"),
        ("resid", "resid/checkpoints/hyperparams.json"),
        ("resid", "resid/checkpoints/final.safetensors"),
    ],
)
def test_whatever_a_reader_looks_at_is_part_of_the_contents(
    tmp_path: Path, place: str, file: str
) -> None:
    for name in (f"{place}/ae.pt" if "." not in place else place, file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert tmp_path / file in also_read(tmp_path / place)
