"""A causal language model as the residual stream sees it.

`LanguageModel.record` runs the model once and keeps every submodule's output together with what
each attention layer was called with (mask, rotary angles). With those, any layer can be run again
from any stream, for any selection of the recorded examples, through the model's own modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import AdapterMismatch, InputError, MissingSubmodule
from core.models.families import Family, family_of
from core.models.hooks import Visit, first_of, given_to, visited
from core.readout import last_token
from core.types import Submodule, token_mask

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


def _as_it_is(_name: str, value: Tensor) -> Tensor:
    return value


def _rows(value: Any, rows: Tensor, n_examples: int) -> Any:
    """What an attention layer was called with, for the examples `rows`."""
    if isinstance(value, tuple):
        return tuple(_rows(item, rows, n_examples) for item in value)
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == n_examples > 1:
        return value[rows]
    return value


class _Enough(Exception):
    """All that is to be recorded has been."""


def _stop(_module: Any, _args: Any, _output: Any) -> None:
    raise _Enough


class _Selected(Mapping[str, Tensor]):
    """Recorded outputs of some examples, indexed only when one is asked for."""

    def __init__(self, outputs: Mapping[str, Tensor], rows: Tensor) -> None:
        inner = isinstance(outputs, _Selected)
        self._outputs = outputs._outputs if inner else outputs
        self._rows = outputs._rows[rows] if inner else rows

    def __getitem__(self, name: str) -> Tensor:
        return self._outputs[name][self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)


@dataclass(frozen=True)
class Recording:
    """One run of the model: every submodule's output, and what its attention was given.

    Attributes:
        tokens, mask: ``(batch, pos)``; mask is True at real tokens.
        outputs: ``(batch, pos, d)`` by submodule name; ``embed``, then attn, mlp, resid by layer.
        position: learned position embeddings added to ``embed``; zero where there are none.
        context: what each layer's attention was called with besides the stream.
    """

    tokens: Tensor
    mask: Tensor
    outputs: Mapping[str, Tensor]
    position: Tensor | float
    context: tuple[Mapping[str, Any], ...]

    @property
    def n_examples(self) -> int:
        """Number of examples recorded."""
        return self.tokens.shape[0]

    @property
    def last(self) -> Tensor:
        """``(batch,)``: position of each example's last real token, whatever the padding side."""
        return last_token(self.mask)

    def stream_before(self, layer: int) -> Tensor:
        """The residual stream entering `layer`, ``(batch, pos, d)``."""
        if layer == 0:
            return self.outputs["embed"] + self.position
        return self.outputs[f"resid_{layer - 1}"]

    def select(self, rows: Tensor) -> Recording:
        """The examples `rows`, which may repeat."""
        n = self.n_examples
        return Recording(
            tokens=self.tokens[rows],
            mask=self.mask[rows],
            outputs=_Selected(self.outputs, rows),
            position=_rows(self.position, rows, n),
            context=self.context_of(rows),
        )

    def context_of(self, rows: Tensor) -> tuple[Mapping[str, Any], ...]:
        """What every layer's attention is called with for the examples `rows`."""
        n = self.n_examples
        # Layers share their mask and angles: index each distinct object once.
        seen: dict[int, Any] = {}

        def pick(value: Any) -> Any:
            if id(value) not in seen:
                seen[id(value)] = _rows(value, rows, n)
            return seen[id(value)]

        return tuple({key: pick(value) for key, value in c.items()} for c in self.context)


