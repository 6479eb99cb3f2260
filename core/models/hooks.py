"""Where the Hugging Face model's own runs meet its submodules: the only forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from core.models.language_model import LanguageModel

Visit = Callable[[str, Tensor], Tensor]
"""What is done at a submodule's value when a run meets it: (name, value) to the value used."""


def first_of(output: Any) -> Tensor:
    """The hidden states of a module's output, a tensor in some versions and a tuple in others."""
    return output[0] if isinstance(output, tuple) else output


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states a module is called with, positional in some families and a keyword in
    others."""
    return args[0] if args else kwargs["hidden_states"]


def _on_input(visit: Visit, name: str, shift: list[Tensor | float] | None) -> Any:
    """A hook where a module is given a value, to which `shift` has been added."""

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = input_of(args, kwargs)
        value = given if shift is None else given - shift[0]
        used = visit(name, value)
        if used is value:
            return None
        used = used if shift is None else used + shift[0]
        return ((used, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": used})

    return hook


def _on_output(visit: Visit, name: str, copy: bool) -> Any:
    """A hook where a module puts a value out, to which its layer may add in place: then a `copy`
    is visited."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        value = first_of(output).clone() if copy else first_of(output)
        used = visit(name, value)
        if used is value:
            return None
        return (used, *output[1:]) if isinstance(output, tuple) else used

    return hook


def given_to(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What a module is given while something runs."""
    caught: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: caught.append(args[0]))
    try:
        run()
    finally:
        handle.remove()
    return caught[0]


@contextmanager
def visited(model: LanguageModel, visit: Visit, names: Container[str]) -> Iterator[None]:
    """While this lasts, runs of `model.hf` pass the values of some submodules through `visit`.

    Args:
        visit: given a submodule's name and value, ``(batch, pos, d)``, in causal order; what it
            returns is used instead. Hooks that stand already come first.
        names: which submodules.
    """
    shift: list[Tensor | float] = [0.0]

    def keep_position(_module: Any, _args: Any, output: Tensor) -> None:
        shift[0] = output

    with ExitStack() as stack:
        if "embed" in names and model.positions is not None:
            stack.callback(model.positions.register_forward_hook(keep_position).remove)
        for name in (name for name in model.submodules if name in names):
            module, is_given = model.place_of(name)
            if is_given:
                hook = _on_input(visit, name, shift if name == "embed" else None)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                copy = model.family.in_place and name.startswith("mlp")
                handle = module.register_forward_hook(_on_output(visit, name, copy))
            stack.callback(handle.remove)
        yield
