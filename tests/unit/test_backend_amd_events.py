"""What happens to emulated AMD cards: KFD's reports, resets, divisions, cards that are lost and come back."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from hal.emulation.description import load
from hal.emulation.run import emulated

if importlib.util.find_spec("amdsmi") is None:
    pytest.skip("AMD's package amdsmi is not installed", allow_module_level=True)

BEGIN = """
import ctypes, json, math, os
import hal_amd
from hal.backend import Group, HalError
from hal_native import lib
backend = hal_amd.Backend(**OPTIONS)
ids = [device.id for device in backend.enumerate().devices]
begun = backend.events()
import amdsmi
from amdsmi import AmdSmiComputePartitionType as Compute
cards = amdsmi.amdsmi_get_processor_handles()
machine = lib.hal_machine_open(os.fsencode(os.environ["HAL_EMULATED_MACHINE"]))
said = []
def look():
    said.append([[e.subject, e.kind, e.code, e.message] for e in backend.events()])
def rules(text):
    ctypes.CDLL("libamd_smi.so").hal_emulator_faults(text.encode(), None)
def report(device, type, message, partition=2**32 - 1):
    event = machine.amd_event[machine.amd_events % lib.HAL_MACHINE_AMD_EVENTS]
    event.device, event.partition, event.type, event.message = device, partition, type, message
    machine.amd_events += 1
    event.number = machine.amd_events
"""


@pytest.fixture
def watch():
    def run(script, machine="mi300x-8", major=26, **options):
        description = load(machine)
        description.drivers["amdsmi_major"] = major
        text = f"OPTIONS = {options!r}\n{BEGIN}{script}\nprint(json.dumps([ids, begun, *said]))"
        with emulated(description) as env:
            done = subprocess.run(
                [sys.executable, "-c", text], env=env, capture_output=True, text=True, check=False, timeout=60
            )
        assert done.returncode == 0, done.stderr
        ids, begun, *said = json.loads(done.stdout)
        assert begun == []
        return ids, *said

    return run


def test_what_kfd_reports(watch):
    ids, first, again = watch(
        'report(1, 1, b"4d2:python")\nreport(2, 2, b"40:3")\nreport(0, 5, b"1 -2 @3(4) 0->1")\nlook(); look()'
    )
    assert first == [
        [ids[1], "error", 1, "page fault on the GPU by process 1234 (python)"],
        [ids[2], "thermal", 2, "held down by heat, mask 0x40"],
    ]
    assert again == []


def test_migrations_are_for_those_who_ask(watch):
    ids, said = watch('report(0, 5, b"1 -2 @3(4) 0->1")\nlook()', paging=True)
    assert said == [[ids[0], "paging", 5, "migrate start: 1 -2 @3(4) 0->1"]]


def test_messages_that_are_no_messages(watch):
    ids, said = watch('report(0, 1, b"\\x01")\nreport(1, 2, b"")\nreport(2, 99, b"1")\nlook()')
    assert [event[:3] for event in said] == [[ids[0], "error", 1], [ids[1], "thermal", 2]]
    _, broken, after = watch(
        'report(0, 1, b"\\xff\\xfe")\nlook()\nreport(1, 2, b"1:1")\nlook()'
    )  # amdsmi cannot read the first one
    assert broken == []
    assert [event[1] for event in after] == ["thermal"]


def test_a_reset_and_readings_after_it(watch):
    script = """
amdsmi.amdsmi_reset_gpu(cards[1])
look()
power = backend.sample([Group.POWER], ids[1:2], math.inf)
said.append([r.status for r in power if r.name == "power_limit_watts"])
"""
    ids, said, power = watch(script)
    assert said == [
        [ids[1], "reset", 3, "a reset begins"],
        [ids[1], "reset", 4, "a reset is over"],
    ]
    assert power == ["ok"]


def test_the_partitions_of_a_card_report_a_reset_once_and_faults_each(watch):
    script = 'amdsmi.amdsmi_reset_gpu(cards[0])\nlook()\nreport(0, 1, b"7:x", 3)\nlook()'
    ids, reset, fault = watch(script, "mi300x-8-cpx-nps4")
    assert [event[:3] for event in reset] == [[ids[0], "reset", 3], [ids[0], "reset", 4]]
    assert [event[:3] for event in fault] == [[f"{ids[0]}/xcp-3", "error", 1]]


def test_a_card_that_is_divided(watch):
    script = """
amdsmi.amdsmi_set_gpu_compute_partition(cards[0], Compute.CPX)
look()
report(0, 1, b"7:x", 5)
look()
amdsmi.amdsmi_set_gpu_compute_partition(cards[0], Compute.SPX)
look(); look()
"""
    ids, divided, fault, whole, after = watch(script)
    assert divided == [[ids[0], "partition_changed", None, "1 partitions before, 8 now"]]
    assert fault[0][0] == f"{ids[0]}/xcp-5"
    assert [event[1] for event in whole] == ["partition_changed"]
    assert after == []


def test_a_card_that_is_lost_and_comes_back(watch):
    script = """
machine.device[3].amd_lost = 1
look(); look()
readings = backend.sample([Group.MEMORY, Group.POWER], [ids[3], ids[4]], math.inf)
said.append(sorted({(r.subject, r.value is not None) for r in readings if r.name == "memory_total_bytes"
                    and r.labels["heap"] == "vram"}))
machine.device[3].amd_lost = 0
look()
said.append([r.value for r in backend.sample([Group.MEMORY], [ids[3]], math.inf)][:1])
"""
    ids, lost, again, readings, back, memory = watch(script)
    assert lost == [[ids[3], "lost", None, "the card no longer answers"]]
    assert again == []
    assert readings == [[ids[3], False], [ids[4], True]]
    assert back == [[ids[3], "hotplug", None, "the card answers again"]]
    assert memory[0] > 0


def test_a_storm_is_taken_in_parts(watch):
    _, first, second = watch('rules("event 1=1000")\nlook(); look()', "mi210-4")
    assert len(first) == len(second) == 256


def test_a_wrapper_without_room_for_them_is_not_asked_and_losses_are_seen(watch):
    """Library 25 writes 112 bytes for each event, and amdsmi 7.0.2 reads 272."""
    script = 'report(1, 2, b"1:1")\nlook()\nmachine.device[1].amd_lost = 1\nlook()'
    ids, first, second = watch(script, major=25)
    assert first == []
    assert [event[:2] for event in second] == [[ids[1], "lost"]]


def test_somebody_else_shuts_amd_smi_down(watch):
    script = """
amdsmi.amdsmi_shut_down()
try:
    backend.events()
except HalError as error:
    said.append(error.vendor_code)
backend.events()
report(1, 2, b"1:1")
look()
"""
    ids, code, said = watch(script)
    assert code == 32
    assert [event[:2] for event in said] == [[ids[1], "thermal"]]


def test_the_machine_shows_them_to_all():
    """Through the worker, as programs have it."""
    script = """
import json, os, subprocess, sys
import hal
from hal_native import lib
with hal.Machine() as machine:
    assert machine.events() == []
    reset = "from amdsmi import *; amdsmi_init(); amdsmi_reset_gpu(amdsmi_get_processor_handles()[0])"
    subprocess.run([sys.executable, "-c", reset], check=True)
    print(json.dumps([[e.subject.partition(":")[0], e.kind] for e in machine.events()]))
"""
    with emulated(load("mixed")) as env:
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60
        )
    assert json.loads(done.stdout) == [["amd", "reset"], ["amd", "reset"]]
