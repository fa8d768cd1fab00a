"""However and whenever a program reaches a function, the guard holds it to its slice and changes no more."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from hal.enforce.guard import guard_environment
from hal.enforce.ledger import Ledger
from hal_native import drivers_directory

HERE = Path(__file__).parent
GIB = 1 << 30
LIMIT = GIB + 12345  # no multiple of what the programs ask for
CHUNK = 96 << 20  # of frames.c
DEVICE = {"cuda": 85_520_809_984, "hip": 206_141_652_992}  # of the machine `mixed`
VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "hip": "HIP_VISIBLE_DEVICES"}


class Frame(NamedTuple):
    """A way to a function: the binary, its HOW and the library that it opens."""

    build: str
    how: str
    library: str = "none"

    @property
    def vendor(self) -> str:
        return self.build.split("-")[0]


_CUDA, _PATH = "libcuda.so.1", str(drivers_directory() / "libcuda.so.1")
_HIP6, _HIP7 = "libamdhip64.so.6", "libamdhip64.so.7"
FRAMES = [
    Frame("cuda-linked", "linked"),
    Frame("cuda-linked", "linked+proc1"),
    Frame("cuda-linked", "linked+proc2"),
    Frame("cuda-open", "dlsym", _CUDA),
    Frame("cuda-open", "dlsym", _PATH),
    Frame("cuda-open", "dlsym+proc1", _CUDA),
    Frame("cuda-open", "dlsym+proc2", _CUDA),
    Frame("cuda-open", "dlsym+proc1+proc1", _CUDA),
    Frame("cuda-open", "dlsym+proc2+proc2", _CUDA),
    Frame("cuda-open", "dlsym+proc2+proc1", _CUDA),
    Frame("hip-linked6", "linked"),
    Frame("hip-linked7", "linked"),
    Frame("hip-linked7", "linked+proc1"),
    Frame("hip-open", "dlsym", _HIP6),
    Frame("hip-open", "dlsym", _HIP7),
    Frame("hip-open", "dlsym", "libamdhip64.so"),
    Frame("hip-open", "dlsym+proc1", _HIP6),
    Frame("hip-open", "dlsym+proc1", _HIP7),
    Frame("hip-open", "dlsym+proc1+proc1", _HIP7),
]
SIMPLE = [Frame("cuda-open", "dlsym", _CUDA), Frame("hip-open", "dlsym", _HIP7)]
each_frame = pytest.mark.parametrize(
    "frame", FRAMES, ids=lambda f: f"{f.build}:{f.how}:{Path(f.library).name}"
)
each_vendor = pytest.mark.parametrize("frame", SIMPLE, ids=lambda frame: frame.vendor)


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all binaries, compiled once."""
    folder = tmp_path_factory.mktemp("frames")
    link = [f"-L{drivers_directory()}", "-Wl,--no-as-needed"]

    def cc(output: str, source: str, *options: str) -> None:
        command = ["cc", "-Wall", "-Werror", "-pthread", "-o", output, HERE / source, *options, "-ldl"]
        subprocess.run(command, cwd=folder, check=True)

    cc("cuda-open", "frames.c")
    cc("cuda-linked", "frames.c", "-DLINKED", *link, "-l:libcuda.so.1")
    cc("hip-open", "frames.c", "-DHIP")
    cc("hip-linked6", "frames.c", "-DHIP", "-DLINKED", *link, "-l:libamdhip64.so.6")
    cc("hip-linked7", "frames.c", "-DHIP", "-DLINKED", *link, "-l:libamdhip64.so.7")
    cc("libsecond.so", "lookups.c", "-shared", "-fPIC", "-DPART=second")
    cc("libfirst.so", "lookups.c", "-shared", "-fPIC", "-DPART=first")
    ours = ["-L.", "-lfirst", "-lsecond", "-Wl,-rpath,$ORIGIN"]
    cc("lookups", "lookups.c", "-DPROGRAM", "-DPART=program", *link, *ours, "-l:libcuda.so.1")
    return folder


