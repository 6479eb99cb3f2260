"""Dictionaries in other projects' files, from a folder or the Hugging Face hub.

| format | file | read | written |
|---|---|---|---|
| sfc | this project's own ``.safetensors`` | yes | yes (`core.dictionaries.files`) |
| dictionary_learning | ``ae.pt``, ``config.json`` | all classes, backups | yes |
| saelens | ``sae_weights.safetensors``, ``cfg.json`` | version 6 and before | yes |
| sparsify | ``sae.safetensors``, ``cfg.json`` | topk | no |
| gemma_scope | ``params.npz``, ``params.safetensors`` | yes | no |
| llama_scope | ``checkpoints/final.safetensors``, ``hyperparams.json`` | yes | no |
| qwen_scope | ``layer3.sae.pt`` | yes | no |
| batch_topk | ``sae.pt``, ``config.json`` of the BatchTopK repository | yes | no |

A reader gives what the file says of itself beside the dictionary; `claims` holds it against the
weights and the place, and refuses what cannot be meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.dictionaries import Dictionary
from core.dictionaries.files import load_dictionary, read_metadata
from core.dictionaries.formats import (
    batch_topk,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    qwen_scope,
    saelens,
    sparsify,
)
from core.dictionaries.formats.choose import is_open, resolved_path
from core.dictionaries.formats.claims import (
    Claims,
    Published,
    Where,
    check_file,
    check_finite,
    refuse,
)
from core.dictionaries.formats.dictionary_learning import write as save_as_dictionary_learning
from core.dictionaries.formats.places import fetch, named_file
from core.dictionaries.formats.saelens import write as save_as_saelens
from core.errors import FormatError, WidthMismatch
from core.options import Format


def _read_sfc(place: Path) -> Published:
    file = named_file(place, ("dictionary.safetensors",))
    said = read_metadata(file)
    claims = Claims(hook=said.get("submodule"), k=said.get("k"), l0=said.get("l0"))
    return Published(load_dictionary(file), claims)


READERS: Mapping[Format, Callable[..., Published]] = {
    "sfc": _read_sfc,
    "dictionary_learning": dictionary_learning.read,
    "saelens": saelens.read,
    "sparsify": sparsify.read,
    "gemma_scope": gemma_scope.read,
    "llama_scope": llama_scope.read,
    "qwen_scope": qwen_scope.read,
    "batch_topk": batch_topk.read,
}


def read_from(
    source: str,
    format: Format,
    *,
    path: str = "",
    submodule: str | None = None,
    revision: str | None = None,
    l0: float | None = None,
    **options: Any,
) -> Published:
    """A dictionary in another project's format, and what its file says of it.

    Args:
        source: a local folder or file, or a hub id.
        format: one of `core.options.FORMATS`.
        path: folder or file inside the source. ``{submodule}``, ``{kind}``, ``{layer}`` and
            ``{site}`` are filled in from `submodule`; the paper's released set is
            ``dictionaries/pythia-70m-deduped/{site}/10_32768``. ``{l0}`` and ``*`` leave open what
            is there: ``layer_{layer}/width_16k/average_l0_{l0}`` of Gemma Scope.
        submodule: where the dictionary will stand.
        revision: branch, tag or commit on the hub.
        l0: of several places that fit the path, take the one whose L0 is nearest to this.
        options: of the format's reader, e.g. ``normalize_decoder``, ``dict_class``.

    Raises:
        FormatError: unknown format or option, nothing there or several places that fit, a file
            that is incomplete, not finite, of a transcoder, or would need unpickling, or the hub
            out of reach.
    """
    if format not in READERS:
        raise FormatError(f"format '{format}' is not one of {', '.join(READERS)}.")
    path = resolved_path(source, path, submodule=submodule, revision=revision, l0=l0)
    place = fetch(source, path, revision)
    if submodule not in (None, "embed"):
        options.pop("scaled_embedding", None)  # concerns one dictionary of a set
    try:
        published = READERS[format](place, **options)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FormatError(
            f"the format {format} cannot be read with {options}, or what lies beside '{place}' "
            f"says something of another type than it should: {error}."
        ) from error
    except WidthMismatch as error:
        raise FormatError(f"'{place}' does not fit together: {error}") from error
    check_finite(published.dictionary, f"'{place}'")
    return published


def load_from(
    source: str, format: Format, *, submodule: str | None = None, **options: Any
) -> Dictionary:
    """The dictionary of `read_from`, with what its file says of itself checked.

    Raises:
        FormatError: as `read_from`; or the file is of another place or other weights than it
            says.
    """
    dictionary, claims = read_from(source, format, submodule=submodule, **options)
    where = None if submodule is None else Where(submodule)
    refuse(check_file(claims, dictionary, where), f"'{source}'")
    return dictionary


def load_all(
    source: str,
    format: Format,
    submodules: Sequence[str],
    *,
    path: str,
    revision: str | None = None,
    **options: Any,
) -> dict[str, Dictionary]:
    """The dictionaries of several submodules from one source; see `load_from`."""
    return {
        name: load_from(source, format, path=path, submodule=name, revision=revision, **options)
        for name in submodules
    }


__all__ = [
    "READERS",
    "Claims",
    "Published",
    "is_open",
    "load_all",
    "load_from",
    "read_from",
    "resolved_path",
    "save_as_dictionary_learning",
    "save_as_saelens",
]
