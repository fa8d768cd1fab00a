"""What the guard charges and what not, beyond the plain filling of a slice; NVML and the log inside one."""

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

# What each script begins with: the driver's functions through ctypes, which looks them up with dlsym.
PRELUDE = """
import ctypes, os, sys
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p, POINTER, Structure
MIB, GIB = 1 << 20, 1 << 30
cu = ctypes.CDLL("libcuda.so.1")
u64, size, null = c_uint64, c_size_t, c_void_p
class Location(Structure): _fields_ = [("type", c_int), ("id", c_int)]
class Prop(Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("at", Location), ("meta", null), ("flags", u64)]
class Pool(Structure):
    _fields_ = [("type", c_int), ("handles", c_int), ("at", Location), ("security", null), ("most", size),
                ("rest", ctypes.c_ubyte * 56)]
class Node(Structure):
    _fields_ = [("pool", Pool), ("access", c_void_p), ("n", c_size_t), ("bytes", c_size_t), ("at", c_uint64)]
class Deep(Structure):
    _fields_ = [("w", size), ("h", size), ("d", size), ("format", ctypes.c_uint), ("channels", ctypes.c_uint),
                ("flags", ctypes.c_uint)]
def ok(code): assert code == 0, code
def start(ordinal=0):
    ok(cu.cuInit(0)); context = null()
    ok(cu.cuDevicePrimaryCtxRetain(byref(context), ordinal)); ok(cu.cuCtxSetCurrent(context))
def alloc(n, code=0):
    at = u64(77); got = cu.cuMemAlloc_v2(byref(at), size(n)); assert got == code, got
    assert code == 0 or at.value == 77
    return at
def vmm(n, type=1, id=0, code=0):
    handle = u64(77); prop = Prop(1, 1, Location(type, id))
    got = cu.cuMemCreate(byref(handle), size(n), byref(prop), u64(0)); assert got == code, got
    return handle
def alloc_async(n, code=0, stream=None):
    at = u64(77); got = cu.cuMemAllocAsync(byref(at), size(n), stream); assert got == code, got
    assert code == 0 or at.value == 77
    return at
def keep_all(pool): ok(cu.cuMemPoolSetAttribute(pool, 4, byref(u64(2**64 - 1))))
def own_pool(ordinal=0):
    pool = null(); ok(cu.cuDeviceGetMemPool(byref(pool), ordinal)); return pool
def free():
    left, all = size(), size(); ok(cu.cuMemGetInfo_v2(byref(left), byref(all))); return left.value
"""

Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(machine_env: dict[str, str], tmp_path: Path) -> Script:
    """Run Python in a slice (None: outside of any)."""

    def run(
        text: str, ledger: Ledger | None, visible: str = "0", args: tuple[str, ...] = (), **more: str
    ) -> subprocess.CompletedProcess[str]:
        env = os.environ | machine_env | {"CUDA_VISIBLE_DEVICES": visible} | more
        if ledger is not None:
            env |= guard_environment(ledger.path, inherited={})
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + text, *args], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def slice_(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.create(tmp_path / "slice", "test", [("device-0", GIB)])
    yield ledger
    ledger.close()


# ---- pools -------------------------------------------------------------------------------------


def test_reuse_inside_of_a_pool_is_charged_once(script: Script, slice_: Ledger) -> None:
    script(
        """
start(); keep_all(own_pool())
for _ in range(50):
    one, other = alloc_async(300 * MIB), alloc_async(200 * MIB)
    ok(cu.cuMemFreeAsync(one, None)); ok(cu.cuMemFreeAsync(other, None))
assert free() == GIB - 512 * MIB, free()  # the pool has 512 MiB, in its steps of 32
ok(cu.cuMemPoolTrimTo(own_pool(), size(0)))
assert free() == GIB
""",
        slice_,
    )


def test_a_pool_gives_up_what_it_does_not_use_before_anything_is_refused(
    script: Script, slice_: Ledger
) -> None:
    script(
        """
start(); keep_all(own_pool())
kept = alloc_async(64 * MIB)
ok(cu.cuMemFreeAsync(alloc_async(896 * MIB), None)); ok(cu.cuCtxSynchronize())
assert free() == 64 * MIB
alloc(960 * MIB)
assert free() == 0
alloc_async(1 * MIB, code=2)
""",
        slice_,
    )


def test_a_pool_shrinks_at_a_synchronization(script: Script, slice_: Ledger) -> None:
    script(
        """
start()
at = alloc_async(512 * MIB)
ok(cu.cuMemFreeAsync(at, None))
assert free() == 512 * MIB  # freed in stream order: still the pool's
ok(cu.cuStreamSynchronize(None))
assert free() == GIB
""",
        slice_,
    )


def test_a_pool_that_would_grow_past_the_limit_is_refused_whole(script: Script, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "small", "small", [("device-0", 20 * MIB)])
    done = script("start(); alloc_async(MIB, code=2); assert free() == 20 * MIB; alloc(20 * MIB)", ledger)
    assert done.stderr.startswith("hal: slice small: refused ")
    assert ledger.devices()[0].used_bytes == 0


def test_threads_that_share_a_pool_are_charged_what_it_has(script: Script, slice_: Ledger) -> None:
    script(
        """
import threading
start(); keep_all(own_pool())
def churn():
    start()
    for _ in range(300):
        at = u64(0)
        if cu.cuMemAllocAsync(byref(at), size(100 * MIB), None) == 0: ok(cu.cuMemFreeAsync(at, None))
        at = u64(0)
        if cu.cuMemAlloc_v2(byref(at), size(100 * MIB)) == 0: ok(cu.cuMemFree_v2(at))
threads = [threading.Thread(target=churn) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
reserved = u64(0); ok(cu.cuMemPoolGetAttribute(own_pool(), 5, byref(reserved)))
assert free() == GIB - reserved.value, (free(), reserved.value)
ok(cu.cuMemPoolTrimTo(own_pool(), size(0)))
assert free() == GIB
""",
        slice_,
    )


# ---- virtual memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", [2, 3, 4])
def test_host_memory_is_never_charged(type_: int, script: Script, slice_: Ledger) -> None:
    script(
        f"""
ok(cu.cuInit(0))  # and without a context
handle = vmm(4 * GIB, type={type_})
assert vmm(2 * MIB).value != 77 and handle.value != 77
pool = null(); ok(cu.cuMemPoolCreate(byref(pool), byref(Pool(1, 0, Location(min({type_}, 3), 0)))))
start()
at = u64(0); ok(cu.cuMemAllocFromPoolAsync(byref(at), size(2 * GIB), pool, None))
host = null(); ok(cu.cuMemHostAlloc(byref(host), size(2 * MIB), 0))
assert free() == GIB - 2 * MIB
ok(cu.cuMemFreeHost(host)); ok(cu.cuMemFreeAsync(at, None)); ok(cu.cuMemRelease(handle))
assert free() == GIB - 2 * MIB
""",
        slice_,
    )


def test_mapped_memory_stays_until_it_is_unmapped(script: Script, slice_: Ledger) -> None:
    script(
        """
start()
at = u64(0); ok(cu.cuMemAddressReserve(byref(at), size(8 * MIB), size(0), u64(0), u64(0)))
handles = [vmm(2 * MIB) for _ in range(4)]
for n, handle in enumerate(handles):
    ok(cu.cuMemMap(u64(at.value + n * 2 * MIB), size(2 * MIB), size(0), handle, u64(0)))
for handle in handles: ok(cu.cuMemRelease(handle))
assert free() == GIB - 8 * MIB
assert cu.cuMemUnmap(u64(at.value + 2 * MIB), size(8 * MIB)) == 1  # refused: it changes nothing
assert free() == GIB - 8 * MIB
ok(cu.cuMemUnmap(u64(at.value + 2 * MIB), size(4 * MIB)))
assert free() == GIB - 4 * MIB
again = u64(0); ok(cu.cuMemRetainAllocationHandle(byref(again), c_void_p(at.value)))
ok(cu.cuMemUnmap(at, size(2 * MIB)))
assert free() == GIB - 4 * MIB
ok(cu.cuMemRelease(again)); assert cu.cuMemRelease(again) == 1
assert free() == GIB - 2 * MIB
""",
        slice_,
    )


def test_what_is_imported_is_charged_to_the_exporter_only(script: Script, slice_: Ledger) -> None:
    script(
        """
import subprocess
start()
handle = vmm(64 * MIB); fd = c_int()
ok(cu.cuMemExportToShareableHandle(byref(fd), handle, 1, u64(0)))
at = alloc(32 * MIB); ipc = ctypes.create_string_buffer(64); ok(cu.cuIpcGetMemHandle(ipc, at))
child = open("/proc/self/cmdline", "rb").read().split(b"\\0")[2].decode().split("import subprocess")[0] + '''
start(); before = free()
handle = u64(0); ok(cu.cuMemImportFromShareableHandle(byref(handle), c_void_p(int(sys.argv[1])), 1))
class Ipc(Structure): _fields_ = [("bytes", ctypes.c_char * 64)]
at = u64(0); ok(cu.cuIpcOpenMemHandle_v2(byref(at), Ipc.from_buffer_copy(bytes.fromhex(sys.argv[2])), 1))
class External(Structure):
    _fields_ = [("type", c_int), ("handle", c_uint64 * 2), ("size", c_uint64), ("flags", ctypes.c_uint * 17)]
class Buffer(Structure): _fields_ = [("offset", c_uint64), ("size", c_uint64), ("flags", ctypes.c_uint * 17)]
memory = null(); ok(cu.cuImportExternalMemory(byref(memory), byref(External(1, (c_uint64 * 2)(), 2 * GIB))))
buffer = u64(0); ok(cu.cuExternalMemoryGetMappedBuffer(byref(buffer), memory, byref(Buffer(0, 2 * GIB))))
assert free() == before == GIB - 96 * MIB, free()
ok(cu.cuMemRelease(handle)); ok(cu.cuIpcCloseMemHandle(at)); ok(cu.cuMemFree_v2(buffer))
assert free() == before
'''
os.set_inheritable(fd.value, True)
subprocess.run([sys.executable, "-c", child, str(fd.value), ipc.raw.hex()], check=True, close_fds=False)
assert free() == GIB - 96 * MIB
""",
        slice_,
    )


# ---- arrays and graphs ---------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "name"), [(0x40, "sparse"), (0x80, "deferred")])
def test_an_array_without_memory_is_not_charged(
    flags: int, name: str, script: Script, slice_: Ledger
) -> None:
    script(
        f"""
start(); array = null(); deep = Deep(1 << 16, 1 << 14, 0, 0x20, 4, {flags})
ok(cu.cuArray3DCreate_v2(byref(array), byref(deep)))
assert free() == GIB
ok(cu.cuArrayDestroy(array))
""",
        slice_,
    )


def test_an_array_is_charged_what_the_driver_says_it_takes(script: Script, slice_: Ledger) -> None:
    script(
        """
start(); array = null()
ok(cu.cuArray3DCreate_v2(byref(array), byref(Deep(100, 100, 0, 0x01, 1, 0))))  # 128 B by 104, in 64 KiB
assert free() == GIB - 65536
ok(cu.cuArrayDestroy(array)); assert free() == GIB
ok(cu.cuMipmappedArrayCreate(byref(array), byref(Deep(4096, 4096, 0, 0x20, 1, 0)), 13))
taken = GIB - free(); assert 4096 * 4096 * 4 * 5 // 4 < taken < 4096 * 4096 * 4 * 3 // 2
ok(cu.cuMipmappedArrayDestroy(array)); assert free() == GIB
""",
        slice_,
    )


def test_a_graph_is_charged_at_its_first_launch_and_given_back_by_a_trim(
    script: Script, slice_: Ledger
) -> None:
    script(
        """
start(); graph, exec, node = null(), null(), null()
ok(cu.cuGraphCreate(byref(graph), 0))
a = Node(Pool(1, 0, Location(1, 0)), None, 0, 512 * MIB)
ok(cu.cuGraphAddMemAllocNode(byref(node), graph, None, size(0), byref(a)))
ok(cu.cuGraphAddMemFreeNode(byref(node), graph, None, size(0), u64(a.at)))
ok(cu.cuGraphInstantiateWithFlags(byref(exec), graph, u64(0)))
assert free() == GIB
for _ in range(3):
    ok(cu.cuGraphLaunch(exec, None)); assert free() == 512 * MIB
ok(cu.cuDeviceGraphMemTrim(0)); assert free() == GIB
ok(cu.cuGraphLaunch(exec, None)); assert free() == 512 * MIB
alloc(768 * MIB)  # what no graph uses is given up for it
assert free() == 256 * MIB
assert cu.cuGraphLaunch(exec, None) == 2
ok(cu.cuGraphExecDestroy(exec))
""",
        slice_,
    )


# ---- several devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("machine_env", ["dgx-h100"], indirect=True)
def test_each_family_charges_the_device_that_it_is_on(script: Script, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "two", "two", [("device-0", GIB), ("device-1", 2 * GIB)])
    script(
        """
start(1)
alloc(64 * MIB); vmm(64 * MIB, id=1); alloc_async(64 * MIB); vmm(32 * MIB, id=0)
array = null(); ok(cu.cuArray3DCreate_v2(byref(array), byref(Deep(1 << 12, 1 << 12, 0, 0x20, 1, 0))))
pool = null(); ok(cu.cuMemPoolCreate(byref(pool), byref(Pool(1, 0, Location(1, 1)))))
at = u64(0); ok(cu.cuMemAllocFromPoolAsync(byref(at), size(64 * MIB), pool, None))
assert free() == 2 * GIB - 320 * MIB, free()
start(0)
assert free() == GIB - 32 * MIB
""",
        ledger,
        visible="0,1",
    )


# ---- outputs, the log, and lookups -----------------------------------------------------------------


def test_null_outputs_get_the_drivers_own_answer(script: Script, slice_: Ledger) -> None:
    script(
        """
start(); prop = Prop(1, 0, Location(1, 0))
assert cu.cuMemAlloc_v2(None, size(5)) == 1 and cu.cuMemAllocPitch_v2(None, None, size(5), size(5), 4) == 1
assert cu.cuMemAllocManaged(None, size(5), 1) == 1 and cu.cuMemAllocAsync(None, size(5), None) == 1
assert cu.cuMemCreate(None, size(2 * MIB), byref(prop), u64(0)) == 1 and cu.cuMemPoolCreate(None, None) == 1
assert cu.cuMemCreate(byref(u64()), size(2 * MIB), None, u64(0)) == 1
assert cu.cuArrayCreate_v2(None, None) == 1 and cu.cuMipmappedArrayCreate(None, None, 1) == 1
assert cu.cuMemGetInfo_v2(None, None) == 1 and cu.cuDeviceTotalMem_v2(None, 0) == 1
assert cu.cuGraphInstantiateWithFlags(None, None, u64(0)) == 1
assert free() == GIB
""",
        slice_,
    )


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        ("quiet", []),
        ("refusals", ["hal: slice test: refused 2.00 GiB: 0.00 of 1.00 GiB in use on device-0"]),
        ("", ["hal: slice test: refused 2.00 GiB: 0.00 of 1.00 GiB in use on device-0"]),
        ("info", ["is in it", "refused 2.00 GiB"]),
        (
            "debug",
            [
                "is in it",
                "no room for 2147483648 bytes",
                "refused",
                "charged 4096 bytes",
                "gave back 4096 bytes",
            ],
        ),
        ("loud", ["HAL_GUARD_LOG is quiet, refusals, info or debug, not 'loud'", "refused"]),
    ],
)
def test_the_log_has_levels(level: str, lines: list[str], script: Script, slice_: Ledger) -> None:
    done = script(
        "start(); alloc(2 * GIB, code=2); ok(cu.cuMemFree_v2(alloc(4096)))", slice_, HAL_GUARD_LOG=level
    )
    said = done.stderr.splitlines()
    assert len(said) == len(lines), said
    assert all(part in line and line.startswith("hal: ") for part, line in zip(lines, said, strict=True))


