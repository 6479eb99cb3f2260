"""Where a metric is read off a run: at a site, at the last token or as a mean over tokens.

A metric of a language model reads the logits at the last token. A probe of a hidden stream reads
the stream, most often its mean over the text. Nodes and edges end at the site: what comes after
it cannot change what is read, so it is not run and has no nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.errors import InputError
from core.options import POOLINGS, Pooling, check_option
from core.types import Submodule, causal_order

if TYPE_CHECKING:
    from core.models import LanguageModel

LOGITS = "logits"
"""The site of metrics that read the model's logits."""


def at_last(values: Tensor, last: Tensor) -> Tensor:
    """The vector at each example's last token, ``(batch, pos, d)`` to ``(batch, d)``."""
    return values[torch.arange(len(last), device=values.device), last]


def mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens, ``(batch, pos, d)`` to ``(batch, d)``; halves in float32."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    # Not a product with the mask: what stands at padding may be NaN.
    real = torch.where(mask[..., None], wide, torch.zeros_like(wide))
    return real.sum(1) / mask.sum(1, keepdim=True)


@dataclass(frozen=True)
class Readout:
    """What of a run a metric is given.

    Attributes:
        site: ``logits``, or the submodule whose output is read: ``resid_4``.
        pooling: ``last``, the last real token; ``mean``, the mean over real tokens.

    Raises:
        InputError: an unknown pooling.
        MissingSubmodule: a site that no model has.
    """

    site: str = LOGITS
    pooling: Pooling = "last"

    def __post_init__(self) -> None:
        check_option("pooling", self.pooling, POOLINGS)
        if not isinstance(self.site, str):
            raise InputError(f"a site is logits or a submodule's name, not {self.site!r:.80}.")
        if self.site != LOGITS:
            Submodule.parse(self.site)

    @property
    def name(self) -> str:
        """What is read, in words: ``resid_4, mean over tokens``."""
        return f"{self.site}, {'last token' if self.pooling == 'last' else 'mean over tokens'}"

    def end(self, n_layers: int) -> Submodule:
        """The submodule whose output is read, in a model of so many layers; that of the logits is
        the last stream."""
        name = f"resid_{n_layers - 1}" if self.site == LOGITS else self.site
        return Submodule.parse(name)

    def reached_by(self, names: Iterable[str], model: LanguageModel) -> list[str]:
        """Those of some submodules whose output may change what is read, in causal order.

        Raises:
            MissingSubmodule: the model has no such site.
        """
        end = self.end(model.n_layers)
        model.width(end.name)
        beside = f"attn_{end.layer}" if end.kind == "mlp" and model.parallel else None
        return [
            name
            for name in causal_order(names)
            if Submodule.parse(name).order <= end.order and name != beside
        ]

    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        """One vector for each example.

        Args:
            values: ``(batch, pos, d)``.
            mask: ``(batch, pos)``, True at real tokens; padding may be on either side.
        """
        if self.pooling == "mean":
            return mean_over_tokens(values, mask)
        return at_last(values, last_token(mask))


LAST_LOGITS = Readout()
"""What a metric of a language model's answer is given."""


def last_token(mask: Tensor) -> Tensor:
    """Position of each example's last real token, ``(batch,)``, whatever the padding side."""
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
