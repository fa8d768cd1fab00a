"""Topology: how far up the PCI tree two devices meet, what drivers say of it, and how it is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal import pci
from hal.emulation.description import parse
from hal.emulation.run import emulated
from hal.model import Device, DeviceKind, Level, Link, Pci
from hal.topology import Branch, best, matrix, pairs, tree

Hal = Callable[..., subprocess.CompletedProcess[str]]
ORDER = [Level.PIX, Level.PXB, Level.PHB, Level.NODE, Level.SYS]

# A host bridge, a root port, the port up of a switch, and two ports down; and so on.
ROOT, PORT, UP = "pci0000:14", "0000:14:01.0", "0000:15:00.0"
DOWN, DOWN2 = "0000:16:00.0", "0000:16:01.0"


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((ROOT, PORT, UP, DOWN), (ROOT, PORT, UP, DOWN2), Level.PIX),
        ((ROOT, PORT), (ROOT, PORT), Level.PIX),  # two functions of one card
        ((ROOT, PORT, UP, DOWN), (ROOT, PORT, UP, DOWN2, "0000:18:00.0", "0000:19:00.0"), Level.PXB),
        ((ROOT, PORT), (ROOT, "0000:14:02.0"), Level.PHB),
        ((ROOT,), (ROOT,), Level.PHB),
        ((ROOT, PORT), ("pci0000:20", "0000:20:01.0"), None),
        ((), (ROOT, PORT), None),
        ((), (), None),
    ],
)
def test_where_two_devices_meet(a: tuple[str, ...], b: tuple[str, ...], expected: Level | None) -> None:
    assert pci.level(a, b) is pci.level(b, a) is expected
    assert pci.level(a, b, 0, 0) is (expected or Level.NODE)
    assert pci.level(a, b, 0, 1) is (expected or Level.SYS)
    assert pci.level(a, b, 0, None) is expected


paths = st.lists(st.sampled_from(["a", "b"]), max_size=5).map(lambda steps: ("pci0000:00", *steps))


@given(paths, paths, paths)
def test_who_is_deeper_in_the_same_branch_is_never_farther(
    a: tuple[str, ...], b: tuple[str, ...], c: tuple[str, ...]
) -> None:
    def common(x: tuple[str, ...], y: tuple[str, ...]) -> int:
        return next((n for n, (i, j) in enumerate(zip(x, y, strict=False)) if i != j), min(len(x), len(y)))

    if len(a) == len(b) == len(c) and common(a, b) >= common(a, c):
        near, far = pci.level(a, b), pci.level(a, c)
        assert near is not None
        assert far is not None
        assert ORDER.index(near) <= ORDER.index(far)


# ---- from the kernel's files ---------------------------------------------------------------------------


def plug(root: Path, bdf: str, above: tuple[str, ...], numa_node: int = -1) -> None:
    folder = root.joinpath("sys/devices", *above, bdf)
    folder.mkdir(parents=True)
    (folder / "numa_node").write_text(f"{numa_node}\n")
    flat = root / "sys/bus/pci/devices"
    flat.mkdir(parents=True, exist_ok=True)
    (flat / bdf).symlink_to(folder)


def test_bridges_are_those_of_the_real_path(tmp_path: Path) -> None:
    plug(tmp_path, "0000:17:00.0", (ROOT, PORT, UP, DOWN), 3)
    plug(tmp_path, "0000:18:00.0", (ROOT,))
    assert pci.bridges("0000:17:00.0", tmp_path) == (ROOT, PORT, UP, DOWN)
    assert pci.bridges("0000:18:00.0", tmp_path) == (ROOT,)
    assert pci.numa_node("0000:17:00.0", tmp_path) == 3
    assert pci.numa_node("0000:18:00.0", tmp_path) is None


def test_what_the_kernel_does_not_show_has_no_bridges(tmp_path: Path) -> None:
    assert pci.bridges("0000:17:00.0", tmp_path) == ()
    assert pci.numa_node("0000:17:00.0", tmp_path) is None
    flat = tmp_path / "sys/bus/pci/devices"
    flat.mkdir(parents=True)
    (flat / "0000:17:00.0").symlink_to(flat / "0000:17:00.0")  # itself
    (flat / "0000:18:00.0").mkdir()  # not below a host bridge
    assert pci.bridges("0000:17:00.0", tmp_path) == pci.bridges("0000:18:00.0", tmp_path) == ()


def test_the_root_is_told_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(tmp_path, "0000:17:00.0", (ROOT, PORT))
    monkeypatch.setenv("HAL_ROOT", str(tmp_path))
    assert pci.bridges("0000:17:00.0") == (ROOT, PORT)


# ---- what drivers say and what the tree says -----------------------------------------------------------


def device(id: str, bdf: str | None, numa_node: int | None = None) -> Device:
    return Device(
        id, id.partition(":")[0], DeviceKind.GPU, "M", pci=Pci(bdf) if bdf else None, numa_node=numa_node
    )


def test_the_closest_link_counts() -> None:
    links = [
        Link("a", "b", "pcie", level=Level.PIX),
        Link("b", "a", "xgmi"),
        Link("a", "b", "ufo"),
        Link("a", "c", "pcie"),
        Link("c", "a", "pcie", level=Level.SYS),
        Link("a", "c", "pcie", level=Level.PHB),
    ]
    assert best(links, "a", "b") == links[1]
    assert best(links, "c", "a") == links[5]
    assert best(links, "b", "c") is None


def test_devices_of_different_vendors_are_told_apart_by_the_tree(tmp_path: Path) -> None:
    plug(tmp_path, "0000:17:00.0", (ROOT, PORT, UP, DOWN))
    plug(tmp_path, "0000:19:00.0", (ROOT, PORT, UP, DOWN2))
    plug(tmp_path, "0000:81:00.0", ("pci0000:80", "0000:80:01.0"))
    rows = [
        device("n:1", "0000:17:00.0", 0),
        device("a:1", "0000:19:00.0", 0),
        device("a:2", "0000:81:00.0", 1),
        device("c:host", None),
    ]
    table = matrix(rows, [], tmp_path)
    assert [[link and link.level for link in row] for row in table] == [
        [None, "pix", "sys", None],
        ["pix", None, "sys", None],
        ["sys", "sys", None, None],
        [None, None, None, None],
    ]
    assert {link.kind for link in pairs(table)} == {"pcie"}
    assert [(link.a, link.b) for link in pairs(table)] == [("n:1", "a:1"), ("n:1", "a:2"), ("a:1", "a:2")]


def test_numa_nodes_speak_where_there_is_no_tree_and_nothing_is_made_up(tmp_path: Path) -> None:
    rows = [
        device("n:1", "0000:17:00.0", 0),
        device("a:1", "0000:19:00.0", 0),
        device("a:2", "0000:81:00.0", None),
    ]
    table = matrix(rows, [], tmp_path)
    assert table[0][1] == Link("n:1", "a:1", "pcie", level=Level.NODE)
    assert table[0][2] is table[2][1] is None


def test_the_kernel_says_the_node_where_a_backend_does_not(tmp_path: Path) -> None:
    plug(tmp_path, "0000:17:00.0", ("pci0000:14", "0000:14:01.0"), 1)
    plug(tmp_path, "0000:19:00.0", ("pci0000:18", "0000:18:01.0"), 1)
    rows = [device("n:1", "0000:17:00.0"), device("a:1", "0000:19:00.0")]
    assert matrix(rows, [], tmp_path)[0][1] == Link("n:1", "a:1", "pcie", level=Level.NODE)
    assert [branch.name for branch in tree(rows, tmp_path)] == ["NUMA node 1"]


def test_the_tree_adds_what_a_driver_leaves_open_and_takes_nothing_away(tmp_path: Path) -> None:
    plug(tmp_path, "0000:17:00.0", (ROOT, PORT, UP, DOWN))
    plug(tmp_path, "0000:19:00.0", (ROOT, PORT, UP, DOWN2))
    rows = [device("a:1", "0000:17:00.0", 0), device("a:2", "0000:19:00.0", 0)]

    def told(link: Link) -> Link | None:
        return matrix(rows, [link], tmp_path)[0][1]

    # A driver that knows no more than the node, or nothing: the tree is finer.
    assert told(Link("a:1", "a:2", "pcie", level=Level.NODE)) == Link("a:1", "a:2", "pcie", level=Level.PIX)
    assert told(Link("a:1", "a:2", "pcie")) == Link("a:1", "a:2", "pcie", level=Level.PIX)
    # What a driver says in full stays.
    fast = Link("a:1", "a:2", "nvlink", 25_000_000_000, count=1, level=Level.PXB)
    assert told(fast) == fast
    xgmi = Link("a:1", "a:2", "xgmi", count=1)
    assert told(xgmi) == Link("a:1", "a:2", "xgmi", count=1, level=Level.PIX)


# ---- the tree ------------------------------------------------------------------------------------------


def test_a_tree_has_the_bridges_at_which_devices_part(tmp_path: Path) -> None:
    plug(tmp_path, "0000:17:00.0", (ROOT, PORT, UP, DOWN))
    plug(tmp_path, "0000:18:00.0", (ROOT, PORT, UP, DOWN2))
    plug(tmp_path, "0000:1f:00.0", (ROOT, "0000:14:02.0"))
    plug(tmp_path, "0000:81:00.0", ("pci0000:80", "0000:80:01.0"))
    rows = [
        device("n:4", "0000:81:00.0", 1),
        device("n:3", "0000:1f:00.0", 0),
        device("n:1", "0000:17:00.0", 0),
        device("n:2", "0000:18:00.0", 0),
        device("n:5", None, None),
    ]
    assert tree(rows, tmp_path) == [
        Branch("NUMA node 0", (Branch(ROOT, (Branch(UP, (), ("n:1", "n:2")),), ("n:3",)),)),
        Branch("NUMA node 1", (), ("n:4",)),
        Branch("NUMA node unknown", (), ("n:5",)),
    ]


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=8))
def test_a_tree_has_every_device_once(shapes: list[list[str]]) -> None:
    from hal.topology import _branch

    def ids(branch: Branch) -> list[str]:
        return [*branch.devices, *(id for below in branch.branches for id in ids(below))]

    found = _branch("top", [(tuple(path), f"d{n}") for n, path in enumerate(shapes)])
    assert sorted(ids(found)) == sorted(f"d{n}" for n in range(len(shapes)))


# ---- through the vendors' libraries --------------------------------------------------------------------

PLACES = [
    (ROOT, PORT, UP, DOWN), (ROOT, PORT, UP, DOWN2), (ROOT, PORT, UP, DOWN2, "0000:18:00.0", "0000:19:00.0"),
    (ROOT, "0000:14:02.0"), (ROOT,), ("pci0000:80", "0000:80:01.0"), ("pci0000:90", "0000:90:01.0"), (),
]  # fmt: skip
ASK = """
import json, pynvml as n
n.nvmlInit()
h = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
print(json.dumps([[n.nvmlDeviceGetTopologyCommonAncestor(a, b) for b in h] for a in h]))
"""


def test_nvml_and_the_tree_agree_on_where_two_devices_meet() -> None:
    """The stand-in and hal.pci each work it out: by NVML's documentation, one in C and one in Python."""
    text = 'schema = "hal.machine/1"\n' + "".join(
        f'[[devices]]\nmodel = "l40s"\npci = "0000:{n + 64:02x}:00.0"\n'
        f"numa_node = {int(path[:1] == ('pci0000:80',))}\n"
        f'pci_path = "{"/".join(path)}"\n'
        for n, path in enumerate(PLACES)
    )
    with emulated(parse(text, "many.toml")) as env:
        said = subprocess.run(
            [sys.executable, "-c", ASK], env=env, capture_output=True, timeout=60, check=True
        )
        root = Path(env["HAL_ROOT"])
        assert [pci.bridges(f"0000:{n + 64:02x}:00.0", root) for n in range(len(PLACES))] == PLACES
    words = {10: "pix", 20: "pxb", 30: "phb", 40: "node", 50: "sys"}
    for n, row in enumerate(json.loads(said.stdout)):
        for m, number in enumerate(row):
            if n != m:
                nodes = [int(PLACES[i][:1] == ("pci0000:80",)) for i in (n, m)]
                assert words[number] == pci.level(PLACES[n], PLACES[m], *nodes), (PLACES[n], PLACES[m])


