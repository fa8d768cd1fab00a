"""Without ROCm: what the kernel's own files say of the cards. Fewer figures, the same ids.

Identity and memory are below ``sys/bus/pci/drivers/amdgpu``, power, fans and temperatures in its hwmon, what
programs use below ``sys/class/kfd`` and in their ``fdinfo``. Partitions need AMD SMI: a card is whole here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hal.backend import Call, Cost, Figure, GoneError, Group, TemporaryError, Value, read_table
from hal.model import Device, DeviceKind, Heap, Inventory, Pci, Process, Reading, Scope, Status, whole
from hal_amd import clients, conv
from hal_amd.kfd import Node, name_of, nodes

__all__ = ["Sysfs"]

_PREFIX = "amd:pci-"
_NUMA_NODES = 1 << 12


class _Card(NamedTuple):
    bdf: str
    folder: Path  # of its PCI device
    hwmon: Path | None
    node: Node | None  # KFD's, where that is loaded


class Sysfs:
    """The cards that amdgpu drives, below a root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._driver = root / "sys/bus/pci/drivers/amdgpu"

    def present(self) -> bool:
        return bool(self._cards())

    def enumerate(self) -> Inventory:
        devices = [_device(card, self._version()) for card in self._cards().values()]
        return Inventory(tuple(devices), tuple(map(whole, devices)))

    def sample(
        self, groups: Sequence[Group], ids: Sequence[str], deadline: float, costs: frozenset[Cost]
    ) -> list[Reading]:
        """Readings of each device in turn. Raises GoneError for an id that is not there."""
        here = self._cards()
        cards = [(subject, self._find(here, subject)) for subject in ids]
        table = [row for row in _ROWS if row.group in groups and row.cost in costs]
        return [
            reading
            for subject, card in cards
            for reading in read_table(table, self._root, card, subject, deadline, _failed)
        ]

    def processes(self, ids: Sequence[str], deadline: float) -> list[Process]:
        """Who holds memory through KFD, where ``kfd/proc/<pid>/vram_<gpu>`` counts bytes, and who has the
        card open besides: video, graphics."""
        here = self._cards()
        opened = clients.memory(self._root)
        found: list[Process] = []
        for subject in ids:
            card = self._find(here, subject)
            if time.monotonic() >= deadline:
                raise TemporaryError(f"processes of {subject}: not reached before the deadline")
            held = {pid: _held(used) for pid, used in opened.get(card.bdf, {}).items()}
            held |= self._through_kfd(card)  # KFD's count is in the other one, too
            found += [
                Process(
                    subject,
                    pid,
                    name_of(self._root, pid),
                    None if v.value is None else int(v.value),
                    v.status,
                )
                for pid, v in sorted(held.items())
                if v.value != 0
            ]
        return found

    def _through_kfd(self, card: _Card) -> dict[int, Value]:
        if card.node is None:
            return {}
        files = self._root.glob(f"sys/class/kfd/kfd/proc/*/vram_{card.node.gpu_id}")
        pids = {file.parent.name: file for file in files}
        return {
            int(pid): _checked(_number(file), conv.size)
            for pid, file in pids.items()
            if pid.isascii() and pid.isdigit() and len(pid) < 10
        }

    def _find(self, cards: dict[str, _Card], subject: str) -> _Card:
        card = cards.get(subject.removesuffix("/whole"))
        if card is None:
            raise GoneError(f"{subject}: no such AMD device")
        return card

    def _cards(self) -> dict[str, _Card]:
        """In the order of the bus. Looked up each time: it is a folder of links."""
        known = nodes(self._root)
        cards = {}
        for folder in sorted(self._driver.glob("*:*:*.*")):
            bdf = conv.bdf(folder.name)
            if bdf is not None:
                hwmon = next(iter(sorted(folder.glob("hwmon/hwmon*"))), None)
                cards[_PREFIX + bdf] = _Card(bdf, folder, hwmon, known.get(bdf))
        return cards

    def _version(self) -> str | None:
        return conv.text(_text(self._root / "sys/module/amdgpu/version"))


