"""What the guard charges and what not on HIP, beyond the plain filling of a slice; partitioned cards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hal.enforce.guard import guard_environment
from hal.enforce.ledger import Ledger

GIB, MIB = 1 << 30, 1 << 20

PRELUDE = """
import ctypes, os, sys
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p, Structure
MIB, GIB = 1 << 20, 1 << 30
hip = ctypes.CDLL(os.environ["HIP_LIBRARY"])
u64, size, null, ull = c_uint64, c_size_t, c_void_p, ctypes.c_ulonglong
class Location(Structure): _fields_ = [("type", c_int), ("id", c_int)]
class Prop(Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("at", Location), ("meta", null), ("flags", u64)]
class Pool(Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("at", Location), ("security", null), ("most", size),
                ("rest", ctypes.c_ubyte * 56)]
class Node(Structure):
    _fields_ = [("pool", Pool), ("access", null), ("n", size), ("bytes", size), ("at", null)]
def ok(code): assert code == 0, code
def alloc(n, code=0):
    at = null(77); got = hip.hipMalloc(byref(at), size(n)); assert got == code, got
    assert code == 0 or at.value == 77
    return at
def vmm(n, type=1, id=0, code=0):
    handle = null(77); prop = Prop(1, 1, Location(type, id))
    got = hip.hipMemCreate(byref(handle), size(n), byref(prop), ull(0)); assert got == code, got
    return handle
def alloc_async(n, code=0, stream=None):
    at = null(77); got = hip.hipMallocAsync(byref(at), size(n), stream); assert got == code, got
    assert code == 0 or at.value == 77
    return at
def own_pool(ordinal=0):
    pool = null(); ok(hip.hipDeviceGetMemPool(byref(pool), ordinal)); return pool
def keep_all(pool): ok(hip.hipMemPoolSetAttribute(pool, 4, byref(u64(2**64 - 1))))
def free():
    left, all = size(), size(); ok(hip.hipMemGetInfo(byref(left), byref(all))); return left.value
"""

Script = Callable[..., str]


@pytest.fixture(params=["libamdhip64.so.6", "libamdhip64.so.7", "reenters"])
def script(request: pytest.FixtureRequest, machine_env: dict[str, str]) -> Script:
    """Run Python in a slice."""
    own = {"HIP_LIBRARY": "libamdhip64.so.7", "HAL_EMULATOR_HIP_REENTERS": "1"}
    if request.param != "reenters":
        own = {"HIP_LIBRARY": request.param}

    def run(text: str, ledger: Ledger, visible: str = "0") -> str:
        env = os.environ | machine_env | {"HIP_VISIBLE_DEVICES": visible} | own
        env |= guard_environment(ledger.path, inherited={})
        command = [sys.executable, "-c", PRELUDE + text]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture
def slice_(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.create(tmp_path / "slice", "test", [("device-0", GIB)])
    yield ledger
    ledger.close()


# ---- pools -------------------------------------------------------------------------------------------


def test_reuse_inside_of_a_pool_is_charged_once(script: Script, slice_: Ledger) -> None:
    script(
        """
keep_all(own_pool())
first = alloc_async(256 * MIB); assert free() == GIB - 256 * MIB
ok(hip.hipFreeAsync(first, None)); ok(hip.hipStreamSynchronize(None)); assert free() == GIB - 256 * MIB
again = alloc_async(256 * MIB); assert free() == GIB - 256 * MIB
ok(hip.hipFree(again)); ok(hip.hipMemPoolTrimTo(own_pool(), size(0))); assert free() == GIB
""",
        slice_,
    )


def test_a_pool_gives_up_what_it_does_not_use_before_anything_is_refused(
    script: Script, slice_: Ledger
) -> None:
    script(
        """
keep_all(own_pool())
ok(hip.hipFreeAsync(alloc_async(GIB), None)); assert free() == 0
at = alloc(GIB); assert free() == 0
alloc_async(MIB, code=2)
ok(hip.hipFree(at)); assert free() == GIB
""",
        slice_,
    )


# ---- what is never charged -----------------------------------------------------------------------------


def test_host_memory_is_never_charged(script: Script, slice_: Ledger) -> None:
    script(
        """
at = null(); ok(hip.hipHostMalloc(byref(at), size(2 * MIB), 0)); ok(hip.hipHostFree(at))
ok(hip.hipMallocHost(byref(at), size(2 * MIB))); ok(hip.hipHostFree(at))
ok(hip.hipExtMallocWithFlags(byref(at), size(8), 2))
handle = vmm(4 * GIB, type=2); assert free() == GIB; ok(hip.hipMemRelease(handle))
pool = null(); ok(hip.hipMemPoolCreate(byref(pool), byref(Pool(1, 0, Location(2, 0)))))
ok(hip.hipMallocFromPoolAsync(byref(at), size(4 * GIB), pool, None)); assert free() == GIB
nothing = null(77); ok(hip.hipMalloc(byref(nothing), size(0))); assert nothing.value is None
assert free() == GIB
""",
        slice_,
    )


def test_what_is_imported_is_charged_to_the_exporter_only(script: Script, slice_: Ledger) -> None:
    script(
        """
