"""What the documents say is so: commands exist, examples run, links lead somewhere."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, run

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


def outputs() -> list[tuple[Path, str, str]]:
    pattern = r"<!-- output of: (.*?) -->\n```text\n(.*?)```"
    pages = ROOT.glob("docs/*.md")
    return [
        (p, *found) for p in sorted(pages) for found in re.findall(pattern, p.read_text(), flags=re.DOTALL)
    ]


def told(text: str) -> list[list[str]]:
    """The words of each line, without what depends on this machine's CPU or on the clock."""
    text = re.sub(r"next try in [\d.]+ s", "next try soon", text)
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("cpu:host")]


@pytest.mark.parametrize(("page", "command", "shown"), outputs(), ids=lambda value: str(value)[-40:])
def test_what_is_shown_as_output_is_what_is_printed(
    page: Path, command: str, shown: str, tmp_path: Path
) -> None:
    pattern = r"<!-- file: (\S+) -->\n```\w+\n(.*?)```"
    for name, text in re.findall(pattern, page.read_text(), flags=re.DOTALL):
        (tmp_path / name).write_text(text)
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = run(
        ["sh", "-c", f"{command} 2>&1"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    if told(result.stdout) != told(shown) and os.environ.get("REWRITE_DOCS"):
        block = f"<!-- output of: {command} -->\n```text\n"
        page.write_text(page.read_text().replace(f"{block}{shown}", f"{block}{result.stdout.rstrip()}\n"))
    assert told(result.stdout) == told(shown), (
        "if that is right: REWRITE_DOCS=1 pytest tests/unit/test_docs.py"
    )


def test_there_are_outputs_on_the_pages() -> None:
    assert {page.name for page, _, _ in outputs()} >= {
        "emulation.md",
        "health.md",
        "isolation.md",
        "topology.md",
    }


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