def test_links_of_one_vendor_have_level_count_and_bandwidth(hal: Hal) -> None:
    links = json.loads(hal("topo", "--json", on="mixed").stdout)["links"]
    (nvlink,) = [link for link in links if link["kind"] == "nvlink"]
    assert (nvlink["count"], nvlink["bandwidth_bytes_per_second"]) == (18, 18 * 25_000_000_000)
    assert nvlink["level"] == "node"
    (amd,) = [link for link in links if link["a"].startswith("amd") and link["b"].startswith("amd")]
    assert (amd["kind"], amd["level"], amd["bandwidth_bytes_per_second"]) == ("pcie", "node", None)
    assert {link["level"] for link in links if link["a"][:3] != link["b"][:3]} == {"sys"}
    assert len(links) == 6


@pytest.mark.parametrize(
    ("machine", "levels"),
    [("mixed-small", ["pxb"]), ("l40s-4", ["pix", "sys", "sys", "sys", "sys", "phb"]), ("mixed-apu", [])],
)
def test_levels_of_the_machines_that_tell_their_tree(machine: str, levels: list[str], hal: Hal) -> None:
    assert [link["level"] for link in json.loads(hal("topo", "--json", on=machine).stdout)["links"]] == levels


def test_matrix_and_tree_as_text(hal: Hal) -> None:
    both, table, branches = (
        hal("topo", *more, on="mixed-small").stdout for more in ([], ["--matrix"], ["--tree"])
    )
    assert both == table + "\n" + branches
    assert table.splitlines()[1].split()[:3] == ["[0]", "–", "pxb"]
    assert "pxb     several PCIe switches below one root port" in table
    assert branches.splitlines()[:2] == ["NUMA node 0", "└─ bridge 0000:15:00.0"]
    assert "?       nothing says" in hal("topo", on="mixed-apu").stdout