import subprocess
handle = vmm(64 * MIB); fd = c_int()
ok(hip.hipMemExportToShareableHandle(byref(fd), handle, 1, ull(0)))
at = alloc(32 * MIB); ipc = ctypes.create_string_buffer(64); ok(hip.hipIpcGetMemHandle(ipc, at))
child = open("/proc/self/cmdline", "rb").read().split(b"\\0")[2].decode().split("import subprocess")[0] + '''
before = free()
handle = null(); ok(hip.hipMemImportFromShareableHandle(byref(handle), null(int(sys.argv[1])), 1))
class Ipc(Structure): _fields_ = [("bytes", ctypes.c_char * 64)]
at = null(); ok(hip.hipIpcOpenMemHandle(byref(at), Ipc.from_buffer_copy(bytes.fromhex(sys.argv[2])), 1))
class External(Structure):
    _fields_ = [("type", c_int), ("handle", c_uint64 * 2), ("size", c_uint64), ("flags", ctypes.c_uint * 17)]
class Buffer(Structure): _fields_ = [("offset", c_uint64), ("size", c_uint64), ("flags", ctypes.c_uint * 17)]
memory = null(); ok(hip.hipImportExternalMemory(byref(memory), byref(External(1, (c_uint64 * 2)(), 2 * GIB))))
buffer = null(); ok(hip.hipExternalMemoryGetMappedBuffer(byref(buffer), memory, byref(Buffer(0, 2 * GIB))))
assert free() == before == GIB - 96 * MIB, free()
ok(hip.hipMemRelease(handle)); ok(hip.hipIpcCloseMemHandle(at)); ok(hip.hipFree(buffer))
assert free() == before
'''
os.set_inheritable(fd.value, True)
subprocess.run([sys.executable, "-c", child, str(fd.value), ipc.raw.hex()], check=True, close_fds=False)
assert free() == GIB - 96 * MIB
""",
        slice_,
    )


def test_null_outputs_get_the_runtimes_own_answer(script: Script, slice_: Ledger) -> None:
    script(
        """
e = (c_uint64 * 3)(64, 64, 1)
assert hip.hipMalloc(None, size(MIB)) == hip.hipMallocAsync(None, size(MIB), None) == 1
assert hip.hipMallocPitch(None, None, size(64), size(64)) == 1
assert hip.hipMemCreate(None, size(MIB), None, ull(0)) == 1
assert hip.hipMallocArray(None, None, size(64), size(64), 0) == 1
assert hip.hipGraphInstantiate(None, None, None, None, size(0)) == 1
assert hip.hipMemGetInfo(None, None) == hip.hipDeviceTotalMem(None, 0) == 1
assert hip.hipGetDevicePropertiesR0600(None, 0) == 1
assert hip.hipFree(null(4096)) == hip.hipFreeAsync(null(4096), None) == 1
assert free() == GIB
""",
        slice_,
    )


# ---- graphs, mappings, resets ----------------------------------------------------------------------------


def test_a_graph_is_charged_at_its_first_launch_and_given_back_by_a_trim(
    script: Script, slice_: Ledger
) -> None:
    script(
        """
graph, node, free_node, run = null(), null(), null(), null()
ok(hip.hipGraphCreate(byref(graph), 0))
p = Node(pool=Pool(1, 0, Location(1, 0)), bytes=256 * MIB)
ok(hip.hipGraphAddMemAllocNode(byref(node), graph, None, size(0), byref(p)))
ok(hip.hipGraphAddMemFreeNode(byref(free_node), graph, byref(node), size(1), null(p.at)))
ok(hip.hipGraphInstantiate(byref(run), graph, None, None, size(0))); assert free() == GIB
for _ in range(3): ok(hip.hipGraphLaunch(run, None)); assert free() == GIB - 256 * MIB
ok(hip.hipDeviceGraphMemTrim(0)); assert free() == GIB
ok(hip.hipGraphLaunch(run, None)); assert free() == GIB - 256 * MIB
at = alloc(GIB); assert hip.hipGraphLaunch(run, None) == 2 and hip.hipGetLastError() == 2
ok(hip.hipFree(at)); ok(hip.hipGraphLaunch(run, None)); ok(hip.hipGraphExecDestroy(run))
ok(hip.hipDeviceGraphMemTrim(0)); assert free() == GIB
""",
        slice_,
    )


def test_mapped_memory_stays_until_it_is_unmapped(script: Script, slice_: Ledger) -> None:
    script(
        """
