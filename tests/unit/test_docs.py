"""What the documents say is so: commands exist, examples run, links lead somewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from hal.cli import _COMMANDS
from hal.cli.exits import _CODES
from hal.cli.metrics import markdown
from hal.emulation.description import load
from hal.selector import Quantity, selector

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist(page: Path) -> None:
    for command in re.findall(
        r"(?:`|^    (?:\\.venv/bin/)?)hal ([a-z]+)", page.read_text(), flags=re.MULTILINE
    ):
        assert command in _COMMANDS, command


def test_every_command_and_exit_code_is_on_its_page() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    assert not [command for command in _COMMANDS if f"`hal {command}" not in page]
    table = page.partition("## Exit codes")[2].partition("\n\n`hal run`")[0]
    assert not [code for _, code in _CODES if str(code) not in table]


def test_readme_python_example_runs(hal: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(example.splitlines()) <= 12
    (tmp_path / "serve").write_text('#!/bin/sh\necho "slice: $HAL_SLICE"\n')
    (tmp_path / "serve").chmod(0o755)
    result = hal("emulate", "mixed", "--", sys.executable, "-c", example, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "nvidia:GPU-" in result.stdout
    assert re.search(r"slice: \S+\.ledger", result.stdout)


def test_machine_example_loads(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/emulation.md").read_text(), flags=re.DOTALL)
    path = tmp_path / "my-node.toml"
    path.write_text(example)
    (device,) = load(str(path)).devices
    assert device["temperature_celsius"] == 88


def test_metrics_page_is_the_catalogue() -> None:
    assert (ROOT / "docs/metrics.md").read_text() == markdown(), (
        "run: hal metrics --markdown > docs/metrics.md"
    )


def test_selectors_and_the_request_of_the_schedulers_page_are_taken(
    hal: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    page = (ROOT / "docs/scheduler.md").read_text()
    (selectors,) = re.findall(r"```text\n(vendor.*?)```", page, flags=re.DOTALL)
    values = {
        ("attributes", "hal", "vendor"): "nvidia",
        ("attributes", "hal", "kind"): "gpu",
        ("attributes", "hal", "architecture"): "9.0",
        ("attributes", "hal", "model"): "NVIDIA H100 80GB HBM3",
        ("capacity", "hal", "memory"): Quantity.of(80 << 30),
    }
    answers = [selector(line).matches(values) for line in selectors.splitlines()]
    assert answers == [True, True, True, False, False, True]
    (request,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "train.toml").write_text(request)
    show = ["sh", "-c", "echo $HAL_MEMBER of $HAL_MEMBERS"]
    result = hal("run", "--request", str(tmp_path / "train.toml"), "--", *show, on="mixed")
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(result.stdout.splitlines()) == ["0 of 2", "1 of 2"]
