"""What nothing that is written in Python can be quicker than here and now: each request is unpacked, written
down with one fdatasync for all that have come together, and answered. Nothing is checked or decided.

    python -m hal.scheduler.bench.floor DIRECTORY
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import msgspec
import zmq

from hal.scheduler import frames, wire

_MOST = 256  # answered together, as by the daemon


def _answer(message: wire.Request | wire.Reply) -> wire.Reply:
    return wire.Reply(wire.VERSION, message.id, True, {"lease": {"id": "0"}})


def _serve(router: zmq.Socket[bytes], log: int) -> None:
    while router.poll():
        replies, lines = [], []
        for _ in range(_MOST):
            message = frames.receive(router)
            if message is None:
                break
            sender, parts = message
            content = parts[0].bytes
            replies.append((sender, wire.pack(_answer(wire.unpack_message(content)))))
            lines.append(content)
        os.write(log, msgspec.msgpack.encode(lines))
        os.fdatasync(log)
        for sender, reply in replies:
            frames.send(router, sender, reply)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def main(directory: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(f"ipc://{directory}/scheduler.sock")
    print("ready", flush=True)
    _serve(router, os.open(Path(directory, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))


if __name__ == "__main__":
    main(sys.argv[1])
