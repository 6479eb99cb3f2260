"""A GPU to test with where there is none: tensors that say they are on one, and keep apart.

Inside `pretended`, whatever is made on or moved to ``cuda:1`` is a tensor in ordinary memory that
calls itself ``cuda:1``: numbers are the CPU's, and code takes the ways that it takes on a GPU. What
a GPU refuses is refused: tensors of both kinds in one operation, NumPy's view of one that is
elsewhere, a generator of another device. What CUDA allows is allowed: numbers without a dimension,
indices and copies from the CPU. Kernels, streams and rounding stay what only a GPU can test.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda:1")
Elsewhere = AbstractContextManager[torch.device]
_HERE = torch.device("cpu")
_AS_ARRAY = (Tensor.numpy, Tensor.__array__)
_MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda)
_COPIES = ("aten::copy_", "aten::_to_copy")
_INDEXES = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")


class MixedDevices(RuntimeError):
    """What would have failed on a GPU."""


class _Memory:
    """Which storages are elsewhere."""

    def __init__(self) -> None:
        # The weak reference keeps an address from being given out again.
        self._refs: dict[int, StorageWeakRef] = {}

    def holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and any(s._cdata in self._refs for s in _storages(value))

    def take(self, values: Any) -> Any:
        for tensor in _tensors(values):
            for storage in _storages(tensor):
                self._refs[storage._cdata] = StorageWeakRef(storage)
        return values

    def drop(self, tensor: Tensor) -> Tensor:
        for storage in _storages(tensor):
            self._refs.pop(storage._cdata, None)
        return tensor


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _storages(tensor: Tensor) -> list[Any]:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    if tensor.layout is torch.sparse_csr:
        return [part.untyped_storage() for part in (tensor.crow_indices(), tensor.values())]
    return [tensor.untyped_storage()]


class _Kernels(TorchDispatchMode):
    """Every operation, also of gradients: all of it there, or all of it here."""

    def __init__(self, memory: _Memory) -> None:
        super().__init__()
        self._memory = memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = [*_tensors(args), *_tensors(kwargs)]
        there = [x for x in leaves if self._memory.holds(x)]
        name = func.name().partition(".")[0]
        if there and name not in _COPIES:
            self._check(name, leaves, args)
        out = func(*args, **(kwargs or {}))
        into = args[0] if name == "aten::copy_" else None
        return out if not there or out is into else self._memory.take(out)

    def _check(self, name: str, leaves: list[Tensor], args: Any) -> None:
        if name in _INDEXES and self._memory.holds(args[0]):
            indices = list(_tensors(args[1]))
            leaves = [x for x in leaves if not any(x is index for index in indices)]
        # Numbers without a dimension go along, but not into what is put together.
        alone = name in ("aten::cat", "aten::stack")
        here = [x for x in leaves if (alone or x.ndim) and not self._memory.holds(x)]
        if here:
            shapes = [tuple(x.shape) for x in here]
            raise MixedDevices(f"{name} of tensors on {DEVICE} and of {shapes} on the CPU")


class _Python(TorchFunctionMode):
    """What a tensor says of its place, and what is made somewhere or moved."""

    def __init__(self, memory: _Memory) -> None:
        super().__init__()
        self._memory = memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there = bool(args) and self._memory.holds(args[0])
        if func == Tensor.device.__get__:
            return DEVICE if there else func(*args)
        if func == Tensor.is_cuda.__get__:
            return there
        if func in _AS_ARRAY and there:
            raise MixedDevices(f"NumPy cannot see a tensor on {DEVICE}: copy it to the CPU first")
        if func in _MOVES:
            return self._moved(func, args, kwargs)
        if func is Tensor.new_tensor and there and "device" not in kwargs:
            return self._memory.take(func(*args, **kwargs))
        if func is Tensor.register_hook:
            return func(args[0], _inside(args[1], self))
        if kwargs.get("device") is None or torch.device(kwargs["device"]) != DEVICE:
            out = func(*args, **kwargs)
            copied = there and kwargs.get("device") is not None
            return self._memory.drop(out.clone()) if copied else out
        if kwargs.get("generator") is not None:
            raise MixedDevices(f"a generator on the CPU draws nothing on {DEVICE}")
        return self._memory.take(func(*args, **(kwargs | {"device": _HERE})))

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        tensor, rest = args[0], args[1:]
        there = self._memory.holds(tensor)
        if func is Tensor.cpu:
            device, dtype = _HERE, None
        elif rest and isinstance(rest[0], Tensor):
            device, dtype = DEVICE if self._memory.holds(rest[0]) else _HERE, rest[0].dtype
        else:
            named = {name: value for name, value in kwargs.items() if name != "copy"}
            device, dtype, *_ = torch._C._nn._parse_to(*rest, **named)
        to_there = there if device is None else device == DEVICE
        moved = tensor if dtype is None else tensor.to(dtype)
        if to_there == there:
            return moved.clone() if kwargs.get("copy") and moved is tensor else moved
        moved = moved.clone() if moved is tensor else moved
        return self._memory.take(moved) if to_there else self._memory.drop(moved)


def _inside(function: Any, *modes: Any) -> Any:
    """A function for where these modes are not in force: the backward pass, another thread."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            return function(*args, **kwargs)

    return run


@contextmanager
def pretended() -> Iterator[torch.device]:
    """While this lasts there is a device ``cuda:1``; see this module."""
    memory = _Memory()
    kernels, python = _Kernels(memory), _Python(memory)
    submit = ThreadPoolExecutor.submit
    with pytest.MonkeyPatch.context() as patch, kernels, python:
        patch.setattr(
            ThreadPoolExecutor,
            "submit",
            lambda pool, work, *args: submit(pool, _inside(work, kernels, python), *args),
        )
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(torch.cuda, "get_device_name", lambda _device: "none, pretended")
        yield DEVICE