at = null(); ok(hip.hipMemAddressReserve(byref(at), size(8 * MIB), size(0), None, ull(0)))
for i in range(4):
    handle = vmm(2 * MIB)
    ok(hip.hipMemMap(null(at.value + i * 2 * MIB), size(2 * MIB), size(0), handle, ull(0)))
    ok(hip.hipMemRelease(handle))
assert free() == GIB - 8 * MIB
assert hip.hipMemUnmap(at, size(10 * MIB)) == 1 and free() == GIB - 8 * MIB
ok(hip.hipMemUnmap(null(at.value + 2 * MIB), size(4 * MIB))); assert free() == GIB - 4 * MIB
again = null(); ok(hip.hipMemRetainAllocationHandle(byref(again), at))
ok(hip.hipMemUnmap(at, size(2 * MIB))); assert free() == GIB - 4 * MIB
ok(hip.hipMemRelease(again)); assert free() == GIB - 2 * MIB
""",
        slice_,
    )


def test_after_a_reset_the_slice_can_be_filled_again(script: Script, slice_: Ledger) -> None:
    script(
        """
for _ in range(3):
    pool, at = null(), null()
    ok(hip.hipMemPoolCreate(byref(pool), byref(Pool(1, 0, Location(1, 0)))))
    ok(hip.hipMallocFromPoolAsync(byref(at), size(256 * MIB), pool, None))
    gone = alloc(256 * MIB), alloc_async(512 * MIB), at
    alloc(1, code=2); assert free() == 0
    ok(hip.hipDeviceReset()); assert free() == GIB
    for address in gone: assert hip.hipFree(address) == 1
    assert free() == GIB
""",
        slice_,
    )


# ---- partitioned cards: eight ordinals for one claimed whole device ---------------------------


@pytest.mark.parametrize("machine_env", ["mi300x-8-cpx-nps1"], indirect=True)
def test_all_partitions_of_a_card_draw_on_its_one_charge(script: Script, slice_: Ledger) -> None:
    script(
        """
count = c_int(); ok(hip.hipGetDeviceCount(byref(count))); assert count.value == 8
held = []
for ordinal in range(8):
    ok(hip.hipSetDevice(ordinal)); held.append(alloc(64 * MIB)); held.append(alloc_async(64 * MIB))
    assert free() == GIB - (ordinal + 1) * 128 * MIB, free()
alloc(1, code=2); vmm(2 * MIB, id=3, code=2)
for at in held: ok(hip.hipFree(at))
ok(hip.hipDeviceSynchronize()); assert free() == GIB
""",
        slice_,
        visible="0,1,2,3,4,5,6,7",
    )


@pytest.mark.parametrize("machine_env", ["mi300x-8-cpx-nps1"], indirect=True)
def test_partitions_of_two_cards_charge_each_its_own(script: Script, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "two", "test", [("device-0", GIB), ("device-1", 2 * GIB)])
    script(
        """
ok(hip.hipSetDevice(7)); first = alloc(GIB); alloc(1, code=2); assert free() == 0
ok(hip.hipSetDevice(8)); assert free() == 2 * GIB
second = alloc(GIB); ok(hip.hipSetDevice(15)); assert free() == GIB
handle = vmm(GIB, id=12); assert free() == 0
total = size(); ok(hip.hipDeviceTotalMem(byref(total), 3)); assert total.value == GIB
ok(hip.hipDeviceTotalMem(byref(total), 9)); assert total.value == 2 * GIB
ok(hip.hipSetDevice(0)); assert free() == 0
ok(hip.hipFree(first)); assert free() == GIB
""",
        ledger,
        visible=",".join(map(str, range(16))),
    )
    assert [device.used_bytes for device in ledger.devices()] == [0, 0]
    ledger.close()


@pytest.mark.parametrize("machine_env", ["mi300x-8"], indirect=True)
def test_each_family_charges_the_device_that_it_is_on(script: Script, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "two", "test", [("device-0", GIB), ("device-1", 2 * GIB)])
    script(
        """
ok(hip.hipSetDevice(1)); alloc(256 * MIB); vmm(256 * MIB, id=0); alloc_async(256 * MIB)
assert free() == 2 * GIB - 512 * MIB
ok(hip.hipSetDevice(0)); assert free() == GIB - 256 * MIB
ok(hip.hipDeviceReset()); ok(hip.hipSetDevice(1)); assert free() == 2 * GIB - 512 * MIB
ok(hip.hipDeviceReset()); assert free() == 2 * GIB
""",
        ledger,
        visible="0,1",
    )
    ledger.close()
