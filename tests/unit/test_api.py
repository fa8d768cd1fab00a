"""hal from Python: the examples of the documents run, and what is promised of calls and streams holds."""

from __future__ import annotations

import asyncio
import doctest
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import hal as package
from hal import api
from hal.backend import EVERY_COST, Cost, Group
from hal.inventory import Machine
from hal.model import Device, DeviceKind, Heap, Inventory, Probe, ProbeState, Reading, whole
from hal.registry import Source
from tests.integration.support import serving

ROOT = Path(__file__).parents[2]
ALL_EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), flags=re.DOTALL)
EXAMPLES = [example for example in ALL_EXAMPLES if "Client" not in example]
OF_CLIENTS = [example for example in ALL_EXAMPLES if "Client" in example]
Hal = Callable[..., CompletedProcess[str]]


class Card:
    """A backend in this process, with one device."""

    name = "toy"

    def __init__(self) -> None:
        self.asked: list[tuple[list[Group], list[str]]] = []
        self.threads: set[int] = set()
        self.closed = 0

    def probe(self) -> Probe:
        return Probe(ProbeState.READY)

    def enumerate(self) -> Inventory:
        device = Device("toy:1", "toy", DeviceKind.GPU, "Toy", heaps=(Heap("vram", 1 << 30),))
        return Inventory((device,), (whole(device),))

    def sample(
        self, groups: list[Group], ids: list[str], deadline: float, costs: frozenset[Cost] = EVERY_COST
    ) -> list[Reading]:
        self.asked.append((list(groups), list(ids)))
        self.threads.add(threading.get_ident())
        return [Reading(id, "power_watts", len(self.asked), "watts") for id in ids]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    monkeypatch.setattr(api, "Machine", lambda: Machine([Source("toy", lambda: card)]))
    return card


def test_devices_and_sample_open_and_close(card: Card) -> None:
    assert [device.id for device in api.devices()] == ["toy:1"]
    assert card.closed == 1
    assert [reading.value for reading in api.sample()] == [1]
    assert card.closed == 2
    assert card.asked == [(list(Group), ["toy:1"])]


def test_groups_are_names_or_words_of_the_enumeration(card: Card) -> None:
    api.sample(["power", Group.CLOCKS], ["toy:1"])
    assert card.asked == [([Group.POWER, Group.CLOCKS], ["toy:1"])]
    with pytest.raises(ValueError, match="'colour' is not a valid Group"):
        api.sample(["colour"])
    with pytest.raises(ValueError, match=r"groups is a list of names, as in \['power'\]"):
        api.sample("power")
    with pytest.raises(package.GoneError, match="no device 'toy:2' here"):
        api.sample(ids=["toy:2"])
    assert card.closed == 4  # every time


def test_a_stream_reads_in_a_thread_of_its_own_and_closes_after_it(card: Card) -> None:
    async def main() -> list[object]:
        stream = api.stream(0.001, ["power"], ["toy:1"])
        values = [(await anext(stream)).readings[0].value for _ in range(3)]
        await stream.aclose()  # type: ignore[attr-defined]
        return values

    assert asyncio.run(main()) == [1, 2, 3]
    assert all(asked == ([Group.POWER], ["toy:1"]) for asked in card.asked)
    assert len(card.threads) == 1
    assert threading.get_ident() not in card.threads
    while card.closed == 0:
        threading.Event().wait(0.001)
    assert card.closed == 1


def test_a_stream_that_is_given_up_during_a_tick_closes_after_the_tick(card: Card) -> None:
    began, let = threading.Event(), threading.Event()
    order: list[str] = []
    real = card.sample

    def slow(*arguments: object, **options: object) -> list[Reading]:
        began.set()
        let.wait(30)
        order.append("read")
        return real(*arguments, **options)  # type: ignore[arg-type]

    card.sample = slow  # type: ignore[method-assign]
    card.close = lambda: order.append("closed")  # type: ignore[method-assign]

    async def main() -> None:
        async def first() -> None:
            async for _ in api.stream(0.001):
                pass

        task = asyncio.create_task(first())
        while not began.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert order == []
        let.set()

    asyncio.run(main())
    while len(order) < 2:
        threading.Event().wait(0.001)
    assert order == ["read", "closed"]


def test_what_is_wrong_is_raised_by_the_stream(card: Card) -> None:
    async def main(**options: object) -> None:
        await anext(api.stream(**options))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="colour"):
        asyncio.run(main(groups=["colour"]))
    with pytest.raises(ValueError, match="more than nothing"):
        asyncio.run(main(interval=0))
    with pytest.raises(package.GoneError, match="toy:2"):
        asyncio.run(main(ids=["toy:2"]))


def test_examples_in_docstrings_are_so(hal: Hal) -> None:
    code = "import doctest, hal.api, sys; sys.exit(doctest.testmod(hal.api).failed)"
    result = hal("emulate", "mixed", "--", sys.executable, "-c", code)
    assert (result.returncode, result.stdout) == (0, "")
    assert len([e for t in doctest.DocTestFinder().find(api) for e in t.examples]) >= 6


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_page_run(number: int, hal: Hal) -> None:
    result = hal("emulate", "mixed", "--", sys.executable, "-c", EXAMPLES[number])
    assert (result.returncode, result.stderr) == (0, "")
    assert "nvidia:GPU-" in result.stdout
    assert "amd:pci-" in result.stdout


@pytest.mark.parametrize("number", range(len(OF_CLIENTS)))
def test_examples_of_clients_run(number: int, machine_env: dict[str, str]) -> None:
    with serving(machine_env):
        command = [sys.executable, "-c", OF_CLIENTS[number]]
        result = subprocess.run(
            command, env=machine_env, capture_output=True, text=True, check=False, timeout=60
        )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


def test_importing_hal_imports_nothing_of_it() -> None:
    heavy = ("hal", "msgspec", "asyncio")
    code = f"import sys, hal; print(*sorted(m for m in sys.modules if m.split('.')[0] in {heavy}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.split() == ["hal"]
