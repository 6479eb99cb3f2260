"""Weights of one dictionary, and what each kind of it computes, written as the papers do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from core.dictionaries import Dictionary

D, N, K, G = 5, 12, 3, torch.Generator().manual_seed(11)
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


def noise(*shape: int, scale: float = 0.5) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=G)


X = noise(40, D, scale=1.0)
ENC, DEC = noise(N, D), noise(D, N)  # as torch.nn.Linear keeps them
B_ENC, B_DEC, GATE, MAG, R_MAG = noise(N), noise(D), noise(N), noise(N), noise(N)
THRESHOLD = noise(N).abs()
LINEAR = {"encoder.weight": ENC, "encoder.bias": B_ENC, "decoder.weight": DEC}
CANONICAL = {
    "W_enc": ENC.T.contiguous(),
    "b_enc": B_ENC,
    "W_dec": DEC.T.contiguous(),
    "b_dec": B_DEC,
}


def jump(pre: torch.Tensor, threshold: Any) -> torch.Tensor:
    return F.relu(pre * (pre > threshold))


def top(f: torch.Tensor) -> torch.Tensor:
    value, kept = f.topk(K, dim=-1)
    return torch.zeros_like(f).scatter(-1, kept, value)


def gated(x: torch.Tensor) -> torch.Tensor:
    z = x @ ENC.T
    return (z + GATE > 0) * F.relu(R_MAG.exp() * z + MAG)


def linear(x: torch.Tensor) -> torch.Tensor:
    return x @ ENC.T + B_ENC


def check(found: Dictionary, features: torch.Tensor, x_hat: torch.Tensor, x=X) -> None:
    torch.testing.assert_close(found.encode(x), features, **TOLERANCE)
    torch.testing.assert_close(found.decode(found.encode(x)), x_hat, **TOLERANCE)


# -- dictionary_learning: tensors by class, and what the class computes

DL: dict[str, tuple[dict[str, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "AutoEncoder": (LINEAR | {"bias": B_DEC}, lambda x: F.relu(linear(x - B_DEC))),
    "AutoEncoderNew": (LINEAR | {"decoder.bias": B_DEC}, lambda x: F.relu(linear(x))),
    "GatedAutoEncoder": (
        {"encoder.weight": ENC, "decoder.weight": DEC, "decoder_bias": B_DEC}
        | {"r_mag": R_MAG, "gate_bias": GATE, "mag_bias": MAG},
        lambda x: gated(x - B_DEC),
    ),
    "JumpReluAutoEncoder": (
        CANONICAL | {"threshold": THRESHOLD},
        lambda x: jump(linear(x), THRESHOLD),
    ),
    "AutoEncoderTopK": (
        LINEAR | {"b_dec": B_DEC, "k": torch.tensor(K), "threshold": torch.tensor(-1.0)},
        lambda x: top(F.relu(linear(x - B_DEC))),
    ),
    "BatchTopKSAE": (
        LINEAR | {"b_dec": B_DEC, "k": torch.tensor(K), "threshold": torch.tensor(0.4)},
        lambda x: jump(F.relu(linear(x - B_DEC)), 0.4),
    ),
    "MatryoshkaBatchTopKSAE": (
        CANONICAL
        | {
            "k": torch.tensor(K),
            "threshold": torch.tensor(0.4),
            "group_sizes": torch.tensor([4, 8]),
        },
        lambda x: jump(F.relu(linear(x - B_DEC)), 0.4),
    ),
}


def write_dl(folder: Path, name: str, *, config: bool = True, state: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(DL[name][0] if state is None else state, folder / "ae.pt")
    if config:
        trainer = {"dict_class": name, "activation_dim": D, "dict_size": N, "k": K}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    return folder


# -- SAELens: tensors and configuration by architecture, and what it computes

SL: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], Callable]] = {
    "standard": (CANONICAL, {}, lambda x: F.relu(linear(x))),
    "jumprelu": (
        CANONICAL | {"threshold": THRESHOLD},
        {},
        lambda x: jump(linear(x), THRESHOLD),
    ),
    "topk": (CANONICAL, {"k": K}, lambda x: top(F.relu(linear(x)))),
    "gated": (
        {key: CANONICAL[key] for key in ("W_enc", "W_dec", "b_dec")}
        | {"b_gate": GATE, "b_mag": MAG, "r_mag": R_MAG},
        {},
        gated,
    ),
}


def write_sl(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": N, **config}))
    return folder
