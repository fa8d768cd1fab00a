"""`hal simulate replay`: the same each time; and what is no journal is said with its line and field."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from hal.cli import main
from hal.scheduler import core
from hal.scheduler.core import DeviceFacts, NodeFacts, NodeJoined, Queue, Request, SetQueue, Submit
from hal.scheduler.simulator.replay import replay
from hal.scheduler.store import export, journal
from hal.scheduler.store.export import ExportError
from hal.scheduler.store.journal import Base, Batch
from hal.scheduler.store.replay import Player

NODE = NodeFacts(
    "n", 1000, 1 << 30, tuple(DeviceFacts(f"x:{number}", "x", "x", 80 << 30) for number in range(2))
)


def batches() -> list[Batch]:
    """Two devices, and three who want one for ten seconds each."""
    entries: list[tuple[int, journal.Entry]] = [(0, NodeJoined(NODE))]
    entries += [(number, Submit(Request(wait=True), f"l{number}", f"k{number}", 1000)) for number in range(3)]
    entries += [
        (5000, core.Renew("l2", 1000)),
        (10_000, core.Release("l0", 1000)),
        (10_000, core.Ended("l0")),
    ]
    entries += [(20_000, SetQueue(Queue("q"))), (20_000, core.Release("never there", 1000))]
    player = Player(Base())
    made = []
    for number, one in enumerate(entries, 1):
        player.apply(one[1], one[0])
        player.commit(0)
        made.append(Batch(number, (one,), player.sum))
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "events.jsonl"
    written = io.BytesIO()
    export.write(Base(), batches(), written)
    file.write_bytes(written.getvalue())
    return file


def test_what_came_of_it(path: Path) -> None:
    found = replay(path)
    assert found.exact is True
    assert (found.events, found.requests, found.grants, found.refusals) == (9, 3, 3, 0)
    assert (found.leases, found.waiting, found.revocations) == (2, 0, {"released": 1})
    assert (found.wait_p50_ms, found.wait_p99_ms) == (0, 9998)
    assert found.wait_mean_ms == pytest.approx(9998 / 3)
    assert found.duration_ms == 20_000
    assert found.allocation_mean == pytest.approx(1.0, abs=1e-3)
    assert len(found.allocation) == 20


def test_under_another_policy_the_same_is_asked(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "replay", str(path), "--policy", "spread", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["policy"], found["exact"], found["requests"], found["passed_over"]) == (
        "spread",
        None,
        3,
        1,
    )


def test_the_same_file_gives_the_same_bytes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for _ in range(2):
        assert main(["simulate", "replay", str(path)]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert "every commit came to the rows" in told[0]


def test_a_change_by_hand_is_told(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace('"k0"', '"other"')
    path.write_text("\n".join(lines) + "\n")
    found = replay(path)
    assert (found.exact, found.differs_at_line) == (False, 3)


def changed(line: str, **fields: Any) -> str:
    return json.dumps(json.loads(line) | fields)


@pytest.mark.parametrize(
    ("number", "text", "says"),
    [
        (1, "", "line 1: .*"),
        (1, "{}", "line 1: Object missing required field `schema`"),
        (1, {"schema": "hal.journal/2"}, "line 1: `schema` is 'hal.journal/2'"),
        (
            1,
            {"rows": [{"kind": "lease", "id": "a", "value": {}}]},
            "line 1: the lease 'a' cannot be read: .*`id`",
        ),
        (
            1,
            {"rows": [{"kind": "odd", "id": "a", "value": {}}]},
            "line 1: there is a row of an unknown kind 'odd'",
        ),
        (3, "not JSON", "line 3: JSON is malformed"),
        (3, b"\xff\xfe", "line 3: "),
        (3, {"at": -1}, "line 3: .*`at`"),
        (3, {"at": "now"}, r"line 3: Expected `int \| null`, got `str` - at `\$.at`"),
        (3, {"event": None}, "line 3: .*`at`"),
        (3, {"event": {"type": "Sumbit"}}, r"line 3: Invalid value 'Sumbit' - at `\$.event.type`"),
        (3, {"event": {"type": "Release", "id": "a"}}, r"line 3: .*`uid` - at `\$.event`"),
        (3, {"more": 1}, "line 3: Object contains unknown field `more`"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_field(
    number: int, text: Any, says: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = path.read_bytes().splitlines()
    if isinstance(text, dict):
        text = changed(lines[number - 1].decode(), **text)
    lines[number - 1] = text.encode() if isinstance(text, str) else text
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ExportError, match=f"{path}, {says}"):
        replay(path)
    assert main(["simulate", "replay", str(path)]) == 6
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="No such file"):
        replay(tmp_path / "none")
