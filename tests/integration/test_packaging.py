"""The wheel and the sdist are whole: what they install works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, so that both are seen to be whole."""
    folder = tmp_path_factory.mktemp("dist")
    build = (
        "import os, sys; from scikit_build_core.build import build_sdist; os.chdir(sys.argv[1]);"
        "print(build_sdist(sys.argv[2]))"
    )
    environment = folder / "builder"
    pip("install", "--target", str(environment), "scikit-build-core>=0.11", "cffi>=2")
    env = {**os.environ, "PYTHONPATH": str(environment)}
    subprocess.run([sys.executable, "-c", build, str(ROOT), str(folder)], env=env, check=True)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "native/ffi_build.py", "native/include/hal_ledger.h"} <= inside
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(sdist))
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.timeout(300)
def test_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"hal/py.typed", "hal_native/libhalguard.so", "hal_native/drivers/libcuda.so.1"} <= names
    units = {name.rpartition("/")[2] for name in names if ".data/data/share/hal/systemd/" in name}
    assert units == {"hal-agent.service", "hal-scheduler.service"}
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]
    python = empty_environment(tmp_path / "venv")
    pip("--python", str(python), "install", "--no-deps", str(wheel))

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(str(python), "-c", "import hal; print(hal.__file__)").startswith(str(tmp_path))
    hal = str(python.with_name("hal"))
    fill = "from hal_native import program; import os; p = str(program('hal-allocate'));"
    fill += "os.execv(p, [p, 'auto', 'fill', '512'])"
    said = run(hal, "emulate", "mixed", "--", hal, "run", "--memory", "2GiB", "--", str(python), "-c", fill)
    assert f"held={2 << 30} code=2" in said


def empty_environment(folder: Path) -> Path:
    """A virtual environment in which hal is not installed, but what it needs is."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path file of a path file is not read: this environment's editable hal stays out.
    (site / "needs.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"
