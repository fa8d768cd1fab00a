"""/metrics and /health over HTTP, from a thread beside the daemon's loop.

The thread is a client like others: it asks the daemon over its own socket, so that /health is only well
when the loop answers, and nothing is shared with it. Both pages are for whoever can reach the address;
they name nodes, devices and queues, and no user.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hal.backend import HalError, StateError
from hal.scheduler.client import Client
from hal.scheduler.metrics import CONTENT_TYPE, exposition
from hal.scheduler.places import Places
from hal.scheduler.sections import http_address

__all__ = ["Pages"]

_ANSWER = 2.0  # seconds in which the daemon has to answer
_READER = 5.0  # seconds that somebody may take to say what is wanted, and to read it
_AT_ONCE = 8  # connections; for more, one that has asked nothing yet is closed
_FRESH = 1.0  # seconds for which a page of metrics is good: whoever reads it costs all others the same time


class Pages(ThreadingHTTPServer):
    """Serves from ``with`` to its end. Raises StateError when the address cannot be used."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, to: str, places: Places) -> None:
        host, port = http_address(to)
        self._places = places
        self._client: Client | None = None
        self._asking = threading.Lock()
        self._page = (float("-inf"), b"")  # of metrics, and when it was made
        self._open: dict[socket.socket, bool] = {}  # the oldest first, and whether it has asked
        self._counting = threading.Lock()
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family = found[0][0]
            super().__init__((host, port), _Page)
        except OSError as error:
            reason = error.strerror or error
            raise StateError(f"scheduler.metrics: cannot listen at {to}: {reason}") from None

    def __enter__(self) -> Pages:
        threading.Thread(target=self.serve_forever, name="hal-pages", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        with self._asking:
            if self._client is not None:
                self._client.close()
                self._client = None

    @property
    def url(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    # ---- what they say ------------------------------------------------------------------------

    def metrics(self) -> bytes:
        """Raises HalError when the daemon does not answer."""
        with self._ask() as client:
            made, page = self._page
            if time.monotonic() - made >= _FRESH:
                page = exposition(client.call("status"), _nodes(client))
                self._page = (time.monotonic(), page)
            return page

    def health(self) -> dict[str, Any]:
        """Raises HalError when the daemon does not answer."""
        with self._ask() as client:
            hello = client.call("hello")
        well = {"status": "ok", "term": hello["term"], "event": hello["event"]}
        # It runs, and to be started anew would not help it: its leases are kept.
        reason = hello["trouble"] or hello["unnoted"]
        return well if reason is None else well | {"status": "degraded", "reason": reason}

    @contextlib.contextmanager
    def _ask(self) -> Iterator[Client]:
        if not self._asking.acquire(timeout=2 * _ANSWER):
            raise StateError("the scheduler does not answer")
        try:
            self._client = self._client or Client(self._places, timeout=_ANSWER)
            yield self._client
        finally:
            self._asking.release()

    # ---- bounds -------------------------------------------------------------------------------

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._counting:
            if len(self._open) >= _AT_ONCE:
                silent = next((one for one, has_asked in self._open.items() if not has_asked), request)
                self._open.pop(silent, None)
                with contextlib.suppress(OSError):
                    silent.shutdown(socket.SHUT_RDWR)  # its thread sees the end
                if silent is request:
                    self.close_request(request)
                    return
            self._open[request] = False
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def has_asked(self, request: socket.socket) -> None:
        with self._counting:
            if request in self._open:
                self._open[request] = True

    def _forget(self, request: socket.socket) -> None:
        with self._counting:
            self._open.pop(request, None)

    def handle_error(self, *_: object) -> None:
        """Somebody hung up: nothing to tell of."""


class _Page(BaseHTTPRequestHandler):
    server: Pages
    timeout = _READER
    server_version, sys_version = "hal", ""

    def do_GET(self) -> None:
        self.server.has_asked(self.connection)
        try:
            match self.path.partition("?")[0]:
                case "/metrics":
                    self._say(HTTPStatus.OK, CONTENT_TYPE, self.server.metrics())
                case "/health":
                    self._say(HTTPStatus.OK, "application/json", json.dumps(self.server.health()).encode())
                case _:
                    self._say(HTTPStatus.NOT_FOUND, "text/plain", b"there are /metrics and /health\n")
        except HalError as error:
            body = json.dumps({"status": "failed", "reason": str(error)}).encode()
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, "application/json", body)

    do_HEAD = do_GET  # noqa: N815

    def _say(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Who reads the pages is not logged."""


def _nodes(client: Client) -> Iterator[dict[str, Any]]:
    after: str | None = ""
    while after is not None:
        page = client.call("nodes", after=after)
        yield from page["nodes"]
        after = page["next"]
