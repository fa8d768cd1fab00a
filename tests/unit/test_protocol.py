"""docs/protocol.md is what the daemon and its client speak: vectors, operations, codes, kinds of events."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from hal.scheduler import bodies, wire
from hal.scheduler import watch as watching
from hal.scheduler.client import _BY_CODE
from hal.scheduler.operations import OPERATIONS

PAGE = (Path(__file__).parents[2] / "docs/protocol.md").read_text()
VECTORS = [
    (json.loads(text), bytes.fromhex(digits))
    for text, digits in re.findall(r"```vector\n(.+)\n([0-9a-f\n]+)\n```", PAGE)
]
BODIES: dict[str, Any] = {
    "acquire": bodies.Acquire,
    "acquire_many": bodies.AcquireMany,
    "release_many": bodies.ReleaseMany,
    "watch": watching.WatchBody,
}
OF_AGENTS = {"join", "beat"}


def test_there_are_vectors() -> None:
    assert len(VECTORS) == PAGE.count("```vector") >= 8
    assert {"hello", *BODIES} == {message["op"] for message, _ in VECTORS if "op" in message}


@pytest.mark.parametrize(("message", "frame"), VECTORS, ids=range(len(VECTORS)))
def test_a_vector_is_what_is_sent_and_understood(message: dict[str, Any], frame: bytes) -> None:
    request = "op" in message
    typed: Any = msgspec.convert(message, wire.Request if request else wire.Reply)
    assert msgpack.unpackb(frame) == message, "for any other implementation of MessagePack, too"
    assert wire.pack(typed) == frame
    assert (wire.unpack_request(frame) if request else wire.unpack_reply(frame)) == typed
    if request and message["op"] in BODIES:
        msgspec.convert(typed.body, BODIES[message["op"]])


def test_another_encoding_of_the_same_is_understood() -> None:
    """Wider numbers and strings, another order of keys: as a writer may choose."""
    frame = b"\xdf\x00\x00\x00\x03" + b"\xda\x00\x02id" + b"\xd9\x011" + b"\xa1v\xd3" + bytes(7) + b"\x01"
    assert wire.unpack_request(frame + b"\xdb\x00\x00\x00\x02op\xa5hello") == wire.Request(1, "1", "hello")


def test_every_operation_is_on_the_page() -> None:
    table = PAGE.partition("## Operations")[2].partition("\n\n`key`")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named <= set(OPERATIONS)
    missing = {op for op in set(OPERATIONS) - named if f"`{op}`" not in PAGE}
    assert missing == set()


def test_every_field_of_a_body_is_on_the_page() -> None:
    kinds = [bodies.Acquire, bodies.Wait, bodies.Release, bodies.Page, bodies.SetQueueBody, *BODIES.values()]
    fields = {field.encode_name for kind in kinds for field in msgspec.structs.fields(kind)}
    assert [field for field in sorted(fields) if f"`{field}`" not in PAGE] == []


def test_every_code_is_on_the_page() -> None:
    table = PAGE.partition("## Errors")[2].partition("## Test vectors")[0]
    said = {
        code
        for cell in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
        for code in re.findall(r"`(\w+)`", cell)
    }
    assert set(_BY_CODE) <= said
    assert said - set(_BY_CODE) == {"unknown_op", "leaving"}


def test_every_kind_of_event_is_on_the_page() -> None:
    table = PAGE.partition("## Events")[2].partition("## Errors")[0]
    kinds = {
        kind
        for cell in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
        for kind in re.findall(r"`(\w+)`", cell)
    }
    source = inspect.getsource(watching)
    made = set(re.findall(r'self\._of(?:_all)?\("(\w+)"', source)) | set(watching._KINDS.values())
    assert made == kinds == set(watching.KINDS)
