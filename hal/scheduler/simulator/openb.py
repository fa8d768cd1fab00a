"""The OpenB trace: node and task lists as CSV, and how a workload is made to arrive.

Alibaba publishes them as cluster-trace-gpu-v2023. The method is that of Weng et al., "Beware of
Fragmentation" (USENIX ATC 2023): tasks drawn from the list until they ask for so many times the
cluster's GPUs, arriving one by one in random order; nothing leaves, and what fits nowhere is dropped.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from hal.backend import StateError
from hal.scheduler.core.facts import WHOLE_MILLI, DeviceFacts, NodeFacts
from hal.scheduler.core.masks import EVERYTHING
from hal.scheduler.core.shape import Shape

__all__ = ["Task", "TraceError", "arrivals", "read_nodes", "read_tasks"]

_MIB = 1 << 20
_LONGEST = 1 << 20  # characters of a line: what has no end (/dev/zero) is not read for ever
_MOST = 1 << 40  # no field of a sound trace is larger


class TraceError(StateError):
    """A trace's file cannot be read; the text names the file, the line and the field."""


class Task(Struct, frozen=True):
    """One task of the list."""

    name: str
    shape: Shape
    models: str = EVERYTHING  # those that it runs on, sorted, with "|" between them

    @property
    def milli(self) -> int:
        """The GPU that it asks for, in thousandths."""
        return self.shape.count * (WHOLE_MILLI if self.shape.whole else self.shape.compute_milli)


class _Line:
    """One line of a CSV file, which knows where it is."""

    def __init__(self, path: Path, number: int, fields: dict[str, str]) -> None:
        self.path, self.number, self.fields = path, number, fields

    def wrong(self, field: str, why: str) -> TraceError:
        return TraceError(f"{self.path}, line {self.number}, field '{field}': {why}")

    def text(self, field: str) -> str:
        return self.fields[field].strip()

    def whole(self, field: str, most: int = _MOST) -> int:
        text = self.text(field)
        if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
            raise self.wrong(field, f"{text[:40]!r} is not a whole number from 0 to {most}")
        return int(text)


def _lines(path: Path, needed: tuple[str, ...]) -> Iterator[_Line]:
    """The lines below the first, which names the columns. Bytes that are no text are refused."""
    number, head = 1, list(needed)
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.reader(iter(lambda: file.readline(_LONGEST), ""), strict=True)
            head = [name.strip() for name in next(reader, [])]
            for name in needed:
                if head.count(name) != 1:
                    found = "is not there" if name not in head else "is there more than once"
                    raise TraceError(f"{path}, line 1, field '{name}': the column {found}")
            for values in reader:
                number = reader.line_num
                if not values:
                    continue
                line = _Line(path, number, dict(zip(head, values, strict=False)))
                if len(values) != len(head):
                    at = head[min(len(values), len(head) - 1)]
                    raise line.wrong(
                        at, f"the line has {len(values)} fields, and the first line names {len(head)}"
                    )
                for field, value in line.fields.items():
                    if not value.isascii() and any("\ud800" <= sign <= "\udfff" for sign in value):
                        raise line.wrong(field, "this is not UTF-8 text")
                yield line
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    except csv.Error as error:
        field = (head or needed)[0]
        raise TraceError(f"{path}, line {number}, field '{field}' or a later one: {error}") from None


def read_nodes(path: Path) -> list[NodeFacts]:
    """The nodes of ``sn, cpu_milli, memory_mib, gpu, model``. TraceError says what is wrong and where.

    The trace has thousandths of a GPU and not its bytes: that many is the memory each has here.
    """
    nodes: dict[str, NodeFacts] = {}
    for line in _lines(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model")):
        name, model = line.text("sn"), line.text("model")
        if not name:
            raise line.wrong("sn", "the node has no name")
        if name in nodes:
            raise line.wrong("sn", f"the node {name[:40]!r} is there already")
        count = line.whole("gpu", 64)
        if count and not model:
            raise line.wrong("model", "the GPUs have no model")
        nodes[name] = NodeFacts(
            name,
            line.whole("cpu_milli"),
            line.whole("memory_mib", _MOST // _MIB) * _MIB,
            tuple(DeviceFacts(f"{name}/{i}", "", model, WHOLE_MILLI) for i in range(count)),
        )
    if not any(node.devices for node in nodes.values()):
        raise TraceError(f"{path}: there is no GPU in it")
    return list(nodes.values())


def read_tasks(path: Path) -> list[Task]:
    """The tasks of ``name, cpu_milli, memory_mib, num_gpu, gpu_milli`` and, if it is there, ``gpu_spec``."""
    tasks = []
    for line in _lines(path, ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")):
        count = line.whole("num_gpu", 64)
        milli = line.whole("gpu_milli", WHOLE_MILLI) if line.text("gpu_milli") or count == 1 else 0
        if count == 1 and not milli:
            raise line.wrong("gpu_milli", "a task with a GPU needs some of it")
        if count > 1 and milli not in (0, WHOLE_MILLI):
            raise line.wrong(
                "gpu_milli", f"a task with {count} GPUs needs all of each, which is {WHOLE_MILLI}"
            )
        whole = count > 1 or milli == WHOLE_MILLI
        part = 0 if whole or not count else milli
        shape = Shape(
            count=count,
            memory_bytes=part,  # in thousandths, as the nodes' is
            compute_milli=part,
            cpu_milli=line.whole("cpu_milli"),
            ram_bytes=line.whole("memory_mib", _MOST // _MIB) * _MIB,
            whole=whole and count > 0,
        )
        models = {model.strip() for model in line.fields.get("gpu_spec", "").split("|")} - {""}
        tasks.append(Task(line.text("name"), shape, "|".join(sorted(models)) if models else EVERYTHING))
    if not any(task.milli for task in tasks):
        raise TraceError(f"{path}: no task in it asks for a GPU")
    return tasks


def arrivals(tasks: list[Task], capacity_milli: int, load: float, seed: int) -> list[Task]:
    """The workload: as many tasks as ask for ``load`` times the capacity, in the order of arrival."""
    chance = random.Random(seed)  # noqa: S311 - a simulation's, to be the same each time
    target, pool = load * capacity_milli, list(tasks)
    asked = sum(task.milli for task in pool)
    if asked <= target:
        while True:
            task = tasks[chance.randrange(len(tasks))]
            if asked + task.milli > target:
                break
            pool.append(task)
            asked += task.milli
    else:
        while asked > target:
            index = chance.randrange(len(pool))
            pool[index], pool[-1] = pool[-1], pool[index]
            asked -= pool.pop().milli
    chance.shuffle(pool)
    return pool