class LanguageModel:
    """A Hugging Face causal LM with its submodules named.

    Args:
        hf: the model; put in evaluation mode, its parameters freed of gradients.
        attn_input: put ``attn_l`` at the input of the attention's output projection (Gemma Scope)
            instead of at what attention adds to the stream.
        mlp_input: put ``mlp_l`` at the input of the MLP's down projection, its hidden neurons,
            instead of at what the MLP adds.

    Raises:
        UnknownFamily: no adapter describes the model.
        MissingSubmodule: hidden neurons are asked for, and where they are is not known.
        AdapterMismatch: the adapter's layers do not reproduce the model's own run.
    """

    def __init__(self, hf: Any, *, attn_input: bool = False, mlp_input: bool = False) -> None:
        self.hf = hf.eval().requires_grad_(False)
        self.config = hf.config
        self.family: Family = family_of(hf.config)
        self.parallel = self.family.parallel(hf.config)
        self.attn_input, self.mlp_input = attn_input, mlp_input
        self.soft_cap: float | None = getattr(hf.config, "final_logit_softcapping", None)
        self.unembedding: nn.Linear = hf.get_output_embeddings()
        if self.dtype == torch.float64 and getattr(hf, "_can_set_experts_implementation", bool)():
            hf.set_experts_implementation("eager")  # grouped matrix products take no float64
        try:
            self.layers = list(attrgetter(self.family.layers)(hf))
            self.final_norm = attrgetter(self.family.final_norm)(hf)
            if mlp_input:
                self.check_hidden()
            difference = self._difference()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise self._mismatch(f"does not fit the model ({error})") from error
        # A NaN is a difference too.
        if not difference <= _TOLERANCE.get(self.dtype, 0.05):
            raise self._mismatch(
                f"gives other logits than the model itself (relative difference {difference:.2g})"
            )

    def _mismatch(self, what: str) -> AdapterMismatch:
        return AdapterMismatch(
            f"the adapter for '{self.config.model_type}' {what}: its layers are put together "
            "differently from the description in core/models/families.py."
        )

    # -- shape ---------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.unembedding.weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights."""
        return self.unembedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unembedding.weight.device

    @property
    def n_vocab(self) -> int:
        """Number of tokens the model can read and predict."""
        embedded = self.hf.get_input_embeddings().weight.shape[0]
        return min(embedded, self.unembedding.weight.shape[0])

    @property
    def max_positions(self) -> int:
        """Longest sequence the model takes."""
        return int(self.config.max_position_embeddings)

    @property
    def submodules(self) -> list[str]:
        """Names of all submodules, in causal order."""
        names = ["embed"]
        for layer in range(self.n_layers):
            names += [f"attn_{layer}", f"mlp_{layer}", f"resid_{layer}"]
        return names

    def width(self, name: str) -> int:
        """Width of a submodule's output; raises `MissingSubmodule` if the model has none such."""
        submodule = Submodule.parse(name)
        if submodule.layer >= self.n_layers:
            raise MissingSubmodule(
                f"'{name}' does not exist: the model has layers 0 to {self.n_layers - 1}."
            )
        if submodule.kind == "attn" and self.attn_input:
            return self._out_proj(submodule.layer).weight.numel() // self.d_model
        return self.n_neurons(name) if submodule.kind == "mlp" and self.mlp_input else self.d_model

    def check_hidden(self) -> None:
        """Raise `MissingSubmodule` unless the hidden neurons of every MLP are known."""
        for layer in range(self.n_layers):
            self._down_proj(f"mlp_{layer}")

    def at_hidden(self) -> LanguageModel:
        """The same model with ``mlp_l`` at the hidden neurons; raises `MissingSubmodule`."""
        return LanguageModel(self.hf, attn_input=self.attn_input, mlp_input=True)

    @property
    def positions(self) -> Any:
        """The module that embeds positions, added to ``embed``; None where there is none."""
        path = self.family.position
        return None if path is None else attrgetter(path)(self.hf)

    def place_of(self, name: str) -> tuple[nn.Module, bool]:
        """The module that puts out a submodule's value; or, with True, the one that is given it."""
        (kind, layer), family = Submodule.parse(name), self.family
        if kind == "embed":
            return self.layers[0], True
        if kind == "resid":
            return self.layers[layer], False
        if kind == "mlp" and self.mlp_input:
            return self._down_proj(name), True
        if kind == "mlp":
            return self._part(layer, family.post_mlp) or self._part(layer, family.mlp), False
        if self.attn_input:
            return self._out_proj(layer), True
        return self._part(layer, family.post_attn) or self._attention(layer), False

    def _part(self, layer: int, path: str | None) -> Any:
        return None if path is None else attrgetter(path)(self.layers[layer])

    def _attention(self, layer: int) -> nn.Module:
        return self._part(layer, self.family.attn)

    def _out_proj(self, layer: int) -> Any:
        return attrgetter(self.family.out_proj)(self._attention(layer))

    # -- running -------------------------------------------------------------------------------

    @torch.no_grad()
    def record(
        self, tokens: Tensor, mask: Tensor | None = None, *, until: int | None = None
    ) -> Recording:
        """Run the model on tokens and keep every submodule's output.

        Args:
            tokens: ``(batch, pos)`` token ids.
            mask: ``(batch, pos)``, True (or 1) at real tokens; padding may be on either side.
            until: the last layer that is run; all where None.

        Raises:
            InputError: empty batch, an example without tokens, more positions than the model has,
                or ids outside its vocabulary.
        """
        tokens = tokens.to(self.device)
        mask = token_mask(tokens, mask if mask is None else mask.to(self.device))
        self._check_tokens(tokens)
        values: dict[str, Tensor] = {}
        contexts: list[Mapping[str, Any]] = [{} for _ in self.layers]
        padded = {}
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        # Causal attention never shows real tokens what is padded to their right: no mask is needed.
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            padded = {"attention_mask": mask.long(), "position_ids": positions}
        with suppress(_Enough), self._recording(values, contexts, until):
            self.hf.base_model(tokens, use_cache=False, **padded)
        position = 0.0 if self.positions is None else self.positions(positions)
        outputs = {name: values[name] for name in self.submodules if name in values}
        return Recording(tokens, mask, outputs, position, tuple(contexts))

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.max_positions:
            raise InputError(
                f"sequences of {tokens.shape[1]} tokens, but the model has "
                f"{self.max_positions} positions: shorten the contexts "
                "(corpus.n_positions in an experiment's file)."
            )
        if int(tokens.max()) >= self.n_vocab or int(tokens.min()) < 0:
            raise InputError(
                f"token ids run from {int(tokens.min())} to {int(tokens.max())} but the model's "
                f"vocabulary has {self.n_vocab}: was the text tokenized for another model?"
            )

    @contextmanager
    def _recording(
        self,
        values: dict[str, Tensor],
        contexts: list[Mapping[str, Any]],
        until: int | None,
    ) -> Iterator[None]:
        """Hooks that fill `values` and `contexts` while the model runs as far as layer `until`."""

        def keep_context(layer: int) -> Any:
            def hook(_module: Any, _args: Any, kwargs: Mapping[str, Any]) -> None:
                # The stream itself is positional in some families and a keyword in others.
                contexts[layer] = {k: v for k, v in kwargs.items() if k != "hidden_states"}

            return hook

        with ExitStack() as stack:
            for i in range(self.n_layers):
                handle = self._attention(i).register_forward_pre_hook(
                    keep_context(i), with_kwargs=True
                )
                stack.callback(handle.remove)
            stack.enter_context(visited(self, values.setdefault, self.submodules))
            if until is not None and until < self.n_layers - 1:
                handle = self.layers[until].register_forward_hook(_stop)
                stack.callback(handle.remove)
            yield

    @torch.no_grad()
    def neurons(self, tokens: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The hidden neurons of some MLPs, as the down projection reads them.

        Args:
            tokens: ``(batch, pos)``; padding on the right, where real tokens cannot see it.
            names: ``mlp_l``, the MLPs.

        Returns:
            By name, ``(batch, pos, neuron)``, after the nonlinearity (times the gate, if gated).

        Raises:
            MissingSubmodule: one is no MLP, or has no hidden neurons that are known.
        """
        values: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(_module: Any, args: Any) -> None:
                values[name] = args[0].view(*tokens.shape, -1)

            return hook

        with ExitStack() as stack:
            for name in names:
                handle = self._down_proj(name).register_forward_pre_hook(keep(name))
                stack.callback(handle.remove)
            self.hf.base_model(tokens.to(self.device), use_cache=False)
        return values

    def n_neurons(self, name: str) -> int:
        """Hidden neurons of the MLP `name`; raises like `neurons`."""
        return self._down_proj(name).weight.numel() // self.d_model

    def _down_proj(self, name: str) -> Any:
        kind, layer = Submodule.parse(name)
        try:
            if kind != "mlp" or layer >= self.n_layers or self.family.down_proj is None:
                raise AttributeError
            return attrgetter(self.family.down_proj)(self._part(layer, self.family.mlp))
        except AttributeError:
            raise MissingSubmodule(
                f"'{name}' has no hidden neurons that are known here: name MLPs (mlp_0 to "
                f"mlp_{self.n_layers - 1}) of a model without experts, whose family says down_proj."
            ) from None

    def attn(self, layer: int, stream: Tensor, context: Mapping[str, Any]) -> Tensor:
        """Value of ``attn_layer`` for the stream entering the layer, ``(batch, pos, d)``."""
        attention = self._attention(layer)
        normed = self._part(layer, self.family.pre_attn)(stream)
        if not self.attn_input:
            return self._after_attention(layer, first_of(attention(normed, **context)))
        return given_to(self._out_proj(layer), lambda: attention(normed, **context))

    def _after_attention(self, layer: int, output: Tensor) -> Tensor:
        post = self._part(layer, self.family.post_attn)
        return output if post is None else post(output)

    def write_attn(self, layer: int, value: Tensor) -> Tensor:
        """What a value of ``attn_layer`` adds to the stream, ``(..., d)``."""
        if not self.attn_input:
            return value
        return self._after_attention(layer, self._out_proj(layer)(value.contiguous()))

    def after_attn(self, layer: int, stream: Tensor, attn: Tensor) -> Tensor:
        """The stream between attention and MLP, which the MLP of a sequential model reads."""
        return stream + self.write_attn(layer, attn)

    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        """Value of ``mlp_layer`` for the stream it reads, ``(batch, d)`` or with pos."""
        mlp = self._part(layer, self.family.mlp)
        normed = self._part(layer, self.family.pre_mlp)(stream)
        # Mixtures of experts take (batch, pos, d) alone.
        batched = normed[:, None] if normed.ndim == 2 else normed
        if self.mlp_input:
            hidden = given_to(self._down_proj(f"mlp_{layer}"), lambda: mlp(batched))
            return hidden.view(*normed.shape[:-1], -1)
        return self._after_mlp(layer, first_of(mlp(batched)).view_as(normed))

    def _after_mlp(self, layer: int, output: Tensor) -> Tensor:
        post = self._part(layer, self.family.post_mlp)
        return output if post is None else post(output)

    def write_mlp(self, layer: int, value: Tensor) -> Tensor:
        """What a value of ``mlp_layer`` adds to the stream, ``(..., d)``."""
        if not self.mlp_input:
            return value
        # GPT-2's projections take no expanded views.
        return self._after_mlp(layer, self._down_proj(f"mlp_{layer}")(value.contiguous()))

    def layer(
        self,
        layer: int,
        stream: Tensor,
        context: Mapping[str, Any],
        visit: Visit | None = None,
        *,
        attn: Tensor | None = None,
        mlp: Tensor | None = None,
    ) -> Tensor:
        """The stream after `layer`: stream + attn + mlp, wherever a layer is run.

        Args:
            stream: the stream before it, ``(..., d)``.
            context: what its attention is called with besides, from a `Recording`.
            visit: given the name and value of each submodule as the run meets it; what it returns
                is used instead.
            attn, mlp: values of the layer's submodules that are known already, and are visited
                but not computed. With both, or with attn alone, any tokens may be left out.
        """
        visit = visit or _as_it_is
        if attn is None:
            attn = self.attn(layer, stream, context)
        attn = visit(f"attn_{layer}", attn)
        middle = self.after_attn(layer, stream, attn)
        if mlp is None:
            mlp = self.mlp(layer, stream if self.parallel else middle)
        added = self.write_mlp(layer, visit(f"mlp_{layer}", mlp))
        return visit(f"resid_{layer}", middle + added)

    def run_layers(
        self, stream: Tensor, context: Sequence[Mapping[str, Any]], first: int = 0
    ) -> Tensor:
        """The stream after the last layer, given the one before layer `first`."""
        for layer in range(first, self.n_layers):
            stream = self.layer(layer, stream, context[layer])
        return stream

    def logits(self, stream: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits for a final residual stream.

        Args:
            stream: ``(batch, ..., d)``, the last layer's output, before the final norm.
            tokens: ``(batch, k)``: only these columns of the unembedding; all where None.

        Returns:
            ``(batch, ..., vocabulary)`` or ``(batch, ..., k)``.
        """
        normed = self.final_norm(stream)
        if tokens is None:
            out = self.unembedding(normed)
        else:
            out = torch.einsum("bkd,b...d->b...k", self.unembedding.weight[tokens], normed)
            bias = getattr(self.unembedding, "bias", None)
            if bias is not None:
                out = out + bias[tokens].view(len(tokens), *[1] * (out.ndim - 2), -1)
        return out if self.soft_cap is None else self.soft_cap * torch.tanh(out / self.soft_cap)

    @torch.no_grad()
    def _difference(self) -> float:
        """How far the adapter is from the model's own run on a few tokens.

        The largest relative difference of the logits, and of the stream that the recorded outputs
        add up to after each layer.
        """
        n_pos = min(5, self.max_positions)
        tokens = torch.arange(2 * n_pos, device=self.device).reshape(2, n_pos) % self.n_vocab
        recording = self.record(tokens)
        outputs = recording.outputs
        stream = self.run_layers(recording.stream_before(0), recording.context)
        pairs = [(self.logits(stream), self.hf(tokens, use_cache=False).logits)]
        for i in range(self.n_layers):
            middle = self.after_attn(i, recording.stream_before(i), outputs[f"attn_{i}"])
            added = self.write_mlp(i, outputs[f"mlp_{i}"])
            pairs.append((middle + added, outputs[f"resid_{i}"]))
        relative = [
            (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1) for ours, theirs in pairs
        ]
        return float(torch.stack(relative).max())
