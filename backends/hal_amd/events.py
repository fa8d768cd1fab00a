"""What happens to the cards: what KFD reports through AMD SMI, and cards that come, go and are divided anew.

Nothing here waits. The names are amdsmi's own, because the numbers are not: 5 was a ring that hangs up to
library 25, and is a migration from 26 on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from hal.model import Event, EventKind
from hal_amd import errors, slices
from hal_amd.device import Card, Cards

__all__ = ["Watch"]

_log = logging.getLogger(__name__)
_AT_ONCE, _MOST = 64, 256  # of one read, of one call: a card in trouble must not keep the caller here

_KINDS = {
    "VMFAULT": EventKind.ERROR,
    "THERMAL_THROTTLE": EventKind.THERMAL,
    "GPU_PRE_RESET": EventKind.RESET,
    "GPU_POST_RESET": EventKind.RESET,
    "RING_HANG": EventKind.ERROR,
}
# Many a second in a healthy program: for those who ask.
_PAGING = dict.fromkeys(
    ("MIGRATE_START", "MIGRATE_END", "PAGE_FAULT_START", "PAGE_FAULT_END", "QUEUE_EVICTION",
     "QUEUE_RESTORE", "UNMAP_FROM_GPU"), EventKind.PAGING,
)  # fmt: skip
_OF_PACKAGE = {EventKind.THERMAL, EventKind.RESET}  # each partition says it


class Watch:
    """Of one session of AMD SMI."""

    def __init__(self, cards: Cards, *, paging: bool = False) -> None:
        self._cards = cards
        self._kinds = _KINDS | _PAGING if paging else _KINDS
        self._readers: dict[int, tuple[Any, str]] = {}  # with whom it is about, by handle
        self._known = dict(cards.all(anew=True))
        self._shapes = {id: _processors(card) for id, card in self._known.items()}
        self._lost: set[str] = set()
        for card in self._known.values():
            self._begin(card)

    def poll(self) -> list[Event]:
        """What has happened since the last call. Raises amdsmi's exception when AMD SMI as a whole fails."""
        events = list(self._reported())
        if any(event.kind is EventKind.RESET for event in events):
            self._cards.forget()  # handles from before it may be stale
        return events + list(self._changed())

    def close(self) -> None:
        for reader, _ in self._readers.values():
            try:
                reader.stop()
            except Exception as failure:  # gone already
                _log.debug("amdsmi_stop_gpu_event_notification: %s", failure)
        self._readers.clear()

    # ---- what KFD says -----------------------------------------------------------------------

    def _begin(self, card: Card) -> None:
        """Without permission, KFD or a wrapper that fits, a card reports nothing; its state is watched."""
        smi = self._cards.smi
        for part, processor in card.processors.items():
            subject = card.id if len(card.processors) == 1 else slices.identifier(card.id, part)
            try:
                kinds = smi.AmdSmiEvtNotificationType
                wanted = [kinds[name] for name in self._kinds if name in kinds.__members__]
                self._readers[_number(processor)] = smi.AmdSmiEventReader(processor, wanted), subject
            except Exception as failure:
                _log.debug("events of %s: %s", subject, failure)

    def _reported(self) -> Iterator[Event]:
        """One read gives the events of all processors. The same of all partitions of a card is one."""
        said: set[tuple[str, str, str]] = set()
        taken = 0
        while self._readers and taken < _MOST:
            reader = next(iter(self._readers.values()))[0]
            try:
                read = reader.read(0, _AT_ONCE)
            except UnicodeDecodeError as failure:  # a program's name; that batch cannot be had again
                _log.debug("amdsmi_get_gpu_event_notification: %s", failure)
                read = [{}] * _AT_ONCE
            except Exception as failure:
                if errors.code_of(failure) != errors.NO_DATA and not taken:
                    raise
                return
            taken += len(read)
            for one in read:
                event = self._event(one)
                if event is None:
                    continue
                key = (event.subject, str(one["event"]), str(one["message"]))
                if event.kind not in _OF_PACKAGE or key not in said:
                    said.add(key)
                    yield event
            if len(read) < _AT_ONCE:
                return

    def _event(self, said: dict[str, Any]) -> Event | None:
        name = str(said.get("event"))
        kind = self._kinds.get(name)
        found = self._readers.get(_number(said.get("processor_handle")))
        if kind is None or found is None:
            return None
        subject = found[1].partition("/")[0] if kind in _OF_PACKAGE else found[1]
        return Event(
            subject=subject,
            kind=kind,
            time=time.time(),
            code_space="kfd",
            code=int(self._cards.smi.AmdSmiEvtNotificationType[name]),
            message=_words(name, str(said.get("message", "")).strip()),
            source="amdsmi_get_gpu_event_notification",
        )

    # ---- what the cards themselves show ------------------------------------------------------

    def _changed(self) -> Iterator[Event]:
        """Cards that no longer answer, or do again; that are listed no more, or newly; that were divided."""
        now = self._look()
        for id, card in self._known.items():
            gone = id not in now or not _answers(self._cards.smi, now[id])
            if gone and id not in self._lost:
                self._lost.add(id)
                yield _event(id, EventKind.LOST, "the card no longer answers")
            elif not gone and id in self._lost:
                self._lost.discard(id)
                yield _event(id, EventKind.HOTPLUG, "the card answers again")
            elif not gone and _processors(now[id]) != self._shapes[id]:
                before, after = len(card.processors), len(now[id].processors)
                yield _event(id, EventKind.PARTITION_CHANGED, f"{before} partitions before, {after} now")
        for id in now.keys() - self._known.keys():
            yield _event(id, EventKind.HOTPLUG, "the card was not here before")
        for id, card in now.items():
            if id not in self._lost and _processors(card) != self._shapes.get(id):
                self._begin(card)
                self._shapes[id] = _processors(card)
        self._known |= now

    def _look(self) -> dict[str, Card]:
        """Looking all cards up anew is for when a handle or their number shows that something changed."""
        smi, known = self._cards.smi, self._cards.all()
        count = sum(len(card.processors) for card in known.values())
        as_before = len(smi.amdsmi_get_processor_handles()) == count
        same = as_before and all(id in self._lost or _answers(smi, card) for id, card in known.items())
        return self._cards.all(anew=not same or bool(self._lost))


