"""Rows about what goes wrong: links that are down, errors in the memory, pages taken out of use."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hal.backend import Call, Cost, Figure, Group, Value
from hal.model import Scope, Status
from hal_amd import conv

if TYPE_CHECKING:
    from hal_amd.rows import Subject

__all__ = ["error_rows", "link_rows"]

_METRICS = "amdsmi_get_link_metrics"
_STATUS = "amdsmi_get_gpu_xgmi_link_status"
_PAGES = "amdsmi_get_gpu_bad_page_info"
_RESERVED, _PENDING = 0, 1  # AmdSmiMemoryPageStatus
_PAGES_MOST = 1 << 20
_Read = Callable[[Any, "Subject"], tuple[Value, ...]]


# ---- links -----------------------------------------------------------------------------------


def _up(count: int) -> _Read:
    def read(_: Any, subject: Subject) -> tuple[Value, ...]:
        letters = subject.card_says(_STATUS)["status"]
        return tuple(
            Value(int(letter == "U")) if letter in ("U", "D", "X") else conv.count(letter)
            for letter in letters[:count]
        ) + (Value(None, Status.UNSUPPORTED, "amdsmi lists fewer links"),) * (count - len(letters))

    return read


def _of_links(count: int, word: str, convert: Callable[[object], Value]) -> _Read:
    def read(_: Any, subject: Subject) -> tuple[Value, ...]:
        links = subject.card_says(_METRICS)["links"]
        return tuple(convert(links[place].get(word)) for place in range(count))

    return read


def link_rows(count: int) -> tuple[Call, ...]:
    """One figure for each link; a card without any says so once."""
    count = max(count, 1)

    def figures(name: str, unit: str) -> tuple[Figure, ...]:
        return tuple(Figure(f"link_{name}", unit, {"link": str(place)}) for place in range(count))

    def links(name: str, unit: str, word: str, convert: Callable[[object], Value], cost: Cost) -> Call:
        read = _of_links(count, word, convert)
        return Call(Group.LINKS, _METRICS, Scope.DEVICE, figures(name, unit), read, cost)

    reason = (Value(None, Status.UNSUPPORTED, "AMD SMI counts no errors of links"),)
    return (
        Call(Group.LINKS, _STATUS, Scope.DEVICE, figures("up", "bool"), _up(count)),
        links("speed_bytes_per_second", "bytes_per_second", "max_bandwidth", conv.gigabits, Cost.STATIC),
        links("rx_bytes_total", "bytes", "read", conv.kibibytes, Cost.SLOW),
        links("tx_bytes_total", "bytes", "write", conv.kibibytes, Cost.SLOW),
        Call(Group.LINKS, "amdsmi", Scope.DEVICE,
             (Figure("link_errors_total", "count", {"link": "all", "kind": "crc"}),),
             lambda library, subject: reason, Cost.SLOW),
    )  # fmt: skip


# ---- memory errors ---------------------------------------------------------------------------

_SEVERITIES = {"corrected": "correctable", "uncorrected": "uncorrectable", "deferred": "deferred"}


def _counts(call: str, block: str | None = None) -> _Read:
    def read(_: Any, subject: Subject) -> tuple[Value, ...]:
        ask = subject.card_says
        which = () if block is None else (getattr(ask.smi.AmdSmiGpuBlock, block),)
        said = ask(call, *which)
        return tuple(conv.counted(said.get(f"{word}_count")) for word in _SEVERITIES.values())

    return read


def _errors(block: str) -> tuple[Figure, ...]:
    return tuple(
        Figure("ecc_errors_total", "count", {"severity": severity, "lifetime": "volatile", "block": block})
        for severity in _SEVERITIES
    )


def _count_of_pages(subject: Subject) -> int | None:
    """How many amdsmi is about to list; None where this amdsmi does not let itself be asked."""
    module = getattr(subject.card_says.smi, "amdsmi_wrapper", None)
    try:
        count = ctypes.c_uint32()
        status = module.amdsmi_get_gpu_bad_page_info(  # type: ignore[union-attr]
            subject.card.first, ctypes.byref(count), None
        )
    except (AttributeError, TypeError, ctypes.ArgumentError):
        return None
    return count.value if status == 0 else None


def _pages(_: Any, subject: Subject) -> tuple[Value, ...]:
    """Retired, and whether any waits for a reset."""
    many = _count_of_pages(subject)
    if many is not None and many > _PAGES_MOST:  # amdsmi would make room for all of them, and go through it
        return (Value(None, Status.ERROR, f"amdsmi counts {many} retired pages"),) * 2
    states = [page.get("status") for page in subject.card_says(_PAGES)]
    return Value(states.count(_RESERVED)), Value(int(_PENDING in states))


def _enabled(_: Any, subject: Subject) -> tuple[Value, ...]:
    """Of the memory: other blocks have error correction of their own."""
    mask = conv.number(subject.card_says("amdsmi_get_gpu_ecc_enabled"))
    if mask is None:
        return (conv.count("N/A"),)
    return (Value(int(bool(int(mask) & subject.card_says.smi.AmdSmiGpuBlock.UMC))),)


def error_rows(blocks: Sequence[str]) -> tuple[Call, ...]:
    total, one = "amdsmi_get_gpu_total_ecc_count", "amdsmi_get_gpu_ecc_count"
    retires = (Value(None, Status.UNSUPPORTED, "AMD retires pages, not rows"),) * 4
    return (
        Call(Group.ERRORS, total, Scope.DEVICE, _errors("all"), _counts(total), Cost.SLOW),
        *(Call(Group.ERRORS, one, Scope.DEVICE, _errors(block.lower()), _counts(one, block), Cost.SLOW)
          for block in blocks),
        Call(Group.ERRORS, _PAGES, Scope.DEVICE,
             (Figure("pages_retired", "count", {"cause": "all"}), Figure("pages_retirement_pending", "bool")),
             _pages, Cost.SLOW),
        Call(Group.ERRORS, "amdsmi", Scope.DEVICE,
             (Figure("rows_remapped", "count", {"cause": "corrected"}),
              Figure("rows_remapped", "count", {"cause": "uncorrected"}),
              Figure("rows_remap_pending", "bool"), Figure("rows_remap_failed", "bool")),
             lambda library, subject: retires, Cost.SLOW),
        Call(Group.STATE, "amdsmi_get_gpu_ecc_enabled", Scope.DEVICE, (Figure("ecc_enabled", "bool"),),
             _enabled, Cost.STATIC),
    )  # fmt: skip
