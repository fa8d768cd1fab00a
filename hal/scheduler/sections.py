"""The sections of the configuration: each key with its type, its bounds, its default and what it means.

The page docs/configuration.md is made from them. ``live`` keys take effect at SIGHUP, others at the next
start.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from hal.scheduler.names import check_labels, check_port
from hal.scheduler.security.environment import KEPT
from hal.scheduler.security.limits import Allowance
from hal.scheduler.security.roles import Role
from hal.units import parse_bytes

__all__ = [
    "LONGEST_SECONDS",
    "AgentSection",
    "JobsSection",
    "LimitsSection",
    "SchedulerSection",
    "SecuritySection",
    "http_address",
]

_MANY = 1_000_000  # of what one client may do: no bound, and yet a number that can be counted with
LONGEST_SECONDS = 7 * 86400  # that a node may be silent, and then be waited for


def _key(text: str, *, live: bool = True, **bounds: Any) -> Meta:
    return Meta(description=text, extra={"live": live}, **bounds)


Seconds = float
Text = Annotated[str, Meta(min_length=1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
Address = Annotated[str, Meta(pattern=r"^tcp://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.*_-]+):([0-9]{1,5}|\*)$")]


_METRICS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")


def http_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[ADDRESS]:PORT``. Raises ValueError."""
    found = _METRICS.fullmatch(text)
    if found is None or int(found[3]) > 65535:
        raise ValueError(f"'{text}' is no address; write HOST:PORT")
    return found[1] or found[2], int(found[3])


class SchedulerSection(Struct, frozen=True, kw_only=True):
    listen: Annotated[
        tuple[Address, ...],
        _key(
            "TCP addresses for agents and clients of other machines, such as `tcp://0.0.0.0:7421` (port "
            "`*`: any that is free); always with CURVE keys (`hal keys`). Without any only this machine is "
            "served",
            live=False,
        ),
    ] = ()
    lost_seconds: Annotated[
        Seconds,
        _key(
            "a node that has said nothing for so long is lost: its leases are suspended",
            ge=2,
            le=LONGEST_SECONDS,
        ),
    ] = 5.0
    grace_seconds: Annotated[
        Seconds,
        _key("how long a lost node's leases wait for it before they are revoked", ge=1, le=LONGEST_SECONDS),
    ] = 60.0
    metrics: Annotated[
        str, _key("`HOST:PORT` at which /metrics and /health are served over HTTP; empty: not", live=False)
    ] = ""
    log: Annotated[
        Literal["text", "json"], _key("how the scheduler and the agent log to stderr", live=False)
    ] = "text"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _key("the least that is logged")] = (
        "info"
    )

    def __post_init__(self) -> None:
        for address in self.listen:
            check_port(address, least=0)
        if self.metrics:
            http_address(self.metrics)


class LimitsSection(Struct, frozen=True, kw_only=True):
    requests_per_second: Annotated[
        float,
        _key("of each client (a local user, or a key); admins and agents are not counted", ge=0.01, le=_MANY),
    ] = 1000.0
    burst: Annotated[int, _key("requests that a client may send at once after a pause", ge=1, le=_MANY)] = (
        2000
    )
    outstanding: Annotated[
        int, _key("requests of a client that wait for an answer (`wait`, `watch`)", ge=1, le=_MANY)
    ] = 256
    waiting: Annotated[
        int,
        _key(
            "requests of an owner that wait in queues, jobs among them; admins are not counted",
            ge=1,
            le=_MANY,
        ),
    ] = 10_000
    waiting_bytes: Annotated[
        str,
        _key(
            "of memory for what an owner has waiting, and for their jobs that are not over; admins are not "
            "counted. All owners and admins together have a quarter of `memory`"
        ),
    ] = "64MiB"
    request_bytes: Annotated[int, _key("the largest request", ge=1024, le=65536)] = 65536
    queued: Annotated[
        int,
        _key(
            "messages that are kept for a connection in each direction; a client that leaves more unread "
            "loses what comes after",
            live=False,
            ge=8,
            le=10_000,
        ),
    ] = 128
    connections: Annotated[
        int,
        _key(
            "to the scheduler; with more, those of the user or host that has the most are cut. The limit of "
            "open files (`LimitNOFILE`) has to be four times as much",
            live=False,
            ge=64,
            le=100_000,
        ),
    ] = 4096
    memory: Annotated[
        str,
        _key(
            "of the scheduler: it cuts its connections when they take half of what it does not need itself, "
            "and the kernel gives it no more than all of it (RLIMIT_DATA). `none`: no limit",
            live=False,
        ),
    ] = "2GiB"

    def __post_init__(self) -> None:
        self.memory_bytes  # noqa: B018 - says what is wrong with it
        if parse_bytes(self.waiting_bytes) < 1 << 20:
            raise ValueError("waiting_bytes is at least 1MiB")

    @property
    def memory_bytes(self) -> int | None:
        if self.memory == "none":
            return None
        size = parse_bytes(self.memory)
        if size < 256 << 20:
            raise ValueError("memory is at least 256MiB")
        return size

    @property
    def allowance(self) -> Allowance:
        return Allowance(
            self.requests_per_second,
            self.burst,
            self.outstanding,
            self.request_bytes,
            self.waiting,
            parse_bytes(self.waiting_bytes),
            None if self.memory_bytes is None else self.memory_bytes // 4,
        )


