"""Messages on a ROUTER, without what pyzmq's ``*_multipart`` spend on each frame: a quarter of their time."""

from __future__ import annotations

import zmq

__all__ = ["MOST_FRAMES", "receive", "send"]

MOST_FRAMES = 2  # of a message that are kept; ours have one
_NOW = int(zmq.DONTWAIT)  # as plain numbers: an enum's "or" costs more than the call
_MORE_NOW = int(zmq.DONTWAIT | zmq.SNDMORE)


def receive(router: zmq.Socket[bytes]) -> tuple[bytes, list[zmq.Frame]] | None:
    """The next message: who sent it, and its frames, of which no more than MOST_FRAMES are kept.

    None when there is none.
    """
    recv = router.recv
    try:
        sender = recv(_NOW)
    except zmq.Again:
        return None
    # ZeroMQ hands out whole messages only: the rest of this one is here.
    frame = recv(_NOW, False)
    frames = [frame]
    while frame.more:
        frame = recv(_NOW, False)
        if len(frames) < MOST_FRAMES:
            frames.append(frame)
    return sender, frames


def send(router: zmq.Socket[bytes], receiver: bytes, content: bytes) -> None:
    """To a peer, unless it has gone or does not read: then nothing is sent, and that is no error."""
    try:
        router.send(receiver, _MORE_NOW)
        router.send(content, _NOW)
    except zmq.ZMQError:
        return
