"""Machine descriptions: those that come with hal are whole, and a mistake in one is named by file and key."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.backend import GoneError, StateError
from hal.emulation.description import load, names, parse
from hal.emulation.state import write_state
from hal.lines import line_of
from hal_native import ffi, lib

HEAD = 'schema = "hal.machine/1"\n'
DEVICE = '[[devices]]\nmodel = "h100-sxm-80gb"\npci = "0000:3b:00.0"\n'
AMD = '[[devices]]\nmodel = "mi300x"\npci = "0000:9b:00.0"\n'

MINE = '[models.mine]\nvendor = "amd"\nmodel = "M"\nmemory_bytes = 1\n'

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
                if isinstance(value, list):
                    continue
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
    with pytest.raises(GoneError, match=r"no machine 'mixd'; .*dgx-h100, .*mixed, .*none"):
        load("mixd")


# text, the line that has to be named, and words of the sentence
MISTAKES: list[tuple[str, int, str]] = [
    ("schema = ", 1, "this is not TOML: Invalid value"),
    (HEAD + "\n[drivers\n", 3, "this is not TOML: Expected ']'"),
    (HEAD + 'description = """\nnever ends\n\n', 3, "this is not TOML: Unterminated string"),
    ("", 1, 'schema = "hal.machine/1"'),
    ('# a comment\nschema = "hal.machine/2"', 2, 'schema = "hal.machine/1"'),
    ('# a comment\nshema = "hal.machine/1"', 2, "unknown key 'shema'; did you mean 'schema'?"),
    (HEAD + "gpus = 2", 2, "unknown key 'gpus'"),
    (HEAD + "description = 3", 2, "description has to be a text"),
    (HEAD + "devices = 2", 2, "devices has to be a list of tables"),
    (HEAD + "devices = [2]", 2, "devices[0] has to be a table"),
    (HEAD + "drivers = 3", 2, "drivers has to be a table"),
    (HEAD + "models = 3", 2, "models has to be tables"),
    (HEAD + "[drivers]\n\ncuda = 13000", 4, "drivers: unknown key 'cuda'"),
    (HEAD + "[drivers]\ncuda_versions = 13", 3, "did you mean 'cuda_version'?"),
    (HEAD + "[drivers]\ncuda_version = 13.0", 3, "cuda_version has to be a whole number, not 13.0"),
    (HEAD + '[drivers]\ncuda_version = "13"', 3, "drivers: cuda_version has to be a whole number, not '13'"),
    (HEAD + "[drivers]\nnvidia_driver = 580", 3, "drivers: nvidia_driver has to be a text, not 580"),
    (HEAD + f'[drivers]\nnvidia_driver = "{"5" * 97}"', 3, "drivers: nvidia_driver cannot be"),
    (HEAD + f'[drivers]\nnvidia_driver = "{"5" * 96}"', 3, "it has room for 95 bytes"),
    (HEAD + "[drivers]\nversion = 2", 3, "drivers: unknown key 'version'"),
    (HEAD + "[drivers]\ndevice = 2", 3, "drivers: unknown key 'device'"),
    (HEAD + "[drivers]\ncreated = 2", 3, "drivers: unknown key 'created'"),
    (HEAD + '[drivers]\nmagic = "x"', 3, "drivers: unknown key 'magic'"),
    (HEAD + "[defaults]\nnuma_nod = 2", 3, "defaults: unknown key 'numa_nod'; did you mean 'numa_node'?"),
    (HEAD + '[defaults]\nuuid = "GPU-1"', 3, "defaults: unknown key 'uuid'"),
    (HEAD + "[models.mine]\ncores = 3", 2, "models.mine: vendor is missing"),
    (HEAD + MINE + "[models.mine.choices]\ncores = [3]", 6, "models.mine: choices has to be like"),
    (HEAD + MINE + "choices = 3", 6, "models.mine: choices has to be like"),
    (HEAD + '[models.mine]\nvendor = "acme"', 3, "vendor has to be one of amd, nvidia, not 'acme'"),
    (HEAD + "[models.mine.sensors]\npower = 3", 3, "models.mine.sensors: unknown key 'power'"),
    (HEAD + DEVICE.replace("h100-sxm-80gb", "h1000"), 3, "unknown model 'h1000'; the models are: a100"),
    (HEAD + DEVICE.replace("h100-sxm-80gb", "../models/mi300x"), 3, "devices[0]: unknown model"),
    (HEAD + '[[devices]]\npci = "0000:3b:00.0"', 2, "devices[0]: unknown model 'None'"),
    (HEAD + DEVICE + '[[devices]]\nmodel = "mi300x"', 5, "devices[1]: pci has to be an address"),
    (HEAD + DEVICE.replace("0000:3b", "3b"), 4, "devices[0]: pci has to be an address"),
    (HEAD + DEVICE.replace("00.0", "00.8"), 4, "not '0000:3b:00.8'"),
    (HEAD + DEVICE.replace("00.0", "20.0"), 4, "not '0000:3b:20.0'"),  # 32 devices to a bus
    (HEAD + DEVICE.replace("3b", "3B"), 4, "not '0000:3B:00.0'"),
    (HEAD + '[[devices]]\nmodel = "mi300x"\npci = 3', 4, "not '3'"),
    (HEAD + DEVICE + AMD + "vram = 3", 8, "devices[1]: unknown key 'vram'"),
    (HEAD + DEVICE + "pci_bus = 3", 5, "devices[0]: unknown key 'pci_bus'"),
    (HEAD + AMD + DEVICE + 'cores = "many"', 8, "devices[1]: cores has to be a whole number, not 'many'"),
    (HEAD + DEVICE + "cores = true", 5, "devices[0]: cores has to be a whole number, not true"),
    (HEAD + DEVICE + "cores = -1", 5, "devices[0]: cores cannot be -1: it has to be from 0 to 4294967295"),
    (HEAD + DEVICE + "cores = 4294967296", 5, "devices[0]: cores cannot be 4294967296"),
    (HEAD + DEVICE + "compute_busy_percent = 101", 5, "it has to be from -1 to 100"),
    (HEAD + DEVICE + "numa_node = -2", 5, "numa_node cannot be -2"),
    (HEAD + DEVICE + 'pci_path = "../../etc"', 5, "pci_path has to be a path below /sys/devices like"),
    (HEAD + DEVICE + "uuid = 3", 5, "devices[0]: uuid has to be a text"),
    (HEAD + DEVICE + 'vendor = "acme"', 5, "vendor has to be one of amd, nvidia"),
    (HEAD + DEVICE + f'serial = "{"x" * 96}"', 5, "devices[0]: serial cannot be"),
    (HEAD + DEVICE + f'serial = "{"é" * 48}"', 5, "devices[0]: serial cannot be"),
    (HEAD + DEVICE + 'serial = "a\\u0000b"', 5, "devices[0]: serial cannot be"),
    (HEAD + DEVICE + 'memory_bytes = "lots"', 5, "memory_bytes has to be a whole number"),
    (HEAD + DEVICE + "memory_bytes = 0", 5, "memory_bytes has to be more than memory_reserved_bytes"),
    (HEAD + DEVICE + "memory_reserved_bytes = 85_520_809_984", 5, "memory_bytes has to be more"),
    (HEAD + "[defaults]\nmemory_bytes = 0\n" + DEVICE, 3, "memory_bytes has to be more than"),
    (HEAD + DEVICE + "nvidia_partition = 3", 5, "nvidia_partition has to be a list of at most 8 tables"),
    (HEAD + DEVICE + "nvidia_partition = [\n{ start = 0 },\n{ strat = 1 },\n]", 7, "did you mean 'start'?"),
    (HEAD + DEVICE + "nvidia_partition = [3]", 5, "devices[0].nvidia_partition[0] has to be a table"),
    (HEAD + DEVICE + DEVICE, 7, "0000:3b:00.0 is that of another device, too (see line 4, too)"),
    (HEAD + DEVICE + 'uuid = "GPU-1"\n' + AMD + 'uuid = "GPU-1"\n', 9, "uuid GPU-1 is that of another"),
    (HEAD + AMD + 'amd_memory_partition = "NPS4"', 5, "this part has no amd_compute_partition SPX with"),
    (
        HEAD + AMD + 'amd_compute_partition = "DPX"\namd_memory_partition = "NPS4"',
        5,
        "no amd_compute_partition DPX with amd_memory_partition NPS4, only SPX/NPS1, DPX/NPS1, DPX/NPS2,",
    ),
    (HEAD + AMD.replace("mi300x", "mi210") + 'amd_compute_partition = "CPX"', 5, "this part has no"),
    ("".join([HEAD, *(AMD.replace("9b:00.0", f"{n:02x}:00.0") for n in range(65))]), 194, "64 devices, "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "words"), MISTAKES, ids=lambda value: repr(value)[-40:])
