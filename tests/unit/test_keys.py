"""Keys on disk and `hal keys`: nobody else can read them, a number is never reused, errors are sentences."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hal.backend import GoneError, StateError
from hal.scheduler.security import keys as module
from hal.scheduler.security.keys import FIRST_NUMBER, Keys, new_pair, read_client_key, write_secret
from hal.scheduler.security.roles import Role

Hal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


def test_a_key_is_known_until_it_is_revoked(keys: Keys) -> None:
    public = new_pair().public
    added = keys.add("alice", Role.USER, public)
    assert keys.of(public) is None  # not yet read
    assert keys.refresh()
    assert keys.of(public) == added
    assert not keys.refresh()
    keys.revoke("alice")
    assert keys.refresh()
    found = keys.of(public)
    assert found is not None
    assert found.revoked is not None


def test_files_are_their_owners_alone(keys: Keys) -> None:
    keys.add("alice", Role.USER, new_pair().public)
    keys.own()
    assert stat.S_IMODE(keys.directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in keys.directory.iterdir()}
    assert modes == {"known.json": 0o600, "scheduler.key": 0o600}
    for path in (keys.directory, *keys.directory.iterdir()):
        mode = path.stat().st_mode
        path.chmod(mode | 0o040)
        with pytest.raises(StateError, match="is open to others"):
            fresh = Keys(keys.directory)
            fresh.refresh()
            fresh.own()
        path.chmod(mode)


def test_an_owners_number_is_never_anothers(keys: Keys) -> None:
    numbers = []
    for name in ("a", "b", "c"):
        numbers.append(keys.add(name, Role.USER, new_pair().public).uid)
        keys.revoke(name)
    assert numbers == [FIRST_NUMBER, FIRST_NUMBER + 1, FIRST_NUMBER + 2]
    assert keys.add("a", Role.USER, new_pair().public).uid == FIRST_NUMBER + 3
    again = keys.add("a2", Role.USER, new_pair().public, FIRST_NUMBER)  # a new key for an owner there was
    assert again.uid == FIRST_NUMBER
    assert keys.add("local", Role.USER, new_pair().public, 1000).uid == 1000
    with pytest.raises(StateError, match="no key has the owner"):
        keys.add("x", Role.USER, new_pair().public, FIRST_NUMBER + 99)


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "uid:0", "x" * 33, "é", "a\n"])
def test_names_that_no_key_can_have(keys: Keys, name: str) -> None:
    with pytest.raises(StateError, match="is no name for a key"):
        keys.add(name, Role.USER, new_pair().public)


@pytest.mark.parametrize("public", ["", "x", "~" * 40, "#" * 40, "é" * 40, "a" * 39, "a" * 45])
def test_what_is_no_public_key(keys: Keys, public: str) -> None:
    with pytest.raises(StateError, match="is no public key"):
        keys.add("a", Role.USER, public)


def test_what_would_be_two_keys_in_one(keys: Keys) -> None:
    public = new_pair().public
    keys.add("a", Role.USER, public)
    with pytest.raises(StateError, match="there is a key 'a' already"):
        keys.add("a", Role.USER, new_pair().public)
    with pytest.raises(StateError, match="is known as 'a'"):
        keys.add("b", Role.ADMIN, public)
    keys.revoke("a")
    with pytest.raises(StateError, match="was revoked as 'a'"):
        keys.add("b", Role.USER, public)
    with pytest.raises(StateError, match="only an admin's key"):
        keys.add("b", Role.USER, new_pair().public, 0)
    with pytest.raises(GoneError, match="there is no key 'a' in force"):
        keys.revoke("a")


def test_a_damaged_list_changes_nothing_of_what_was_known(keys: Keys) -> None:
    public = new_pair().public
    keys.add("a", Role.USER, public)
    keys.refresh()
    content = (keys.directory / "known.json").read_text()
    for damaged in ("", "{", '{"keys": [3]}', content.replace('"format": 1', '"format": 2')):
        (keys.directory / "known.json").write_text(damaged)
        with pytest.raises(StateError, match=r"damaged|another version"):
            keys.refresh()
        assert keys.of(public) is not None
        with pytest.raises(StateError):
            keys.add("b", Role.USER, new_pair().public)
        assert (keys.directory / "known.json").read_text() == damaged  # nothing was written over it


def test_changes_take_turns(keys: Keys) -> None:
    def add(number: int) -> int:
        return Keys(keys.directory).add(f"n{number}", Role.AGENT, new_pair().public).uid

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(add, range(32)))
    assert sorted(numbers) == [FIRST_NUMBER + number for number in range(32)]
    keys.refresh()
    assert len(keys.all()) == 32


def test_a_write_that_fails_leaves_the_old_file_and_no_draft(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.add("a", Role.USER, new_pair().public)
    before = (keys.directory / "known.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        keys.revoke("a")
    assert [path.name for path in keys.directory.iterdir()] == ["known.json"]
    assert (keys.directory / "known.json").read_bytes() == before


def test_what_is_no_key_file(tmp_path: Path) -> None:
    pair, other, path = new_pair(), new_pair(), tmp_path / "a.key"
    good = f'name = "a"\npublic = "{pair.public}"\nsecret = "{pair.secret}"\nscheduler = "{other.public}"\n'
    write_secret(path, good)
    assert read_client_key(path).secret == pair.secret
    for text, said in {
        "x =": "is not TOML",
        "": "is no key",
        good.replace(pair.secret, "short"): "do not belong together",
        good.replace(pair.secret, other.secret): "do not belong together",
        good.replace(other.public, "short"): "is no public key",
        good + "more = 1\n": "is no key",
    }.items():
        path.write_text(text)
        with pytest.raises(StateError, match=said):
            read_client_key(path)
    path.write_text(good)
    path.chmod(0o644)
    with pytest.raises(StateError, match="open to others"):
        read_client_key(path)
    with pytest.raises(StateError, match="cannot read the key"):
        read_client_key(tmp_path / "none")


# ---- the command -----------------------------------------------------------------------------


def test_new_list_revoke(hal: Hal, tmp_path: Path, own_environment: Path) -> None:
    made = hal("keys", "new", "node7", "--role", "agent", "--json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stderr == "hal: wrote node7.key: give it to node7 and to nobody else\n"
    said = json.loads(made.stdout)
    assert (said["schema"], said["directory"]) == ("hal.keys/1", str(own_environment / "keys"))
    file = read_client_key(tmp_path / "node7.key")
    assert (file.public, file.scheduler) == (said["keys"][0]["public"], said["scheduler"])
    assert file.secret not in made.stdout + made.stderr
    assert stat.S_IMODE(own_environment.stat().st_mode) == 0o700  # a scheduler would refuse it otherwise
    again = hal("keys", "new", "node7", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (6, "hal: node7.key exists; a key is not overwritten\n")
    assert hal("keys", "revoke", "node7", cwd=tmp_path).returncode == 0
    (row,) = json.loads(hal("keys", "list", "--json").stdout)["keys"]
    assert (row["name"], row["role"], row["uid"]) == ("node7", "agent", FIRST_NUMBER)
    assert row["revoked"]
    gone = hal("keys", "revoke", "node7")
    assert (gone.returncode, gone.stderr) == (3, "hal: there is no key 'node7' in force\n")


def test_a_new_key_of_an_old_name_says_how_to_keep_what_is_there(hal: Hal, tmp_path: Path) -> None:
    def new(output: str, *options: str) -> tuple[int, str]:
        made = hal("keys", "new", "alice", "--output", output, "--json", *options, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        hal("keys", "revoke", "alice")
        return json.loads(made.stdout)["keys"][0]["uid"], made.stderr

    first, said = new("1.key")
    assert "had owner" not in said
    other, said = new("2.key")
    assert other != first
    assert f"hal: alice had owner {first} before: a key with --uid {first} keeps the leases and jobs" in said
    assert new("3.key", "--uid", str(first))[0] == first
    assert "had owner" not in new("4.key", "--uid", str(first))[1]
    assert "had owner" not in new("5.key", "--role", "agent")[1]


def test_a_secret_that_never_travels(hal: Hal, tmp_path: Path) -> None:
    server = json.loads(hal("keys", "list", "--json").stdout)["scheduler"]
    made = hal("keys", "new", "bob", "--server-key", server, "--output", "b.key", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    public = read_client_key(tmp_path / "b.key").public
    assert f"hal keys add bob '{public}' --role user" in made.stderr
    assert json.loads(hal("keys", "list", "--json").stdout)["keys"] == []
    added = hal("keys", "add", "bob", public, "--uid", "1000", "--json")
    assert json.loads(added.stdout)["keys"][0]["uid"] == 1000


def test_no_keys_are_made_where_another_machines_scheduler_is_asked(
    hal: Hal, tmp_path: Path, own_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAL_SCHEDULER", "tcp://head:7421")
    for command in (("list",), ("new", "bob"), ("revoke", "bob")):
        result = hal("keys", *command, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (6, "")
        assert "keys are known where the scheduler runs" in result.stderr
    assert not (own_environment / "keys").exists() and not (tmp_path / "bob.key").exists()
    other = "x" * 40
    made = hal("keys", "new", "bob", "--server-key", other, "--output", "b.key", cwd=tmp_path)
    assert made.returncode == 0, made.stderr


def test_a_key_whose_file_cannot_be_written_is_not_left_in_force(hal: Hal, tmp_path: Path) -> None:
    result = hal("keys", "new", "a", "--output", str(tmp_path / "none" / "a.key"))
    assert result.returncode == 6
    assert result.stderr.startswith("hal: cannot write ")
    (row,) = json.loads(hal("keys", "list", "--json").stdout)["keys"]
    assert row["revoked"]


def test_the_configuration_names_the_directory(hal: Hal, tmp_path: Path) -> None:
    (tmp_path / "hal.toml").write_text("[security]\nkeys = 'mine'\n")
    listed = hal("keys", "list", "--config", str(tmp_path / "hal.toml"), "--json")
    assert json.loads(listed.stdout)["directory"] == str(tmp_path / "mine")
    (tmp_path / "hal.toml").write_text("[security]\nkyes = 'mine'\n")
    wrong = hal("keys", "list", "--config", str(tmp_path / "hal.toml"))
    assert wrong.returncode == 6
    assert "did you mean 'security.keys'?" in wrong.stderr


def test_no_public_key_looks_like_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(b"-" + b"a" * 39, b"s"), (b"a" * 40, b"s")]
    monkeypatch.setattr("zmq.curve_keypair", lambda: pairs.pop(0))
    assert new_pair().public == "a" * 40
