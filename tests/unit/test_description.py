"""Machine descriptions: those that come with hal are whole, and a mistake in one is named by file and key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hal.backend import GoneError, StateError
from hal.emulation.description import load, names
from hal.emulation.state import write_state
from hal_native import ffi, lib

HEAD = 'schema = "hal.machine/1"\n'
DEVICE = '[[devices]]\nmodel = "h100-sxm-80gb"\npci = "0000:3b:00.0"\n'
AMD = '[[devices]]\nmodel = "mi300x"\npci = "0000:9b:00.0"\n'

Attempt = Callable[[str | bytes], None]


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """Load a description of this text and write its state, as ``hal emulate FILE`` does."""

    def run(text: str | bytes) -> None:
        path = tmp_path / "mine.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        write_state(load(str(path)), tmp_path / "state")

    return run


@pytest.mark.parametrize("name", names())
def test_each_machine_of_hals_is_written_as_it_is_described(name: str, tmp_path: Path) -> None:
    description = load(name)
    write_state(description, tmp_path / "state")
    machine = lib.hal_machine_open(str(tmp_path / "state").encode())
    try:
        assert ffi.string(machine.name).decode() == name
        assert machine.devices == len(description.devices)
        for key, value in description.drivers.items():
            field = getattr(machine, key)
            assert (field if isinstance(value, int) else ffi.string(field).decode()) == value
        for index, figures in enumerate(description.devices):
            for key, value in figures.items():
                field = getattr(machine.device[index], key)
                assert (field if isinstance(value, int) else ffi.string(field).decode()) == value, key
            limit = figures["memory_bytes"] - figures["memory_reserved_bytes"]
            assert machine.ledger.device[index].limit == limit > 0
        uuids = [ffi.string(machine.device[n].uuid) for n in range(machine.devices)]
        assert len(set(uuids)) == len(uuids)
        assert len(load(name).description) > 10
    finally:
        lib.hal_machine_close(machine)


def test_identities_are_the_same_every_time_and_of_the_machine() -> None:
    first, again = load("mixed"), load("mixed")
    assert first == again
    assert not {d["uuid"] for d in first.devices} & {d["uuid"] for d in load("dgx-h100").devices}


def test_a_sensor_that_is_not_described_is_unknown_and_not_zero(attempt: Attempt, tmp_path: Path) -> None:
    attempt(HEAD + DEVICE)
    machine = lib.hal_machine_open(str(tmp_path / "state").encode())
    try:
        assert machine.device[0].numa_node == lib.HAL_UNKNOWN == -1
        assert machine.device[0].numa_node == lib.HAL_UNKNOWN
        assert machine.device[0].compute_busy_percent == 0  # the model says so
    finally:
        lib.hal_machine_close(machine)


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(GoneError, match=r"no machine 'mixd'; .*dgx-h100, .*mixed, none"):
        load("mixd")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema = ", ("mine.toml",)),  # no TOML
        (b"\xff\xfe", ("cannot read", "mine.toml")),
        ("", ("mine.toml", 'schema = "hal.machine/1"')),
        ('schema = "hal.machine/2"', ("mine.toml", 'schema = "hal.machine/1"')),
        (HEAD + "gpus = 2", ("mine.toml", "unknown key 'gpus'")),
        (HEAD + "devices = 2", ("mine.toml", "devices has to be a list of tables")),
        (HEAD + "devices = [2]", ("mine.toml", "devices[0] has to be a table")),
        (HEAD + "drivers = 3", ("mine.toml", "drivers has to be a table")),
        (HEAD + "[drivers]\ncuda = 13000", ("mine", "drivers: unknown key 'cuda'")),
        (HEAD + "[drivers]\ncuda_version = 13.0", ("mine.toml", "cuda_version has to be a number or a text")),
        (HEAD + '[drivers]\ncuda_version = "13"', ("mine", "drivers: cuda_version cannot be '13'")),
        (HEAD + "[drivers]\nnvidia_driver = 580", ("mine", "drivers: nvidia_driver cannot be 580")),
        (HEAD + f'[drivers]\nnvidia_driver = "{"5" * 97}"', ("mine", "drivers: nvidia_driver cannot be")),
        (HEAD + f'[drivers]\nnvidia_driver = "{"5" * 96}"', ("mine", "drivers: nvidia_driver cannot be")),
        (HEAD + "[drivers]\nversion = 2", ("mine", "drivers: unknown key 'version'")),
        (HEAD + "[drivers]\ndevice = 2", ("mine", "drivers: unknown key 'device'")),
        (HEAD + '[drivers]\nmagic = "x"', ("mine", "drivers: unknown key 'magic'")),
        (HEAD + DEVICE.replace("h100-sxm-80gb", "h1000"), ("mine.toml", "devices[0]: unknown model 'h1000'")),
        (HEAD + DEVICE.replace("h100-sxm-80gb", "../models/mi300x"), ("devices[0]: unknown model",)),
        (HEAD + '[[devices]]\npci = "0000:3b:00.0"', ("mine.toml", "devices[0]: unknown model 'None'")),
        (HEAD + '[[devices]]\nmodel = "mi300x"', ("mine.toml", "devices[0]: pci", "not 'None'")),
        (HEAD + DEVICE.replace("0000:3b", "3b"), ("mine.toml", "devices[0]: pci", "not '3b:00.0'")),
        (HEAD + DEVICE.replace("00.0", "00.8"), ("mine.toml", "devices[0]: pci", "not '0000:3b:00.8'")),
        (HEAD + DEVICE.replace("3b", "3B"), ("mine.toml", "devices[0]: pci", "not '0000:3B:00.0'")),
        (HEAD + '[[devices]]\nmodel = "mi300x"\npci = 3', ("mine.toml", "devices[0]: pci", "not '3'")),
        (HEAD + DEVICE + AMD + "vram = 3", ("mine", "devices[1]: unknown key 'vram'")),
        (HEAD + AMD + DEVICE + 'cores = "many"', ("mine", "devices[1]: cores cannot be 'many'")),
        (HEAD + DEVICE + "cores = true", ("mine.toml", "devices[0]: cores has to be a number or a text")),
        (HEAD + DEVICE + "cores = -1", ("mine", "devices[0]: cores cannot be -1")),
        (HEAD + DEVICE + "cores = 4294967296", ("mine", "devices[0]: cores cannot be 4294967296")),
        (HEAD + DEVICE + "uuid = 3", ("mine", "devices[0]: uuid cannot be 3")),
        (HEAD + DEVICE + "memory = 80", ("mine", "devices[0]: unknown key 'memory'")),
        (HEAD + DEVICE + f'serial = "{"x" * 96}"', ("mine", "devices[0]: serial cannot be")),
        (HEAD + DEVICE + f'serial = "{"é" * 48}"', ("mine", "devices[0]: serial cannot be")),
        (HEAD + DEVICE + 'serial = "a\\u0000b"', ("mine", "devices[0]: serial cannot be")),
        (HEAD + DEVICE + 'memory_bytes = "lots"', ("mine", "devices[0]", "memory_bytes")),
        (HEAD + DEVICE + "memory_bytes = 0", ("mine.toml", "devices[0]: memory_bytes has to be more than")),
        (HEAD + DEVICE + "memory_reserved_bytes = 85_520_809_984", ("memory_reserved_bytes",)),
        (HEAD + DEVICE + DEVICE, ("mine.toml", "devices[1]", "0000:3b:00.0")),
        (
            HEAD + "".join(AMD.replace("9b:00.0", f"{n:02x}:00.0") for n in range(65)),
            ("mine", "64 devices, not 65"),
        ),
    ],
    ids=lambda value: None if isinstance(value, tuple) else repr(value[-40:]),
)
def test_a_mistake_is_named_by_file_and_key(
    text: str | bytes, words: tuple[str, ...], attempt: Attempt
) -> None:
    with pytest.raises(StateError) as refused:
        attempt(text)
    message = str(refused.value)
    assert all(word in message for word in words), message


def test_the_largest_machine_and_the_longest_text_fit(attempt: Attempt, tmp_path: Path) -> None:
    rows = [AMD.replace("9b:00.0", f"{n:02x}:00.0") for n in range(64)]
    attempt(HEAD + "".join(rows) + f'serial = "{"x" * 95}"')
    machine = lib.hal_machine_open(str(tmp_path / "state").encode())
    assert machine.devices == 64
    assert ffi.string(machine.device[63].serial) == b"x" * 95
    lib.hal_machine_close(machine)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(StateError, match="cannot read the machine description"):
            load(f"{path}" if path.suffix else f"{path}/.toml")


def test_a_state_is_not_written_over_another(attempt: Attempt) -> None:
    attempt(HEAD + DEVICE)
    with pytest.raises(StateError, match="File exists"):
        attempt(HEAD + AMD)
