"""How the members of a gang find one another: the variables that torchrun's programs read.

A member sees its own devices and no others, and so is a node to them: LOCAL_RANK is 0, which is the index
of its first device, and NODE_RANK its rank. ``torchrun --nnodes $NNODES --node-rank $NODE_RANK`` in a
member with several devices, and a program that reads RANK and WORLD_SIZE itself, both start as they should.
"""

from __future__ import annotations

import socket
from collections.abc import Container
from contextlib import suppress

__all__ = ["FIRST_PORT", "PORTS", "free_port", "rendezvous"]

FIRST_PORT, PORTS = 29500, 1000  # torchrun's own default is the first


def rendezvous(member: int, members: int, address: str, port: int) -> dict[str, str]:
    """For one member; ``address`` is that of the first one's node, as the others reach it."""
    return {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(members),
        "RANK": str(member),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "NNODES": str(members),
        "NODE_RANK": str(member),
        "GROUP_RANK": str(member),
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