class JobsSection(Struct, frozen=True, kw_only=True):
    run_as: Annotated[
        dict[str, str],
        _key(
            "for an agent that runs as root: which user's jobs run as whom, by the key's name or the local "
            'user\'s (`alice = "alice"`). Who is not named here runs none. Of a user that there is not (yet) '
            "the log tells"
        ),
    ] = {}
    keep_environment: Annotated[
        tuple[str, ...],
        _key(
            "which of the agent's variables its jobs inherit; patterns as in a shell. What makes a program "
            "load code (`LD_*`, `PYTHON*`) is kept only when it is named in full, `HAL_*` never"
        ),
    ] = KEPT

    @property
    def of_others(self) -> bool:
        """Programs of other users run here: they have to reach their slices."""
        return os.geteuid() == 0 and bool(self.run_as)


class AgentSection(Struct, frozen=True, kw_only=True):
    scheduler: Annotated[
        Address | None,
        _key("the scheduler's address, where neither option nor variable names one", live=False),
    ] = None
    key: Annotated[
        Text | None, _key("the agent's key file, made by `hal keys new NODE --role agent`", live=False)
    ] = None
    node: Annotated[
        Name | None,
        _key("this node's name, the same as its key's; none: the key's, or the host's", live=False),
    ] = None
    labels: Annotated[
        dict[str, str],
        _key('what the scheduler is told of this node, such as `zone = "a"`'),
    ] = {}

    def __post_init__(self) -> None:
        if self.scheduler is not None:
            check_port(self.scheduler)
        check_labels(self.labels)


class SecuritySection(Struct, frozen=True, kw_only=True):
    keys: Annotated[
        Text | None,
        _key(
            "the directory of keys; none: `/etc/hal/keys` for root, else `~/.config/hal/keys`, and with "
            "HAL_RUNTIME_DIR `keys` in it",
            live=False,
        ),
    ] = None
    group: Annotated[
        Text | None,
        _key(
            "a group of this machine whose members are served, too: the runtime directory is opened to it "
            "(0750). None: only the scheduler's own user and root",
            live=False,
        ),
    ] = None
    roles: Annotated[
        dict[str, Role],
        _key(
            "of local users, by name or uid; who is not named is a `user`. Root and the scheduler's own user "
            "are always `admin`"
        ),
    ] = {}
    audit: Annotated[
        Text | None,
        _key(
            "where it is noted who did what, seen from the runtime directory; none: `audit.log` in it when "
            "others than the scheduler's own user are served, else nowhere",
            live=False,
        ),
    ] = None
    audit_size: Annotated[str, _key("a file larger than this is put aside as `audit.log.1` and so on")] = (
        "16MiB"
    )
    audit_files: Annotated[int, _key("how many that were put aside are kept", ge=0, le=1000)] = 8

    def __post_init__(self) -> None:
        if parse_bytes(self.audit_size) < 4096:
            raise ValueError("audit_size is at least 4KiB")
