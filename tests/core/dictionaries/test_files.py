import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.dictionaries import (
    Dictionary,
    Gated,
    JumpReLU,
    Linear,
    ReLU,
    TopK,
    files,
    identity_dictionary,
)
from core.dictionaries.files import fingerprint, load_dictionary, read_metadata, save_dictionary
from core.dictionaries.transform import scaled, with_unit_decoder
from core.errors import FormatError

D, N = 4, 9


def dictionary(activation=None, seed: int = 0) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    bias = noise(D)
    return Dictionary(noise(N, D), noise(N), noise(N, D), bias, bias, activation or ReLU())


ALL = {
    "relu": dictionary(),
    "topk": dictionary(TopK(3)),
    "jumprelu": dictionary(JumpReLU(torch.rand(N))),
    "gated": dictionary(Gated(torch.randn(N), torch.rand(N), torch.randn(N))),
    "linear": identity_dictionary(D),
}
X = torch.randn(30, D, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("kind", list(ALL))
def test_a_dictionary_comes_back_bit_for_bit(tmp_path, kind):
    save_dictionary(ALL[kind], tmp_path / "a.safetensors", {"submodule": "attn_1", "n": 3})
    found = load_dictionary(tmp_path / "a.safetensors")
    assert fingerprint(found) == fingerprint(ALL[kind])
    assert torch.equal(found.encode(X), ALL[kind].encode(X))
    assert read_metadata(tmp_path / "a.safetensors") == {"submodule": "attn_1", "n": 3}


@pytest.mark.parametrize("kind", list(ALL))
def test_equal_dictionaries_make_equal_files(tmp_path, kind):
    metadata = {name: index for index, name in enumerate(["some", "more", "names", "than", "one"])}
    for name in ("a", "b"):
        save_dictionary(ALL[kind], tmp_path / name, metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_fingerprints_differ_by_weight_kind_and_number():
    base = dictionary()
    nudged = base.encoder.clone()
    nudged[0, 0] += 1e-6
    others = [
        dataclasses.replace(base, encoder=nudged),
        dataclasses.replace(base, activation=TopK(3)),
        dataclasses.replace(base, activation=TopK(4)),
        base.to(dtype=torch.float64),
    ]
    assert len({fingerprint(one) for one in (base, *others)}) == 5


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    save_dictionary(dictionary(), file)
    before = file.read_bytes()

    def fill_the_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "save_file", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save_dictionary(dictionary(seed=1), file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "a.safetensors"
    with pytest.raises(FormatError, match="does not exist"):
        load_dictionary(file)
    save_file({"encoder": torch.zeros(2, 2)}, file)
    with pytest.raises(FormatError, match=r"core\.dictionaries\.formats"):
        load_dictionary(file)
    file.write_bytes(b"no such thing")
    with pytest.raises(FormatError, match="not a safetensors file"):
        load_dictionary(file)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "linear"])
def test_scaling_the_biases_scales_features_and_reconstructions(kind):
    large = scaled(ALL[kind], 8.0)
    features = ALL[kind].encode(X)
    torch.testing.assert_close(large.encode(8 * X), 8 * features)
    torch.testing.assert_close(large.decode(8 * features), 8 * ALL[kind].decode(features))


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated"])
def test_unit_rows_leave_reconstructions_as_they_are(kind):
    unit = with_unit_decoder(ALL[kind])
    features, norm = ALL[kind].encode(X), ALL[kind].decoder.norm(dim=1)
    torch.testing.assert_close(unit.encode(X), features * norm)
    torch.testing.assert_close(unit.decode(features * norm), ALL[kind].decode(features))
    torch.testing.assert_close(unit.decoder.norm(dim=1), torch.ones(N))


def test_unit_rows_would_change_the_choice_of_top_k():
    with pytest.raises(ValueError, match="which are kept"):
        with_unit_decoder(ALL["topk"])


# -- files of earlier versions -------------------------------------------------------------------

SAVED = Path(__file__).parent / "saved"


def handmade(activation) -> Dictionary:
    """What the files in ``saved`` hold, which the first version of this project wrote."""
    encoder = torch.arange(6.0).reshape(3, 2) / 4 - 0.5
    bias = torch.tensor([0.25, -0.5])
    return Dictionary(
        encoder, torch.tensor([0.5, 0.0, -0.25]), encoder.flip(0), bias, bias, activation
    )


VECTOR = torch.tensor([0.25, 0.5, 0.125])
HANDMADE = {
    "relu": handmade(ReLU()),
    "linear": handmade(Linear()),
    "jumprelu": handmade(JumpReLU(VECTOR)),
    "topk": handmade(TopK(2)),
    "gated": handmade(Gated(VECTOR, 4 * VECTOR, -VECTOR)),
}


@pytest.mark.parametrize("kind", list(HANDMADE))
def test_files_of_earlier_versions_are_read_and_written_as_they_were(tmp_path, kind):
    file = SAVED / f"{kind}.safetensors"
    loaded = load_dictionary(file)
    assert fingerprint(loaded) == fingerprint(HANDMADE[kind])
    assert type(loaded.activation) is type(HANDMADE[kind].activation)
    save_dictionary(HANDMADE[kind], tmp_path / file.name, {"submodule": "attn_1"})
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_file_of_a_kind_that_nothing_defines_is_refused(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes((SAVED / "relu.safetensors").read_bytes().replace(b'"relu', b'"rule'))
    with pytest.raises(FormatError, match=r"kind of dictionary is called 'rule'.*relu, linear"):
        load_dictionary(file)