def test_lookups_in_other_places(script: Script, slice_: Ledger) -> None:
    """dlmopen in a slice opens the driver where the guard is; without a driver RTLD_DEFAULT finds nothing."""
    text = """
import ctypes, sys
libc = ctypes.CDLL(None); libc.dlsym.restype = libc.dlmopen.restype = libc.dlerror.restype = ctypes.c_void_p
assert libc.dlsym(None, b"cuMemAlloc_v2") is None
libc.dlerror.restype = ctypes.c_char_p
assert b"cuMemAlloc_v2" in libc.dlerror()
handle = libc.dlmopen(ctypes.c_long(-1), b"libcuda.so.1", 2)
call = lambda name, *types: ctypes.CFUNCTYPE(ctypes.c_int, *types)(libc.dlsym(ctypes.c_void_p(handle), name))
context, at = ctypes.c_void_p(), ctypes.c_uint64()
assert call(b"cuInit", ctypes.c_uint)(0) == 0
assert call(b"cuDevicePrimaryCtxRetain", ctypes.c_void_p, ctypes.c_int)(ctypes.addressof(context), 0) == 0
assert call(b"cuCtxSetCurrent", ctypes.c_void_p)(context) == 0
allocate = call(b"cuMemAlloc_v2", ctypes.c_void_p, ctypes.c_size_t)
assert allocate(ctypes.addressof(at), 2 << 30) == 2 and allocate(ctypes.addressof(at), 1 << 20) == 0
"""
    separate = text.replace('"', "'")
    script(f'import subprocess; subprocess.run([sys.executable, "-c", """{separate}"""], check=True)', slice_)