def test_a_mistake_is_named_by_file_line_and_key(text: str, line: int, words: str, attempt: Attempt) -> None:
    with pytest.raises(StateError) as refused:
        attempt(text)
    message = str(refused.value)
    assert f"mine.toml, line {line}: " in message
    assert words in message
    assert "\n" not in message


def test_what_is_no_text_is_named(attempt: Attempt) -> None:
    with pytest.raises(StateError, match=r"cannot read the machine description .*mine\.toml"):
        attempt(b"\xff\xfe")


# A text in which keys are written in all the ways in which TOML lets them be.
EVERYTHING = """\
# A machine.

schema = "hal.machine/1"
description = "two \\"nodes\\" # no comment"  # a comment

[drivers]  # all of them
cuda_version = 13_000
"nvidia_driver" = '580 # no comment'
hip_version = 0x42cf1c7

[models.mine]
vendor = "amd"
model = "[[devices]]"
memory_bytes = 68_702_699_520
compute_units = 104
sensors.power_milliwatts = 42
sensors.temperature_celsius = -5

[models.other]
vendor = "nvidia"
model = "an unusual part"
memory_bytes = 68_702_699_520
compute_units = 104
[models.other.sensors]
power_milliwatts = 42

[defaults]
numa_node = 0

[[devices]]
model = "mine"
pci = "0000:01:00.0"
amd_hive = 1

[[devices]]
pci = "0000:02:00.0"
model = "mi300x"
amd_compute_partition = "CPX"
amd_memory_partition = "NPS4"
serial = '''
one
two'''
amd_pcie_replays = 3

[[devices]]
model = "other"
nvidia_partition = [
  # one
  { profile = 0, start = 0, size = 1 },

  { profile = 0, start = 1, size = 1 },
]
pci = "0000:03:00.0"
cores = 3
"""
KEY = re.compile(r'^(?P<key>[\w."]+) = (?P<value>.*?)(?P<rest>  #.*)?$')
LINES = EVERYTHING.split("\n")
KEYS = [n for n, line in enumerate(LINES) if (m := KEY.match(line)) and m["value"][-1:] not in ("[", "'")]


