"""What can be set on the stand-in's cards, through AMD's own amdsmi: it changes them, by the real rules."""

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
import json, os, subprocess, sys
import amdsmi
from amdsmi import *
amdsmi_init()
cards = amdsmi_get_processor_handles()
said = []
Compute, Memory = AmdSmiComputePartitionType, AmdSmiMemoryPartitionType
def code(call, *arguments):
    try:
        call(*arguments)
    except AmdSmiLibraryException as failure:
        return failure.err_code
    return 0
def modes(card):
    return amdsmi_get_gpu_compute_partition(card), amdsmi_get_gpu_memory_partition(card)
"""


@pytest.fixture
def smi():
    def run(script, machine="mi300x-8", root=0, major=26, **figures):
        description = load(machine)
        description.drivers["amdsmi_major"] = major
        description.drivers["amd_root"] = root
        for device in description.devices:
            device.update(figures)
        text = f"{BEGIN}{script}\nprint(json.dumps(said))"
        with emulated(description) as env:
            done = subprocess.run(
                [sys.executable, "-c", text], env=env, capture_output=True, text=True, check=False, timeout=60
            )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_power_cap(smi):
    script = """
for watts in (400, 0, 750, 751):
    said.append([code(amdsmi_set_power_cap, cards[0], 0, watts * 1_000_000),
                 amdsmi_get_power_cap_info(cards[0])["power_cap"] // 1_000_000])
said.append(amdsmi_get_power_cap_info(cards[1])["power_cap"] // 1_000_000)
said.append(code(amdsmi_set_power_cap, cards[0], 1, 1_000_000))
"""
    assert smi(script) == [[0, 400], [0, 0], [0, 750], [1, 750], 750, 2]
    assert smi("said.append(code(amdsmi_set_power_cap, cards[1], 0, 1))", "mi250x-4") == [2]  # a second die


def test_performance_level_and_clock_limits(smi):
    script = """
def clocks(kind=AmdSmiClkType.GFX):
    info = amdsmi_get_clock_info(cards[0], kind)
    return [info["clk"], info["min_clk"], info["max_clk"], amdsmi_get_gpu_perf_level(cards[0])[22:]]
said.append(clocks())
said.append([code(amdsmi_set_gpu_clk_limit, cards[0], "sclk", "min", 500), *clocks()])
said.append([code(amdsmi_set_gpu_clk_limit, cards[0], "sclk", "max", 400), *clocks()])
said.append([code(amdsmi_set_gpu_clk_range, cards[0], 100, 120, AmdSmiClkType.GFX), *clocks()])
said.append([code(amdsmi_set_gpu_clk_range, cards[0], 100, 9999, AmdSmiClkType.MEM), *clocks()])
said.append([code(amdsmi_set_gpu_clk_range, cards[0], 100, 200, AmdSmiClkType.SOC), *clocks()])
said.append([code(amdsmi_set_gpu_perf_level, cards[0], AmdSmiDevPerfLevel.AUTO), *clocks()])
"""
    first, low, crossed, ranged, beyond, other, auto = smi(script)
    assert first == [132, "N/A", 2100, "AUTO"]
    assert low == [0, 500, 500, 2100, "MANUAL"]
    assert crossed == [1, *low[1:]]
    assert ranged == [0, 120, 100, 120, "MANUAL"]
    assert beyond == other == [1, *ranged[1:]]
    assert auto == [0, *first]


def test_each_pair_of_modes_is_set_or_refused_as_amdgpu_does_it(smi):
    """aqua_vanjaram.c: SPX with NPS1, DPX with NPS1 and 2, TPX (6 dies only), QPX and CPX with NPS1 and 4."""
    script = """
for memory in ("NPS1", "NPS2", "NPS4"):
    assert code(amdsmi_set_gpu_memory_partition, cards[0], Memory[memory]) == 0
    assert code(amdsmi_gpu_driver_reload) == 0
    assert modes(cards[0])[1] == memory
    for compute in ("SPX", "DPX", "TPX", "QPX", "CPX"):
        status = code(amdsmi_set_gpu_compute_partition, cards[0], Compute[compute])
        said.append([compute, memory, status, modes(cards[0])[0] == compute])
"""
    for dies in (8, 6):
        allowed = {("SPX", "NPS1"), ("CPX", "NPS1"), ("CPX", "NPS4")}
        if dies == 8:
            allowed |= {("DPX", "NPS1"), ("DPX", "NPS2"), ("QPX", "NPS1"), ("QPX", "NPS4")}
        else:
            allowed |= {("TPX", "NPS1"), ("TPX", "NPS4")}
        for compute, memory, status, set_now in smi(script, amd_dies=dies):
            if (compute, memory) in allowed:
                assert (status, set_now) == (0, True), (dies, compute, memory)
            else:
                assert status == 55, (dies, compute, memory)  # SETTING_UNAVAILABLE


def test_profiles_by_their_number(smi):
    script = """
config = amdsmi_get_gpu_accelerator_partition_profile_config(cards[0])
said.append([[p["profile_type"], p["num_partitions"], p["memory_caps"]] for p in config["profiles"]])
said.append(code(amdsmi_set_gpu_accelerator_partition_profile, cards[0], 3))
cards = amdsmi_get_processor_handles()
profile = amdsmi_get_gpu_accelerator_partition_profile(cards[0])["partition_profile"]
said.append([len(cards), profile["profile_type"]])
said.append(code(amdsmi_set_gpu_accelerator_partition_profile, cards[0], 4))
"""
    profiles, done, now, beyond = smi(script)
    assert profiles == [
        ["SPX", 1, ["NPS1"]],
        ["DPX", 2, ["NPS1", "NPS2"]],
        ["QPX", 4, ["NPS1", "NPS4"]],
        ["CPX", 8, ["NPS1", "NPS4"]],
    ]
    assert (done, now, beyond) == (0, [15, "CPX"], 1)


def test_a_secondary_partition_has_no_modes(smi):
    script = """
for call in (amdsmi_get_gpu_compute_partition, amdsmi_get_gpu_memory_partition, amdsmi_get_gpu_activity,
             amdsmi_get_power_info, amdsmi_get_gpu_memory_partition_config):
    said.append(code(call, cards[1]))
said.append(code(amdsmi_set_gpu_compute_partition, cards[1], Compute.SPX))
said.append(code(amdsmi_set_power_cap, cards[1], 0, 1))
said.append(amdsmi_get_gpu_accelerator_partition_profile(cards[1])["partition_profile"]["profile_type"])
said.append(code(amdsmi_get_gpu_vram_usage, cards[1]))
"""
    assert smi(script, "mi300x-8-cpx-nps4") == [2] * 7 + ["N/A", 0]
    assert smi(script, "mi300x-8-cpx-nps4", major=24)[:2] == [0, 0]  # it reads the card's


def test_the_memory_mode_is_the_hives(smi):
    """From library 26 on it takes a call of its own to load the driver anew."""
    script = """
said.append(code(amdsmi_set_gpu_memory_partition_mode, cards[0], Memory.NPS4))
said.append([modes(cards[0]), code(amdsmi_gpu_driver_reload)])
cards = amdsmi_get_processor_handles()
said.append([len(cards), *modes(cards[0]), *modes(cards[-8])])
said.append(code(amdsmi_set_gpu_memory_partition, cards[0], Memory.NPS8))
"""
    assert smi(script) == [0, [["SPX", "NPS1"], 0], [64, "CPX", "NPS4", "CPX", "NPS4"], 1]
    script = """
said.append(code(amdsmi_set_gpu_memory_partition, cards[0], Memory.NPS2))
cards = amdsmi_get_processor_handles()
said.append([len(cards), *modes(cards[0]), *modes(cards[-2])])
"""
    assert smi(script, major=25) == [0, [16, "DPX", "NPS2", "DPX", "NPS2"]]


def test_only_idle_cards_are_divided(smi):
    # This very process holds memory: what counts is that somebody does.
    script = """
import ctypes
hip, address = ctypes.CDLL("libamdhip64.so"), ctypes.c_void_p()
assert hip.hipMalloc(ctypes.byref(address), ctypes.c_size_t(1 << 20)) == 0
said.append(code(amdsmi_set_gpu_compute_partition, cards[0], Compute.CPX))
said.append(code(amdsmi_set_gpu_compute_partition, cards[1], Compute.CPX))
said.append(code(amdsmi_set_gpu_memory_partition, cards[0], Memory.NPS4))
said.append(code(amdsmi_gpu_driver_reload))
assert hip.hipFree(address) == 0
said.append(code(amdsmi_set_gpu_compute_partition, cards[0], Compute.CPX))
"""
    busy, idle, asked, reload, after = smi(script)
    assert (busy, idle, asked, reload, after) == (30, 0, 0, 54, 0)


@pytest.mark.parametrize("root", [0, 1])
def test_who_may_set_is_the_machines_choice(smi, root):
    script = """
if os.geteuid() == 0:
    os.seteuid(65534)
said.append(code(amdsmi_set_power_cap, cards[0], 0, 400_000_000))
said.append(code(amdsmi_set_gpu_perf_level, cards[0], AmdSmiDevPerfLevel.HIGH))
said.append(code(amdsmi_set_gpu_clk_limit, cards[0], "sclk", "max", 400))
said.append(code(amdsmi_set_gpu_compute_partition, cards[0], Compute.SPX))
said.append(code(amdsmi_set_gpu_memory_partition, cards[0], Memory.NPS1))
said.append(code(amdsmi_get_gpu_accelerator_partition_profile_config, cards[0]))
said.append(code(amdsmi_reset_gpu, cards[0]))
said.append(code(amdsmi_get_gpu_compute_partition, cards[0]))
"""
    assert smi(script, root=root) == [10 * root] * 7 + [0]


def test_a_card_that_cannot_be_divided(smi):
    script = """
said.append(code(amdsmi_set_gpu_compute_partition, cards[0], Compute.CPX))
said.append(code(amdsmi_set_gpu_memory_partition, cards[0], Memory.NPS4))
said.append(code(amdsmi_get_gpu_accelerator_partition_profile_config, cards[0]))
said.append(amdsmi_get_gpu_accelerator_partition_profile(cards[0])["partition_profile"]["profile_type"])
"""
    for machine in ("mi210-4", "mi250x-4"):
        assert smi(script, machine) == [2, 2, 2, "N/A"]


def test_an_error_storm_grows(smi):
    script = """
import time
first = amdsmi_get_gpu_total_ecc_count(cards[0])["correctable_count"]
while (second := amdsmi_get_gpu_total_ecc_count(cards[0])["correctable_count"]) == first:
    time.sleep(0.05)
said.append((second - first) % 1000)
"""
    assert smi(script, amd_ecc_corrected_per_second=1000) == [0]


def test_a_lost_card_is_not_found_and_then_not_listed(smi):
    script = """
from hal_native import lib
machine = lib.hal_machine_open(os.fsencode(os.environ["HAL_EMULATED_MACHINE"]))
machine.device[0].amd_lost = 1
said.append([code(amdsmi_get_power_info, cards[0]), code(amdsmi_get_gpu_vram_usage, cards[0]),
             code(amdsmi_get_gpu_device_bdf, cards[0]), code(amdsmi_get_power_info, cards[1]),
             len(amdsmi_get_processor_handles())])
amdsmi_shut_down(); amdsmi_init()
cards = amdsmi_get_processor_handles()
said.append([len(cards), amdsmi_get_gpu_device_bdf(cards[0])])
"""
    assert smi(script) == [[31, 31, 0, 0, 8], [7, "0000:26:00.0"]]


def test_the_dies_of_mi250x_are_joined_as_in_the_real_node(smi):
    script = """
bandwidth = amdsmi_get_minmax_bandwidth_between_processors
for a in cards:
    said.append([[amdsmi_topo_get_link_weight(a, b), code(bandwidth, a, b)] for b in cards])
said.append(bandwidth(cards[0], cards[1]))
said.append([code(amdsmi_get_power_cap_info, card) for card in cards])
said.append([amdsmi_get_power_info(card)["average_socket_power"] for card in cards])
"""
    *rows, bandwidth, caps, power = smi(script, "mi250x-4")
    joined = {(a, b) for a in range(8) for b in range(a, 8) if rows[a][b][0] == 15}
    within = {(0, 1), (2, 3), (4, 5), (6, 7)}
    assert joined == within | {(0, 2), (0, 6), (1, 3), (1, 5), (2, 4), (3, 7), (4, 6), (5, 7)}
    known = {(a, b) for a in range(8) for b in range(a, 8) if rows[a][b][1] == 0}
    assert known == within
    assert bandwidth == {"min_bandwidth": 50_000, "max_bandwidth": 200_000}
    assert caps == [0, 2] * 4
    assert power == [90, "N/A"] * 4
