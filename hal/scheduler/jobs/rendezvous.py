"""How the members of a gang find one another: the variables that torchrun's programs read.

A member sees its own devices and no others, and so is a node to them: LOCAL_RANK is 0, which is the index
of its first device, and NODE_RANK its rank. ``torchrun --nnodes $NNODES --node-rank $NODE_RANK`` in a
member with several devices, and a program that reads RANK and WORLD_SIZE itself, both start as they should.
"""

from __future__ import annotations

from collections.abc import Container

__all__ = ["free_port", "rendezvous"]

_FIRST_PORT, _PORTS = 29500, 1000  # torchrun's own default is the first


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
    """One that no other job has there; another each time, for a socket takes a while to be free again.

    Nobody knows what else uses it: a job that needs another sets MASTER_PORT itself.
    """
    for number in range(_PORTS):
        port = _FIRST_PORT + (epoch + number) % _PORTS
        if port not in taken:
            return port
    return _FIRST_PORT
