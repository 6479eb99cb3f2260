"""What a file says of its dictionary, held against weights, place and what is measured.

Every reader gives `Claims` beside the dictionary. What cannot be meant is refused before anything
is written; what may be is a warning with both numbers. A claim that a file does not make is None
and gives no finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch

from core.dictionaries import Dictionary, TopK
from core.errors import FormatError
from core.types import Submodule

Verdict = Literal["ok", "warn", "refuse", "unchecked"]
_READ_WRONGLY = "If the file is wrong about itself, correct its configuration in a copy."


_TYPES: dict[str, Any] = {
    **dict.fromkeys(("head", "layer", "d", "n_features", "k"), int),
    "l0": int | float,
    "bos": bool,
}


@dataclass(frozen=True)
class Claims:
    """What a file says of the dictionary in it, in this project's words; None: nothing.

    Attributes:
        model: name of the model it was trained on.
        hook: the place it reads and rebuilds, in the file's words; see `place_of`.
        head: the one attention head it reads.
        layer: layer of the place.
        d: width of what it reads.
        n_features: its features.
        k: active features for each token, where it was trained for a number of them.
        l0: active features for each token, as its authors measured or wanted them.
        kind: the activation, by its name here.
        bos: whether its training text began with a beginning-of-sequence token.
        exporter: program and version that wrote the file.
        doubt: what is known against files of that program and version, or against how it trained.
    """

    model: str | None = None
    hook: str | None = None
    head: int | None = None
    layer: int | None = None
    d: int | None = None
    n_features: int | None = None
    k: int | None = None
    l0: float | None = None
    kind: str | None = None
    bos: bool | None = None
    exporter: str | None = None
    doubt: str | None = None

    def __post_init__(self) -> None:
        for name, value in self.made().items():
            if not isinstance(value, _TYPES.get(name, str)) or (
                isinstance(value, bool) and name != "bos"
            ):
                raise FormatError(f"a file says its {name} is {value!r}, which it cannot be.")

    def made(self) -> dict[str, Any]:
        """The claims that are made, as plain values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Published(NamedTuple):
    """A dictionary as it was read, and what its file says of it."""

    dictionary: Dictionary
    claims: Claims = Claims()


class Finding(NamedTuple):
    """One claim, compared.

    Attributes:
        claim: what it is about.
        said: what the file says.
        found: what it was compared with.
        verdict: ok, warn, refuse, or unchecked where there is nothing to compare with.
        message: one sentence, empty where all is well.
    """

    claim: str
    said: str
    found: str
    verdict: Verdict
    message: str = ""


@dataclass(frozen=True)
class Where:
    """Where a dictionary shall stand.

    Attributes:
        submodule: its name.
        attn_input: whether ``attn_L`` is the input of the output projection; None: not known.
        positions: whether learned positions are added after ``embed``; None: not known.
    """

    submodule: str
    attn_input: bool | None = None
    positions: bool | None = None


