"""``hal job``: list, show, follow, cancel and wait for what 'hal submit' has queued."""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from hal.backend import GoneError, HalError, StateError, TemporaryError
from hal.cli.exits import UsageError, exit_code
from hal.cli.output import first_of, note, print_facts, print_json, print_table
from hal.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from hal.scheduler.client import Client

_POLL = 0.25  # seconds between looks at output that is followed
_PATIENCE = 10.0  # seconds for which the scheduler is asked to hold back its answer
_PIECE = 32768
OVER = ("completed", "failed", "cancelled")
_RESTART = 30.0  # seconds in which a scheduler that has gone may come back


def configure_job(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = "List the jobs of 'hal submit', show one, read what it says, end it or wait for it."
    parser.epilog = "examples:\n  hal job list\n  hal job logs -f 5f3a91c0\n  hal job wait 5f3a91c0"
    verbs = parser.add_subparsers(dest="verb", metavar="list|show|logs|cancel|wait|signal", required=True)

    def verb(name: str, text: str, example: str, schema: str = "") -> argparse.ArgumentParser:
        one = verbs.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument("--json", action="store_true", help=f"print JSON (schema {schema or 'hal.jobs/1'})")
        return one

    listing = verb("list", "the jobs there are, and the latest of those that are over", "hal job list")
    listing.add_argument("--array", metavar="ARRAY", help="only the jobs of this array")
    listing.add_argument("--active", action="store_true", help="only those that are not over")
    showing = verb("show", "all about one job", "hal job show 5f3a91c0", "hal.job/1")
    logs = verb("logs", "what a job's program has said", "hal job logs -f 5f3a91c0", "hal.output/1")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job is over")
    logs.add_argument("--member", type=int, metavar="N", help="of a gang, this member (0)")
    logs.add_argument(
        "--stream", choices=["stdout", "stderr", "both"], default="both", help="which of its streams (both)"
    )
    ending = verb("cancel", "end a job, or all of an array", "hal job cancel 5f3a91c0")
    waiting = verb("wait", "wait until a job, or all of an array, is over", "hal job wait 5f3a91c0")
    waiting.description = (
        "Wait until a job, or all of an array, is over. The exit code is the job's own, as a shell gives it\n"
        "(3 for one that was ended from outside, 6 for one that was not started); of several, the first\n"
        "that is not 0."
    )
    sending = verb("signal", "send a signal to a job's program", "hal job signal 5f3a91c0 USR1", "hal.job/1")
    for one in (showing, logs, ending, waiting, sending):
        one.add_argument("job", metavar="JOB", help="its id, as 'hal job list' shows it")
    sending.add_argument("signal", metavar="SIGNAL", help="its name or number, as in USR1")
    runs = {
        "list": _list,
        "show": _show,
        "logs": _logs,
        "cancel": _cancel,
        "wait": _wait,
        "signal": _signal,
    }
    return lambda options: runs[options.verb](options)


@contextlib.contextmanager
def reaching(*, start: bool = False) -> Iterator[Client]:
    """The scheduler; a private one that has left comes back to tell of its jobs, or for a first one."""
    from hal.scheduler.client import Client
    from hal.scheduler.endpoint import Endpoint
    from hal.scheduler.private import ensure_daemon

    where = Endpoint.chosen()
    if start or (where.places is not None and where.places.store.exists()):
        ensure_daemon(where)
    with Client(where) as client:
        yield client


def _list(options: argparse.Namespace) -> int:
    import shlex

    with reaching() as client:
        found = client.listed("jobs", "jobs", array=options.array, over=not options.active)["jobs"]
    if options.json:
        print_json("hal.jobs/1", jobs=found)
    elif found:
        print_table(
            ("JOB", "NAME", "OWNER", "STATE", ">EXIT", ">RAN", "NODES", "DEVICES", "COMMAND", "REASON"),
            [
                (
                    one["id"],
                    one["name"] if one["name"] != one["id"] else "",
                    one["owner"],
                    _state(one),
                    "" if one["exit_code"] is None else str(one["exit_code"]),
                    "" if one["ran_seconds"] is None else format_seconds(one["ran_seconds"]),
                    ",".join(dict.fromkeys(one["nodes"])),
                    first_of(one["devices"]),
                    _short(shlex.join(one["command"]), 40),
                    _short(one["reason"], 60),
                )
                for one in found
            ],
        )
    else:
        print("There are no jobs.")
    return 0


def _state(one: dict[str, Any]) -> str:
    """Suspended: its node is lost, and may come back."""
    return "suspended" if one.get("suspended") else str(one["state"])


def _short(text: str, most: int) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _show(options: argparse.Namespace) -> int:
    with reaching() as client:
        one = client.call("job", job=options.job)["job"]
    if options.json:
        print_json("hal.job/1", **one)
        return 0
    _print(one)
    return 0


def _print(one: dict[str, Any]) -> None:
    import shlex

    def when(at: int | None) -> str:
        return "–" if at is None else f"{datetime.fromtimestamp(at / 1000).astimezone():%F %T}"

    says_all = not one["reason"] or one["reason"].startswith(_state(one))  # "cancelled by alice"
    state = one["reason"] or _state(one) if says_all else f"{_state(one)}: {one['reason']}"
    exit_code = "–" if one["exit_code"] is None else str(one["exit_code"])
    facts = [
        ("job", one["id"]),
        ("name", one["name"]),
        ("owner", one["owner"]),
        ("state", state),
        ("exit code", exit_code),
        ("queue", f"{one['queue']}, priority {one['priority']}"),
        ("command", shlex.join(one["command"])),
        ("directory", one["directory"]),
        ("variables", ", ".join(one["variables"]) or "–"),
        ("members", f"{one['members']}" + (f" on {_places(one['nodes'])}" if one["nodes"] else "")),
        ("devices", ", ".join(one["devices"]) or "–"),
        ("attempts", f"{one['attempt']}; retries allowed: {one['retries']}"),
        ("submitted", when(one["submitted_ms"])),
        ("began", when(one["began_ms"])),
        ("ended", when(one["ended_ms"])),
        ("used", f"{one['device_seconds']:.1f} device seconds, {format_bytes(_mean(one))} on average"),
        ("price", f"{one['price']:.4f}"),
    ]
    print_facts(facts)


def _places(nodes: list[str]) -> str:
    """As in "green ×4, red"."""
    return ", ".join(name if many == 1 else f"{name} ×{many}" for name, many in Counter(nodes).items())


def _mean(one: dict[str, Any]) -> int | None:
    """Bytes of device memory that were held, on average of the time, all attempts together."""
    seconds = one.get("held_seconds") or (one["ran_seconds"] if one["attempt"] == 1 else None)
    return round(one["memory_byte_seconds"] / seconds) if seconds and one["memory_byte_seconds"] else None


def _logs(options: argparse.Namespace) -> int:
    streams = ["stdout", "stderr"] if options.stream == "both" else [options.stream]
    if options.json and options.follow:
        raise UsageError("--json prints what there is, at once: it does not go with --follow")
    with reaching() as client:
        if options.member is None:
            options.member = 0
            _say_of_the_others(client, options.job)
        if options.json:
            said = {name: b"".join(_said(client, options, name)) for name in streams}
            texts = {name: data.decode(errors="replace") for name, data in said.items()}
            print_json("hal.output/1", job=options.job, member=options.member, **texts)
            return 0
        follow = {
            name: Reader(client, options.job, options.member, name, tells=name == streams[0])
            for name in streams
        }
        while True:
            try:
                went_on = [pass_on(reader) for reader in follow.values()]
            except StateError:
                _say_if_it_never_ran(client, options.job)
                raise
            if all(reader.end for reader in follow.values()):
                return 0
            if not any(went_on):
                if not options.follow:
                    return 0
                time.sleep(_POLL)


def _say_of_the_others(client: Client, id: str) -> None:
    members = client.call("job", job=id)["job"]["members"]
    if members > 1:
        note(f"this is member 0 of {members}; --member N shows another, up to {members - 1}")


def _say_if_it_never_ran(client: Client, id: str) -> None:
    """Else its output is there, if on a node that cannot be reached."""
    job = client.call("job", job=id)["job"]
    if job["state"] in OVER and job["exit_code"] is None and not job.get("started"):
        raise StateError(_ended(job))


class Reader:
    """A stream, piece by piece; an attempt that is made anew is read from its beginning."""

    def __init__(
        self,
        client: Client,
        job: str,
        member: int,
        stream: str,
        *,
        patience: float = _RESTART,
        tells: bool = True,
    ) -> None:
        """``patience``: so many seconds for a scheduler or node that does not answer any more; ``tells``: of
        an attempt that is made anew."""
        self._client = client
        self._asked: dict[str, Any] = {"job": job, "member": member, "stream": stream, "limit": _PIECE}
        self._offset = 0
        self._epoch: int | None = None
        self._patience = patience
        self._tells = tells
        self.stream = stream
        self.end = False
        self.full = False  # there may be more already

    def piece(self) -> bytes:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                answer = self._client.call("job_logs", timeout=8.0, **self._asked, offset=self._offset)
                break
            except TemporaryError:
                if time.monotonic() >= deadline:
                    raise
            except StateError:  # the node has not joined again yet, for one
                if self._epoch is None or time.monotonic() >= deadline:
                    raise
            time.sleep(_POLL)
        if self._epoch and self._epoch != answer["epoch"]:  # 0: it had not begun yet
            if self._tells:
                note("it is tried again")
            self._epoch, self._offset = answer["epoch"], 0
            return b""
        self._epoch = answer["epoch"]
        if answer["offset"] > self._offset:
            note(f"{answer['offset'] - self._offset} bytes of {self.stream} are no longer kept")
        self._offset = answer["offset"] + len(answer["data"])
        self.end, self.full = answer["end"], len(answer["data"]) == _PIECE
        data: bytes = answer["data"]
        return data


def _said(client: Client, options: argparse.Namespace, stream: str) -> Iterator[bytes]:
    reader = Reader(client, options.job, options.member, stream)
    while data := reader.piece():
        yield data


def pass_on(reader: Reader) -> bool:
    """False when there was nothing new."""
    if reader.end or not (data := reader.piece()):
        return False
    to = sys.stdout if reader.stream == "stdout" else sys.stderr
    to.flush()
    to.buffer.write(data)
    to.buffer.flush()
    return True


def _cancel(options: argparse.Namespace) -> int:
    with reaching() as client:
        jobs = client.call("cancel_job", job=options.job)["jobs"]
    if options.json:
        print_json("hal.jobs/1", jobs=jobs)
        return 0
    ending = [one for one in jobs if one["state"] not in OVER]
    print(f"{len(ending)} of {len(jobs)} jobs are told to end." if len(jobs) > 1 else _told(jobs[0]))
    return 0


def _told(one: dict[str, Any]) -> str:
    return f"The job {one['id']} is {'over already' if one['state'] in OVER else 'told to end'}."


def _wait(options: argparse.Namespace) -> int:
    from hal.scheduler.errors import Unreachable

    with reaching() as client:
        try:
            ids = [client.call("job", job=options.job)["job"]["id"]]
        except GoneError:
            ids = [one["id"] for one in client.listed("jobs", "jobs", array=options.job)["jobs"]]
            if not ids:
                raise
        jobs = []
        for id in ids:
            gone_since: float | None = None
            while True:
                try:
                    answer = client.call("wait_job", job=id, timeout_seconds=_PATIENCE, timeout=_PATIENCE + 5)
                except Unreachable:
                    gone_since = gone_since or time.monotonic()
                    if time.monotonic() - gone_since > _RESTART:
                        raise
                    time.sleep(_POLL)
                    continue
                except TemporaryError:  # too busy for this user, who asks again for as long as it takes
                    gone_since = None
                    continue
                gone_since = None
                if answer["job"]["state"] in OVER:
                    jobs.append(answer["job"])
                    break
    if options.json:
        print_json("hal.jobs/1", jobs=jobs)
    else:
        for one in jobs:
            if one["state"] != "completed":
                note(_ended(one))
    codes = [
        exit_code(ended_early(one)) if one["exit_code"] is None else int(one["exit_code"]) for one in jobs
    ]
    return next((code for code in codes if code), 0)


def ended_early(one: dict[str, Any]) -> HalError:
    """What is to be raised of a program that has no exit code of its own."""
    if one["state"] == "cancelled" or one.get("started", True):
        return GoneError(f"the program is stopped: {one['reason']}")
    return StateError(f"the program was not started: {one['reason']}")


def _ended(one: dict[str, Any]) -> str:
    """How it ended, if not well."""
    if one["state"] == "cancelled":
        by = one["reason"] if one["reason"].startswith("cancelled") else "cancelled"
        return f"the job {one['id']} was {by}"
    return f"the job {one['id']} {one['state']}: {one['reason']}"


def _signal(options: argparse.Namespace) -> int:
    name = options.signal.upper()
    try:
        is_number = re.fullmatch("[0-9]{1,9}", name)
        number = int(name) if is_number else signal.Signals[f"SIG{name.removeprefix('SIG')}"].value
    except KeyError:
        raise UsageError(f"there is no signal '{options.signal}'") from None
    with reaching() as client:
        one = client.call("signal_job", job=options.job, signal=number)["job"]
    if options.json:
        print_json("hal.job/1", **one)
    elif one["state"] in OVER:
        raise StateError(f"the job {one['id']} is over")
    return 0
