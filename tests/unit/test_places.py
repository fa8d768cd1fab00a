"""The runtime directory: which one it is, and that it is the user's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hal.backend import StateError
from hal.scheduler.places import Places


@pytest.fixture
def directory(own_environment: Path) -> Path:
    own_environment.mkdir(mode=0o700)
    return own_environment


def test_hal_runtime_dir_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_RUNTIME_DIR", "/named")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/session")
    places = Places()
    assert places.directory == Path("/named")
    assert places.address == "ipc:///named/scheduler.sock"
    assert places.slice_file("5f3a") == Path("/named/slices/5f3a.ledger")


def test_a_relative_directory_is_of_the_place_where_the_command_ran(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HAL_RUNTIME_DIR", "here")
    assert Places().directory == tmp_path / "here"


def test_the_session_directory_comes_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAL_RUNTIME_DIR", "")  # empty is not set
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/session")
    assert Places().directory == Path("/session/hal")


@pytest.mark.parametrize(("user", "directory"), [(0, "/run/hal"), (1234, "/tmp/hal-1234")])
def test_without_a_session_each_user_has_a_directory(
    monkeypatch: pytest.MonkeyPatch, user: int, directory: str
) -> None:
    monkeypatch.delenv("HAL_RUNTIME_DIR")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(os, "access", lambda *_: True)
    assert Places().directory == Path(directory)


def test_made_for_the_user_alone_and_removed_when_empty(own_environment: Path) -> None:
    places = Places()
    places.make()
    places.make()  # again is no error
    for made in (places.directory, places.slices):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    places.slice_file("1").touch()
    places.remove_empty()
    assert places.slices.is_dir()
    places.slice_file("1").unlink()
    places.remove_empty()
    assert not own_environment.exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_open_to_others_is_refused(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    with pytest.raises(StateError, match=r"has to belong to you alone \(mode 0700\)"):
        Places().make()
    assert not (directory / "slices").exists()


def test_a_directory_of_another_user_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: directory.stat().st_uid + 1)
    with pytest.raises(StateError, match="has to belong to you alone"):
        Places().make()


def test_what_is_no_directory_is_refused(own_environment: Path) -> None:
    own_environment.touch()
    try:
        with pytest.raises(StateError, match=f"cannot use the runtime directory {own_environment}: "):
            Places().make()
    finally:
        own_environment.unlink()


@pytest.mark.parametrize("length", [107, 108])
def test_the_path_of_the_socket_has_a_limit(own_environment: Path, length: int) -> None:
    room = length - len(os.fsencode(own_environment)) - len("//scheduler.sock")
    places = Places(own_environment / ("é" * (room // 2) + "e" * (room % 2)))
    assert len(os.fsencode(places.socket)) == length
    if length <= 107:
        places.make()
    else:
        with pytest.raises(StateError, match="too long for a socket; set HAL_RUNTIME_DIR"):
            places.make()
        assert not own_environment.exists()
