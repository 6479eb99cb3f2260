"""SAELens: ``cfg.json`` and ``sae_weights.safetensors``, version 6 and before.

Matrices there are W_enc (d, feature) and W_dec (feature, d). BatchTopK and Matryoshka dictionaries
are finished as jumprelu; only checkpoints of their training have architectures of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from core.atomic import replacing
from core.dictionaries import Activation, Dictionary, Gated, JumpReLU, ReLU, TopK
from core.dictionaries.formats.claims import Claims, Published, refuse_transcoder
from core.dictionaries.formats.dictionary_learning import encoder_bias_for
from core.dictionaries.formats.normalised import for_raw_inputs, scaling_factor, unwhitened
from core.dictionaries.formats.places import (
    named_file,
    need,
    only_tensors,
    read_json,
    read_tensors,
)
from core.dictionaries.transform import with_unit_decoder
from core.errors import FormatError

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
_BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
_NORMALISED = (None, "none", "expected_average_only_in", "covariance_whitening")
_THRESHOLDS_FOLDED = (6, 54, 9)
"""The first version that scales thresholds with the weights (its change log)."""
# The first version whose cfg.json has "metadata"; what is written here is that layout.
_VERSION = "6.0.0"


def read(place: Path, *, norm_scaling_factor: float | None = None) -> Published:
    """A dictionary that SAELens saved: a finished one, or a checkpoint of its training.

    Args:
        place: the file, or the folder with ``sae_weights.safetensors``.
        norm_scaling_factor: by how much its training multiplied inputs
            (``expected_average_only_in``), where neither the weights nor a file beside them
            hold it. SAELens lists it under this name for the sets it knows.

    Raises:
        FormatError: incomplete, against itself, a transcoder, an unknown architecture, or one that
            normalises its inputs by statistics that no file holds, or each input by itself.
    """
    file = named_file(place, (WEIGHTS,))
    tensors = only_tensors(read_tensors(file), file)
    config = _config(read_json(file.with_name(CONFIG)), file)
    _refuse_what_is_no_dictionary(config, tensors, file)
    _drop_scaling_factor(tensors, file)
    rescaled = bool(config.get("rescale_acts_by_decoder_norm")) and "topk" in config["architecture"]
    if config["architecture"] == "gated":
        encoder, decoder, bias = need(tensors, ("W_enc", "W_dec", "b_dec"), file)
        gate, magnitude, r_mag = need(tensors, ("b_gate", "b_mag", "r_mag"), file)
        encoder_bias: Tensor = torch.zeros_like(gate)
        activation: Any = Gated(gate, r_mag.exp(), magnitude)
    else:
        encoder, decoder, bias, encoder_bias = need(
            tensors, ("W_enc", "W_dec", "b_dec", "b_enc"), file
        )
        activation = _activation(config, tensors, file, rescaled)
    input_bias = bias if config["apply_b_dec_to_input"] else torch.zeros_like(bias)
    dictionary = Dictionary(encoder.t(), encoder_bias, decoder, bias, input_bias, activation)
    normalised = config["normalize_activations"]
    if normalised == "expected_average_only_in":
        dictionary = for_raw_inputs(dictionary, scaling_factor(file, norm_scaling_factor))
    if rescaled:
        dictionary = with_unit_decoder(dictionary, keep_choice=True)
    if normalised == "covariance_whitening":
        dictionary = unwhitened(dictionary, file)
    return Published(dictionary, _claims(config, file))


def _config(saved: dict[str, Any], file: Path) -> dict[str, Any]:
    """The configuration with version 6's keys, whichever version wrote it.

    What a file says of its activation stands in up to three keys, at the top or in ``metadata``,
    and defaults of a version that knew only some of them stand beside what was meant.
    """
    if not saved:
        raise FormatError(f"'{file}' has no {CONFIG} beside it.")
    metadata = saved.get("metadata")
    parts = [saved, metadata if isinstance(metadata, dict) else {}]
    config = {"apply_b_dec_to_input": True, "normalize_activations": "none", **saved}
    config["metadata"] = parts[1]
    if isinstance(config["normalize_activations"], bool):
        old = {True: "expected_average_only_in", False: "none"}
        config["normalize_activations"] = old[config["normalize_activations"]]
    functions = {part.get(key) for part in parts for key in ("activation_fn", "activation_fn_str")}
    architecture = config.get("architecture")
    if architecture is None and ("metadata" not in saved or "topk" in functions):
        architecture = "standard"
    if architecture is None:
        raise FormatError(f"the {CONFIG} beside '{file}' names no architecture.")
    config["k"] = _one_k(parts, file)
    if architecture == "standard" and functions - {None, "relu", "topk"}:
        raise FormatError(f"'{file}' has the activation {functions - {None}}: only relu is read.")
    if architecture == "standard" and "topk" in functions:
        architecture = "topk"
    elif architecture == "standard" and config["k"] is not None:
        raise FormatError(
            f"the {CONFIG} beside '{file}' says standard and k = {config['k']}: a ReLU dictionary "
            "has no k. If it is TopK, write topk as its architecture."
        )
    return {**config, "architecture": architecture}


def _one_k(parts: Sequence[Mapping[str, Any]], file: Path) -> int | None:
    """The k that a configuration says somewhere."""
    said = [part.get("k") for part in parts]
    said += [(part.get("activation_fn_kwargs") or {}).get("k") for part in parts]
    every = {int(k) for k in said if k is not None}
    if any(int(k) != k for k in said if k is not None):
        raise FormatError(f"the {CONFIG} beside '{file}' says k is {said}: no whole number.")
    if len(every) > 1:
        raise FormatError(f"the {CONFIG} beside '{file}' says k is each of {sorted(every)}.")
    return next(iter(every), None)


def _said(config: Mapping[str, Any], *names: str) -> Any:
    """The first of these keys that has a value, at the top or in ``metadata``."""
    parts = (config["metadata"], config)
    values = (part.get(name) for name in names for part in parts)
    return next((value for value in values if value is not None), None)


def _claims(config: Mapping[str, Any], file: Path) -> Claims:
    version = _said(config, "sae_lens_training_version", "sae_lens_version")
    return Claims(
        model=_said(config, "model_name"),
        hook=_said(config, "hook_name", "hook_point"),
        head=_said(config, "hook_head_index", "hook_point_head_index"),
        layer=_said(config, "hook_layer", "hook_point_layer"),
        d=config.get("d_in"),
        n_features=config.get("d_sae"),
        k=config["k"],
        l0=_said(config, "l0"),
        bos=_said(config, "prepend_bos"),
        exporter=None if version is None else f"SAELens {version}",
        doubt=" ".join(_doubts(config, str(version or ""), file)) or None,
    )


def _doubts(config: Mapping[str, Any], version: str, file: Path) -> Iterator[str]:
    """What is known against thresholds of that version, and against how the model was loaded."""
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    training = json.dumps([config, read_json(file.with_name("runner_cfg.json"))])
    normalised = "expected_average_only_in" in training or "batchtopk" in training
    with_threshold = config["architecture"] in ("jumprelu", *_BATCH_TOPK)
    if number and number < _THRESHOLDS_FOLDED and with_threshold and normalised:
        yield (
            "before 6.54.9 SAELens did not scale the threshold of a dictionary trained on "
            "normalised inputs: compare the measured L0."
        )
    if (_said(config, "model_from_pretrained_kwargs") or {}).get("center_writing_weights"):
        yield (
            "it was trained on a model whose weights TransformerLens had centred "
            "(center_writing_weights): vectors here have another mean."
        )


def _refuse_what_is_no_dictionary(
    config: dict[str, Any], tensors: dict[str, Tensor], file: Path
) -> None:
    reads, writes = _said(config, "hook_name", "hook_point"), _said(config, "hook_name_out")
    named = re.search("transcoder|crosscoder", config["architecture"])
    if "d_out" in config or "W_skip" in tensors or named or (writes or reads) != reads:
        refuse_transcoder(file, reads or "its input", writes or "another")
    normalised = config["normalize_activations"]
    if normalised not in _NORMALISED:
        raise FormatError(
            f"'{file}' normalises each input by itself ('{normalised}'), which is no affine map: "
            "it cannot stand for a submodule here."
        )


def _drop_scaling_factor(tensors: dict[str, Tensor], file: Path) -> None:
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factor = tensors.pop(name, None)
        if factor is not None and not torch.equal(factor, torch.ones_like(factor)):
            raise FormatError(
                f"'{file}' has a {name} that is not one: fold it into the decoder first."
            )


def _activation(
    config: dict[str, Any], tensors: dict[str, Tensor], file: Path, rescaled: bool
) -> Any:
    architecture = config["architecture"]
    if architecture == "standard":
        return ReLU()
    if architecture == "topk":
        if not config["k"]:
            raise FormatError(f"the {CONFIG} beside '{file}' does not say how large k is.")
        return TopK(config["k"])
    if architecture == "jumprelu":
        if "log_threshold" in tensors:
            return JumpReLU(tensors["log_threshold"].exp())
        return JumpReLU(need(tensors, ("threshold",), file)[0])
    if architecture in _BATCH_TOPK:
        (threshold,), (decoder,) = (need(tensors, (n,), file) for n in ("topk_threshold", "W_dec"))
        # It is compared with what a feature writes where activations are rescaled.
        unit = decoder.norm(dim=1) if rescaled else torch.ones(len(decoder))
        return JumpReLU(threshold / unit)
    raise FormatError(
        f"'{file}' is of architecture '{architecture}', none of standard, gated, jumprelu, topk, "
        f"{', '.join(_BATCH_TOPK)}."
    )


# -- writing -------------------------------------------------------------------------------------


def write(
    dictionary: Dictionary,
    folder: Path,
    *,
    hook_name: str = "",
    model_name: str = "",
    prepend_bos: bool = False,
    context_size: int | None = None,
) -> None:
    """Write ``cfg.json`` and ``sae_weights.safetensors`` that SAELens 6 loads.

    Args:
        dictionary: ReLU, JumpReLU, TopK or gated.
        folder: where.
        hook_name: TransformerLens's name of the place, e.g. ``blocks.3.hook_resid_post``.
        model_name: the model's.
        prepend_bos, context_size: how its training text was cut.

    Raises:
        FormatError: SAELens has no architecture with this activation.
    """
    activation, bias = dictionary.activation, dictionary.bias
    if type(activation) not in _WRITTEN:
        raise FormatError(f"SAELens has no architecture for {activation.name} activations.")
    # Whether the decoder's bias is subtracted from the input.
    centred = torch.equal(dictionary.input_bias, bias)
    encoder_bias = encoder_bias_for(dictionary, bias if centred else torch.zeros_like(bias))
    saved = _WRITTEN[type(activation)](activation, encoder_bias)
    tensors = {"W_enc": dictionary.encoder.t(), "W_dec": dictionary.decoder, "b_dec": bias}
    tensors |= saved.tensors
    config = {
        "d_in": dictionary.d,
        "d_sae": dictionary.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": centred,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _VERSION,
            "sae_lens_training_version": _VERSION,
            "model_name": model_name,
            "hook_name": hook_name,
            "hook_head_index": None,
            "prepend_bos": prepend_bos,
            "context_size": context_size,
        },
        "architecture": saved.architecture,
        **saved.config,
    }
    with replacing(folder / WEIGHTS) as file:
        save_file({name: t.float().contiguous().clone() for name, t in tensors.items()}, file)
    with replacing(folder / CONFIG) as file:
        file.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Saved:
    """What an activation adds to a file: its architecture's name, tensors, and configuration."""

    architecture: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)


def _relu(activation: ReLU, encoder_bias: Tensor) -> _Saved:
    return _Saved("standard", {"b_enc": encoder_bias})


def _topk(activation: TopK, encoder_bias: Tensor) -> _Saved:
    config = {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    return _Saved("topk", {"b_enc": encoder_bias}, config)


def _jumprelu(activation: JumpReLU, encoder_bias: Tensor) -> _Saved:
    return _Saved("jumprelu", {"b_enc": encoder_bias, "threshold": activation.threshold})


def _gated(activation: Gated, encoder_bias: Tensor) -> _Saved:
    tensors = {
        "b_gate": activation.gate_bias + encoder_bias,
        "b_mag": activation.magnitude_bias + activation.scale * encoder_bias,
        "r_mag": activation.scale.log(),
    }
    return _Saved("gated", tensors)


_WRITTEN: Mapping[type[Activation], Callable[[Any, Tensor], _Saved]] = {
    ReLU: _relu,
    TopK: _topk,
    JumpReLU: _jumprelu,
    Gated: _gated,
}