def _device(card: _Card, driver: str | None) -> Device:
    vram, gtt = (
        _checked(_number(card.folder / f"mem_info_{kind}_total"), conv.size).value for kind in ("vram", "gtt")
    )
    heaps = (Heap("vram", None if vram is None else int(vram)),)
    node = _number(card.folder / "numa_node").value
    node_of = card.node
    serial = conv.unique_id(_text(card.folder / "unique_id"))
    if serial is None and node_of is not None:
        serial = conv.unique_id(f"{node_of.unique_id:x}")
    modes = {
        f"amd.{kind}_partition": word
        for kind in ("compute", "memory")
        if (word := conv.text(_text(card.folder / f"current_{kind}_partition")))
    }
    return Device(
        id=_PREFIX + card.bdf,
        vendor="amd",
        kind=DeviceKind.GPU,
        model=conv.text(_text(card.folder / "product_name")) or "AMD GPU",
        heaps=heaps if gtt is None else (*heaps, Heap("gtt", int(gtt))),
        pci=Pci(
            card.bdf,
            conv.hexadecimal(_text(card.folder / "vendor")),
            conv.hexadecimal(_text(card.folder / "device")),
        ),
        serial=serial,
        architecture=None if node_of is None else node_of.architecture,
        compute_units=None if node_of is None else node_of.compute_units,
        numa_node=int(node) if node is not None and 0 <= node < _NUMA_NODES else None,
        driver=driver,
        indices=dict(_indices(card)),
        attributes=modes,
    )


def _indices(card: _Card) -> Iterator[tuple[str, int]]:
    if card.node is not None:
        yield "kfd", card.node.number
    for word, stem in (("drm_card", "card"), ("drm_render", "renderD")):
        for entry in sorted(card.folder.glob(f"drm/{stem}*")):
            number = entry.name.removeprefix(stem)
            if number.isascii() and number.isdigit() and len(number) < 10:
                yield word, int(number)
                break


# ---- figures ---------------------------------------------------------------------------------


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> Value:
    """What a file of one number says, or why it says nothing. The kernel's numbers have 64 bits."""
    try:
        text = path.read_text(errors="replace").strip()
    except Exception as failure:
        return _failed(failure)
    if not re.fullmatch(r"-?[0-9]{1,20}", text) or not -(1 << 63) <= int(text) < 1 << 64:
        return Value(None, Status.ERROR, f"{path.name} says {text[:40]!r}")
    return Value(int(text))


def _checked(value: Value, convert: Callable[[object], Value]) -> Value:
    """In the unit of the figure, and within what is possible."""
    return value if value.value is None else convert(value.value)


def _held(used: int | None) -> Value:
    return Value(used) if used is not None else Value(None, Status.UNSUPPORTED, "fdinfo does not say")


def _failed(failure: Exception) -> Value:
    if isinstance(failure, FileNotFoundError):
        return Value(None, Status.UNSUPPORTED, f"no {Path(failure.filename).name}")
    denied = isinstance(failure, PermissionError)
    return Value(None, Status.DENIED if denied else Status.ERROR, str(failure))


def _memory(heap: str, file: str) -> Call:
    def read(_: object, card: _Card) -> tuple[Value, ...]:
        total, used = (
            _checked(_number(card.folder / f"mem_info_{file}_{word}"), conv.size)
            for word in ("total", "used")
        )
        return total, used, conv.remainder(total, used)

    figures = tuple(
        Figure(f"memory_{word}_bytes", "bytes", {"heap": heap}) for word in ("total", "used", "free")
    )
    return Call(Group.MEMORY, f"mem_info_{file}_used", Scope.DEVICE, figures, read)


def _busy(_: object, card: _Card) -> tuple[Value, ...]:
    names = ("gpu_busy_percent", "mem_busy_percent", "vcn_busy_percent")
    return tuple(_checked(_number(card.folder / name), conv.ratio) for name in names)


def _hwmon(card: _Card, name: str) -> Value:
    if card.hwmon is None:
        return Value(None, Status.UNSUPPORTED, "no hwmon")
    return _number(card.hwmon / name)


def _power(_: object, card: _Card) -> tuple[Value, ...]:
    """Microwatts. Which of the two files there is depends on the family."""
    return tuple(_checked(_hwmon(card, f"power1_{word}"), _watts) for word in ("input", "average"))


