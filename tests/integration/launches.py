"""A program that puts work on a device by any launch function of CUDA's driver or HIP's runtime.

    launches.py cuda|hip

Commands on its input, one answer to each:

    launch FUNCTION KERNEL TIMES    "launched CODE"     CODE is the first that is not 0, or 0
    capture KERNEL TIMES            "captured CODE"     on one stream, launching on another meanwhile
    busy SECONDS                    "launches NUMBER"   as many kernels of 1 ms as it can
    fork                            "forked"            the child answers from then on
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

U, P = ctypes.c_uint, ctypes.c_void_p
GLOBAL_MODE = 0  # of a capture: the strictest


class Dim3(ctypes.Structure):
    _fields_ = (("x", U), ("y", U), ("z", U))


class Config(ctypes.Structure):  # CUlaunchConfig
    _fields_ = (
        ("grid", U * 3),
        ("block", U * 3),
        ("shared", U),
        ("stream", P),
        ("attributes", P),
        ("count", U),
    )


ONE, MANY = Dim3(1, 1, 1), Dim3(32, 1, 1)
SIZES = (1, 1, 1, 32, 1, 1, 0)  # grid, block, shared memory


class Driver:
    """The functions of one vendor, which differ in their names."""

    def __init__(self, vendor: str) -> None:
        self.cuda = vendor == "cuda"
        self.library = ctypes.CDLL("libcuda.so.1" if self.cuda else "libamdhip64.so.7")
        self.functions: dict[str, P] = {}
        self.graph = P()
        self.module = P()
        self.streams: list[P] = []

    def start(self) -> None:
        if self.streams:
            return
        if self.cuda:
            context = P()
            self.must("cuInit", 0)
            self.must("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
            self.must("cuCtxSetCurrent", context)
        self.must("ModuleLoadData", ctypes.byref(self.module), b"image")
        for _ in range(2):
            stream = P()
            self.must("cuStreamCreate" if self.cuda else "hipStreamCreateWithFlags", ctypes.byref(stream), 1)
            self.streams.append(stream)

    def call(self, name: str, *arguments: Any) -> int:
        full = name if name.startswith(("cu", "hip")) else ("cu" if self.cuda else "hip") + name
        return int(self.library[full](*arguments))

    def must(self, name: str, *arguments: Any) -> None:
        code = self.call(name, *arguments)
        if code:
            sys.exit(f"{name} failed: {code}")

    def kernel(self, name: str) -> P:
        if name not in self.functions:
            self.functions[name] = P()
            place = ctypes.byref(self.functions[name])
            self.must("ModuleGetFunction", place, self.module, name.encode())
        return self.functions[name]

    def arguments(self, function: str, kernel: str) -> tuple[Any, ...]:
        """What this function takes, to launch the kernel once on the first stream."""
        stream = self.streams[0]
        if "GraphLaunch" in function:
            if not self.graph:
                self.must_capture(kernel)
            return self.graph, stream
        f = self.kernel(kernel)
        config = Config((1, 1, 1), (32, 1, 1), 0, stream, None, 0)
        forms: dict[str, tuple[Any, ...]] = {
            "cuLaunchKernel": (f, *SIZES, stream, None, None),
            "cuLaunchCooperativeKernel": (f, *SIZES, stream, None),
            "cuLaunchKernelEx": (ctypes.byref(config), f, None, None),
            "cuLaunch": (f,),
            "cuLaunchGrid": (f, 1, 1),
            "cuLaunchGridAsync": (f, 1, 1, stream),
            "hipModuleLaunchKernel": (f, *SIZES, stream, None, None),
            "hipModuleLaunchCooperativeKernel": (f, *SIZES, stream, None),
            "hipExtModuleLaunchKernel": (
                f, 32, 1, 1, 32, 1, 1, ctypes.c_size_t(0), stream, None, None, None, None, U(0),
            ),
            "hipLaunchKernel": (f, ONE, MANY, None, ctypes.c_size_t(0), stream),
            "hipExtLaunchKernel": (f, ONE, MANY, None, ctypes.c_size_t(0), stream, None, None, 0),
            "hipLaunchCooperativeKernel": (f, ONE, MANY, None, 0, stream),
        }  # fmt: skip
        return forms[function.removesuffix("_ptsz").removesuffix("_spt")]

    @property
    def usual(self) -> str:
        return "cuLaunchKernel" if self.cuda else "hipModuleLaunchKernel"

    # ---- the commands ----------------------------------------------------------------------------

    def launch(self, function: str, kernel: str, times: int) -> int:
        arguments = self.arguments(function, kernel)
        for _ in range(times):
            code = self.call(function, *arguments)
            if code:
                return code
        return 0

    def capture(self, kernel: str, times: int) -> int:
        captured, other, graph = *self.streams, P()
        f = self.kernel(kernel)
        self.must("cuStreamBeginCapture_v2" if self.cuda else "hipStreamBeginCapture", captured, GLOBAL_MODE)
        for _ in range(times):
            self.must(self.usual, f, *SIZES, captured, None, None)
            self.must(self.usual, self.kernel("other_1us"), *SIZES, other, None, None)
        code = self.call("StreamEndCapture", captured, ctypes.byref(graph))
        if code == 0:
            self.must("GraphInstantiateWithFlags", ctypes.byref(self.graph), graph, ctypes.c_uint64(0))
        return code

    def must_capture(self, kernel: str) -> None:
        if self.capture(kernel, 1):
            sys.exit("the capture failed")

    def busy(self, seconds: float) -> int:
        arguments, launches, end = self.arguments(self.usual, "spin_1ms"), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            self.must(self.usual, *arguments)
            launches += 1
        return launches


def main() -> None:
    driver = Driver(sys.argv[1])
    while words := sys.stdin.readline().split():
        if words[0] == "fork":
            child = os.fork()
            if child:
                sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            print("forked", flush=True)
            continue
        driver.start()
        match words:
            case ["launch", function, kernel, times]:
                answer = f"launched {driver.launch(function, kernel, int(times))}"
            case ["capture", kernel, times]:
                answer = f"captured {driver.capture(kernel, int(times))}"
            case ["busy", seconds]:
                answer = f"launches {driver.busy(float(seconds))}"
            case _:
                answer = "what?"
        print(answer, flush=True)


main()
