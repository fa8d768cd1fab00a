"""A scheduler's client for Python programs: ``hal.Client``.

    with hal.Client() as client, client.acquire(memory_bytes=20 << 30) as lease:
        subprocess.run(["python", "train.py"], env=lease.environment())

What it does is done by ``hal.AsyncClient`` (async_client.py), on a thread of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from hal.async_client import AsyncClient, AsyncLease, OnLost, closed_error
from hal.backend import HalError, StateError
from hal.scheduler.core.request import Request
from hal.scheduler.told import Event, Explanation, LeaseTold, QueueTold, SchedulerTold, WaitingTold

__all__ = ["Client", "Lease"]

T = TypeVar("T")


class Lease:
    """As AsyncLease, for programs without an event loop."""

    def __init__(self, client: Client, lease: AsyncLease) -> None:
        self._client = client
        self._lease = lease
        self.told = lease.told
        self.id = lease.id
        self.devices = lease.devices
        self.variables = lease.variables

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def lost(self) -> str | None:
        """Why it is no longer ours; None while it is."""
        return self._lease.lost

    def environment(self, inherited: Mapping[str, str] = os.environ, *, member: int = 0) -> dict[str, str]:
        """What to start a program with, so that it runs in this slice and sees nothing else."""
        return self._lease.environment(inherited, member=member)

    def release(self) -> None:
        """Give it back. A lease that has ended already is no error. Raises Unreachable."""
        if not self._lease.released and not self._client._is_over:
            self._client._wait_for(self._lease.release())


class Client:
    """As AsyncClient, for programs without an event loop: a thread of its own has one. For any threads.

    ``on_lost`` is called on one of its own each time, in which any call of the client may be made.
    """

    def __init__(
        self,
        address: str | None = None,
        key: str | os.PathLike[str] | None = None,
        *,
        timeout: float = 10.0,
    ) -> None:
        self._client = AsyncClient(address, key, timeout=timeout)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hal-client", daemon=True)
        self._alone = threading.Lock()
        self._closed = False
        # No signal is for this thread: it would have the default action here, whatever others block or await.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release what is still held, and hang up; again is no error, nor in a process that was forked since.
        Calls that other threads have under way raise StateError."""
        if self._client._is_elsewhere:
            return
        with self._alone:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        try:
            await self._client.close()
        finally:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    @property
    def _is_over(self) -> bool:
        """Nothing of it is this process's any more."""
        return self._closed or self._client._is_elsewhere

    def call(self, op: str, *, timeout: float | None = None, **body: Any) -> dict[str, Any]:
        """Any operation of the protocol; see AsyncClient.call."""
        return self._wait_for(self._client.call(op, timeout=timeout, **body))

    def acquire(
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
    ) -> Lease:
        """See AsyncClient.acquire; whoever interrupts it (Ctrl-C) waits no longer."""
        asked = self._client.acquire(
            memory_bytes=memory_bytes,
            vendor=vendor,
            device=device,
            name=name,
            ttl_seconds=ttl_seconds,
            request=request,
            preset=preset,
            on_lost=_apart(on_lost),
        )
        return Lease(self, self._wait_for(asked))

    def acquire_many(
        self, requests: Sequence[Request], *, on_lost: OnLost | None = None
    ) -> list[Lease | HalError]:
        """For each request in turn a lease, or why there is none; many of them in one message."""
        found = self._wait_for(self._client.acquire_many(requests, on_lost=_apart(on_lost)))
        return [Lease(self, one) if isinstance(one, AsyncLease) else one for one in found]

    def release(self, lease: str) -> None:
        """End a lease, or leave the queue. One that has ended is no error."""
        self._wait_for(self._client.release(lease))

    def release_many(self, leases: Sequence[str]) -> None:
        self._wait_for(self._client.release_many(leases))

    def scheduler(self) -> SchedulerTold:
        return self._wait_for(self._client.scheduler())

    def leases(self) -> list[LeaseTold]:
        """All that this client may see, however many."""
        return self._wait_for(self._client.leases())

    def waiting(self) -> list[WaitingTold]:
        return self._wait_for(self._client.waiting())

    def explain(self, id: str) -> Explanation:
        return self._wait_for(self._client.explain(id))

    def queues(self) -> list[QueueTold]:
        return self._wait_for(self._client.queues())

    def set_queue(self, name: str, **changes: Any) -> list[QueueTold]:
        return self._wait_for(self._client.set_queue(name, **changes))

    def remove_queue(self, name: str) -> list[QueueTold]:
        return self._wait_for(self._client.remove_queue(name))

    def watch(self, after: int | None = None) -> Iterator[Event]:
        """See AsyncClient.watch."""
        events = self._client.watch(after)
        try:
            while True:
                yield self._wait_for(_next(events))
        finally:
            with contextlib.suppress(RuntimeError, HalError):
                self._wait_for(_closed(events))

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it on the client's own thread. An interrupt here cancels it there."""
        if self._client._is_elsewhere:  # the thread is in the parent: here nothing would be done
            work.close()
            raise StateError("this client is another process's: make one after the fork")
        with self._alone:
            if self._closed:
                work.close()
                raise closed_error()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise closed_error() from None
        except BaseException:
            future.cancel()
            raise


def _apart(on_lost: OnLost | None) -> OnLost | None:
    """On the client's thread a call of the client would wait for itself."""
    if on_lost is None:
        return None
    return lambda reason: threading.Thread(
        target=on_lost, args=(reason,), name="hal-on-lost", daemon=True
    ).start()


async def _next(events: AsyncIterator[Event]) -> Event:
    return await anext(events)


async def _closed(events: Any) -> None:
    closing: Awaitable[None] = events.aclose()
    await closing
