"""How the members of a gang find one another: the variables that torchrun sets for its workers.

A member is to them what a worker is to torchrun: RANK counts members, LOCAL_RANK those of its node, and
GROUP_RANK and NODE_RANK count nodes, in the order in which the members come to them. A member sees its own
devices and no others, from index 0, so that LOCAL_RANK is no index of a device in it.
"""

from __future__ import annotations

import socket
from collections.abc import Container, Sequence
from contextlib import suppress

__all__ = ["FIRST_PORT", "PORTS", "free_port", "rendezvous"]

FIRST_PORT, PORTS = 29500, 1000  # torchrun's own default is the first


def rendezvous(member: int, nodes: Sequence[str], address: str, port: int) -> dict[str, str]:
    """For one member. ``nodes``: where each member is; ``address``: of the first one's, for the others."""
    here = nodes[member]
    groups = list(dict.fromkeys(nodes))
    return {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(len(nodes)),
        "RANK": str(member),
        "LOCAL_RANK": str(nodes[:member].count(here)),
        "LOCAL_WORLD_SIZE": str(nodes.count(here)),
        "NNODES": str(len(groups)),
        "NODE_RANK": str(groups.index(here)),
        "GROUP_RANK": str(groups.index(here)),
        "GROUP_WORLD_SIZE": str(len(groups)),
    }


def free_port(taken: Container[int], epoch: int) -> int:
    """One on this machine on which nobody listens; another each time, for whoever asks again too soon.

    Without one of the usual ports, one that the kernel chooses; 0 when there is none at all.
    """
    for number in range(PORTS):
        port = FIRST_PORT + (epoch + number) % PORTS
        if port not in taken and _listening(port):
            return port
    return _listening(0)


def _listening(port: int) -> int:
    """The port on which it was possible to listen for a moment, at all addresses; 0: it was not.

    As torch's store does: on the port of a connection that is being forgotten one may listen.
    """
    for family in (socket.AF_INET6, socket.AF_INET):
        with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            one.bind(("", port))
            one.listen(1)
            return int(one.getsockname()[1])
    return 0
