"""A dictionary of random directions: what a trained one is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from core.dictionaries.activations import TopK
from core.dictionaries.dictionary import Dictionary


@torch.no_grad()
def random_dictionary(like: Dictionary, x: Tensor, *, seed: int = 0) -> Dictionary:
    """As many random unit directions as a dictionary has features, as sparsely active.

        f = s topk(R (x - bias))        x_hat = R^T f + bias

    The rows of R are drawn evenly from the sphere and read by their transpose; nothing is trained
    but the scale s, by least squares. As many features are kept at each token as the dictionary
    has active on average. The bias is the dictionary's, so that what is left with all nodes
    ablated is the same for both, and what R misses is in the error nodes.

    Args:
        like: whose number of features, L0 and bias are taken.
        x: ``(..., d)``, outputs of the submodule that L0 and scale are taken from.
        seed: of the directions.
    """
    x = x.reshape(-1, x.shape[-1]).to(like.decoder.dtype)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(like.n_features, like.d, generator=generator, dtype=torch.float64)
    rows = (rows / rows.norm(dim=1, keepdim=True)).to(like.decoder)
    n_active = float((like.encode(x) != 0).double().sum(1).mean())
    activation = TopK(min(like.n_features, max(1, round(n_active))))
    centred = x - like.bias
    guess = activation(centred @ rows.T) @ rows
    norm = float((guess * guess).sum())
    scale = float((guess * centred).sum()) / norm if norm > 0 else 1.0
    no_bias = torch.zeros_like(like.encoder_bias)
    return Dictionary(scale * rows, no_bias, rows, like.bias, like.bias, activation)
