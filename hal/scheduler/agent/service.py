"""The agent as a process of its own: it joins a scheduler, beats, and carries out its orders.

Cut off from its scheduler, a node stops by itself what it holds, before the scheduler may lend it to
others: it counts from the moment at which it sent the last message that was answered, on a clock that
goes on while the machine sleeps.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from hal.backend import HalError, StateError
from hal.enforce.ledger import DeviceUse
from hal.scheduler import wire
from hal.scheduler.agent.agent import Agent, StaleError, ended_as_unknown
from hal.scheduler.agent.binding import ORDERS, Beat, BindOrder, Join, Joined, Order
from hal.scheduler.agent.until import boot, clock
from hal.scheduler.core.facts import NodeFacts
from hal.scheduler.logs import Log
from hal.scheduler.places import Places
from hal.scheduler.process import locked_for_agent, signals_as_bytes

__all__ = ["Service"]

_ORDERS: dict[str, type[Order]] = {op: kind for kind, (op, _) in ORDERS.items()}
_FACTS = 1.0  # seconds between looks at what others use of the devices
_LOOKING = 9  # times as long as a look has taken nothing is looked at: slow drivers stop no beats
_SLOW = 1.0  # seconds
_UNTOLD = 55.0  # seconds: cut off, before a scheduler has said after how long
_SILENCE = 3.0  # seconds without an answer after which a fresh connection is tried
_QUIET = 1.5  # seconds without one, and nothing is looked at: a driver may keep it from stopping in time
_SILENT = 4.0  # seconds without an answer after which that is told
_DRAIN = 256
_USES = 512  # slices whose use one beat tells, about; of the others, the next one does

Connect = Callable[["zmq.Socket[bytes]"], None]


class Service:
    """One node's agent. ``connect`` is given each fresh DEALER: it sets keys and connects it to the
    ``scheduler`` at this address.

    ``log`` is told when the node joins, is refused or cut off, and when nobody answers; at debug, each
    order. ``silent``: that nobody does is known already. ``reread`` is called at SIGHUP and gives the node's
    labels.
    """

    def __init__(
        self,
        agent: Agent,
        places: Places,
        connect: Connect,
        *,
        scheduler: str,
        version: str,
        labels: dict[str, str] | None = None,
        log: Log | None = None,
        silent: bool = False,
        reread: Callable[[], dict[str, str]] | None = None,
    ) -> None:
        self._agent = agent
        self._places = places
        self._connect = connect
        self._scheduler = scheduler
        self._version = version
        self._labels = labels or {}
        self._log = Log(level="error") if log is None else log
        self._silent = silent
        self._unheard: float | None = None  # since when it asks without having heard anything
        self._reread = reread
        self._said = ""
        self._socket: zmq.Socket[bytes] | None = None
        self._asked: dict[str, tuple[str, float, Beat | None]] = {}  # by id: operation, when, the beat
        self._joined: Joined | None = None
        self._answered = clock()  # when the last message that was answered was sent
        self._until = self._answered + _UNTOLD  # without an answer, all that is lent here is stopped then
        self._connected = self._beaten = self._look_at = float("-inf")
        self._cut_off = False
        self._cut_off_seconds = _UNTOLD
        self._facts: NodeFacts | None = None
        self._told_facts: NodeFacts | None = None
        self._told_use: dict[str, list[DeviceUse]] = {}

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Until SIGTERM or SIGINT; slices and what runs in them stay for the next agent of this node.

        ``ready`` is called once nothing is missing but the scheduler. Raises StateError when the directory
        cannot be used, or is another's.
        """
        self._places.make()
        with locked_for_agent(self._places, self._scheduler), contextlib.ExitStack() as stack:
            stack.callback(self._agent.close)
            self._begin()
            wakeup = stack.enter_context(signals_as_bytes(signal.SIGHUP))
            self._context = stack.enter_context(zmq.Context())
            stack.callback(self._hang_up)
            ready()
            while self._turn(wakeup):
                pass

    def _begin(self) -> None:
        self._agent.start()
        if (before := self._agent.allowed()) is not None:  # for one that is restarted the count goes on
            self._until = before

    # ---- the loop ---------------------------------------------------------------------------

    def _turn(self, wakeup: socket.socket) -> bool:
        self._keep_dialling(clock())
        poller = zmq.Poller()
        poller.register(wakeup, zmq.POLLIN)
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._agent.descriptor, zmq.POLLIN)
        due = self._beaten + self._pause()
        due = max((due if self._cut_off else min(due, self._until)) - clock(), 0)
        due = 0.05 if self._agent.busy else due
        began = clock()
        events = dict(poller.poll(int(due * 1000) + 1))
        awake = clock()
        if awake - began > due + _SILENCE:  # it was stopped (SIGSTOP, a frozen machine): others may have
            self._joined = None  # been told since what the orders that wait here are about
        if wakeup.fileno() in events and not self._goes_on(wakeup.recv(64)):
            return False
        if self._socket in events:
            self._drain()
        self._advance(clock())
        if clock() - awake > _SLOW:  # of a driver's: who has answered meanwhile was not listened to
            self._connected = clock()
            self._unheard = None if self._unheard is None else clock()
        self._log.flush()
        return True

    def _goes_on(self, signals: bytes) -> bool:
        """SIGHUP changes what it says; any other signal ends it."""
        if signal.SIGHUP in signals and self._reread is not None:
            labels = self._reread()
            if labels != self._labels:
                self._labels, self._joined, self._beaten = labels, None, float("-inf")
        return all(number == signal.SIGHUP for number in signals)

    def _advance(self, now: float) -> None:
        self._agent.turn(now)
        self._notice_silence(now)
        news = self._joined is not None and (self._agent.ended() or self._agent.ended_runs())
        if now - self._beaten >= self._pause() or news:
            self._beat(now)

    def _pause(self) -> float:
        return 1.0 if self._joined is None else self._joined.beat_seconds

    def _drain(self) -> None:
        assert self._socket is not None
        for _ in range(_DRAIN):
            try:
                frame = self._socket.recv(flags=zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message = wire.unpack_message(frame, wire.MAX_REPLY_BYTES)
            except wire.Malformed as wrong:
                self._tell(f"the scheduler sent what cannot be read: {wrong}")
                continue
            self._hear_somebody()
            if isinstance(message, wire.Request):
                if self._joined is None and message.op == "bind":
                    continue  # it was not told yet when to stop; with its join it is ordered again
                self._send(self._carry_out(message))
            else:
                self._hear(message)

    def _hear_somebody(self) -> None:
        self._unheard = None
        if self._silent:
            self._silent = False
            self._tell(f"the scheduler at {self._scheduler} answers")

    def _notice_silence(self, now: float) -> None:
        if not self._silent and self._unheard is not None and now - self._unheard > _SILENT:
            self._silent = True
            self._tell(f"no scheduler answers at {self._scheduler}; it is asked again and again")
        if not self._cut_off and now > self._until:
            self._cut_off = True
            if self._agent.bound():
                self._tell("cut off from the scheduler for too long: all that it lent here is stopped")
            self._agent.stop_all()

    # ---- orders -----------------------------------------------------------------------------

    def _carry_out(self, request: wire.Request) -> wire.Reply:
        kind = _ORDERS.get(request.op)
        lease, code, why = "", "ok", ""
        try:
            if kind is None:
                raise StateError(f"this agent (version {self._version}) knows no order '{request.op:.40}'")
            order = msgspec.convert(request.body, kind)
            lease = order.binding.lease if isinstance(order, BindOrder) else order.lease
            answer = self._agent.perform(order, clock())
            reply = wire.Reply(wire.VERSION, request.id, True, msgspec.to_builtins(answer))
        except (HalError, msgspec.ValidationError) as wrong:
            code, why = "stale" if isinstance(wrong, StaleError) else "failed", str(wrong)
            reply = wire.Reply(wire.VERSION, request.id, False, error=wire.ErrorBody(code, why))
        about = {"request": request.id[:64], "lease": lease[:64], "reason": why}
        self._log.add("debug", f"{request.op:.40} {code}", **about)
        return reply

    # ---- reports ----------------------------------------------------------------------------

    def _beat(self, now: float) -> None:
        self._beaten = now
        unheard = self._joined is not None and now - self._answered > _QUIET
        if self._facts is None or (now >= self._look_at and not unheard):
            with contextlib.suppress(HalError):  # of a driver that does not answer, the last look counts
                self._facts = self._agent.facts()
            done = clock()
            self._look_at = done + max(_FACTS, _LOOKING * (done - now))
        if self._facts is None:
            return
        if self._joined is None:
            joining = Join(
                node=self._agent.node,
                boot=boot(),
                term=self._agent.term,
                sent=now,
                version=self._version,
                facts=self._facts,
                bound=self._agent.bound(),
                labels=self._labels,
            )
            self._ask("join", joining, now, None)
            return
        use: dict[str, list[DeviceUse]] = {}
        room = _USES
        for id, each in self._agent.uses().items():
            if room > 0 and self._told_use.get(id) != each:
                use[id] = each
                room -= len(each)
        beat = Beat(
            self._agent.node,
            self._joined.term,
            self._facts if self._facts != self._told_facts else None,
            self._agent.ended(),
            use,
            self._agent.ended_runs(),
        )
        self._ask("beat", beat, now, beat)

    def _ask(self, op: str, body: Join | Beat, now: float, beat: Beat | None) -> None:
        id = secrets.token_hex(8)
        self._asked[id] = (op, now, beat)
        while len(self._asked) > 64:
            del self._asked[next(iter(self._asked))]
        self._unheard = now if self._unheard is None else self._unheard
        self._send(wire.Request(wire.VERSION, id, op, msgspec.to_builtins(body)))

    def _hear(self, reply: wire.Reply) -> None:
        op, sent, beat = self._asked.pop(reply.id, ("", 0.0, None))
        if not op:
            return
        if not reply.ok:
            reason = "it gave no reason" if reply.error is None else reply.error.message
            if reply.error is None or reply.error.code != "not_joined":
                self._tell(f"the scheduler refuses this node: {reason}")
            self._joined = None
            self._beaten = float("-inf") if op == "beat" else self._beaten
            return
        if op == "join":
            if not self._hear_joined(reply.body):
                return
        elif beat is not None:
            if reply.body.get("durable", True):
                self._agent.acknowledge(beat.ended)
                self._agent.acknowledge_runs(beat.runs)
            self._told_facts = beat.facts or self._told_facts
            self._told_use.update(beat.use)
            living = self._agent.bound()
            self._told_use = {id: use for id, use in self._told_use.items() if id in living}
        self._answered = max(self._answered, sent)
        self._cut_off = False
        self._until = self._answered + self._cut_off_seconds
        self._agent.allow(self._until)

    def _hear_joined(self, body: dict[str, Any]) -> bool:
        """False: it has not joined, and the scheduler does not take it for heard."""
        try:
            joined = msgspec.convert(body, Joined)
            ended = self._agent.keep(joined.term, joined.keep, clock())
        except (StaleError, msgspec.ValidationError) as wrong:
            self._tell(f"the scheduler's answer is of no use: {wrong}")
            return False
        if ended:
            self._tell(ended_as_unknown(ended))
        if joined.again:  # with the next beat, when what is not to be kept has had a while to end
            return False
        self._cut_off_seconds = joined.cut_off_seconds
        self._joined = joined
        self._told_facts, self._told_use = self._facts, {}
        self._tell(f"node '{self._agent.node}' has joined the scheduler (term {joined.term})")
        return True

    # ---- the connection ---------------------------------------------------------------------

    def _keep_dialling(self, now: float) -> None:
        if self._socket is not None and now - max(self._answered, self._connected) <= _SILENCE:
            return
        self._hang_up()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.MAXMSGSIZE, wire.MAX_REPLY_BYTES)
        self._connect(self._socket)
        self._connected = now
        self._joined = None
        self._beaten = float("-inf")

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: wire.Request | wire.Reply) -> None:
        assert self._socket is not None
        with contextlib.suppress(zmq.Again):  # nobody listens: it is said again
            self._socket.send(wire.pack(message), flags=zmq.DONTWAIT)

    def _tell(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            self._log(sentence)
