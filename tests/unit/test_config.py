"""The one configuration: all of it optional, and an error names the file, the key and what is expected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hal.backend import StateError
from hal.scheduler import config
from hal.scheduler.config import Config, changed, configuration_file, keys_directory, load_config
from hal.scheduler.security.roles import Role

ROOT = Path(__file__).parents[2]


def loaded(folder: Path, text: str) -> Config:
    path = folder / "hal.toml"
    path.write_text(text)
    return load_config(path)


def test_nothing_has_to_be_set(tmp_path: Path) -> None:
    plain = Config()
    assert load_config(None) == plain
    assert loaded(tmp_path, "") == Config(file=tmp_path / "hal.toml")
    assert plain.scheduler.listen == ()
    assert plain.limits.memory_bytes == 2 << 30


def test_every_section_is_read(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        """
        [scheduler]
        listen = ["tcp://0.0.0.0:7421", "tcp://[::1]:*"]
        lost_seconds = 3
        [prices]
        'model.contains("H100")' = 2.5
        'vendor == "amd"' = 1
        [classes.night]
        priority = -3
        fallback = [{ selector = 'kind == "cpu"', memory = "2GiB" }]
        [limits]
        memory = "none"
        [jobs]
        run_as = { alice = "al" }
        keep_environment = ["PATH"]
        [agent]
        scheduler = "tcp://head:7421"
        labels = { zone = "a" }
        [security]
        group = "gpu"
        roles = { alice = "admin", "1001" = "reader" }
        """,
    )
    assert found.scheduler.listen == ("tcp://0.0.0.0:7421", "tcp://[::1]:*")
    assert [(one.selector, one.micros_per_hour) for one in found.prices] == [
        ('model.contains("H100")', 2_500_000),
        ('vendor == "amd"', 1_000_000),
    ]
    assert found.classes["night"].priority == -3
    assert found.classes["night"].fallback[0].memory_bytes == 2 << 30
    assert found.limits.memory_bytes is None
    assert found.jobs.run_as == {"alice": "al"}
    assert found.agent.labels == {"zone": "a"}
    assert found.security.roles == {"alice": Role.ADMIN, "1001": Role.READER}


WRONG = {
    "[limits]\nbrust = 3": "there is no key 'limits.brust'; did you mean 'limits.burst'?",
    "[limit]\nburst = 3": "there is no key 'limit'; did you mean 'limits'?",
    "[agent]\nqqq = 3": "there is no key 'agent.qqq'; there are key, labels, node, scheduler",
    "[limits]\nburst = 'a'": "limits.burst: expected a whole number, not text",
    "[limits]\nburst = 0": "limits.burst: expected a whole number >= 1",
    "[limits]\nrequest_bytes = 70000": "limits.request_bytes: expected a whole number <= 65536",
    "[limits]\nmemory = '4'": "limits.memory: '4' is not a size: say its unit, for example 4GiB",
    "[limits]\nmemory = '1MiB'": "limits.memory: memory is at least 256MiB",
    "limits = 3": "limits: expected a table, [limits]",
    "prices = 3": "prices: expected a table, [prices]",
    "[scheduler]\nlisten = 'tcp://a:1'": "scheduler.listen: expected a list, not text",
    "[scheduler]\nlisten = ['tcp://a:1', 7]": "scheduler.listen[1]: expected text, not a whole number",
    "[scheduler]\nlisten = ['ipc://x']": "scheduler.listen[0]: expected tcp://HOST:PORT",
    "[scheduler]\nlog = 'xml'": "scheduler.log: expected one of text, json, not 'xml'",
    "[scheduler]\nlost_seconds = true": "scheduler.lost_seconds: expected a number, not true or false",
    "[security.roles]\nbob = 'king'": "security.roles: "
    "expected one of admin, user, reader, agent, not 'king'",
    "[security]\naudit_size = 'big'": "security.audit_size: 'big' is not a size",
    "[agent]\nlabels = { a = 1 }": "agent.labels: expected text, not a whole number",
    "[agent]\nnode = 'a b'": "agent.node: expected a short name",
    "[prices]\n'nope(' = 3": "prices.'nope(': ",
    "[prices]\n'vendor == \"a\"' = -3": "prices.'vendor == \"a\"': expected an amount per hour, such as 2.5",
    "[prices]\n'vendor == \"a\"' = nan": "prices.'vendor == \"a\"': expected an amount per hour, such as 2.5",
    "[classes.a]\npriorty = 2": "there is no key 'classes.a.priorty'; did you mean 'classes.a.priority'?",
    "[classes.a]\npriority = 'x'": "[classes.a]: ",
    "[classes]\na = 1": "[classes.a]: a class is a table, such as {priority = 1}",
    "[classes.a]\nfallback = [1]": "[classes.a]: fallback is a list of tables, such as ",
    "[classes.a]\nfallback = [{memory = 1}]": "[classes.a]: '1' is not a size: say its unit",
    "[classes.a]\npriority = 10000000000000000000000": "[classes.a]: priority: it is between ",
    "[scheduler]\nlisten = ['tcp://0.0.0.0:99999']": "scheduler.listen: 'tcp://0.0.0.0:99999' has no port ",
    "[scheduler]\nmetrics = 'localhost'": "scheduler.metrics: 'localhost' is no address; write HOST:PORT",
    "[scheduler]\nmetrics = 'localhost:99999'": "scheduler.metrics: 'localhost:99999' is no address; ",
    "[agent]\nscheduler = 'tcp://head:*'": "agent.scheduler: 'tcp://head:*' has no port from 1 to 65535",
    "[agent]\nscheduler = 'tcp://head:0'": "agent.scheduler: 'tcp://head:0' has no port from 1 to 65535",
    "[agent]\nlabels = { 'é' = 'x' }": "agent.labels: 'é' is no name of a label: ",
    "[agent]\nlabels = { name = 'x' }": "agent.labels: a label cannot be called 'name': ",
    '[agent]\nlabels = { a = "x\\ny" }': "agent.labels: the label 'a' has at most 256 printable ",
    '[agent]\nnode = "a\\u0000"': "agent.node: no name or path has a NUL in it",
    '[jobs]\nrun_as = { a = "b\\u0000" }': "jobs.run_as: no name or path has a NUL in it",
    "[security]\naudit = ''": "security.audit: expected text of length >= 1",
    "[security]\naudit_size = '1B'": "security.audit_size: audit_size is at least 4KiB",
}
BOUNDS = {
    "scheduler.lost_seconds": ("1", "604801", "nan", "inf", "1e300"),
    "scheduler.grace_seconds": ("-1", "0", "604801", "nan", "inf", "1e300"),
    "limits.requests_per_second": ("0", "1e-300", "1e300", "nan", "inf"),
    **{f"limits.{key}": ("-1", "0", "9" * 30) for key in ("burst", "outstanding", "waiting")},
    **{f"limits.{key}": ("-1", "0", "9" * 30) for key in ("request_bytes", "queued", "connections")},
    "security.audit_files": ("-1", "1001", "9" * 30),
}


@pytest.mark.parametrize(("text", "said"), WRONG.items(), ids=WRONG.keys())
def test_an_error_names_file_key_and_what_is_expected(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(StateError) as error:
        loaded(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'hal.toml'}: {said}")
    assert "`" not in str(error.value)


@pytest.mark.parametrize(("key", "value"), [(key, one) for key, all in BOUNDS.items() for one in all])
def test_a_number_that_cannot_be_counted_with_is_refused(key: str, value: str, tmp_path: Path) -> None:
    section, _, name = key.partition(".")
    with pytest.raises(StateError, match=rf"{key}: expected a (whole )?number [<>]= "):
        loaded(tmp_path, f"[{section}]\n{name} = {value}")


def test_every_number_has_its_bounds() -> None:
    numbers = {
        f"{name}.{key}"
        for name, kind in config._SECTIONS.items()
        for key in kind.__struct_fields__
        if isinstance(getattr(kind(), key), int | float)
    }
    assert numbers == BOUNDS.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [("a = " + "[" * 100_000, "nested too deeply"), ("a = " + "9" * 5000, "thousands of digits")],
)
def test_what_tomllib_stumbles_over_is_said(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"is not TOML: .*{said}"):
        loaded(tmp_path, text)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot read the configuration .*: No such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(StateError, match=r"is not TOML: .*line 2"):
        loaded(tmp_path, "[a]\nx = [1,,2]")
    (tmp_path / "hal.toml").write_bytes(b"\xff")
    with pytest.raises(StateError, match="is not UTF-8"):
        load_config(tmp_path / "hal.toml")


def test_a_file_that_others_can_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hal.toml"
    path.write_text("")
    path.chmod(0o666)
    with pytest.raises(StateError, match="others can change it"):
        load_config(path)


def test_which_file_and_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert configuration_file(None, tmp_path) is None
    (tmp_path / "hal.toml").touch()
    assert configuration_file(None, tmp_path) == tmp_path / "hal.toml"
    monkeypatch.setenv("HAL_CONFIG", "/a.toml")
    assert configuration_file(None, tmp_path) == Path("/a.toml")
    assert configuration_file("b.toml", tmp_path) == Path.cwd() / "b.toml"
    assert keys_directory(Config(), tmp_path) == tmp_path / "keys"
    named = loaded(tmp_path, "[security]\nkeys = 'mine'")
    assert keys_directory(named, Path("/elsewhere")) == tmp_path / "mine"


def test_the_machines_own_file_is_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "etc.toml"
    system.touch()
    monkeypatch.setattr(config, "_SYSTEM", system)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert configuration_file(None, tmp_path) is None  # an emulated machine's daemon
    monkeypatch.delenv("HAL_RUNTIME_DIR")
    assert configuration_file(None, tmp_path) == system
    assert configuration_file(None, tmp_path, private=True) is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert configuration_file(None, tmp_path) is None


def test_what_takes_effect_at_once(tmp_path: Path) -> None:
    before = loaded(tmp_path, "")
    after = loaded(
        tmp_path,
        "[limits]\nburst = 3\nqueued = 9\n[scheduler]\nlisten = ['tcp://127.0.0.1:1']\n"
        "[prices]\n'vendor == \"amd\"' = 1\n[agent]\nlabels = { a = 'b' }",
    )
    waiting = ["scheduler.listen", "limits.queued"]
    assert changed(before, before, after) == (["limits.burst", "agent.labels", "prices"], waiting)
    assert changed(before, after, after) == ([], waiting)  # until it is started anew
    assert changed(before, after, before) == (["limits.burst", "agent.labels", "prices"], [])


def test_the_page_is_made_from_the_code() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    start, made, rest = page.partition("<!-- made by hal.scheduler.config -->\n")
    assert made
    if rest != config.markdown() and os.environ.get("REWRITE_DOCS"):
        (ROOT / "docs/configuration.md").write_text(start + made + config.markdown())
        return
    assert rest == config.markdown(), "if that is right: REWRITE_DOCS=1 pytest tests/unit/test_config.py"


def test_the_pages_example_is_taken(tmp_path: Path) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    example = page.partition("```toml\n")[2].partition("```")[0]
    found = loaded(tmp_path, example)
    assert found.scheduler.listen
    assert found.prices