# -- places ---------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A place in a model.

    Attributes:
        submodule: the submodule whose value it is; None: of none.
        attn_input: of ``attn_L``, whether it is the output projection's input.
        before_layers: it is the stream that enters layer 0, which has the positions in it.
    """

    submodule: str | None
    attn_input: bool | None = None
    before_layers: bool = False


_EMBEDDINGS = ("embed", "hook_embed", "embed_tokens", "embed_in", "wte")
_ATTENTION = r"(?:self_)?att(?:entio)?n"
_OF_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(.*))?")
_FREE_TEXT = re.compile(r"(attn|mlp|resid)(?:_(in|pre|mid|out|post))?_?(?:layer_?)?(\d+)")
_HOOKS: tuple[tuple[str, str], ...] = (
    # The rest of a place within a layer: TransformerLens's names, then modules' own.
    ("resid", r"hook_resid_post|output|"),
    ("before", r"hook_resid_pre|input"),
    ("mlp", r"hook_mlp_out|(?:mlp|feed_forward|post_feedforward_layernorm)(?:\.output)?"),
    ("heads", rf"attn\.hook_z|{_ATTENTION}\.(?:o_proj|out_proj|dense|c_proj)\.input"),
    ("attn", rf"hook_attn_out|{_ATTENTION}(?:\.(?:o_proj|out_proj|dense|c_proj))?(?:\.output)?"),
    ("none", r"hook_.*|ln\d\.hook_.*|attn\.hook_.*|mlp\.hook_.*|.*\.input"),
    ("none", r"(?:pre_feedforward_layernorm|input_layernorm|ln_[12])(?:\.output)?"),
)


def place_of(hook: str) -> Place | None:
    """The place that a file's words name; None if they are not understood.

    TransformerLens's names (``blocks.3.hook_resid_post``), paths of modules with or without
    ``.output`` (``model.layers.3.mlp``), and ``resid_3``, ``attn_out_layer3``.
    """
    if hook.removesuffix(".output").rsplit(".", 1)[-1] in _EMBEDDINGS:
        return Place("embed")
    if free := _FREE_TEXT.fullmatch(hook):
        kind, side, layer = free[1], free[2], int(free[3])
        if kind == "resid" and side in ("in", "pre"):
            return _stream_before(layer)
        inside = side in ("in", "pre", "mid") or (kind != "resid" and side == "post")
        return Place(None if inside else f"{kind}_{layer}")
    if within := _OF_LAYER.fullmatch(hook):
        layer, rest = int(within[1]), within[2] or ""
        kind = next((kind for kind, form in _HOOKS if re.fullmatch(form, rest)), None)
        return None if kind is None else _place_in_layer(kind, layer)
    return None


def _stream_before(layer: int) -> Place:
    return Place("embed", before_layers=True) if layer == 0 else Place(f"resid_{layer - 1}")


def _place_in_layer(kind: str, layer: int) -> Place:
    if kind == "none":
        return Place(None)
    if kind == "before":
        return _stream_before(layer)
    if kind in ("heads", "attn"):
        return Place(f"attn_{layer}", attn_input=kind == "heads")
    return Place(f"{kind}_{layer}")


def refuse_transcoder(file: object, reads: object, writes: object) -> None:
    """Raise `FormatError` for a file that reads one place and writes another."""
    raise FormatError(
        f"'{file}' is a transcoder or crosscoder: it reads one place ({reads}) and writes another "
        f"({writes}). A dictionary rebuilds what it reads, so that features and error add up to "
        "it: only such a one can stand for a submodule here."
    )


# -- against the weights and the place ------------------------------------------------------------


def check_file(claims: Claims, dictionary: Dictionary, where: Where | None = None) -> list[Finding]:
    """What can be said as soon as a file is read."""
    found = [
        *_same("width", claims.d, dictionary.d),
        *_same("features", claims.n_features, dictionary.n_features),
        *_same("kind", claims.kind, dictionary.activation.name),
        *_k_fits(claims, dictionary),
    ]
    if claims.head is not None:
        told = "it reads one attention head; there is no submodule of a single head."
        found.append(Finding("head", str(claims.head), "all heads", "refuse", told))
    if claims.exporter is not None or claims.doubt is not None:
        doubt, exporter = claims.doubt or "", claims.exporter or ""
        found.append(Finding("exporter", exporter, "", "warn" if doubt else "ok", doubt))
    return found if where is None else [*found, *_place_fits(claims, where)]


def _same(claim: str, said: object, found: object) -> Iterator[Finding]:
    if said is None:
        return
    if said == found:
        yield Finding(claim, str(said), str(found), "ok")
    else:
        told = f"the file says {said}, its weights say {found}: they do not belong together."
        yield Finding(claim, str(said), str(found), "refuse", told)


def _k_fits(claims: Claims, dictionary: Dictionary) -> Iterator[Finding]:
    activation = dictionary.activation
    if isinstance(activation, TopK):
        yield from _same("k", claims.k, activation.k)
    most = max(claims.k or 0, activation.k if isinstance(activation, TopK) else 0)
    if isinstance(activation, TopK) and activation.k < 1:
        told = "at least one feature of a token must be active."
        yield Finding("k", str(activation.k), "", "refuse", told)
    if most > dictionary.n_features:
        told = f"{most} features of a token cannot be active where there are fewer."
        yield Finding("k", str(most), f"{dictionary.n_features} features", "refuse", told)


def _place_fits(claims: Claims, where: Where) -> Iterator[Finding]:
    place = None if claims.hook is None else place_of(claims.hook)
    if claims.hook is not None:
        yield _hook_fits(claims.hook, place, where)
    layer = Submodule.parse(where.submodule).layer
    if claims.layer is not None and place is None and layer >= 0:
        right = claims.layer == layer
        told = "" if right else f"it is of layer {claims.layer}. {_READ_WRONGLY}"
        verdict: Verdict = "ok" if right else "refuse"
        yield Finding("layer", str(claims.layer), where.submodule, verdict, told)


def _hook_fits(hook: str, place: Place | None, where: Where) -> Finding:
    if place is None:
        told = f"'{hook}' names no place known here: look whether it is that of {where.submodule}."
        return Finding("hook", hook, where.submodule, "unchecked", told)
    why = _why_not(place, where)
    return Finding("hook", hook, where.submodule, "refuse" if why else "ok", why)


def _why_not(place: Place, where: Where) -> str:
    if place.submodule is None:
        return f"that place is the value of no submodule. {_READ_WRONGLY}"
    if place.submodule != where.submodule:
        return f"that place is {place.submodule}. {_READ_WRONGLY}"
    if place.before_layers and where.positions:
        return "that place has the positions in it, which this model adds after embed."
    if None not in (place.attn_input, where.attn_input) and place.attn_input != where.attn_input:
        wanted = "true" if place.attn_input else "false"
        return f"attn_L is another place there: set attn_input of the model to {wanted}."
    return ""


def refuse(findings: Iterable[Finding], what: str) -> None:
    """Raise for what cannot be meant.

    Raises:
        FormatError: with every finding whose verdict is refuse.
    """
    wrong = [f"{f.claim}: '{f.said}', {f.message}" for f in findings if f.verdict == "refuse"]
    if wrong:
        raise FormatError(f"{what} says of itself what it is not used for; {'; '.join(wrong)}")


def check_finite(dictionary: Dictionary, what: str) -> None:
    """Raise `FormatError` where a weight is NaN or infinite."""
    for name, tensor in dictionary.tensors().items():
        broken = int((~torch.isfinite(tensor)).sum())
        if broken:
            raise FormatError(
                f"{what} has {broken} of {tensor.numel()} numbers in {name} that are NaN or "
                "infinite: its training or its export failed. Take another file."
            )


# -- against the experiment and what is measured --------------------------------------------------


def check_experiment(claims: Claims, *, model: str, on_hub: bool, bos: bool) -> list[Finding]:
    """What the model is called, and how its text begins.

    Args:
        claims: the file's.
        model: the experiment's model, a hub id or a folder.
        on_hub: whether that is a hub id; a folder may be called anything.
        bos: whether contexts begin with a beginning-of-sequence token.
    """
    found = []
    if claims.model is not None:
        same = _model_name(claims.model) == _model_name(model)
        verdict: Verdict = "ok" if same else "warn" if on_hub else "unchecked"
        told = "" if same else "is it the same model? Features of another mean nothing here."
        found.append(Finding("model", claims.model, model, verdict, told))
    if claims.bos is not None:
        same = claims.bos == bos
        told = f"features may differ at the first tokens: corpus.bos is {str(bos).lower()}."
        found.append(
            Finding(
                "bos",
                str(claims.bos).lower(),
                str(bos).lower(),
                "ok" if same else "warn",
                "" if same else told,
            )
        )
    return found


def _model_name(name: str) -> str:
    """The last part of a name, spelled as on the hub."""
    last = name.rstrip("/").rsplit("/", 1)[-1].lower().replace("_", "-")
    return {"gpt2-small": "gpt2"}.get(last, last.replace("gemma-v", "gemma-"))


def check_measured(
    claims: Claims, *, l0: float, variance_explained: float, factor: float, least: float
) -> list[Finding]:
    """What the dictionary does on text.

    Args:
        claims: the file's.
        l0: measured number of active features for each token.
        variance_explained: measured, too.
        factor: by how much the measured L0 may be larger or smaller than said.
        least: below this, too little variance is explained to be read rightly.
    """
    found = []
    for claim, said in (("k", claims.k), ("l0", claims.l0)):
        if said:
            near = said / factor <= l0 <= said * factor
            told = f"measured L0 is {l0:.1f}, {l0 / said:.2f} times what the file says."
            found.append(
                Finding(
                    f"measured {claim}",
                    f"{said:g}",
                    f"{l0:.1f}",
                    "ok" if near else "warn",
                    "" if near else told,
                )
            )
    enough = variance_explained >= least
    told = f"it explains less than {least:.0%}: is it of this model, this place and such text?"
    share = f"{variance_explained:.1%}"
    verdict: Verdict = "ok" if enough else "warn"
    return [
        *found,
        Finding("variance explained", "", share, verdict, "" if enough else told),
    ]
