"""Nodes as columns: circuits of tens of thousands are cut, filtered and laid out at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import index
from typing import overload

import numpy as np

from core.errors import InputError
from core.options import check_list
from core.types import ERROR, Node

_EVERYWHERE = -1


class NodeTable(Sequence[Node]):
    """A list of nodes that also stand in columns, one entry for each node.

    A slice, and what `where` leaves, are tables as well and copy no node.

    Attributes:
        names: submodules that nodes may be of.
        submodule: ``(node,)``, indices into `names`.
        feature: ``(node,)``, `ERROR` for errors.
        pos: ``(node,)``, -1 for a node at no position.
    """

    def __init__(
        self,
        nodes: np.ndarray,
        rows: np.ndarray,
        names: Sequence[str],
        columns: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        self._nodes, self._rows = nodes, rows
        self.names = names
        self.submodule, self.feature, self.pos = columns

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> NodeTable:
        """The nodes as a table; themselves if they are one.

        Raises:
            InputError: no list of nodes, a feature or position that is no whole number, or a
                position before the first.
        """
        if isinstance(nodes, NodeTable):
            return nodes
        check_list("nodes", nodes, Node)
        names: dict[str, int] = {}
        try:
            columns = (
                np.fromiter((names.setdefault(n[0], len(names)) for n in nodes), int, len(nodes)),
                np.fromiter((index(n[1]) for n in nodes), int, len(nodes)),
                np.fromiter((_position(n[2]) for n in nodes), int, len(nodes)),
            )
        except (TypeError, OverflowError) as error:
            raise InputError(
                f"a node's feature and position are whole numbers, or no position None: {error}."
            ) from error
        every = np.fromiter(nodes, object, len(nodes))
        return cls(every, np.arange(len(nodes)), tuple(names), columns)

    @property
    def is_error(self) -> np.ndarray:
        """``(node,)``, whether each is an error node."""
        return self.feature == ERROR

    @property
    def is_placed(self) -> np.ndarray:
        """``(node,)``, whether each is at a position."""
        return self.pos != _EVERYWHERE

    def where(self, chosen: np.ndarray | slice) -> NodeTable:
        """Those of the nodes that a mask ``(node,)``, or a slice, chooses."""
        columns = self.submodule[chosen], self.feature[chosen], self.pos[chosen]
        return NodeTable(self._nodes, self._rows[chosen], self.names, columns)

    def at(self, name: str) -> NodeTable:
        """The nodes of one submodule."""
        code = self.names.index(name) if name in self.names else len(self.names)
        return self.where(self.submodule == code)

    @overload
    def __getitem__(self, at: int) -> Node: ...
    @overload
    def __getitem__(self, at: slice) -> NodeTable: ...
    def __getitem__(self, at: int | slice) -> Node | NodeTable:
        """One node, or a table of some."""
        if isinstance(at, slice):
            return self.where(at)
        node: Node = self._nodes.item(self._rows[at])
        return node

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes[self._rows])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


def _position(pos: int | None) -> int:
    if pos is None:
        return _EVERYWHERE
    if index(pos) < 0:
        raise InputError(f"a node is at position {pos}: positions begin at 0.")
    return index(pos)
