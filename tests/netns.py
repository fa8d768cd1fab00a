"""Several hosts on one machine: a network namespace each, on one bridge, with its own /etc and /run.

Needs the right to make namespaces: root's, or an unprivileged user's where the kernel gives it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Host", "Network"]

_NETWORK = "10.77.0"
_OWN = ("/etc", "/run", "/dev/shm", "/var/lib", "/var/log")


class Host:
    """One of them; what is started by ``command`` sees its network, and its own /etc and so on."""

    def __init__(self, network: Network, name: str, number: int, keeper: subprocess.Popen[bytes]) -> None:
        self.network = network
        self.name = name
        self.address = f"{_NETWORK}.{number}"
        self.pid = keeper.pid

    def command(self, *words: str | Path) -> list[str]:
        return [*self.network.entering(self.pid, "--mount"), *map(str, words)]

    def run(self, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"check": True, "capture_output": True, "text": True, "timeout": 60} | options
        return subprocess.run(self.command(*words), **options)

    def cut_off(self) -> None:
        self.network.do("ip", "link", "set", f"to-{self.name}", "down")

    def mend(self) -> None:
        self.network.do("ip", "link", "set", f"to-{self.name}", "up")


class Network:
    """Skips the test, with the reason, where namespaces cannot be made. Ends with ``stack``."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._entering = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        self.hosts: dict[str, Host] = {}
        for tool in ("unshare", "nsenter", "ip"):
            if shutil.which(tool) is None:
                pytest.skip(f"there is no program '{tool}' here")
        probe = ["unshare", *self._rights, "--net", "--mount", "ip", "link", "add", "probe", "type", "bridge"]
        refused = subprocess.run(probe, capture_output=True, text=True)
        if refused.returncode != 0:
            pytest.skip(f"no network namespaces here: {refused.stderr.strip()}")
        self._middle = self._keeper(["unshare", *self._rights, "--net"])
        self.do("ip", "link", "add", "bridge", "type", "bridge")
        self.do("ip", "link", "set", "bridge", "up")

    def add(self, name: str) -> Host:
        """A host of this name (nine letters at most), that reaches the others by name, too."""
        host = Host(
            self,
            name,
            len(self.hosts) + 1,
            self._keeper([*self.entering(self._middle.pid), "unshare", "--net", "--mount"]),
        )
        self.hosts[name] = host
        self.do(
            "ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "net", "netns", str(host.pid)
        )
        self.do("ip", "link", "set", f"to-{name}", "master", "bridge", "up")
        host.run("ip", "link", "set", "lo", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "net")
        host.run("ip", "link", "set", "net", "up")
        for path in _OWN:
            host.run("sh", "-c", _EMPTY if path != "/etc" else _COPIED, "sh", path)
        for one in self.hosts.values():
            one.run("sh", "-c", "printf '%s' \"$1\" > /etc/hosts", "sh", self._names())
        return host

    def entering(self, pid: int, *more: str) -> list[str]:
        return ["nsenter", "--target", str(pid), *self._entering, "--net", *more, "--"]

    def do(self, *words: str) -> None:
        """In the middle, where the bridge is."""
        subprocess.run(
            [*self.entering(self._middle.pid), *words], check=True, capture_output=True, timeout=60
        )

    def _names(self) -> str:
        return "127.0.0.1 localhost\n" + "".join(f"{h.address} {h.name}\n" for h in self.hosts.values())

    def _keeper(self, unshare: list[str]) -> subprocess.Popen[bytes]:
        """A process that has the namespace, until its input ends: with this process at the latest."""
        keeper = subprocess.Popen(
            [*unshare, "sh", "-c", "echo; exec cat >/dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._stack.callback(keeper.wait)
        self._stack.callback(keeper.kill)
        assert keeper.stdout is not None and keeper.stdout.readline() == b"\n"
        return keeper


_EMPTY = 'mount --make-rprivate / && mount -t tmpfs none "$1"'
_COPIED = """
mount --make-rprivate / && mount -t tmpfs none /mnt && cp -a "$1/." /mnt/ 2>/dev/null
mount --move /mnt "$1"
"""
