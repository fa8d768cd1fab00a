"""The guard's table of CUDA functions against NVIDIA's own header: what it hooks exists, and what allocates
is hooked or named here with the reason why it is not."""

from __future__ import annotations

import re
from importlib.metadata import files
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "native" / "guard" / "cuda.h"

# What a name looks like that can make device memory, keep it alive, or find it.
ALLOCATING = re.compile(
    r"Alloc|Create|Import|Open|Reserve|Load|Instantiate|Retain|Map(Resources|ArrayAsync)|Upload|AddMem|AddNode|Launch"
)
ASKING = re.compile(r"^cu\w+(Get|Set|Is)[A-Z]\w*$|Destroy|Unload|CopyNode|SetParams|LoadingMode")

HOST = "host memory"
OBJECT = "an object of the host's, or a few bytes of the driver's own"
OWN = "memory that the driver takes for itself: the agent's slow correction sees it, no call states its size"
OTHERS = "it belongs to another process or API, whose exporter is charged"
NODE = "a node of a graph: it is charged when the graph is launched"
UNCOVERED = {
    "cuMemAllocHost": HOST,
    "cuMemHostAlloc": HOST,
    "cuMemAddressReserve": "addresses without memory",
    "cuMemMapArrayAsync": "maps memory that was charged when it was made",
    "cuMulticastCreate": OBJECT,
    "cuCtxCreate": OWN,
    "cuDevicePrimaryCtxRetain": OWN,
    "cuGreenCtxCreate": OWN,
    "cuModuleLoad": OWN,
    "cuModuleLoadData": OWN,
    "cuModuleLoadDataEx": OWN,
    "cuModuleLoadFatBinary": OWN,
    "cuLibraryLoadData": OWN,
    "cuLibraryLoadFromFile": OWN,
    "cuFuncLoad": OWN,
    "cuLinkCreate": HOST,
    "cuImportExternalMemory": OTHERS,
    "cuImportExternalSemaphore": OBJECT,
    "cuIpcOpenMemHandle": OTHERS,
    "cuIpcOpenEventHandle": OBJECT,
    "cuMemPoolImportFromShareableHandle": OTHERS,
    "cuMemPoolImportPointer": OTHERS,
    "cuGraphicsMapResources": OTHERS,
    "cuLogicalEndpointCreate": OBJECT,
    "cuLogicalEndpointIdReserve": OBJECT,
    "cuLogicalEndpointImport": OTHERS,
    "cuGraphCreate": OBJECT,
    "cuGraphConditionalHandleCreate": OBJECT,
    "cuGraphRetainUserObject": OBJECT,
    "cuGraphAddNode": NODE,
    "cuGraphAddNode_v3": NODE,
    "cuGraphAddMemAllocNode": NODE,
    "cuGraphAddMemFreeNode": NODE,
    "cuGraphAddMemcpyNode": OBJECT,
    "cuGraphAddMemsetNode": OBJECT,
    "cuEventCreate": OBJECT,
    "cuStreamCreate": OBJECT,
    "cuStreamCreateWithPriority": OBJECT,
    "cuGreenCtxStreamCreate": OBJECT,
    "cuSurfObjectCreate": OBJECT,
    "cuTexObjectCreate": OBJECT,
    "cuTexRefCreate": OBJECT,
    "cuUserObjectCreate": OBJECT,
    "cuUserObjectRetain": OBJECT,
    "cuLaunchHostFunc": "runs on the host",
    "cuLaunchHostFunc_v2": "runs on the host",
    "cuLaunchCooperativeKernelMultiDevice": "launches: deprecated since CUDA 11.3",
}


def _header(name: str) -> str:
    found = [file for file in files("nvidia-cuda-runtime") or [] if file.name == name]
    assert len(found) == 1, f"the wheel nvidia-cuda-runtime has no {name}"
    return Path(str(found[0].locate())).read_text()


@pytest.fixture(scope="module")
def declared() -> set[str]:
    """The functions that cuda.h declares, under the names that programs write."""
    return set(
        re.findall(r"^(?:__CUDA_DEPRECATED )?CUresult\s+CUDAAPI\s+(\w+)\s*\(", _header("cuda.h"), re.M)
    )


@pytest.fixture(scope="module")
def forms() -> set[tuple[str, int, str]]:
    """All that cuGetProcAddress can give: name, version, and the suffix of a thread's own stream."""
    types = re.findall(r"\bPFN_(cu\w+?)_v(\d+)(_pt[sd]z)?\)", _header("cudaTypedefs.h"))
    return {(name, int(version), suffix) for name, version, suffix in types}


def _rows() -> dict[str, tuple[str, int, str]]:
    rows = {}
    for function, base, since in re.findall(r'X\((\w+), "(\w+)", (\d+)\)', TABLE.read_text()):
        suffix = match[0] if (match := re.search(r"_pt[sd]z$", function)) else ""
        rows[function] = (base, int(since), suffix)
    return rows


def test_what_allocates_is_hooked_or_named(declared: set[str]) -> None:
    assert len(declared) > 400
    bases = {base for base, _, _ in _rows().values()}
    allocating = {name for name in declared if ALLOCATING.search(name) and not ASKING.search(name)}
    uncovered = allocating - bases - set(UNCOVERED)
    assert not uncovered, f"cuda.h has functions that may allocate and are not hooked: {sorted(uncovered)}"


def test_what_is_named_is_there_and_not_hooked(declared: set[str]) -> None:
    assert not set(UNCOVERED) - declared
    assert not set(UNCOVERED) & {base for base, _, _ in _rows().values()}


def test_every_row_is_a_function_of_that_version(forms: set[tuple[str, int, str]]) -> None:
    rows = _rows()
    assert len(rows) > 50
    assert not set(rows.values()) - forms
    assert all(function.startswith(base) for function, (base, _, _) in rows.items())


def test_every_form_of_a_hooked_name_is_hooked(forms: set[tuple[str, int, str]]) -> None:
    """A new version of a function that is hooked, or its form for threads' own streams, would pass by."""
    rows = set(_rows().values())
    same = {("cuGraphInstantiate", 12000, "")}  # means cuGraphInstantiateWithFlags
    bases = {base for base, _, _ in rows}
    assert not {form for form in forms if form[0] in bases} - rows - same
