"""An environment of the bench's own: this tree installed as users have it, and the tools it is compared with.

It is made with pip in build/bench/venv, and anew when the tree has changed. What is measured runs in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.frame import NotMeasured, progress

__all__ = ["PEERS", "environment", "inside", "path_of", "program"]

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("nvitop", "gpustat")  # from PyPI: what people use for the same
_PLACE = ROOT / "build/bench/venv"
_PARTS = ("hal", "backends", "native", "pyproject.toml")  # what an installed tree is made from


def path_of(name: str) -> Path:
    """A program of the environment: `python`, `hal`, `gpustat`. Raises NotMeasured when it cannot be made."""
    _make()
    found = _PLACE / "bin" / name
    if not found.exists():
        why = (_PLACE / f".no-{name}").read_text().strip() if name in PEERS else "pip did not install it"
        raise NotMeasured(f"no {name}: {why}")
    return found


def program(*command: str, env: Mapping[str, str] | None = None) -> Callable[[], object]:
    """The whole run of a program, from its start to its end, its output thrown away."""
    words = [str(path_of(command[0])), *command[1:]]
    around = environment() if env is None else dict(env)
    return lambda: subprocess.run(words, env=around, stdout=subprocess.DEVNULL, check=True)


def inside(machine: str, function: Callable[..., Any], *arguments: Any, latency: str = "") -> Any:
    """What `function` of a benchmark gives (as JSON) in the environment, on an emulated machine.

    `latency` is the stand-ins' (docs/emulation.md). Raises NotMeasured when it fails.
    """
    # The checkout comes last on the path, so that hal is the installed one.
    code = (
        f"import json, sys; sys.path.append({str(ROOT)!r}); "
        f"from benchmarks import frame, {_stem(function)} as m; "
        f"frame.begin({_stem(function)!r}); print(json.dumps(m.{function.__name__}(*{arguments!r})))"
    )
    command = [str(path_of("hal")), "emulate", machine, "--", str(path_of("python")), "-P", "-c", code]
    env = environment() | ({"HAL_EMULATOR_LATENCY": latency} if latency else {})
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise NotMeasured(f"{function.__name__} on {machine} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _stem(function: Callable[..., Any]) -> str:
    return function.__module__.rpartition(".")[2]


def environment() -> dict[str, str]:
    """As a user's shell has it: nothing of the checkout's own environment, nothing of hal's variables."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "HAL_", "LD_", "ROCM_", "VIRTUAL_ENV"))
    }
    return kept | {"PATH": f"{_PLACE / 'bin'}:{os.environ.get('PATH', os.defpath)}"}


@cache
def _make() -> None:
    stamp, wanted = _PLACE / ".made-from", _checksum()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    progress("making build/bench/venv (a minute)")
    if not (_PLACE / "bin/pip").exists():
        _step([sys.executable, "-m", "venv", "--clear", str(_PLACE)])
    stamp.unlink(missing_ok=True)
    _step([*_pip(), "--force-reinstall", "--no-deps", str(ROOT)])
    _step([*_pip(), f"{ROOT}[amd]"])
    for peer in PEERS:
        try:
            _step([*_pip(), peer])
        except NotMeasured as why:
            (_PLACE / f".no-{peer}").write_text(str(why))
    stamp.write_text(wanted)


def _pip() -> list[str]:
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    return [str(_PLACE / "bin/python"), "-m", "pip", "install", *quiet]


def _step(command: Sequence[str]) -> None:
    _PLACE.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise NotMeasured(f"{' '.join(command[1:4])} failed: {said}")


def _checksum() -> str:
    """Of every file that is installed."""
    digest = hashlib.sha256()
    for part in _PARTS:
        found = [ROOT / part] if (ROOT / part).is_file() else sorted((ROOT / part).rglob("*"))
        for file in found:
            if file.is_file() and file.suffix not in (".pyc", ".so"):
                digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
