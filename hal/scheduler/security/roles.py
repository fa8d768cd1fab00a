"""What each role may ask: one row an operation. What is not in the table is refused."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

__all__ = ["ACCESS", "Access", "Role"]


class Role(StrEnum):
    """``admin`` does everything; ``user`` holds leases and jobs, and sees its own; ``reader`` sees all and
    changes nothing; ``agent`` speaks for one node."""

    ADMIN = "admin"
    USER = "user"
    READER = "reader"
    AGENT = "agent"


class Access(Struct, frozen=True):
    """Who may ask an operation beside admins, and whether the audit log keeps that somebody did."""

    roles: frozenset[Role]
    noted: bool


_U, _R, _A = Role.USER, Role.READER, Role.AGENT


def _read(*roles: Role) -> Access:
    return Access(frozenset({Role.ADMIN, *roles}), noted=False)


def _change(*roles: Role) -> Access:
    return Access(frozenset({Role.ADMIN, *roles}), noted=True)


# Renewals and beats change something, too, but come each second: noting them would hide all else.
ACCESS: dict[str, Access] = {
    "hello": _read(_U, _R, _A),
    # leases
    "acquire": _change(_U),
    "acquire_many": _change(_U),
    "wait": _read(_U),
    "renew": _read(_U),
    "release": _change(_U),
    "release_many": _change(_U),
    "list": _read(_U, _R),
    "lease": _read(_U, _R),
    "explain": _read(_U, _R),
    "watch": _read(_U, _R),
    # jobs
    "submit": _change(_U),
    "jobs": _read(_U, _R),
    "job": _read(_U, _R),
    "job_logs": _read(_U, _R),
    "wait_job": _read(_U, _R),
    "cancel_job": _change(_U),
    "signal_job": _change(_U),
    "accounting": _read(_U, _R),
    # queues
    "queues": _read(_U, _R),
    "set_queue": _change(),
    "remove_queue": _change(),
    # nodes
    "nodes": _read(_U, _R),
    "cordon": _change(),
    "drain": _change(),
    "uncordon": _change(),
    "label": _change(),
    "forget": _change(),
    "status": _read(_U, _R),
    "join": _change(_A),
    "beat": _read(_A),
}