# ---- NVML ------------------------------------------------------------------------------------------


def test_nvml_shows_the_slice(script: Script, machine_env: dict[str, str], tmp_path: Path) -> None:
    uuid = script(
        "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByIndex(0)))",
        None,
    ).stdout.strip()
    mine = Ledger.create(tmp_path / "mine", "mine", [(f"nvidia:{uuid}", GIB)])
    other = Ledger.create(tmp_path / "other", "other", [(f"nvidia:{uuid}", GIB)])
    env = (
        os.environ | machine_env | {"CUDA_VISIBLE_DEVICES": "0"} | guard_environment(other.path, inherited={})
    )
    waits = PRELUDE + "start(); alloc(100 * MIB); print(1, flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", waits], env=env, stdin=pipe, stdout=pipe) as foreign:
        try:
            assert foreign.stdout is not None
            assert foreign.stdout.readline() == b"1\n"
            look = """
import pynvml as n
start(); alloc(300 * MIB); n.nvmlInit(); d = n.nvmlDeviceGetHandleByIndex(0)
v1, v2 = n.nvmlDeviceGetMemoryInfo(d), n.nvmlDeviceGetMemoryInfo(d, version=n.nvmlMemory_v2)
seen = n.nvmlDeviceGetComputeRunningProcesses(d)
own = [p.pid == os.getpid() for p in seen]
print(v1.total, v1.free, v1.used, v2.total, v2.free, v2.used, v2.reserved, own,
      n.nvmlDeviceGetGraphicsRunningProcesses(d))
"""
            used = 300 * MIB
            inside = f"{GIB} {GIB - used} {used} {GIB} {GIB - used} {used} 0 [True] []"
            assert script(look, mine).stdout.strip() == inside
            assert "[False, True]" in script(look, None).stdout
        finally:
            foreign.kill()
    mine.close()
    other.close()