def test_the_text_with_everything_is_right(attempt: Attempt) -> None:
    assert len(KEYS) > 25
    attempt(EVERYTHING)


@given(at=st.sampled_from(KEYS), how=st.sampled_from(["rename", "type", "range"]), data=st.data())
def test_any_one_key_that_is_changed_is_named_with_its_line(at: int, how: str, data: st.DataObject) -> None:
    found = KEY.match(LINES[at])
    assert found is not None
    key, value = found["key"], found["value"]
    number = value[-1].isdigit()
    if how == "rename":
        # Of a dotted key, the last part.
        key = (
            key.rstrip('"') + data.draw(st.sampled_from(["x", "_", "zz9"])) + ('"' if key[-1] == '"' else "")
        )
    elif how == "type":
        value = data.draw(
            st.sampled_from(['"words"', "1.5", "true", "[1]"] if number else ["1.5", "7", "[]"])
        )
    elif number:
        value = str(data.draw(st.integers(min_value=2**64) | st.integers(max_value=-274)))
    else:
        value = '"' + data.draw(st.text("abc", min_size=100, max_size=120)) + '"'
    text = "\n".join([*LINES[:at], f"{key} = {value}{found['rest'] or ''}", *LINES[at + 1 :]])
    if key == "description" and how == "range":
        return  # of any length
    with pytest.raises(StateError) as refused:
        parse(text, "mine.toml")
    assert re.search(rf"line {at + 1}\b", str(refused.value)), (text.split("\n")[at], str(refused.value))


ODD = st.recursive(
    st.sampled_from(["1", "-1", "0.5", "true", '"x"', '"mine"', '"amd"', '"0000:01:00.0"', "1979-05-27"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda each: f"[{', '.join(each)}]")
        | st.dictionaries(st.sampled_from(["model", "pci", "profile", "a"]), inner, max_size=3).map(
            lambda each: "{" + ", ".join(f"{key} = {value}" for key, value in each.items()) + "}"
        )
    ),
    max_leaves=6,
)
WHERE = ["schema", "description", "drivers", "defaults", "models", "models.mine", "models.mine.choices",
         "models.mine.vendor", "models.mine.memory_bytes", "models.mine.sensors", "devices", "a",
         'models.mine.choices."amd_hive+cores"', "defaults.nvidia_partition",
         "drivers.cuda_version"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(WHERE), ODD, max_size=6), st.booleans())
def test_whatever_a_file_says_there_is_a_machine_or_a_sentence(keys: dict[str, str], whole: bool) -> None:
    text = "\n".join(f"{key} = {value}" for key, value in ({"schema": '"hal.machine/1"'} | keys).items())
    if whole:
        text += '\n[[devices]]\nmodel = "mine"\npci = "0000:01:00.0"\n'
    try:
        parse(text, "odd.toml")
    except StateError as error:
        assert re.match(r"odd\.toml, line \d+: [^\n]+$", str(error))


@given(st.data())
def test_a_line_is_found_in_a_text_of_any_size(data: st.DataObject) -> None:
    """Statements of one line and of several, comments and blank lines, in any order."""
    lines = ["# begin"]
    where = {}
    for n in range(data.draw(st.integers(1, 40))):
        lines += data.draw(st.lists(st.sampled_from(["", "# k1 = 3", "   "]), max_size=2))
        where[f"k{n}"] = len(lines) + 1
        lines += data.draw(
            st.sampled_from([
                [f"k{n} = 1"], [f'k{n} = """', "k1 = 3", '"""'], [f"k{n} = [", "  1,", "  2,", "]"],
                [f"k{n} = {{ a = 1 }}"], [f"k{n} = '# [x]'"], [f'k{n} = ["""', "a", '""", 3]'],
            ])
        )  # fmt: skip
    key = data.draw(st.sampled_from(sorted(where)))
    assert line_of("\n".join(lines), (key,)) == where[key]


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
