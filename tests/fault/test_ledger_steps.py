"""A process is killed after each single instruction of the ledger's operations (ledger_steps.c)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "native"


def test_no_instruction_is_a_bad_one_to_die_after(tmp_path: Path) -> None:
    program = tmp_path / "steps"
    sources = [*(NATIVE / "ledger").glob("*.c"), HERE / "ledger_steps.c"]
    options = ["-std=c11", "-O2", "-g", "-fPIC", "-pthread", f"-I{NATIVE}/include", f"-I{NATIVE}/ledger"]
    subprocess.run(["cc", *options, *sources, "-o", program], check=True)
    done = subprocess.run([program, tmp_path / "ledger"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    # It did step: an operation has dozens of instructions, a reap thousands.
    found = {line.partition(":")[0]: int(re.search(r": (\d+)", line)[1]) for line in done.stdout.splitlines()}
    assert found["reserve"] > 50
    assert found["release"] > 50
    assert found["reap of one that died inside a reserve"] > 1000
