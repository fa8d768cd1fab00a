"""What goes over the socket: messages come back as they were, and anything else is Malformed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hal.scheduler.wire import (
    MAX_FRAME_BYTES,
    MAX_REPLY_BYTES,
    VERSION,
    ErrorBody,
    Malformed,
    Reply,
    Request,
    pack,
    unpack_reply,
    unpack_request,
)

text = st.text(max_size=40)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    text,
    st.binary(max_size=20),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=10,
)
bodies = st.dictionaries(text, values, max_size=6)
# Also what no message has: extensions, timestamps, maps with odd keys.
objects = st.recursive(
    scalars
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=9))
    | st.builds(msgpack.Timestamp, st.integers(0, 2**40), st.integers(0, 10**9 - 1)),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(scalars, inner, max_size=5),
    max_leaves=10,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "v": st.just(VERSION) | objects,
        "id": text | objects,
        "op": text | objects,
        "ok": st.booleans() | objects,
        "body": bodies | objects,
        "error": st.fixed_dictionaries({"code": text | objects, "message": text}) | objects,
        "more": objects,
    },
)
both = pytest.mark.parametrize(("unpack", "kind"), [(unpack_request, Request), (unpack_reply, Reply)])

Unpack = Callable[[bytes], Request | Reply]


def holds(unpack: Unpack, kind: type, frame: bytes) -> None:
    """A typed message, or Malformed with one sentence; nothing else."""
    try:
        message = unpack(frame)
    except Malformed as error:
        assert str(error).startswith(("the message ", "protocol version "))
        assert "\n" not in str(error)
        assert len(str(error)) < 500
        assert isinstance(error.id, str)
    else:
        assert type(message) is kind
        assert message.v == VERSION
        assert type(message.id) is str
        assert type(message.body) is dict


@settings(deadline=None)
@given(text, text, bodies)
def test_a_request_comes_back_as_it_was(id: str, op: str, body: dict[str, Any]) -> None:
    request = Request(VERSION, id, op, body)
    assert unpack_request(pack(request)) == request


@settings(deadline=None)
@given(text, bodies, st.none() | st.builds(ErrorBody, text, text))
def test_a_reply_comes_back_as_it_was(id: str, body: dict[str, Any], error: ErrorBody | None) -> None:
    reply = Reply(VERSION, id, error is None, body, error)
    assert unpack_reply(pack(reply)) == reply


@both
@settings(deadline=None)
@given(frame=st.binary(max_size=300))
@example(frame=b"")
@example(frame=b"\xc1")
@example(frame=b"\x91" * 60_000)  # deeper than any stack
@example(frame=b"\x81\xa1a" * 20_000)
@example(frame=b"\xdd\xff\xff\xff\xff")  # promises four thousand million entries
@example(frame=b"\xdf\xff\xff\xff\xff")
@example(frame=b"\xc6\xff\xff\xff\xff")
@example(frame=b"\xa1\xff")  # no UTF-8
@example(frame=b"\x81\x90\x01")  # a list as a key
@example(frame=b"\xc7\x00\xff")  # an empty timestamp
def test_any_bytes_are_a_message_or_malformed(unpack: Unpack, kind: type, frame: bytes) -> None:
    holds(unpack, kind, frame)


@both
@settings(max_examples=300, deadline=None)
@given(content=fields | objects)
def test_any_object_is_a_message_or_malformed(unpack: Unpack, kind: type, content: object) -> None:
    holds(unpack, kind, msgpack.packb(content))


@both
@settings(deadline=None)
@given(st.data())
def test_any_damage_gives_a_message_or_malformed(unpack: Unpack, kind: type, data: st.DataObject) -> None:
    frame = bytearray(pack(Request(VERSION, "1", "acquire", {"key": "k", "memory_bytes": 1 << 34})))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at] = data.draw(st.integers(0, 255))
    holds(unpack, kind, bytes(frame[: data.draw(st.integers(0, len(frame)))]))


@pytest.mark.parametrize(
    ("unpack", "most"), [(unpack_request, MAX_FRAME_BYTES), (unpack_reply, MAX_REPLY_BYTES)]
)
def test_a_message_has_a_greatest_size(unpack: Unpack, most: int) -> None:
    def frame(size: int) -> bytes:
        def of(filling: int) -> bytes:
            body = {"x": b"x" * filling}
            return msgpack.packb({"v": VERSION, "id": "1", "op": "x", "ok": True, "body": body})

        return of(2 * size - 100 - len(of(size - 100)))

    assert len(frame(most)) == most
    assert unpack(frame(most)).id == "1"
    with pytest.raises(Malformed, match=f"the message has {most + 1} bytes; {most} are allowed"):
        unpack(frame(most + 1))


@pytest.mark.parametrize(
    ("content", "words", "id"),
    [
        ([], "Expected `object`", ""),
        ({}, "missing required field `v`", ""),
        ({"v": 1, "op": "x", "id": 5}, "id", ""),
        ({"v": 1, "id": "7"}, "missing required field `op`", "7"),
        ({"v": "1", "id": "7", "op": "x"}, "Expected `int`", "7"),
        ({"v": 2, "id": "7", "op": "x"}, "protocol version 2 is not known here; this is version 1", "7"),
        ({"v": 1, "id": "7", "op": "x", "body": []}, "$.body", "7"),
    ],
)
def test_malformed_says_what_and_of_which_request(content: object, words: str, id: str) -> None:
    with pytest.raises(Malformed) as error:
        unpack_request(msgpack.packb(content))
    assert words in str(error.value)
    assert error.value.id == id


def test_fields_of_a_later_minor_version_are_ignored() -> None:
    frame = msgpack.packb({"v": 1, "id": "7", "op": "x", "trace": {"of": "tomorrow"}})
    assert unpack_request(frame) == Request(1, "7", "x")
