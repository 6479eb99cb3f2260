"""sparsify: ``sae.safetensors`` and ``cfg.json``.

W_dec is (feature, d) already; encoder.weight is ``torch.nn.Linear``'s (feature, d).
"""

from __future__ import annotations

from pathlib import Path

from core.dictionaries import Dictionary, TopK
from core.dictionaries.formats.claims import Claims, Published, place_of, refuse_transcoder
from core.dictionaries.formats.places import (
    named_file,
    need,
    only_tensors,
    read_json,
    read_tensors,
)
from core.errors import FormatError


def read(place: Path) -> Published:
    """A dictionary that sparsify saved; its folder is called by the module's path.

    Raises:
        FormatError: incomplete, a transcoder, or of another activation than topk above zero.
    """
    file = named_file(place, ("sae.safetensors",))
    config = read_json(file.with_name("cfg.json"))
    tensors = only_tensors(read_tensors(file), file)
    if config.get("transcode") or config.get("skip_connection") or "W_skip" in tensors:
        refuse_transcoder(file, "a module's input", "its output")
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise FormatError(f"'{file}' has the activation '{activation}': only topk is read.")
    if config.get("signed"):
        raise FormatError(
            f"'{file}' keeps the features that are largest in magnitude, negative ones too "
            "(signed): only those above zero are read."
        )
    if not config.get("k"):
        raise FormatError(f"the cfg.json beside '{file}' does not say how large k is.")
    encoder, encoder_bias, decoder, bias = need(
        tensors, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"), file
    )
    k, name = int(config["k"]), file.parent.name
    claims = Claims(
        hook=name if "." in name and place_of(name) else None,
        d=config.get("d_in"),
        n_features=config.get("num_latents") or None,  # 0: as many as the expansion gives
        k=k,
        kind="topk",
    )
    return Published(Dictionary(encoder, encoder_bias, decoder, bias, bias, TopK(k)), claims)
