"""Tensors with named axes, as annotations: ``Float[Tensor, "batch pos d"]``.

An axis has one size wherever its name stands in one signature or one dataclass. The tests check
that at every call (`tests/conftest.py`); elsewhere jaxtyping is not needed and nothing is checked.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING or find_spec("jaxtyping"):
    from jaxtyping import Bool, Float, Int
else:
    # Annotations are not evaluated, so any names will do.
    Bool = Float = Int = None

__all__ = ["Bool", "Float", "Int"]
