"""A scheduler's client for Python programs on asyncio: ``hal.AsyncClient``. ``hal.Client`` (client.py) is the
same for all others.

Leases are renewed in the background. A call whose answer is lost is asked again, with the same key, so
that it has one effect. A scheduler that is restarted is found again within the call's time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq
import zmq.asyncio

from hal.backend import GoneError, HalError, StateError
from hal.scheduler import wire
from hal.scheduler.client import REST, packed, refusal
from hal.scheduler.core.request import Request
from hal.scheduler.endpoint import Endpoint
from hal.scheduler.errors import Unreachable
from hal.scheduler.places import Places
from hal.scheduler.security.keys import read_client_key
from hal.scheduler.told import (
    Event,
    Explanation,
    LeaseTold,
    QueueTold,
    SchedulerTold,
    WaitingTold,
    check_renewed,
)

__all__ = ["AsyncClient", "AsyncLease", "OnLost", "closed_error"]

_AGAIN = 2.0  # seconds without an answer after which a request is sent once more, on a fresh connection
_PATIENCE = 5.0  # seconds that the scheduler is asked to hold back an answer that is not there yet
_MANY = 64  # requests in one message
_TIDY = 2.0  # seconds that an interrupted caller is kept for giving back what nobody wants any more

T = TypeVar("T")
OnLost = Callable[[str], None]


class AsyncLease:
    """A lease that is renewed until ``release()`` or the end of an ``async with``.

    If that fails until it has run out, or the scheduler ends it, ``lost`` is set to the reason and
    ``on_lost`` is called with it, once: whatever uses the slices has to stop then.
    """

    def __init__(self, client: AsyncClient, body: dict[str, Any], on_lost: OnLost | None) -> None:
        self._client = client
        self._on_lost = on_lost
        self.told = msgspec.convert(body["lease"], LeaseTold)
        self.id = self.told.id
        self.devices = self.told.devices
        self.variables: list[dict[str, str]] = body["environments"]  # one for each member of the gang
        self.lost: str | None = None
        self.released = False
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AsyncLease:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()

    def environment(self, inherited: Mapping[str, str] = os.environ, *, member: int = 0) -> dict[str, str]:
        """What to start a program with, so that it runs in this slice and sees nothing else."""
        own = self.variables[member]
        preloads = [source.get("LD_PRELOAD", "") for source in (own, inherited)]
        joined = {"LD_PRELOAD": ":".join(path for path in preloads if path)} if any(preloads) else {}
        return {**inherited, **own, **joined}

    async def release(self) -> None:
        """Give it back. A lease that has ended already is no error. Raises Unreachable."""
        if self.released or self._client._is_elsewhere:
            return
        self.released = True
        self._stop()
        if self.lost is None:
            await self._client.release(self.id)

    # ---- kept alive -------------------------------------------------------------------------

    def _begin(self) -> None:
        self._renewing = asyncio.create_task(self._renew())

    def _stop(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()

    async def _renew(self) -> None:
        ttl = self.told.ttl_seconds
        good_until = time.monotonic() + self.told.expires_in_seconds
        pause = min(ttl, self.told.expires_in_seconds) / 3
        while True:
            await asyncio.sleep(pause)
            asked = time.monotonic()
            try:
                body = await self._client.call("renew", timeout=max(ttl / 3, 0.5), lease=self.id)
                check_renewed(self.id, self.told.epoch, body)
            except GoneError as error:
                return self._lose(str(error))
            except Exception as error:  # whatever it is, the holder has to learn when time is up
                if time.monotonic() > good_until:
                    return self._lose(f"it could not be renewed: {error}")
                pause = ttl / 30  # short steps: the time that is left is for more than one try
            else:
                good_until, pause = asked + ttl, ttl / 3

    def _lose(self, reason: str) -> None:
        self.lost = reason
        self._client._leases.pop(self.id, None)
        if self._on_lost is not None:
            asyncio.get_running_loop().call_soon(self._on_lost, reason)  # which tells of what it raises
        # With `requeue` it would wait again, and be granted to nobody.
        self._client._behind(self._client.call("release", lease=self.id, lost_epoch=self.told.epoch))


class AsyncClient:
    """A connection to one scheduler, for one event loop: many calls may be under way at once.

    ``address`` and ``key`` (the path of a key's file) are what HAL_SCHEDULER and HAL_KEY say, or this
    user's own scheduler. ``timeout`` is in seconds, for each call. Raises StateError for what is no
    address, and for a key that cannot be used.
    """

    def __init__(
        self,
        address: str | None = None,
        key: str | os.PathLike[str] | None = None,
        *,
        timeout: float = 10.0,
    ) -> None:
        self._endpoint = _endpoint(address, key)
        self._timeout = timeout
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._answers: dict[str, asyncio.Future[wire.Reply]] = {}
        self._leases: dict[str, AsyncLease] = {}
        self._waiting: set[str] = set()  # requests in their queues
        self._tidying: set[asyncio.Task[None]] = set()
        self._pid = os.getpid()
        self._closed = False
        self._met = False  # the scheduler has answered at least once
        self._heard = float("-inf")  # when anything came over this connection
        self._zero = 0.0  # of our monotonic clock, in milliseconds on the scheduler's

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Release what is still held or waited for, and hang up; again is no error. A scheduler that has gone
        is none either. Calls that are under way raise StateError."""
        if self._closed or self._is_elsewhere:
            return
        with contextlib.suppress(HalError):
            while self._leases or self._waiting:
                ids = [*self._leases, *self._waiting]
                self._waiting.clear()
                await self.release_many(ids)
        if self._tidying:
            await asyncio.wait(self._tidying, timeout=_TIDY)
        self._closed = True
        for lease in self._leases.values():
            lease._stop()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(closed_error())
        self._hang_up()
        self._context.term()

    @property
    def _is_elsewhere(self) -> bool:
        """This is a forked process: what was opened and taken before is its parent's."""
        return os.getpid() != self._pid

    # ---- one call ---------------------------------------------------------------------------

    async def call(self, op: str, *, timeout: float | None = None, **body: Any) -> dict[str, Any]:
        """Any operation of the protocol (docs/protocol.md), asked again until it is answered.

        Raises Unreachable when nobody answers in time, else the HalError of the refusal.
        """
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        if self._is_elsewhere:
            raise StateError("this client is another process's: make one after the fork")
        met_again = not self._met
        if not self._met:
            await self._meet(deadline)
        while True:
            id = secrets.token_hex(8)
            request = wire.Request(wire.VERSION, id, op, body, round(self._zero + 1000 * deadline))
            reply = await self._exchange(request, deadline)
            code = "" if reply is None or reply.error is None else reply.error.code
            if code == "late" and not met_again and time.monotonic() < deadline:
                met_again = True  # its clock is another since it was started anew, or ours has slept
                await self._meet(deadline)
                continue
            if code not in ("leaving", "busy") or time.monotonic() + REST >= deadline:
                break
            await asyncio.sleep(REST)
        if reply is None or code == "leaving":
            raise self._endpoint.nobody()
        if reply.ok:
            return reply.body
        raise refusal(reply.error)

    async def _meet(self, deadline: float) -> None:
        """See whether it is there, and what its clock says."""
        if not self._endpoint.somebody_listens():
            raise self._endpoint.nobody()
        if self._endpoint.key is not None:
            await asyncio.to_thread(self._knock, deadline - time.monotonic())
        asked = time.monotonic()
        reply = await self._exchange(wire.Request(wire.VERSION, secrets.token_hex(8), "hello"), deadline)
        if reply is None:
            raise self._endpoint.nobody()
        if reply.error is not None:
            raise refusal(reply.error)
        told = msgspec.convert(reply.body, SchedulerTold)
        # Halfway between question and answer; one that does not tell is believed to have our time.
        now_ms = told.now_ms or 500 * (asked - time.monotonic()) + 1000 * time.time()
        self._zero = now_ms - 500 * (asked + time.monotonic())
        self._met = True

    def _knock(self, timeout: float) -> None:
        """See whether the key opens: ZeroMQ itself would try for ever. Raises Unreachable, or StateError."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.set(zmq.LINGER, 0)
            self._endpoint.connect(dealer, timeout)

    async def _exchange(self, request: wire.Request, deadline: float) -> wire.Reply | None:
        """Sent again now and then: every operation has one effect, however often it is asked."""
        frame = packed(request)
        held_back = float(request.body.get("timeout_seconds", 0.0)) if request.body else 0.0
        answer: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()
        self._answers[request.id] = answer
        try:
            while (left := deadline - time.monotonic()) > 0:
                socket, sent = self._dial(), time.monotonic()
                # Without waiting: to a scheduler that reads nothing more is not said.
                with contextlib.suppress(zmq.Again):
                    await socket.send(frame, flags=zmq.DONTWAIT)
                done, _ = await asyncio.wait({answer}, timeout=min(left, held_back + _AGAIN))
                if done:
                    return answer.result()
                if socket is self._socket and self._heard < sent:  # else nothing is known to be wrong with it
                    self._hang_up()
            return None
        finally:
            del self._answers[request.id]
            if answer.done():
                answer.exception()  # whoever was interrupted does not look at it

    def _dial(self) -> zmq.asyncio.Socket:
        if self._closed:
            raise closed_error()
        if self._socket is None:
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.set(zmq.LINGER, 0)
            self._socket.set(zmq.MAXMSGSIZE, wire.MAX_REPLY_BYTES)
            self._endpoint.dial(self._socket)
            self._hearing = asyncio.create_task(self._hear(self._socket))
        return self._socket

    def _hang_up(self) -> None:
        if self._hearing is not None:
            self._hearing.cancel()
            self._hearing = None
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    async def _hear(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frame: bytes = await socket.recv()
            self._heard = time.monotonic()
            try:
                reply = wire.unpack_reply(frame)
            except wire.Malformed:
                continue  # as if it had been lost on its way
            answer = self._answers.get(reply.id)
            if answer is not None and not answer.done():
                answer.set_result(reply)

    # ---- leases -----------------------------------------------------------------------------

    async def acquire(
        self,
        *,
        memory_bytes: int | None = None,
        vendor: str | None = None,
        device: str | None = None,
        name: str = "",
        ttl_seconds: float = 15.0,
        request: Request | None = None,
        preset: str | None = None,
        on_lost: OnLost | None = None,
    ) -> AsyncLease:
        """A slice of ``memory_bytes``, or with None a whole device; or whatever ``request`` says.

        One with ``wait`` stays in its queue until it is served, or until this is cancelled. Raises
        TemporaryError when there is no room now, UnsupportedError when no device can ever serve it.
        """
        one = _asked(memory_bytes, vendor, device, name, ttl_seconds, request, preset)
        body = await self._taken("acquire", one)
        return self._held(await self._served(body), on_lost)

    async def acquire_many(
        self, requests: Sequence[Request], *, on_lost: OnLost | None = None
    ) -> list[AsyncLease | HalError]:
        """For each request in turn a lease, or why there is none; many of them in one message."""
        found: list[AsyncLease | HalError] = []
        mine: list[str] = []
        try:
            for first in range(0, len(requests), _MANY):
                many = requests[first : first + _MANY]
                asked = [_asked(None, None, None, "", 0.0, one, None) for one in many]
                answer = await self._taken("acquire_many", {"requests": asked})
                # All at once: each has to be renewed from the moment at which it is granted.
                each = (self._one_of_many(reply, on_lost, mine) for reply in answer["replies"])
                found += await asyncio.gather(*each)
        except BaseException:
            await self._tidy(self.release_many(mine))
            raise
        return found

    async def _one_of_many(
        self, reply: dict[str, Any], on_lost: OnLost | None, mine: list[str]
    ) -> AsyncLease | HalError:
        if not reply["ok"]:
            return refusal(msgspec.convert(reply["error"], wire.ErrorBody))
        try:
            lease = self._held(await self._served(reply["body"]), on_lost)
        except HalError as error:
            return error
        mine.append(lease.id)
        return lease

    async def release(self, lease: str) -> None:
        """End a lease, or leave the queue. One that has ended is no error."""
        self._let_go(lease)
        with contextlib.suppress(GoneError):
            await self.call("release", lease=lease)

    async def release_many(self, leases: Sequence[str]) -> None:
        """As ``release``, many in one message. Raises the first refusal that is one."""
        for lease in leases:
            self._let_go(lease)
        for first in range(0, len(leases), _MANY):
            answer = await self.call("release_many", leases=list(leases[first : first + _MANY]))
            for reply in answer["replies"]:
                if not reply["ok"]:
                    error = refusal(msgspec.convert(reply["error"], wire.ErrorBody))
                    if not isinstance(error, GoneError):
                        raise error

    async def _taken(self, op: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Who is interrupted before there is an answer has nothing."""
        try:
            return await self.call(op, **asked)
        except HalError:
            raise
        except BaseException:
            await self._tidy(self._take_back(op, asked))
            raise

    async def _take_back(self, op: str, asked: dict[str, Any]) -> None:
        """The same key again says what it has come to."""
        answer = await self.call(op, **asked)
        each = [reply.get("body", {}) for reply in answer.get("replies", [{"body": answer}])]
        there = [body.get("lease") or body.get("waiting") for body in each]
        await self.release_many([one["id"] for one in there if one])

    async def _tidy(self, work: Coroutine[Any, Any, object]) -> None:
        """See to it for a moment; what takes longer, as when the scheduler is away, goes on behind."""
        await asyncio.wait({self._behind(work)}, timeout=_TIDY)

    def _behind(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
        async def quietly() -> None:
            with contextlib.suppress(HalError):
                await work

        task = asyncio.create_task(quietly())
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)
        return task

    async def _served(self, body: dict[str, Any]) -> dict[str, Any]:
        """Wait until it is granted and made. Whoever is interrupted meanwhile waits no longer."""
        if "lease" in body:
            return body
        id = body["waiting"]["id"]
        self._waiting.add(id)
        try:
            while "lease" not in body:
                wait = {"lease": id, "timeout_seconds": _PATIENCE}
                body = await self.call("wait", timeout=_PATIENCE + max(self._timeout, 2 * _AGAIN), **wait)
        except BaseException:
            if not self._closed:
                await self._tidy(self.release(id))
            raise
        finally:
            self._waiting.discard(id)
        return body

    def _held(self, body: dict[str, Any], on_lost: OnLost | None) -> AsyncLease:
        lease = self._leases[body["lease"]["id"]] = AsyncLease(self, body, on_lost)
        lease._begin()
        return lease

    def _let_go(self, id: str) -> None:
        lease = self._leases.pop(id, None)
        if lease is not None:
            lease.released = True
            lease._stop()

    # ---- what there is ----------------------------------------------------------------------

    async def scheduler(self) -> SchedulerTold:
        return msgspec.convert(await self.call("hello"), SchedulerTold)

    async def leases(self) -> list[LeaseTold]:
        """All that this client may see, however many."""
        return [
            one for page in await self._pages() for one in msgspec.convert(page["leases"], list[LeaseTold])
        ]

    async def waiting(self) -> list[WaitingTold]:
        """Who waits, of those that this client may see."""
        return [
            one for page in await self._pages() for one in msgspec.convert(page["waiting"], list[WaitingTold])
        ]

    async def explain(self, id: str) -> Explanation:
        answer = await self.call("explain", lease=id)
        return msgspec.convert(answer["explanation"], Explanation)

    async def queues(self) -> list[QueueTold]:
        return msgspec.convert((await self.call("queues"))["queues"], list[QueueTold])

    async def set_queue(self, name: str, **changes: Any) -> list[QueueTold]:
        """Make a queue, or change what is named of one (docs/protocol.md has the fields)."""
        return msgspec.convert(
            (await self.call("set_queue", name=name, **changes))["queues"], list[QueueTold]
        )

    async def remove_queue(self, name: str) -> list[QueueTold]:
        """Of a queue in which nothing is, nor below it."""
        return msgspec.convert((await self.call("remove_queue", name=name))["queues"], list[QueueTold])

    async def watch(self, after: int | None = None) -> AsyncIterator[Event]:
        """What happens, for ever: from now on, or after the event of this number.

        Goes on across restarts of the scheduler. Where events are no longer known, one of kind "lost"
        stands for them: look again at what you follow.
        """
        if after is None:
            after = (await self.scheduler()).event
        while True:
            body = {"after": after, "limit": 1000, "timeout_seconds": _PATIENCE}
            try:
                answer = await self.call("watch", timeout=_PATIENCE + max(self._timeout, 2 * _AGAIN), **body)
            except Unreachable:
                await asyncio.sleep(REST)
                continue
            if answer["lost"]:
                yield Event(after, "lost")
            for event in msgspec.convert(answer["events"], list[Event]):
                yield event
            after = answer["next"]

    async def _pages(self) -> list[dict[str, Any]]:
        pages = [await self.call("list")]
        while pages[-1].get("next") is not None:
            pages.append(await self.call("list", after=pages[-1]["next"]))
        return pages


def _endpoint(address: str | None, key: str | os.PathLike[str] | None) -> Endpoint:
    if address is None and key is None:
        return Endpoint.chosen()
    where = address or os.environ.get("HAL_SCHEDULER") or Places().address
    file = key or os.environ.get("HAL_KEY")
    return Endpoint(where, read_client_key(Path(file)) if file and where.startswith("tcp://") else None)


def _asked(
    memory_bytes: int | None,
    vendor: str | None,
    device: str | None,
    name: str,
    ttl_seconds: float,
    request: Request | None,
    preset: str | None,
) -> dict[str, Any]:
    asked: dict[str, Any] = {"key": secrets.token_hex(16)}
    if request is not None:
        asked["request"] = msgspec.to_builtins(request)
    else:
        own = {"memory_bytes": memory_bytes, "vendor": vendor, "device": device, "name": name}
        asked |= {field: value for field, value in own.items() if value is not None}
        asked["ttl_seconds"] = ttl_seconds
    if preset is not None:
        asked["class"] = preset
    return asked


def closed_error() -> StateError:
    return StateError("this client is closed")