class Running:
    """A program of frames.c, stopped where it stops."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process = process
        self._errors = errors
        self.said: list[str] = []

    def until(self, word: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.rstrip("\n"))
            if self.said[-1] == word:
                return
        pytest.fail(f"it ended before '{word}': {self.said} {self.errors()}")

    def on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def finish(self) -> list[str]:
        """All it said, from start to end."""
        rest, _ = self._process.communicate("\n\n", timeout=30)
        assert self._process.returncode == 0, (rest, self.errors())
        return [*self.said, *rest.splitlines()]

    def errors(self) -> list[str]:
        self._errors.seek(0)
        return self._errors.read().splitlines()


Start = Callable[..., Running]


@pytest.fixture
def start(builds: Path, machine_env: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts frames on the emulated machine; with ``ledger`` in that slice."""
    running: list[subprocess.Popen[str]] = []

    def run(
        frame: Frame,
        when: str = "main",
        *,
        ledger: Path | None = None,
        ordinal: int = 0,
        visible: str = "0",
        env: dict[str, str] | None = None,
    ) -> Running:
        slice_ = {} if ledger is None else guard_environment(ledger, inherited={})
        whole = machine_env | {VISIBLE[frame.vendor]: visible} | slice_ | (env or {})
        command = [builds / frame.build, frame.how, when, str(ordinal), frame.library]
        errors = (tmp_path / f"stderr-{len(running)}").open("w+")
        pipe = subprocess.PIPE
        running.append(
            subprocess.Popen(command, env=whole, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        )
        return Running(running[-1], errors)

    yield run
    for process in running:
        process.kill()
        process.communicate()


@contextmanager
def slice_of(path: Path, *limits: int) -> Iterator[Ledger]:
    ledger = Ledger.create(path, "test", [(f"device-{n}", limit) for n, limit in enumerate(limits)])
    yield ledger
    ledger.close()


def used(ledger: Ledger) -> list[int]:
    return [device.used_bytes for device in ledger.devices()]


def expected(vendor: str, size: int) -> list[str]:
    """What frames says when it can have exactly ``size`` bytes: of the device, or of its slice."""
    early = ["early alloc=3 free=3 info=3"] if vendor == "cuda" else []
    return [
        *early,
        f"empty code=0 free={size} total={size}",
        "nulls 1 1 1",
        f"filled held={size} code=2 untouched=1 zero={1 if vendor == 'cuda' else 0}",
        f"full code=0 free=0 total={size}",
        "full",
        "unknown=1 null=0",
        "freed bad=0 twice=1",
        f"empty code=0 free={size} total={size}",
        "freed",
    ]


@pytest.mark.parametrize("when", ["main", "constructor", "child", "threads"])
@each_frame
def test_is_held_to_the_byte_and_gives_back(frame: Frame, when: str, start: Start, tmp_path: Path) -> None:
    with slice_of(tmp_path / "slice", LIMIT) as ledger:
        program = start(frame, when, ledger=ledger.path)
        program.until("full")
        assert used(ledger) == [LIMIT]
        program.on()
        program.until("freed")
        assert used(ledger) == [0]
        assert ledger.pids(), "it was charged to nobody"
        assert program.finish() == expected(frame.vendor, LIMIT)
        assert 1 <= len(program.errors()) < 10  # of some sixty refusals: once a second at most
        assert program.errors()[0].startswith("hal: slice test: refused ")


@pytest.mark.parametrize("guarded", [None, "", "unset"], ids=["bare", "empty", "unset"])
@each_frame
def test_without_a_slice_all_passes_through(
    frame: Frame, guarded: str | None, start: Start, tmp_path: Path
) -> None:
    preload = guard_environment(tmp_path / "none", inherited={})
    preload.pop("HAL_SLICE")
    env = {None: {}, "": preload | {"HAL_SLICE": ""}, "unset": preload}[guarded]
    program = start(frame, env=env)
    assert program.finish() == expected(frame.vendor, DEVICE[frame.vendor])
    assert program.errors() == []


def _missing(path: Path) -> None:
    pass


def _foreign(path: Path) -> None:
    path.write_bytes(b"\x7fELF" + bytes(1 << 20))


def _short(path: Path) -> None:
    Ledger.create(path, "test", [("device-0", LIMIT)]).close()
    os.truncate(path, 4096)


def _empty(path: Path) -> None:
    path.touch()


def _directory(path: Path) -> None:
    path.mkdir()


def _other_version(path: Path) -> None:
    Ledger.create(path, "test", [("device-0", LIMIT)]).close()
    with path.open("r+b") as file:
        file.seek(8)  # behind the magic (hal_ledger.h)
        file.write((1).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_missing, "No such file or directory"),
        (_foreign, "it is not a slice file, or is cut short"),
        (_short, "it is not a slice file, or is cut short"),
        (_empty, "it is not a slice file, or is cut short"),
        (_directory, "Is a directory"),
        (_other_version, "it was made by another version of hal"),
    ],
)
@each_vendor
def test_a_slice_that_cannot_be_used_grants_nothing(
    frame: Frame, make: Callable[[Path], None], reason: str, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "slice"
    make(path)
    program = start(frame, ledger=path)
    said = program.finish()
    assert any(line.startswith("filled held=0 code=2 untouched=1 ") for line in said), said
    assert said.count("empty code=0 free=0 total=0") == 2
    assert "unknown=1 null=0" in said
    assert program.errors() == [
        f"hal: every allocation is refused: the slice {path} cannot be used: {reason}"
    ]


@each_vendor
def test_a_fork_in_use_owns_nothing_of_its_parents(frame: Frame, start: Start, tmp_path: Path) -> None:
    with slice_of(tmp_path / "slice", LIMIT) as ledger:
        said = start(frame, "user-forks", ledger=ledger.path).finish()
        # The CUDA driver cannot be used after a fork, HIP's stand-in can.
        child = (
            "child held=0 code=3 free=3"
            if frame.vendor == "cuda"
            else f"child held={LIMIT - CHUNK} code=2 free=1"
        )
        assert said == [child, f"parent held={LIMIT} code=2 free=0"]
        assert used(ledger) == [0]


@pytest.mark.parametrize("ordinal", [0, 1])
@each_vendor
def test_a_slice_over_two_devices_charges_the_right_one(
    frame: Frame, ordinal: int, start: Start, tmp_path: Path
) -> None:
    limits = [GIB, 3 * GIB]
    with slice_of(tmp_path / "slice", *limits) as ledger:
        program = start(frame, ledger=ledger.path, ordinal=ordinal, visible="0,1")
        program.until("full")
        assert used(ledger) == [limits[ordinal] if n == ordinal else 0 for n in range(2)]
        program.on()
        program.until("freed")
        assert used(ledger) == [0, 0]
        assert program.finish() == expected(frame.vendor, limits[ordinal])


@pytest.mark.parametrize("machine_env", ["dgx-h100"], indirect=True)
def test_a_visible_device_outside_of_the_slice_gives_nothing(start: Start, tmp_path: Path) -> None:
    with slice_of(tmp_path / "slice", GIB, GIB) as ledger:
        program = start(SIMPLE[0], ledger=ledger.path, ordinal=5, visible="0,1,2,3,4,5")
        assert any(line.startswith("filled held=0 code=2 untouched=1 ") for line in program.finish())
        assert "device 5 is not in this slice" in program.errors()[0]
        assert used(ledger) == [0, 0]


@each_vendor
def test_slices_side_by_side_do_not_see_one_another(frame: Frame, start: Start, tmp_path: Path) -> None:
    with slice_of(tmp_path / "a", LIMIT) as one, slice_of(tmp_path / "b", 2 * GIB) as other:
        first = start(frame, ledger=one.path)
        first.until("full")
        assert start(frame, ledger=other.path).finish() == expected(frame.vendor, 2 * GIB)
        assert (used(one), used(other)) == ([LIMIT], [0])
        assert first.finish() == expected(frame.vendor, LIMIT)


@each_vendor
def test_two_processes_share_one_slice(frame: Frame, start: Start, tmp_path: Path) -> None:
    with slice_of(tmp_path / "slice", LIMIT) as ledger:
        first = start(frame, ledger=ledger.path)
        first.until("full")
        second = start(frame, ledger=ledger.path)
        second.until("full")
        assert any(line.startswith("filled held=0 code=2 untouched=1 ") for line in second.said)
        first.on()
        first.until("freed")
        assert used(ledger) == [0]
        second.finish()
        first.finish()


def test_lookups_are_what_they_are_without_the_guard(
    builds: Path, machine_env: dict[str, str], tmp_path: Path
) -> None:
    """RTLD_NEXT and RTLD_DEFAULT from a program and two libraries, and dlerror after each; HIP 6 alone."""
    only6 = tmp_path / "rocm6"
    only6.mkdir()
    shutil.copy(drivers_directory() / _HIP6, only6)
    shutil.copy(drivers_directory() / _CUDA, only6)
    env = machine_env | {"LD_LIBRARY_PATH": str(only6)}
    lookups = [
        ("libfirst.so", "hipMalloc"),  # before there is any driver for it
        (_HIP6, "hipMalloc"),
        (_HIP6, "hipNothing"),
        (_CUDA, "cuMemAlloc_v2"),
        (_CUDA, "cuGetProcAddress_v2"),
        (_CUDA, "cuInit"),
        ("libc.so.6", "hipMalloc"),
    ]
    command = [builds / "lookups", *(word for pair in lookups for word in pair)]
    bare, guarded = (
        subprocess.run(command, env=env | more, capture_output=True, text=True, timeout=30)
        for more in ({}, guard_environment(tmp_path / "none", inherited={}))
    )
    assert bare.returncode == 0
    assert "first: next second\nfirst: default first\n" in bare.stdout
    assert "hipMalloc: 1 no error 77\n" in bare.stdout
    assert (guarded.returncode, guarded.stdout) == (bare.returncode, bare.stdout)
