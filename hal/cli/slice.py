"""``hal slice``: slices made by hand."""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import time
from collections.abc import Callable
from typing import Any

from hal.cli.child import supervise
from hal.cli.exits import UsageError
from hal.cli.held import report_unheld
from hal.cli.output import note, print_facts, print_json, print_table
from hal.enforce.ledger import RunState
from hal.inventory import Machine
from hal.slices.hand import HandMade, Shown
from hal.units import format_bytes, parse_bytes, parse_ratio

_EXAMPLES = (
    "examples:\n"
    "  hal slice create --device GPU-6a77 --memory 8GiB --compute 30% --name dev\n"
    "  env $(hal slice env dev) ./program\n"
    "  hal slice show dev --watch\n"
    "  hal slice resize dev --memory 12GiB\n"
    "  hal slice destroy dev"
)


def configure_slice(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Make a slice of a device by hand, without a scheduler, and put any program under it.\n"
        "A slice lasts until it is destroyed or the node restarts. What it claims of the device is\n"
        "entered in the node's book of claims, which schedulers of all users go by."
    )
    parser.epilog = _EXAMPLES
    verbs = parser.add_subparsers(
        dest="verb", metavar="create|list|show|env|run|resize|pause|resume|destroy", required=True
    )

    def verb(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name,
            help=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    create = verb("create", "make one", "hal slice create --device GPU-6a77 --memory 8GiB --compute 30%")
    create.add_argument("--device", metavar="ID", required=True, help="the device, or a part of its id")
    create.add_argument("--memory", metavar="SIZE", required=True, help="device memory, such as 8GiB")
    create.add_argument("--name", help="what to call it: letters, digits, '.', '_' and '-'")
    create.add_argument(
        "--print-env", action="store_true", help="print what 'hal slice env' prints, nothing else"
    )
    resize = verb("resize", "change one while programs run in it", "hal slice resize dev --memory 12GiB")
    resize.add_argument("--memory", metavar="SIZE", help="device memory from now on")
    resize.add_argument(
        "--inelastic", action="store_true", help="no more of the device's time than its share"
    )
    for one in (create, resize):
        one.add_argument("--compute", metavar="SHARE", help="share of the device's time, such as 30%%")
        one.add_argument("--elastic", action="store_true", help="more of it while nobody else wants it")
    create.add_argument(
        "--spatial",
        action="store_true",
        help="a fixed part of the compute units instead of time (AMD)",
    )
    listing = verb("list", "those there are", "hal slice list --all")
    listing.add_argument("--all", action="store_true", help="also what other users and schedulers claim")
    show = verb("show", "all about one, by process", "hal slice show dev --watch")
    show.add_argument("--watch", action="store_true", help="every second, until Ctrl-C")
    verb(
        "env",
        "the variables that put a program into it",
        "hal slice env dev\n  env $(hal slice env dev) ./program",
    )
    run = verb(
        "run",
        "run a program in it, where the driver and the kernel hold it, too",
        "hal slice run dev -- ./program",
    )
    verb("pause", "hold its programs at their next launch or allocation", "hal slice pause dev")
    verb("resume", "let them go on", "hal slice resume dev")
    destroy = verb("destroy", "take it away", "hal slice destroy dev")
    destroy.add_argument("--force", action="store_true", help="kill the processes in it")
    for name, one in verbs.choices.items():
        if name not in ("create", "list"):
            one.add_argument("slice", metavar="NAME", help="its name, or the beginning of its id")
        if name != "run":
            one.add_argument("--json", action="store_true", help="print JSON (schema hal.slices/1)")
    run.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ARG …", help="what to run")
    return _run


def _run(options: argparse.Namespace) -> int:
    with Machine() as machine:
        slices = HandMade(machine)
        return _VERBS[options.verb](slices, options)


def _create(slices: HandMade, options: argparse.Namespace) -> int:
    memory, compute = _amounts(options)
    assert memory is not None
    if options.spatial and (compute is None or options.elastic):
        raise UsageError("a fixed part of the compute units needs --compute, and cannot be --elastic")
    if options.name == "":
        raise UsageError("a name has at least one character; without --name one is made up")
    try:
        made = slices.create(
            options.device,
            memory,
            compute_ratio=compute,
            elastic=options.elastic,
            spatial=options.spatial,
            name=options.name or "",
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.print_env:
        return _print_env(slices, made, as_json=options.json)
    if options.json:
        return _print([made], as_json=True)
    print(f"made the slice {made.claim.name}: {_terms(made)} of {made.claim.device}")
    name = shlex.quote(made.claim.name)
    if made.claim.group:
        note(f"run a program in it with: hal slice run {name} -- PROGRAM")
    else:
        note(f"put a program into it with: env $(hal slice env {name}) PROGRAM")
    return 0


def _list(slices: HandMade, options: argparse.Namespace) -> int:
    found = slices.all() if options.all else slices.mine()
    if not found and not options.json:
        print("There are no slices." if not options.all else "Nothing is claimed on this node.")
        return 0
    return _print(found, as_json=options.json)


def _show(slices: HandMade, options: argparse.Namespace) -> int:
    while True:
        shown = slices.find(options.slice)
        if options.json:
            print_json("hal.slices/1", slices=[_plain(shown)])
        else:
            _print_one(shown)
        if not options.watch:
            return 0
        time.sleep(1)
        print(flush=True)


def _env(slices: HandMade, options: argparse.Namespace) -> int:
    return _print_env(slices, slices.find(options.slice), as_json=options.json)


def _run_program(slices: HandMade, options: argparse.Namespace) -> int:
    command = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not command:
        raise UsageError("there is nothing to run; write the program after --: hal slice run NAME -- PROGRAM")
    shown = slices.find(options.slice)
    environ = {**os.environ, **slices.environment(shown)}
    if shown.claim.group:
        slices.enter(shown)  # ourselves: what we start is in it from its first instruction on
    return supervise(command, [environ], started=report_unheld(command, environ))


def _resize(slices: HandMade, options: argparse.Namespace) -> int:
    memory, compute = _amounts(options)
    if options.elastic and options.inelastic:
        raise UsageError("--elastic and --inelastic say the opposite of one another; give one of them")
    elastic = True if options.elastic else False if options.inelastic else None
    if memory is None and compute is None and elastic is None:
        raise UsageError("say what to change: --memory, --compute, --elastic or --inelastic")
    shown = slices.resize(
        slices.find(options.slice), memory_bytes=memory, compute_ratio=compute, elastic=elastic
    )
    if shown.use is not None and shown.use.over_limit:
        over = shown.use.devices[0].over_bytes
        note(f"it uses {format_bytes(over)} more than that; it gets nothing more until it has freed so much")
    return _print([shown], as_json=options.json)


def _set_state(state: RunState) -> Callable[[HandMade, argparse.Namespace], int]:
    def act(slices: HandMade, options: argparse.Namespace) -> int:
        return _print([slices.set_state(slices.find(options.slice), state)], as_json=options.json)

    return act


def _destroy(slices: HandMade, options: argparse.Namespace) -> int:
    shown = slices.find(options.slice)
    slices.destroy(shown, force=options.force)
    if options.json:
        return _print([], as_json=True)
    print(f"the slice {shown.claim.name} is gone")
    return 0


_VERBS: dict[str, Callable[[HandMade, argparse.Namespace], int]] = {
    "create": _create,
    "list": _list,
    "show": _show,
    "env": _env,
    "run": _run_program,
    "resize": _resize,
    "pause": _set_state(RunState.PAUSE),
    "resume": _set_state(RunState.RUN),
    "destroy": _destroy,
}


# ---- words ----------------------------------------------------------------------------------


def _amounts(options: argparse.Namespace) -> tuple[int | None, float | None]:
    try:
        memory = None if options.memory is None else parse_bytes(options.memory)
        compute = None if options.compute is None else parse_ratio(options.compute)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if memory is not None and memory <= 0:
        raise UsageError("a slice needs some memory")
    return memory, compute


def _print_env(slices: HandMade, shown: Shown, *, as_json: bool) -> int:
    variables = slices.environment(shown)
    if as_json:
        print_json("hal.slices/1", environment=variables)
        return 0
    for name, value in variables.items():
        if any(character.isspace() for character in value):
            note(f"{name} has a space in it, which 'env $(…)' cannot carry; use --json")
        print(f"{name}={value}")
    return 0


def _print(found: list[Shown], *, as_json: bool) -> int:
    if as_json:
        print_json("hal.slices/1", slices=[_plain(shown) for shown in found])
        return 0
    print_table(
        ("SLICE", "OWNER", "DEVICE", ">USED", ">MEMORY", ">TIME", "STATE", "PROCESSES", "BY"),
        [
            (
                shown.claim.name or shown.claim.id[:8],
                _user(shown.uid),
                shown.claim.device,
                "–" if shown.use is None else format_bytes(shown.use.devices[0].used_bytes),
                "all" if shown.claim.whole else format_bytes(shown.claim.memory_bytes),
                _share(shown),
                "–" if shown.use is None else shown.use.control.state,
                "–" if shown.use is None else str(len(shown.processes)),
                shown.claim.by,
            )
            for shown in found
        ],
    )
    return 0


def _print_one(shown: Shown) -> None:
    facts = [("slice", shown.claim.name), ("id", shown.claim.id), ("device", shown.claim.device)]
    if shown.use is not None:
        use, control = shown.use.devices[0], shown.use.control
        facts += [
            ("memory", f"{format_bytes(use.used_bytes)} used of {format_bytes(use.limit_bytes)}"),
            ("at most", f"{format_bytes(use.peak_bytes)} at once"),
            ("refused", f"{use.refused} allocations"),
            ("time", _share(shown)),
            ("state", control.state),
            ("held by", f"memory: {control.enforcement.memory}, time: {control.enforcement.compute}"),
        ]
        if use.over_bytes:
            facts.append(("over its limit", f"by {format_bytes(use.over_bytes)}"))
    print_facts(facts)
    if shown.processes:
        print()
        print_table((">PID", ">MEMORY"), [(str(pid), format_bytes(size)) for pid, size in shown.processes])


def _plain(shown: Shown) -> dict[str, Any]:
    from hal.model import jsonable

    return {
        "name": shown.claim.name,
        "id": shown.claim.id,
        "device": shown.claim.device,
        "memory_bytes": shown.claim.memory_bytes,
        "compute_ratio": shown.claim.compute_milli / 1000 if shown.claim.compute_milli else None,
        "elastic": shown.claim.elastic,
        "whole": shown.claim.whole,
        "by": shown.claim.by,
        "uid": shown.uid,
        "use": None if shown.use is None else jsonable(shown.use),
        "processes": [{"pid": pid, "memory_bytes": size} for pid, size in shown.processes],
    }


def _terms(shown: Shown) -> str:
    return f"{format_bytes(shown.claim.memory_bytes)} and {_share(shown)} of the time"


def _share(shown: Shown) -> str:
    if not shown.claim.compute_milli:
        return "any"
    return f"{shown.claim.compute_milli / 10:g} %{' or more' if shown.claim.elastic else ''}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
