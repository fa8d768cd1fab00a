"""gpu_metrics read below amdsmi's Python says what amdsmi says, figure by figure."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hal.emulation.description import load
from hal.emulation.run import emulated

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
