"""How far an error has come: what of an iteration is known to be zero."""

from typing import NamedTuple

from pcjax.networks.network import Network


class Front(NamedTuple):
    """What inference from feed-forward values has reached, as indices of activities.

    Attributes:
      moved: the hidden activities that are away from their start.
      live: those whose error is not known to be zero, the output included.
      moving: the hidden activities whose gradient is not known to be zero.
    """

    moved: frozenset[int]
    live: frozenset[int]
    moving: frozenset[int]


def fronts(network: Network) -> list[Front]:
    """The front of every iteration of simultaneous inference from feed-forward values.

    An activity moves once its own error or that of an activity predicted from it is not
    zero, and its error is not zero once it or what it is predicted from has moved. So
    an error arrives after the shortest path from the output. After the last of these
    fronts everything has moved.
    """
    count = len(network.layers)
    moved: frozenset[int] = frozenset()
    rows: list[Front] = []
    while True:
        live = frozenset({count, *moved}) | {
            index + 1
            for index, read in enumerate(network.reads)
            if not moved.isdisjoint(read)
        }
        moving = frozenset(
            i
            for i in range(1, count)
            if i in live or any(layer + 1 in live for layer in network.readers(i))
        )
        if moved == moving:
            return rows
        rows.append(Front(moved, live, moving))
        moved = moving