def _watts(microwatts: Any) -> Value:
    return conv.watts(microwatts / 1_000_000)


def _cap(_: object, card: _Card) -> tuple[Value, ...]:
    return (_checked(_hwmon(card, "power1_cap"), _watts),)


def _fan(_: object, card: _Card) -> tuple[Value, ...]:
    """Of the highest level of the fan's control, which is 255 where nothing else is said."""
    level, most = _hwmon(card, "pwm1"), _hwmon(card, "pwm1_max").value or 255
    return (_checked(level, lambda raw: conv.ratio(100 * int(str(raw)) / most)),)


_SENSORS = {"edge": "core", "junction": "hotspot", "mem": "memory"}  # hwmon's labels


def _temperatures(_: object, card: _Card) -> tuple[Value, ...]:
    """Millidegrees, in the file beside the one that has the sensor's name."""
    labels = {} if card.hwmon is None else {_text(file): file for file in card.hwmon.glob("temp*_label")}
    values = []
    for label in _SENSORS:
        file = labels.get(label)
        if file is None:
            values.append(Value(None, Status.UNSUPPORTED, f"no sensor {label}"))
        else:
            input_ = _number(file.with_name(file.name.replace("label", "input")))
            values.append(_checked(input_, _degrees))
    return tuple(values)


def _degrees(thousandths: Any) -> Value:
    return conv.celsius(thousandths / 1000)


def _none(count: int = 1) -> tuple[Value, ...]:
    return (Value(None, Status.UNSUPPORTED, "this takes AMD SMI"),) * count


def _without(group: Group, scope: Scope, cost: Cost, *figures: Figure) -> Call:
    return Call(group, "sysfs", scope, figures, lambda root, card: _none(len(figures)), cost)


_ROWS = (
    _memory("vram", "vram"),
    _memory("gtt", "gtt"),
    _memory("bar1", "vis_vram"),
    Call(Group.ACTIVITY, "gpu_busy_percent", Scope.DEVICE,
         (Figure("compute_busy_ratio", "ratio"), Figure("memory_bandwidth_busy_ratio", "ratio"),
          Figure("media_busy_ratio", "ratio")), _busy),
    Call(Group.POWER, "hwmon power1", Scope.PACKAGE,
         tuple(Figure("power_watts", "watts", {"window": word}) for word in ("instant", "average")), _power),
    Call(Group.POWER, "hwmon power1_cap", Scope.PACKAGE, (Figure("power_limit_watts", "watts"),), _cap),
    Call(Group.TEMPERATURE, "hwmon temp", Scope.PACKAGE,
         tuple(Figure("temperature_celsius", "celsius", {"sensor": word}) for word in _SENSORS.values()),
         _temperatures),
    Call(Group.TEMPERATURE, "hwmon pwm1", Scope.PACKAGE, (Figure("fan_ratio", "ratio", {"fan": "0"}),), _fan),
    Call(Group.TEMPERATURE, "hwmon fan1_input", Scope.PACKAGE, (Figure("fan_rpm", "rpm", {"fan": "0"}),),
         lambda root, card: (_checked(_hwmon(card, "fan1_input"), conv.turns),)),
    _without(Group.CLOCKS, Scope.DEVICE, Cost.FAST, Figure("clock_hertz", "hertz", {"domain": "compute"})),
    _without(Group.THROTTLE, Scope.PACKAGE, Cost.FAST,
             Figure("throttle_active", "bool", {"reason": "other"})),
    _without(Group.PCIE, Scope.DEVICE, Cost.FAST, Figure("pcie_generation", "count"),
             Figure("pcie_width", "count")),
    _without(Group.LINKS, Scope.DEVICE, Cost.FAST, Figure("link_up", "bool", {"link": "0"})),
    _without(Group.ERRORS, Scope.DEVICE, Cost.SLOW,
             Figure("ecc_errors_total", "count",
                    {"severity": "corrected", "lifetime": "volatile", "block": "all"})),
    _without(Group.STATE, Scope.DEVICE, Cost.STATIC, Figure("ecc_enabled", "bool")),
)  # fmt: skip
