"""What nodes, labels and addresses may be called, for agents, their configuration and the scheduler."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["LONGEST_SOCKET_PATH", "check_address", "check_label", "check_labels", "check_node", "check_port"]

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # as host names, and some more
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PORT = re.compile(r"[0-9]{1,5}")
_LAST_PORT = 65535
LONGEST_SOCKET_PATH = 107  # bytes (unix(7), sun_path); ZeroMQ cuts a longer one without a word
_OWN = "name"  # what device.attributes["node"] has beside the labels


def check_node(name: str) -> None:
    """Raises ValueError with a sentence."""
    if not _NODE.fullmatch(name):
        raise ValueError(
            f"{name[:64]!r} is no name of a node: it has 1 to 128 letters, digits, '.', '_' and '-', the "
            "first a letter or digit"
        )


def check_address(address: str) -> None:
    """Of a scheduler that is to be reached. Raises ValueError with a sentence."""
    try:
        path = address.encode().removeprefix(b"ipc://")
    except UnicodeEncodeError:
        raise ValueError(f"{address!a} is no scheduler's address: it is not text in UTF-8") from None
    wrong = f"'{address}' is no scheduler's address"
    if address.startswith("tcp://"):
        if not _has_port(address, 1):
            raise ValueError(f"{wrong}; write tcp://HOST:PORT, with a port from 1 to {_LAST_PORT}")
    elif not address.startswith("ipc://"):
        raise ValueError(f"{wrong}; write tcp://HOST:PORT or ipc://PATH")
    elif not 0 < len(path) <= LONGEST_SOCKET_PATH:
        raise ValueError(f"{wrong}: a socket's path has 1 to {LONGEST_SOCKET_PATH} bytes")


def check_port(address: str, least: int = 1) -> None:
    """``least`` 0: to listen at, where 0 and ``*`` are any that is free. Raises ValueError."""
    if not _has_port(address, least):
        raise ValueError(f"'{address}' has no port from {least} to {_LAST_PORT}; write tcp://HOST:PORT")


def _has_port(address: str, least: int) -> bool:
    port = address.rpartition(":")[2]
    number = int(port) if _PORT.fullmatch(port) else 0 if port == "*" else -1
    return least <= number <= _LAST_PORT


def check_label(name: str, value: str | None) -> None:
    """``value`` None: it is taken away. Raises ValueError with a sentence."""
    if not _LABEL.fullmatch(name):
        raise ValueError(
            f"{name[:64]!r} is no name of a label: it has 1 to 63 letters, digits, '.', '_' and '-', the "
            "first a letter or digit"
        )
    if value is None:
        return
    if name == _OWN:
        raise ValueError(f"a label cannot be called '{_OWN}': that is the node's own name; take another")
    if not (value.isprintable() and len(value) <= 256):
        raise ValueError(f"the label '{name}' has at most 256 printable characters")


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises ValueError with a sentence."""
    for name, value in labels.items():
        check_label(name, value)
