"""gpu_metrics read below amdsmi's Python says what amdsmi says, figure by figure."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from hal.emulation.description import load
from hal.emulation.run import emulated
from hal_amd import errors
from hal_amd.ask import Answers
from hal_amd.metrics import Metrics

COMPARE = """
import amdsmi
from hal_amd.metrics import Metrics, metrics
amdsmi.amdsmi_init()
moving = {"system_clock_counter", "accumulation_counter", "indep_throttle_status"}
for processor in amdsmi.amdsmi_get_processor_handles():
    try:
        theirs = amdsmi.amdsmi_get_gpu_metrics_info(processor)
    except amdsmi.AmdSmiException as refused:  # a partition has none of its own
        try:
            raise SystemExit(f"{refused}: {metrics(amdsmi, processor)}")
        except amdsmi.AmdSmiException as ours:
            assert type(ours) is type(refused)
        continue
    ours = metrics(amdsmi, processor)
    assert isinstance(ours, Metrics)
    for word in theirs:
        if not word.startswith("common_header") and word not in moving and not word.endswith("_acc"):
            assert ours[word] == theirs[word], (word, ours[word], theirs[word])
    assert ours.get("no_such_figure") is None
"""


@pytest.mark.parametrize("machine", ["mi300x-8", "mi250x-4", "mi300x-8-cpx-nps1", "apu"])
def test_it_says_what_amdsmi_says(machine: str) -> None:
    with emulated(load(machine)) as env:
        done = subprocess.run([sys.executable, "-c", COMPARE], env=env, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


class _Raw(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("vcn_activity", ctypes.c_uint16 * 3),
        ("gfx_activity_acc", ctypes.c_uint32),
        ("current_gfxclk", ctypes.c_uint16),
        ("throttle_status", ctypes.c_uint32),
    ]


def test_what_is_no_figure_is_said_as_amdsmi_says_it() -> None:
    raw = _Raw((ctypes.c_uint16 * 3)(100, 101, 0xFFFF), 5000, 0xFFFF, 12)
    read = Metrics(raw)
    assert read["vcn_activity"] == [100, "N/A", "N/A"]
    assert (read["gfx_activity_acc"], read["current_gfxclk"], read["throttle_status"]) == (5000, "N/A", True)
    with pytest.raises(KeyError):
        read["xcp_stats.gfx_busy_inst"]


def test_what_a_card_does_not_support_is_not_asked_on_every_tick() -> None:
    class Refused(Exception):
        def __init__(self, code: int) -> None:
            super().__init__(code)
            self.err_code = code

    codes = {"fan": errors.NOT_SUPPORTED, "busy": errors.NOT_SUPPORTED + 1}
    asked: list[str] = []

    def refuse(name: str) -> Any:
        def call(processor: object) -> None:
            asked.append(name)
            raise Refused(codes[name])

        return call

    smi, hopeless = SimpleNamespace(fan=refuse("fan"), busy=refuse("busy")), {}
    for _ in range(3):
        answers = Answers(smi, object(), hopeless)
        for name in codes:
            with pytest.raises(Refused):
                answers(name)
    assert (asked.count("fan"), asked.count("busy")) == (1, 3)
