"""dictionary_learning: ``ae.pt`` (a state_dict) and ``config.json``.

Which class a file is of says ``config["trainer"]["dict_class"]``; the paper's released set has no
configuration and is recognised by its tensors.

Training with normalize_activations divides inputs by a ``norm_factor``. Finished files and
``checkpoints/ae_STEP.pt`` have the biases (and thresholds) multiplied by it and read raw inputs. A
file that an interrupted training left as a backup has the finished file's name, but holds the
optimiser and the factor too, and its weights are still those for divided inputs.

Matrices there are ``torch.nn.Linear``'s: encoder.weight (feature, d), decoder.weight (d, feature).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.atomic import replacing
from core.dictionaries import Activation, Dictionary, Gated, JumpReLU, ReLU, TopK
from core.dictionaries.formats.claims import Claims, Published, refuse_transcoder
from core.dictionaries.formats.places import (
    named_file,
    need,
    only_tensors,
    read_json,
    read_tensors,
)
from core.dictionaries.transform import scaled, with_unit_decoder
from core.errors import FormatError

_BACKUP = {"ae", "step"}


@dataclass(frozen=True)
class _Source:
    """A file as read, and what the caller chose about it."""

    file: Path
    tensors: dict[str, Tensor]
    trainer: Mapping[str, Any]
    normalize_decoder: bool
    subtract_bias: bool

    def need(self, *names: str) -> list[Tensor]:
        return need(self.tensors, names, self.file)


def read(
    place: Path,
    *,
    dict_class: str | None = None,
    normalize_decoder: bool = True,
    subtract_bias: bool = False,
) -> Published:
    """A dictionary of any of dictionary_learning's classes.

    Args:
        place: the file, or the folder with ``ae.pt``; a checkpoint's configuration is looked for
            in the folder above, too.
        dict_class: the class, where neither a configuration nor the tensors tell. The two classes
            with a threshold for single tokens have the same tensors: as AutoEncoderTopK a file is
            read with its k, as BatchTopKSAE with its threshold.
        normalize_decoder: give an AutoEncoder decoder rows of unit norm, as its from_pretrained
            does: the same reconstructions, features on another scale.
        subtract_bias: whether a JumpReluAutoEncoder subtracts its decoder bias from the input
            (its ``apply_b_dec_to_input``, which files do not hold).

    Raises:
        FormatError: the file is of no known class, incomplete, or would need unpickling.
    """
    file = named_file(place, ("ae.pt",))
    state, config = read_tensors(file), _config(file)
    trainer = config.get("trainer") or {}
    if (config.get("buffer") or {}).get("io") == "in_and_out":
        refuse_transcoder(file, "a module's input", "its output")
    factor = None
    if isinstance(state, dict) and state.keys() >= _BACKUP:
        factor = state.get("norm_factor")
        trainer = trainer or state.get("config") or {}
        state = state["ae"]
    # Weights of a compiled module carry its wrapper's name.
    tensors = {k.removeprefix("_orig_mod."): v for k, v in only_tensors(state, file).items()}
    source = _Source(file, tensors, trainer, normalize_decoder, subtract_bias)
    name = dict_class or trainer.get("dict_class") or _guess(source)
    if re.search("transcoder|crosscoder", name, re.IGNORECASE):
        refuse_transcoder(file, "its input", f"what a {name} predicts")
    if name not in _CLASSES:
        raise FormatError(f"'{file}' is a '{name}', none of {', '.join(_CLASSES)}.")
    dictionary = _CLASSES[name](source)
    if factor is not None:
        dictionary = scaled(dictionary, _factor(factor, file))
    return Published(dictionary, _claims(source, (config.get("buffer") or {}).get("io")))


def _config(file: Path) -> Mapping[str, Any]:
    """What config.json says; empty where there is none of a training."""
    folders = [file.parent, *([file.parent.parent] if file.parent.name == "checkpoints" else [])]
    for folder in folders:
        config = read_json(folder / "config.json")
        if config.get("trainer"):
            return config
    return {}


def _claims(source: _Source, io: Any) -> Claims:
    trainer = source.trainer
    hook = trainer.get("submodule_name") or None
    # Of an input, the name is that of the module which reads it.
    return Claims(
        model=trainer.get("lm_name") or None,
        hook=hook if io != "in" else f"input of {hook}",
        layer=trainer.get("layer") if io != "in" else None,
        d=trainer.get("activation_dim"),
        n_features=trainer.get("dict_size"),
        k=trainer.get("k"),
        l0=trainer.get("target_l0"),
    )


def _factor(factor: Any, file: Path) -> float:
    value = float(factor)
    if not (isfinite(value) and value > 0):
        raise FormatError(
            f"the norm_factor of '{file}' is {value:g}: nothing can be scaled by it. Give a file "
            "of a finished training."
        )
    return value


def _guess(source: _Source) -> str:
    names = set(source.tensors)
    for needed, guess in (
        ({"bias", "encoder.weight"}, "AutoEncoder"),
        ({"decoder.bias", "encoder.weight"}, "AutoEncoderNew"),
        ({"r_mag", "gate_bias"}, "GatedAutoEncoder"),
        ({"W_enc", "group_sizes"}, "MatryoshkaBatchTopKSAE"),
        ({"W_enc", "threshold"}, "JumpReluAutoEncoder"),
    ):
        if needed <= names:
            return guess
    raise FormatError(
        f"'{source.file}' has no config.json and its tensors ({', '.join(sorted(names))}) fit "
        "several classes, e.g. AutoEncoderTopK and BatchTopKSAE: give dict_class."
    )


def _auto_encoder(s: _Source) -> Dictionary:
    encoder, encoder_bias, decoder, bias = s.need(
        "encoder.weight", "encoder.bias", "decoder.weight", "bias"
    )
    dictionary = Dictionary(encoder, encoder_bias, decoder.t(), bias, bias, ReLU())
    return with_unit_decoder(dictionary) if s.normalize_decoder else dictionary


def _auto_encoder_new(s: _Source) -> Dictionary:
    encoder, encoder_bias, decoder, bias = s.need(
        "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"
    )
    return Dictionary(encoder, encoder_bias, decoder.t(), bias, torch.zeros_like(bias), ReLU())


def _gated(s: _Source) -> Dictionary:
    encoder, decoder, bias = s.need("encoder.weight", "decoder.weight", "decoder_bias")
    r_mag, gate_bias, mag_bias = s.need("r_mag", "gate_bias", "mag_bias")
    none = torch.zeros_like(gate_bias)
    activation = Gated(gate_bias, r_mag.exp(), mag_bias)
    return Dictionary(encoder, none, decoder.t(), bias, bias, activation)


def _jump_relu(s: _Source) -> Dictionary:
    encoder, encoder_bias, decoder, bias = s.need("W_enc", "b_enc", "W_dec", "b_dec")
    (threshold,) = s.need("threshold")
    input_bias = bias if s.subtract_bias else torch.zeros_like(bias)
    return Dictionary(encoder.t(), encoder_bias, decoder, bias, input_bias, JumpReLU(threshold))


def _top_k(s: _Source) -> Dictionary:
    encoder, encoder_bias, decoder, bias = s.need(
        "encoder.weight", "encoder.bias", "decoder.weight", "b_dec"
    )
    k = s.tensors["k"] if "k" in s.tensors else s.trainer.get("k")
    if k is None:
        raise FormatError(f"neither '{s.file}' nor its config.json says how large k is.")
    return Dictionary(encoder, encoder_bias, decoder.t(), bias, bias, TopK(int(k)))


def _one_threshold(s: _Source, n_features: int) -> JumpReLU:
    if "threshold" not in s.tensors or float(s.tensors["threshold"]) < 0:
        raise FormatError(
            f"'{s.file}' has no threshold: it is of a version that kept none, or its training "
            "stopped before it was measured. So it has no rule for single tokens; with the option "
            "dict_class: AutoEncoderTopK a BatchTopKSAE keeps the k largest of each."
        )
    threshold = s.tensors["threshold"]
    return JumpReLU(threshold.float().expand(n_features).clone())


def _batch_top_k(s: _Source) -> Dictionary:
    encoder, encoder_bias, decoder, bias = s.need(
        "encoder.weight", "encoder.bias", "decoder.weight", "b_dec"
    )
    activation = _one_threshold(s, len(encoder_bias))
    return Dictionary(encoder, encoder_bias, decoder.t(), bias, bias, activation)


def _matryoshka(s: _Source) -> Dictionary:
    encoder, encoder_bias, decoder, bias = s.need("W_enc", "b_enc", "W_dec", "b_dec")
    activation = _one_threshold(s, len(encoder_bias))
    return Dictionary(encoder.t(), encoder_bias, decoder, bias, bias, activation)


_CLASSES: Mapping[str, Callable[[_Source], Dictionary]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump_relu,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}


# -- writing -------------------------------------------------------------------------------------


def write(
    dictionary: Dictionary, folder: Path, *, submodule: str = "", model_name: str = ""
) -> None:
    """Write ``ae.pt`` and ``config.json`` that dictionary_learning loads.

    ReLU becomes an AutoEncoder (AutoEncoderNew where no bias is subtracted from the input), gated
    a GatedAutoEncoder, TopK an AutoEncoderTopK, JumpReLU a JumpReluAutoEncoder. Where that class
    subtracts nothing, or its own bias, and the dictionary something else, the difference goes
    into the encoder's bias, which is exact.

    Raises:
        FormatError: no class there has this activation.
    """
    activation = dictionary.activation
    if type(activation) not in _WRITTEN:
        raise FormatError(f"dictionary_learning has no class for {activation.name} activations.")
    name, tensors = _WRITTEN[type(activation)](dictionary, activation)
    if "W_enc" not in tensors:
        tensors["encoder.weight"] = dictionary.encoder
        tensors["decoder.weight"] = dictionary.decoder.t()
    trainer = {
        "dict_class": name,
        "activation_dim": dictionary.d,
        "dict_size": dictionary.n_features,
        "lm_name": model_name,
        "submodule_name": submodule,
    }
    trainer |= activation.numbers()
    with replacing(folder / "ae.pt") as file:
        torch.save({key: value.contiguous().clone() for key, value in tensors.items()}, file)
    with replacing(folder / "config.json") as file:
        text = json.dumps({"trainer": trainer}, indent=1, sort_keys=True)
        file.write_text(text + "\n", encoding="utf-8")


def encoder_bias_for(dictionary: Dictionary, input_bias: Tensor) -> Tensor:
    """The encoder bias with which subtracting `input_bias` gives the same pre-activations."""
    moved = dictionary.encoder @ (dictionary.input_bias - input_bias)
    return dictionary.encoder_bias - moved


def _write_relu(dictionary: Dictionary, activation: ReLU) -> tuple[str, dict[str, Tensor]]:
    bias = dictionary.bias
    if torch.equal(dictionary.input_bias, bias):
        return "AutoEncoder", {"encoder.bias": dictionary.encoder_bias, "bias": bias}
    encoder_bias = encoder_bias_for(dictionary, torch.zeros_like(bias))
    return "AutoEncoderNew", {"encoder.bias": encoder_bias, "decoder.bias": bias}


def _write_topk(dictionary: Dictionary, activation: TopK) -> tuple[str, dict[str, Tensor]]:
    return "AutoEncoderTopK", {
        "encoder.bias": encoder_bias_for(dictionary, dictionary.bias),
        "b_dec": dictionary.bias,
        "k": torch.tensor(activation.k, dtype=torch.int32),
        "threshold": torch.tensor(-1.0),
    }


def _write_jumprelu(dictionary: Dictionary, activation: JumpReLU) -> tuple[str, dict[str, Tensor]]:
    return "JumpReluAutoEncoder", {
        "W_enc": dictionary.encoder.t(),
        "b_enc": encoder_bias_for(dictionary, torch.zeros_like(dictionary.bias)),
        "W_dec": dictionary.decoder,
        "b_dec": dictionary.bias,
        "threshold": activation.threshold,
    }


def _write_gated(dictionary: Dictionary, activation: Gated) -> tuple[str, dict[str, Tensor]]:
    encoder_bias = encoder_bias_for(dictionary, dictionary.bias)
    return "GatedAutoEncoder", {
        "decoder_bias": dictionary.bias,
        "r_mag": activation.scale.log(),
        "gate_bias": activation.gate_bias + encoder_bias,
        "mag_bias": activation.magnitude_bias + activation.scale * encoder_bias,
    }


_WRITTEN: Mapping[type[Activation], Callable[[Dictionary, Any], tuple[str, dict[str, Tensor]]]] = {
    ReLU: _write_relu,
    TopK: _write_topk,
    JumpReLU: _write_jumprelu,
    Gated: _write_gated,
}
