"""A small file system of its own at some directory, for processes that are started in it: to be filled up,
or made read-only. Needs the right to make namespaces: root's, or a user's where the kernel gives it.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

__all__ = ["Disk"]


class Disk:
    """Skips the test, with the reason, where there can be none. Ends with ``stack``."""

    def __init__(self, stack: ExitStack, directory: Path, size: str = "4m") -> None:
        self._directory = directory
        rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._entering = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mount = f'mount -t tmpfs -o mode=700,size={size} none "$0" && echo && exec cat >/dev/null'
        self._keeper = subprocess.Popen(
            ["unshare", *rights, "--mount", "sh", "-c", mount, directory],
            stdin=subprocess.PIPE,  # it ends with us at the latest
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stack.callback(self._keeper.communicate)
        stack.callback(self._keeper.kill)
        assert self._keeper.stdout is not None and self._keeper.stderr is not None
        if self._keeper.stdout.readline() != b"\n":
            pytest.skip(f"no mount namespaces here: {self._keeper.stderr.read().decode().strip()}")

    def command(self, *words: str | Path) -> list[str]:
        """To start something that sees it."""
        pid = str(self._keeper.pid)
        return ["nsenter", "--target", pid, *self._entering, "--mount", "--", *map(str, words)]

    @property
    def seen(self) -> Path:
        """Where we see what is on it."""
        return Path(f"/proc/{self._keeper.pid}/root{self._directory}")

    def fill(self) -> None:
        self._do('cat /dev/zero >"$0/filler" 2>/dev/null || true')

    def free(self) -> None:
        self._do('rm -f "$0/filler"')

    def deny(self) -> None:
        """Read-only, whatever is open for writing: the superblock's flag could not be set then."""
        self._do('mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"')

    def allow(self) -> None:
        self._do('umount "$0"')

    def _do(self, script: str) -> None:
        command = self.command("sh", "-euc", script, self._directory)
        subprocess.run(command, check=True, capture_output=True, timeout=60)
