"""``hal submit``."""

from __future__ import annotations

import argparse
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hal.cli.exits import UsageError
from hal.cli.output import print_json
from hal.cli.request import configure_request, the_request
from hal.units import parse_bytes

_MOST = 1000
_NUMBER = re.compile("[0-9]{1,18}")


def configure_submit(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "Queue a program: it runs when there is room, on whichever node, and its output is kept there.\n"
        "It goes on whether this terminal is open or not; 'hal job' shows, follows, waits for and ends it.\n"
        "The members of a gang find one another by MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE, as\n"
        "torchrun's do. It has the node's environment, and of this terminal's what --env names."
    )
    parser.epilog = (
        "examples:\n  hal submit --memory 20GiB -- python train.py\n"
        "  hal submit --gang 4 --retries 2 --env WANDB_API_KEY -- python train.py\n"
        "  hal submit --memory 8GiB --array 0-9 -- sh -c './evaluate $HAL_ARRAY_INDEX'"
    )
    configure_request(parser, waits=True)
    jobs = parser.add_argument_group("how")
    jobs.add_argument(
        "--array", metavar="RANGE", help="one job for each number, as in 0-9 or 1,4,7-9 (HAL_ARRAY_INDEX)"
    )
    jobs.add_argument(
        "--retries",
        metavar="N",
        type=int,
        default=0,
        help="so often again when it is preempted, or its node is lost (0)",
    )
    jobs.add_argument(
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="set this variable, or pass it on; repeatable",
    )
    jobs.add_argument("--directory", metavar="DIR", help="where it runs, on its node (this one)")
    jobs.add_argument(
        "--output-size", metavar="SIZE", default="16MiB", help="how much of each stream is kept (16MiB)"
    )
    jobs.add_argument("--json", action="store_true", help="print JSON (schema hal.submitted/1)")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ARG …", help="what to run")
    return _submit


def _submit(options: argparse.Namespace) -> int:
    from hal.cli.job import reaching

    command = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not command:
        raise UsageError("there is nothing to run; write the program after --, as in: hal submit -- PROGRAM")
    if not 0 <= options.retries <= _MOST:
        raise UsageError(f"--retries is between 0 and {_MOST}")
    asked: dict[str, Any] = {"key": secrets.token_hex(16), "retries": options.retries}
    asked["job"] = _spec(options, command)
    if options.array is not None:
        asked["array"] = _numbers(options.array)
    request, preset = the_request(options)
    if preset is not None:
        asked["class"] = preset
    import msgspec

    asked["request"] = msgspec.to_builtins(request)
    with reaching(start=True) as client:
        answer = client.call("submit", timeout=10.0, **asked)
    if options.json:
        print_json("hal.submitted/1", jobs=answer["jobs"], array=answer["array"])
    elif answer["array"]:
        print(answer["array"])
    else:
        print(answer["jobs"][0])
    return 0


def _spec(options: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    from hal.scheduler.jobs.spec import JobSpec

    umask = os.umask(0)
    os.umask(umask)
    directory = Path.cwd() if options.directory is None else Path.cwd() / options.directory
    try:
        spec: dict[str, Any] = {
            "command": command,
            "environment": dict(_variable(text) for text in options.env),
            "directory": str(directory),
            "output_bytes": parse_bytes(options.output_size),
            "umask": umask,
        }
        JobSpec(**spec)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return spec


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if equals:
        return name, value
    if name not in os.environ:
        raise UsageError(f"there is no variable '{name}' here; write --env {name}=VALUE to set it")
    return name, os.environ[name]


def _numbers(text: str) -> list[int]:
    """``0-9``, ``1,4,7-9``. Raises UsageError."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (_NUMBER.fullmatch(first) and (not dash or _NUMBER.fullmatch(last))):
            raise UsageError(f"'{text}' is no range: write it like 0-9 or 1,4,7-9")
        low, high = int(first), int(last or first)
        if high < low or high - low >= _MOST or len(found) + high - low >= _MOST:
            raise UsageError(f"'{text}': an array has 1 to {_MOST} jobs, and its ranges rise")
        found += range(low, high + 1)
    return sorted(set(found))
