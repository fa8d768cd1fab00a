"""The simulator: what it reads, how a workload arrives, and what its command says."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.cli import main
from hal.scheduler.core import Decision, Event, State
from hal.scheduler.core.shape import Shape
from hal.scheduler.simulator.crowd import crowd
from hal.scheduler.simulator.openb import Task, TraceError, arrivals, read_nodes, read_tasks
from hal.scheduler.simulator.run import POLICIES, simulate
from hal.scheduler.simulator.synthetic import cluster, measure

NODES = "sn,cpu_milli,memory_mib,gpu,model\nn-0,32000,131072,4,T4\nn-1,96000,393216,8,G2\nn-2,8000,1024,0,\n"
TASKS = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos\n"
    "t-0,4000,1024,1,500,,LS\nt-1,8000,2048,1,1000,T4|A10|T4,BE\nt-2,16000,4096,2,1000,,LS\nt-3,1000,512,0,0,,BE\n"
)


@pytest.fixture
def trace(tmp_path: Path) -> tuple[Path, Path]:
    nodes, tasks = tmp_path / "nodes.csv", tmp_path / "tasks.csv"
    nodes.write_text(NODES)
    tasks.write_text(TASKS)
    return nodes, tasks


def test_what_is_read(trace: tuple[Path, Path]) -> None:
    nodes, tasks = read_nodes(trace[0]), read_tasks(trace[1])
    assert [(n.id, n.cpu_milli, n.ram_bytes >> 20, len(n.devices)) for n in nodes] == [
        ("n-0", 32_000, 131_072, 4), ("n-1", 96_000, 393_216, 8), ("n-2", 8_000, 1_024, 0)
    ]  # fmt: skip
    assert {device.model for device in nodes[1].devices} == {"G2"}
    assert [task.shape for task in tasks] == [
        Shape(1, 500, 500, 4_000, 1 << 30),
        Shape(1, 0, 0, 8_000, 2 << 30, whole=True),
        Shape(2, 0, 0, 16_000, 4 << 30, whole=True),
        Shape(0, 0, 0, 1_000, 512 << 20),
    ]
    assert [task.models for task in tasks] == ["everything", "A10|T4", "everything", "everything"]
    assert [task.milli for task in tasks] == [500, 1000, 2000, 0]


def test_the_short_lists_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "tasks.csv"
    path.write_text("name,cpu_milli,memory_mib,num_gpu,gpu_milli\nt,1,1,8,1000\n")
    assert read_tasks(path)[0].shape == Shape(8, 0, 0, 1, 1 << 20, whole=True)


@pytest.mark.parametrize(
    ("which", "old", "new", "line", "field"),
    [
        ("nodes", "32000", "many", 2, "cpu_milli"),
        ("nodes", "393216", "-1", 3, "memory_mib"),
        ("nodes", ",8,G2", ",1e3,G2", 3, "gpu"),
        ("nodes", ",8,G2", ",800,G2", 3, "gpu"),
        ("nodes", ",8,G2", ",8,", 3, "model"),
        ("nodes", "n-1", "n-0", 3, "sn"),
        ("nodes", "n-1", "", 3, "sn"),
        ("nodes", "gpu,model", "gpus,model", 1, "gpu"),
        ("nodes", "sn,cpu", "sn,sn,cpu", 1, "sn"),
        ("nodes", ",4,T4", ",4", 2, "model"),
        ("nodes", ",4,T4", ",4,T4,5", 2, "model"),
        ("tasks", "t-0,4000", "t-0,4000.5", 2, "cpu_milli"),
        ("tasks", "1,500", "1,", 2, "gpu_milli"),
        ("tasks", "1,500", "1,0", 2, "gpu_milli"),
        ("tasks", "1,500", "1,1001", 2, "gpu_milli"),
        ("tasks", "2,1000", "2,500", 4, "gpu_milli"),
        ("tasks", "2,1000", "²,1000", 4, "num_gpu"),
        ("tasks", "1024", "9" * 30, 2, "memory_mib"),
        ("tasks", "num_gpu,", "", 1, "num_gpu"),
    ],
)
def test_what_is_wrong_is_named_with_file_line_and_field(
    trace: tuple[Path, Path], which: str, old: str, new: str, line: int, field: str
) -> None:
    path = trace[("nodes", "tasks").index(which)]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(TraceError) as caught:
        (read_nodes if which == "nodes" else read_tasks)(path)
    assert str(caught.value).startswith(f"{path}, line {line}, field '{field}': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("old", "new"), [(b"t-3", b'"t-3'), (b"name", b'"name'), (b"t-1", b'"t-1"x')])
def test_a_broken_quote_is_named_with_its_line(trace: tuple[Path, Path], old: bytes, new: bytes) -> None:
    trace[1].write_bytes(trace[1].read_bytes().replace(old, new, 1))
    with pytest.raises(TraceError, match=r"line \d, field 'name' or a later one: "):
        read_tasks(trace[1])


def test_bytes_that_are_no_text_are_named(trace: tuple[Path, Path]) -> None:
    trace[1].write_bytes(trace[1].read_bytes().replace(b"T4|A10", b"T4|\xff10", 1))
    with pytest.raises(TraceError, match="line 3, field 'gpu_spec': this is not UTF-8 text"):
        read_tasks(trace[1])


@pytest.mark.parametrize("text", ["", "\n\n", NODES.split("\n")[0], TASKS.split("\n")[0]])
def test_an_empty_list_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    for read in (read_nodes, read_tasks):
        with pytest.raises(TraceError, match=re.escape(str(path))):
            read(path)


_PATH = st.sampled_from([(NODES, read_nodes), (TASKS, read_tasks)])


@settings(max_examples=300, deadline=None)
@given(_PATH, st.data())
def test_a_damaged_list_is_read_or_refused_with_its_place(
    tmp_path_factory: pytest.TempPathFactory, which: tuple[str, object], data: st.DataObject
) -> None:
    text, read = which
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 12, len(text))))
    noise = data.draw(
        st.binary(max_size=8) | st.sampled_from([b'"', b",", b"\n", b"\0", b"\r", b"9" * 40, b"-"])
    )
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    path.write_bytes(text[:start].encode() + noise + text[end:].encode())
    try:
        assert read(path)  # type: ignore[operator]
    except TraceError as error:
        said = str(error)
        assert said.startswith(str(path)) and "\n" not in said
        assert re.search(r", line \d+, field '|: there is no GPU|: no task in it", said), said


def test_the_workload_asks_for_just_so_much(trace: tuple[Path, Path]) -> None:
    tasks = read_tasks(trace[1])
    for load in (0.2, 1.0, 1.3):
        pool = arrivals(tasks, 12_000, load, 42)
        asked = sum(task.milli for task in pool)
        assert load * 12_000 - 2_000 <= asked <= load * 12_000
    grown = Counter(task.name for task in arrivals(tasks, 12_000, 1.3, 42))
    assert set(grown) == {"t-0", "t-1", "t-2", "t-3"} and sum(grown.values()) > 4
    assert arrivals(tasks, 12_000, 1.3, 42) == arrivals(tasks, 12_000, 1.3, 42)
    assert arrivals(tasks, 12_000, 1.3, 42) != arrivals(tasks, 12_000, 1.3, 43)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_run_is_the_same_each_time_and_within_the_cluster(trace: tuple[Path, Path], policy: str) -> None:
    nodes, tasks = read_nodes(trace[0]), read_tasks(trace[1])
    runs = [simulate(nodes, arrivals(tasks, 12_000, 1.3, 42), POLICIES[policy]) for _ in range(2)]
    assert runs[0] == runs[1]
    assert 0.5 < runs[0].allocation <= 1.0
    assert list(runs[0].curve) == sorted(runs[0].curve) and len(runs[0].curve) > 110
    assert runs[0].placed <= runs[0].tasks


@pytest.mark.parametrize("load", [0.5, 1.3])
def test_what_runs_is_the_state_machine(
    trace: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, load: float
) -> None:
    """Every node and task is an event, and what is counted are the leases that came of them."""
    events, states = Counter[str](), []
    apply = State.apply

    def counted(state: State, event: Event, now: int) -> list[Decision]:
        events[type(event).__name__] += 1
        states.append(state)
        return apply(state, event, now)

    monkeypatch.setattr(State, "apply", counted)
    nodes, tasks = read_nodes(trace[0]), arrivals(read_tasks(trace[1]), 12_000, load, 42)
    run = simulate(nodes, tasks, POLICIES["fragmentation"])
    assert events == {"NodeJoined": 3, "Submit": len(tasks)}
    (state,) = {id(state): state for state in states}.values()
    assert run.placed == len(state.leases)
    assert round(run.allocation * 12_000) == sum(one.charge.devices_milli for one in state.leases.values())


def test_fragmentation_is_minded() -> None:
    """On a cluster where it matters, more is allocated than by fitting best, and that more than by chance."""
    nodes = [
        msgspec.structs.replace(
            one, devices=tuple(msgspec.structs.replace(d, memory_bytes=1000) for d in one.devices)
        )
        for one in cluster(30, 8)
    ]
    chance = random.Random(1)
    shapes = [
        Shape(1, 470, 470, 6_000),
        Shape(1, 650, 650, 3_000),
        Shape(1, 350, 350, 20_000),
        Shape(1, 0, 0, 18_000, whole=True),
        Shape(8, 0, 0, 90_000, whole=True),
        Shape(1, 810, 810, 3_000),
    ]
    tasks = [Task("t", chance.choices(shapes, (6, 4, 4, 8, 1, 2))[0]) for _ in range(600)]
    found = {name: simulate(nodes, tasks, POLICIES[name]).allocation for name in POLICIES}
    assert found["fragmentation"] > found["best-fit"] > found["random"]


def test_the_command_in_tables_and_json(trace: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    line = ["simulate", "openb", "--nodes", str(trace[0]), "--tasks", str(trace[1]), "--seeds", "1-2,5"]
    assert main([*line, "--jobs", "2", "--json", "--policy", "fragmentation", "best-fit"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "hal.simulation/1" and found["workload"]["gpus"] == 12
    assert [one["policy"] for one in found["policies"]] == ["fragmentation", "best-fit"]
    for one in found["policies"]:
        assert one["seeds"] == [1, 2, 5] and 50 < one["allocation_mean"] <= 100 and one["allocation_std"] >= 0
        assert one["curve"][0] == {"arrived": 0, "allocation": 0.0}
        assert abs(sum(one["allocations"]) / 3 - one["allocation_mean"]) < 1e-9
    assert main([*line, "--jobs", "1", "--json", "--policy", "fragmentation"]) == 0
    assert json.loads(capsys.readouterr().out)["policies"][0] == found["policies"][0]
    assert main([*line, "--jobs", "1"]) == 0
    assert f"{found['policies'][0]['allocation_mean']:.2f} %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "5-1"], "5-1"),
        (["--seeds", "x"], "x"),
        (["--seeds", "1-99999999"], "range"),
        (["--seeds", ""], "''"),
        (["--arrival", "nan"], "nan"),
        (["--arrival", "0"], "130 %"),
        (["--jobs", "0"], "at least 1"),
        (["--policy", "best"], "best-fit"),
    ],
)
def test_a_wrong_option_is_a_sentence(
    trace: tuple[Path, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    line = ["simulate", "openb", "--nodes", str(trace[0]), "--tasks", str(trace[1]), *arguments]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert error.startswith("hal: ") and said in error and error.count("\n") == 1


def test_a_list_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["simulate", "openb", "--nodes", str(tmp_path / "none.csv"), "--tasks", str(tmp_path)]
    assert main(line) == 6
    assert capsys.readouterr().err == f"hal: {tmp_path / 'none.csv'}: No such file or directory\n"


def test_a_picture(trace: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["simulate", "openb", "--nodes", str(trace[0]), "--tasks", str(trace[1]), "--seeds", "1", "--plot"]
    assert main([*line, str(tmp_path / "curve.doc")]) == 5
    assert main([*line, str(tmp_path / "none" / "curve.png")]) == 5
    assert capsys.readouterr().err.count("\n") == 2
    pytest.importorskip("matplotlib")
    assert main([*line, str(tmp_path / "curve.png")]) == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib_is_refused_before_the_work() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from hal.cli import main\n"
        "sys.exit(main(['simulate', 'openb', '--nodes', 'none', '--tasks', 'none', '--plot', 'a.png']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "gpu-hal[plot]" in done.stderr and done.stderr.count("\n") == 1


def test_a_made_up_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    found = measure(20, 8, 300, seed=1, shapes=0)
    assert (found.devices, found.decisions) == (160, 300)
    assert 0 < found.p50_milliseconds <= found.p99_milliseconds <= found.max_milliseconds
    assert found.memory_bytes > 1 << 20
    line = ["simulate", "synthetic", "--nodes", "3", "--devices", "2", "--decisions", "40"]
    assert main(line) == 0
    assert "devices    6\n" in capsys.readouterr().out
    assert main([*line, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert measured["devices"] == 6 and measured["refused"] <= 40
    assert main([*line, "--nodes", "0"]) == 2


def test_a_full_cluster_with_many_who_wait(capsys: pytest.CaptureFixture[str]) -> None:
    found = crowd(3, 4, 60, ticks=20, seed=1)
    assert (found.devices, found.waiting, found.ticks) == (12, 60, 20)
    assert found.leases > 12 and found.granted > 5
    assert 0 < found.tick_p50_milliseconds <= found.tick_max_milliseconds
    assert 0 < found.end_p50_milliseconds <= found.end_max_milliseconds
    line = ["simulate", "synthetic", "--nodes", "3", "--devices", "4", "--waiting", "60", "--ticks", "3"]
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured"]["waiting"] == 60
    assert main(line) == 0
    assert "waiting              60\n" in capsys.readouterr().out
