"""examples/client.mjs, a client in another language from docs/protocol.md alone, speaks to a real daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import HAL
from tests.integration.support import line, start
from tests.integration.test_client import serve

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/protocol.md"
PACKAGES = ("zeromq", "@msgpack/msgpack")
Env = dict[str, str]


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A directory with the client, what is to be said with it, and the packages that it needs."""
    if shutil.which("node") is None:
        pytest.skip("there is no node")
    near = [ROOT / "examples/node_modules", ROOT / "node_modules"]
    named = [Path(one) for one in os.environ.get("NODE_PATH", "").split(os.pathsep) if one]
    for there in [*near, *named]:
        if all((there / package).is_dir() for package in PACKAGES):
            (tmp_path / "node_modules").symlink_to(there)
            break
    else:
        pytest.skip(f"{' and '.join(PACKAGES)} are in no node_modules of examples/, nor in NODE_PATH")
    for file in (ROOT / "examples/client.mjs", Path(__file__).with_name("client_talk.mjs")):
        shutil.copy(file, tmp_path)
    return tmp_path


def talk(
    example: Path, env: Env, daemon: subprocess.Popen[str], *said_with: str | Path, config: Path | None = None
) -> None:
    """All of client_talk.mjs; from "restart" on with another scheduler."""
    process = start(env, "node", example / "client_talk.mjs", PAGE, *said_with)
    assert line(process) == "restart", process.communicate()[1]
    daemon.terminate()
    assert daemon.wait(60) == 0
    serve(env, *(["--config", str(config)] if config else []))
    said, wrong = process.communicate("go on\n", timeout=60)
    assert (said.strip(), process.returncode) == ("done", 0), wrong


def test_it_says_all_there_is_to_say(example: Path, machine_env: Env) -> None:
    daemon, where = serve(machine_env)
    talk(example, machine_env, daemon, f"ipc://{where}")


def test_and_over_tcp_with_a_key(example: Path, machine_env: Env, tmp_path: Path) -> None:
    config, key = tmp_path / "hal.toml", tmp_path / "alice.key"
    config.write_text('[scheduler]\nlisten = ["tcp://127.0.0.1:*"]\n')
    command = [*HAL, "keys", "new", "alice", "--output", str(key), "--config", str(config)]
    subprocess.run(command, env=machine_env, check=True, capture_output=True)
    daemon, said = serve(machine_env, "--config", str(config))
    address = said.split(", ")[1]
    config.write_text(f'[scheduler]\nlisten = ["{address}"]\n')  # the next one is there, too
    talk(example, machine_env, daemon, address, key, config=config)


def test_it_runs_a_program_in_a_slice(example: Path, machine_env: Env) -> None:
    serve(machine_env)
    command = ["node", example / "client.mjs", "20", "sh", "-c", "test -f $HAL_SLICE && exit 7"]
    done = subprocess.run(command, env=machine_env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    listed = subprocess.run(
        [*HAL, "lease", "list"], env=machine_env, capture_output=True, text=True, check=True
    )
    assert "There are no leases." in listed.stdout
