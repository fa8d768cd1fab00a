"""The stand-in libcuda fails, on demand, in what a program asks while it starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASK = """
import ctypes
cuda, number = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
print(cuda.cuInit(0), cuda.cuDeviceGetCount(ctypes.byref(number)), cuda.cuDeviceGet(ctypes.byref(number), 0))
"""


@pytest.mark.parametrize(
    ("faults", "codes"),
    [
        ("", [0, 0, 0]),
        ("cuInit=999", [999, 3, 3]),  # and then it is not initialized
        ("cuDeviceGetCount=46", [0, 46, 0]),
        ("*=46;cuInit=100", [100, 46, 46]),
    ],
)
def test_a_function_answers_what_is_demanded(
    faults: str, codes: list[int], machine_env: dict[str, str]
) -> None:
    env = machine_env | {"HAL_EMULATOR_FAULTS": faults}
    command = [sys.executable, "-S", "-c", ASK]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    assert [int(code) for code in said.stdout.split()] == codes
    assert said.stderr == ""
