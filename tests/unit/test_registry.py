"""The wall around each backend: whatever one does wrong, the others' devices are shown all the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from hal.backend import GoneError, Group, HalError, StateError, TemporaryError
from hal.inventory import UNENFORCED, Machine
from hal.model import (
    Device,
    DeviceKind,
    Enforcement,
    Exposure,
    Inventory,
    Probe,
    ProbeState,
    Process,
    Reading,
    Rung,
    whole,
)
from hal.registry import Source, discover

CALLS = ("enumerate", "sample", "processes", "expose", "limits")
GUARDED = Enforcement(Rung.GUARD, Rung.NONE)


class Fake:
    """A backend with one device, which does ``wrong`` in the calls named ``at``."""

    def __init__(self, name: str, *, at: str = "", wrong: Callable[[], Any] = lambda: None) -> None:
        self.name, self.at, self.wrong, self.calls = name, at, wrong, []
        self.device = Device(f"{name}:one", name, DeviceKind.NPU, name.title())
        self._do("load", None)

    def _do(self, call: str, answer: Any) -> Any:
        self.calls.append(call)
        return self.wrong() if call == self.at else answer

    def probe(self) -> Probe:
        return self._do("probe", Probe(ProbeState.READY))

    def enumerate(self) -> Inventory:
        return self._do("enumerate", Inventory((self.device,), (whole(self.device),)))

    def sample(
        self, groups: Sequence[Group], ids: Sequence[str], deadline: float, *_: object, **__: object
    ) -> list[Reading]:
        assert deadline > time.monotonic()
        return self._do("sample", [Reading(id, "power_watts", 1.0, "watts") for id in ids])

    def processes(self, ids: Sequence[str], deadline: float) -> list[Process]:
        return self._do("processes", [Process(id, 1, "init", 1) for id in ids])

    def expose(self, ids: Sequence[str]) -> Exposure:
        return self._do("expose", Exposure({f"{self.name.upper()}_VISIBLE": ",".join(ids)}))

    def limits(self) -> Enforcement:
        return self._do("limits", GUARDED)

    def close(self) -> None:
        self._do("close", None)


def raising(error: Exception) -> Callable[[], Any]:
    def wrong() -> None:
        raise error

    return wrong


def machine_of(*fakes: Callable[[], Any]) -> Machine:
    return Machine([Source(f"fake{n}", fake) for n, fake in enumerate(fakes)])


def use(machine: Machine) -> dict[str, Any]:
    """Everything that a machine can be asked, twice: also after something has failed."""
    for _ in range(2):
        answers = {
            "devices": [device.id for device in machine.inventory().devices],
            "readings": [reading.subject for reading in machine.sample()],
            "processes": [process.device for process in machine.processes()],
            "env": machine.expose(["good:one"]).env,
            "limits": machine.limits("good:one"),
        }
    machine.close()
    return answers


@pytest.mark.parametrize("at", ["load", "probe", *CALLS, "close"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StateError("the driver is of another version"), "the driver is of another version"),
        (RuntimeError("boom"), "RuntimeError: boom"),
        (AssertionError(), "AssertionError: "),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("bad_first", [True, False])
def test_one_that_raises_hides_nothing_of_another(
    at: str, error: Exception, reason: str, bad_first: bool
) -> None:
    fakes = [lambda: Fake("bad", at=at, wrong=raising(error)), lambda: Fake("good")]
    machine = machine_of(*(fakes if bad_first else reversed(fakes)))
    if at == "limits":
        assert machine.limits("bad:one") == UNENFORCED
    answers = use(machine)
    assert "good:one" in answers["devices"]
    assert "good:one" in answers["readings"]
    assert "good:one" in answers["processes"]
    assert answers["env"]["GOOD_VISIBLE"] == "good:one"
    assert answers["limits"] == GUARDED
    broken = machine.probes()["fake0" if bad_first else "fake1"]
    assert (broken.state, broken.reason) == (ProbeState.BROKEN, reason)
    assert "backend failed" in broken.fix
    assert machine.probes()["fake1" if bad_first else "fake0"].state is ProbeState.READY


@pytest.mark.parametrize("at", ["probe", *CALLS])
@pytest.mark.parametrize("nonsense", [None, 7, "devices"], ids=repr)
def test_one_that_answers_nonsense_hides_nothing_of_another(at: str, nonsense: object) -> None:
    machine = machine_of(lambda: Fake("bad", at=at, wrong=lambda: nonsense), lambda: Fake("good"))
    if at == "limits":
        assert machine.limits("bad:one") == UNENFORCED
    answers = use(machine)
    assert "good:one" in answers["devices"]
    assert machine.probes()["fake0"].state is ProbeState.BROKEN
    assert type(nonsense).__name__ in machine.probes()["fake0"].reason


@pytest.mark.parametrize("error", [TemporaryError("busy"), GoneError("one device is lost")])
@pytest.mark.parametrize("at", CALLS)
def test_what_may_pass_by_itself_does_not_make_it_broken(at: str, error: HalError) -> None:
    machine = machine_of(lambda: Fake("bad", at=at, wrong=raising(error)), lambda: Fake("good"))
    use(machine)
    assert machine.probes()["fake0"].state is ProbeState.READY


@pytest.mark.parametrize("state", [ProbeState.ABSENT, ProbeState.BLOCKED, ProbeState.BROKEN])
def test_one_that_is_not_ready_is_not_asked(state: ProbeState) -> None:
    fake = Fake("bad", at="probe", wrong=lambda: Probe(state, "why"))
    use(machine_of(lambda: fake, lambda: Fake("good")))
    assert set(fake.calls) == {"load", "probe", "close"}


def test_a_refresh_looks_again_at_what_was_not_ready() -> None:
    state = [ProbeState.BLOCKED]
    machine = machine_of(lambda: Fake("late", at="probe", wrong=lambda: Probe(state[0], "no driver")))
    assert machine.inventory().devices == ()
    state[0] = ProbeState.READY
    assert machine.inventory().devices == ()  # a picture stays as it is until it is asked for anew
    assert [device.id for device in machine.inventory(refresh=True).devices] == ["late:one"]


def test_the_user_can_stop_it() -> None:
    machine = machine_of(lambda: Fake("bad", at="enumerate", wrong=raising(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        machine.inventory()


def test_only_the_three_calls_are_required() -> None:
    class Least:
        name = "least"
        probe, enumerate, sample, close = Fake.probe, Fake.enumerate, Fake.sample, Fake.close
        __init__, _do = Fake.__init__, Fake._do

    machine = machine_of(lambda: Least("least"), lambda: Fake("good"))
    answers = use(machine)
    assert answers["devices"] == answers["readings"] == ["least:one", "good:one"]
    assert answers["processes"] == ["good:one"]
    assert machine.limits("least:one") == UNENFORCED


def test_only_the_devices_asked_for_are_read_and_an_unknown_one_is_gone() -> None:
    machine = machine_of(lambda: Fake("first"), lambda: Fake("good"))
    assert [r.subject for r in machine.sample(ids=["good:one"])] == ["good:one"]
    assert machine.expose([]).env == {"FIRST_VISIBLE": "", "GOOD_VISIBLE": ""}
    for ask in (machine.sample, machine.processes):
        with pytest.raises(GoneError, match="no device 'null:none' here"):
            ask(ids=["null:none"])


@pytest.mark.parametrize(
    ("text", "found"),
    [("good:one", "good:one"), ("GOOD", "good:one"), ("first", "first:one"), ("one", None), ("x", None)],
)
def test_a_device_is_found_by_a_part_of_its_id_that_fits_no_other(text: str, found: str | None) -> None:
    machine = machine_of(lambda: Fake("first"), lambda: Fake("good"))
    if found is not None:
        assert machine.find(text).id == found
    else:
        with pytest.raises(GoneError, match="first:one, good:one"):
            machine.find(text)


@pytest.mark.parametrize(
    ("value", "state"),
    [(None, ProbeState.ABSENT), ("0", ProbeState.ABSENT), ("", ProbeState.ABSENT), ("1", ProbeState.READY)],
)
def test_the_null_backend_is_there_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, value: str | None, state: ProbeState
) -> None:
    if value is not None:
        monkeypatch.setenv("HAL_NULL", value)
    with Machine(discover(["null"])) as machine:
        assert machine.probes()["null"].state is state
        assert len(machine.inventory().devices) == (state is ProbeState.READY)


def test_all_installed_backends_are_found_by_their_entry_points() -> None:
    sources = discover()
    assert [source.name for source in sources] == sorted(source.name for source in sources)
    assert {"amd", "cpu", "null", "nvidia"} <= {source.name for source in sources}
    assert [source.name for source in discover(["cpu"])] == ["cpu"]


def test_what_a_glance_said_is_looked_at_again_on_a_refresh() -> None:
    looks: list[Fake | Probe] = [Probe(ProbeState.ABSENT, "not yet"), Fake("late")]
    machine = Machine([Source("late", lambda: looks.pop(0))])
    assert machine.inventory().devices == ()
    assert machine.probes()["late"].reason == "not yet"
    assert [device.id for device in machine.inventory(refresh=True).devices] == ["late:one"]
    assert machine.probes()["late"].state is ProbeState.READY