def _event(subject: str, kind: EventKind, message: str) -> Event:
    return Event(subject, kind, time.time(), message=message, source="amdsmi_get_processor_handles")


def _processors(card: Card) -> tuple[int, ...]:
    return tuple(sorted(card.processors))


def _answers(smi: Any, card: Card) -> bool:
    """Any but the code for a device that is not there is an answer."""
    try:
        smi.amdsmi_get_gpu_memory_usage(card.first, smi.AmdSmiMemoryType.VRAM)
    except Exception as failure:
        return errors.code_of(failure) != errors.NOT_FOUND
    return True


def _number(handle: Any) -> int:
    """A handle is a pointer, which amdsmi gives as such or as a number."""
    return int(getattr(handle, "value", handle) or 0)


def _words(name: str, message: str) -> str:
    """KFD's own: the fields of its messages are hexadecimal (kfd_ioctl.h, KFD_EVENT_FMT_...)."""
    first, _, rest = message.partition(":")
    try:
        number = int(first, 16)
    except ValueError:
        number = None
    if name == "VMFAULT" and number is not None:
        return f"page fault on the GPU by process {number} ({rest or 'no name'})"
    if name == "THERMAL_THROTTLE" and number is not None:
        return f"held down by heat, mask {number:#x}"
    plain = {"GPU_PRE_RESET": "a reset begins", "GPU_POST_RESET": "a reset is over",
             "RING_HANG": "a queue hangs"}  # fmt: skip
    return plain.get(name, f"{name.lower().replace('_', ' ')}: {message}")
