"""One book of claims per node: whatever lends a device, or a part of one, first claims it here.

The book is a directory on tmpfs that all users of the node share (mode 1777, as /tmp): one small file per
claim, owned by who made it, so that nobody can end another's. Claims are made one at a time, under one lock;
a claim counts while its maker holds its file locked, which the kernel ends with the process, or, when it was
made to be kept, until the file is removed. A restart of the node empties the book.

It stops schedulers that mean well from lending one thing twice. It is no defence against a user who claims
what they do not use; ``hal slice list --all`` shows who claims what.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from hal.backend import StateError, TemporaryError, UnsupportedError

__all__ = ["ALL_MILLI", "Book", "Claim", "Held", "conflict", "free_units"]

ALL_MILLI = 1000  # thousandths of a device's time: all of it
_VERSION = 1
_SUFFIX = ".claim"
_LARGEST = 16 << 10  # bytes of a claim file that are read; ours have some hundred
_MOST_FILES = 4096


class Claim(Struct, frozen=True):
    """A device, or so much of it. ``compute_milli`` 0 claims no share of its time: it takes what it gets."""

    id: str
    device: str
    memory_bytes: int
    compute_milli: int = 0
    whole: bool = False
    elastic: bool = False
    name: str = ""
    by: str = ""  # what made it: "scheduler", "slice"
    kept: bool = False  # it outlives its maker
    group: str = ""  # the control group that the driver or the kernel holds
    units_from: int | None = None  # its compute units: from here on, in thousandths of the device's
    version: int = _VERSION


class Held(Struct, frozen=True):
    """A claim in the book, with the user who owns its file."""

    claim: Claim
    uid: int


def conflict(wanted: Claim, others: Iterable[Claim], memory_bytes: int) -> str | None:
    """Why a claim cannot stand beside the others on a device of ``memory_bytes``, in a sentence; None: it
    can."""
    here = [other for other in others if other.device == wanted.device and other.id != wanted.id]
    taken = next((other for other in here if other.whole), None)
    if taken is not None:
        return f"{wanted.device} is claimed whole by '{taken.name or taken.id}'"
    if wanted.whole:
        return (
            f"{wanted.device} has {len(here)} slices on it, so it cannot be claimed whole" if here else None
        )
    claimed = sum(other.memory_bytes for other in here)
    if wanted.memory_bytes > memory_bytes - claimed:
        return (
            f"{wanted.device} has {_gib(max(memory_bytes - claimed, 0))} unclaimed of {_gib(memory_bytes)}, "
            f"and {_gib(wanted.memory_bytes)} is wanted"
        )
    time = sum(other.compute_milli for other in here)
    if wanted.compute_milli > ALL_MILLI - time:
        return (
            f"{wanted.device} has {(ALL_MILLI - time) / 10:.0f} % of its time unclaimed, "
            f"and {wanted.compute_milli / 10:.0f} % is wanted"
        )
    return None


def _check_size(wanted: Claim, memory_bytes: int, *, anyway: bool) -> None:
    if wanted.memory_bytes > memory_bytes and not anyway:
        raise UnsupportedError(
            f"{wanted.device} has {_gib(memory_bytes)} in all, and {_gib(wanted.memory_bytes)} is wanted"
        )


def free_units(others: Iterable[Claim], device: str, milli: int) -> int | None:
    """Where ``milli`` thousandths of a device's compute units are free: the first such place, or None."""
    taken = sorted(
        (other.units_from, other.compute_milli)
        for other in others
        if other.device == device and other.units_from is not None
    )
    at = 0
    for first, length in taken:
        if first - at >= milli:
            return at
        at = max(at, first + length)
    return at if ALL_MILLI - at >= milli else None


class Book:
    """The node's claims. ``HAL_NODE_DIR`` names the directory; else it is ``/dev/shm/hal-node``.

    An emulated machine has one of its own. Processes that see different directories, such as those of
    containers that do not share /dev/shm, do not see each other's claims.
    """

    def __init__(self, directory: Path | None = None) -> None:
        named = os.environ.get("HAL_NODE_DIR")
        self.directory = directory or (Path(named).absolute() if named else Path("/dev/shm/hal-node"))  # noqa: S108
        self._root = str(self.directory)
        self._mine: dict[str, int] = {}  # descriptors: these claims live as long as this process does
        self._known: dict[str, Held] = {}  # of these, those that this process has made: they need no reading

    def claims(self) -> list[Held]:
        """What is claimed now, by anybody; a file that is no claim of ours is passed over.

        Raises StateError.
        """
        try:
            return list(self._living())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError(f"cannot read the node's book of claims: {error.strerror}") from None

    def claim(self, wanted: Claim, memory_bytes: int, *, anyway: bool = False) -> Claim:
        """Enter a claim on a device that has ``memory_bytes`` for programs. An empty id is filled in.

        Lives until ``end`` or the end of this process, or with ``kept`` until ``end``. Raises TemporaryError
        when it conflicts with another, UnsupportedError when it is more than the device has, StateError
        when the book cannot be used.
        """
        wanted = msgspec.structs.replace(wanted, id=wanted.id or secrets.token_hex(8))
        _check_size(wanted, memory_bytes, anyway=anyway)
        with self._locked():
            against = conflict(wanted, (held.claim for held in self._living()), memory_bytes)
            if against is not None and not anyway:
                raise TemporaryError(against)
            self._enter(wanted)
        return wanted

    def change(self, wanted: Claim, memory_bytes: int) -> None:
        """Put a claim of this user in place of the one with the same id. Raises as ``claim`` does."""
        _check_size(wanted, memory_bytes, anyway=False)
        with self._locked():
            against = conflict(wanted, (held.claim for held in self._living()), memory_bytes)
            if against is not None:
                raise TemporaryError(against)
            path = self._path(wanted.id)
            self._known.pop(wanted.id, None)
            try:
                with open(path, "r+b") as file:
                    file.write(_written(wanted, os.fstat(file.fileno()).st_size))
            except OSError as error:
                raise StateError(f"cannot change the claim {path}: {error.strerror}") from None

    def hold(self, claim_id: str) -> None:
        """Keep the claim of a maker that has ended alive with this process: a scheduler after its restart.

        Raises StateError when it is not there.
        """
        if claim_id in self._mine:
            return
        try:
            file = os.open(self._path(claim_id), os.O_RDWR | os.O_CLOEXEC)
            fcntl.flock(file, fcntl.LOCK_SH)  # who looks whether it is alive holds it for a moment
        except OSError as error:
            raise StateError(f"cannot hold the claim {claim_id}: {error.strerror}") from None
        self._mine[claim_id] = file

    def end(self, claim_id: str) -> None:
        """Give a claim back. One that is not there is no error; another user's raises StateError."""
        try:
            os.unlink(self._path(claim_id))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StateError(f"cannot end the claim {claim_id}: {error.strerror}") from None
        self._known.pop(claim_id, None)
        if (file := self._mine.pop(claim_id, None)) is not None:
            os.close(file)

    def close(self) -> None:
        """Let go of all; those that are not kept end with it."""
        for claim_id in list(self._mine):
            self.end(claim_id)

    # ---- files ------------------------------------------------------------------------------

    def _path(self, claim_id: str) -> str:
        """As text: several of pathlib's steps for each claim would take as long as all else."""
        if not claim_id.isalnum():
            raise StateError(f"'{claim_id}' is no claim's id")
        return f"{self._root}/{claim_id}{_SUFFIX}"

    def ledger_file(self, claim_id: str) -> Path:
        """Where the ledger of a claim's slice lies: in a directory of this user's own, made when it is
        missing."""
        mine = self.directory / f"slices-{os.geteuid()}"
        try:
            self._make()
            mine.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateError(f"cannot use {mine}: {error.strerror}") from None
        if mine.lstat().st_uid != os.geteuid():
            raise StateError(f"{mine} belongs to another user; have it removed")
        return mine / f"{claim_id}.ledger"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._make()
            descriptor = os.open(self._lock(), os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StateError(
                f"cannot use the node's book of claims {self.directory}: {error.strerror}; "
                "set HAL_NODE_DIR to a directory that all who share the devices can write to"
            ) from error

    def _lock(self) -> str:
        """A directory that somebody made by hand has none yet."""
        path = f"{self._root}/lock"
        if not os.path.exists(path):
            draft = self.directory / f".lock-{secrets.token_hex(8)}"
            draft.touch()
            try:
                draft.chmod(0o666)
                with contextlib.suppress(FileExistsError):
                    os.link(draft, path)
            finally:
                draft.unlink()
        return path

    def _make(self) -> None:
        """Once per node and whole from the start, whatever the umask: all users take turns with the lock."""
        try:
            status = os.lstat(self._root)
        except FileNotFoundError:
            draft = self.directory.with_name(f".{self.directory.name}-{secrets.token_hex(8)}")
            draft.mkdir()
            (draft / "lock").touch()
            (draft / "lock").chmod(0o666)
            draft.chmod(0o1777)
            try:
                draft.rename(self.directory)
            except OSError:  # another was first
                (draft / "lock").unlink()
                draft.rmdir()
            status = os.lstat(self._root)
        shared = stat.S_IMODE(status.st_mode) & 0o1777 == 0o1777
        if not stat.S_ISDIR(status.st_mode) or not (shared or status.st_uid == os.geteuid()):
            raise StateError(
                f"{self.directory} is not a directory with mode 1777, as the book of claims has to be"
            )

    def _enter(self, claim: Claim) -> None:
        path, content = self._path(claim.id), _written(claim)
        draft = f"{path}.new"
        file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(file, 0o644)  # whatever the umask
            if os.write(file, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if not claim.kept:
                fcntl.flock(file, fcntl.LOCK_SH)  # before anybody can see it
            os.rename(draft, path)
        except BaseException:
            os.close(file)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
            raise
        if claim.kept:
            os.close(file)
        else:
            self._mine[claim.id] = file
            self._known[claim.id] = Held(claim, os.geteuid())

    def _living(self) -> Iterator[Held]:
        names = sorted(name for name in os.listdir(self._root) if name.endswith(_SUFFIX))
        for name in names[:_MOST_FILES]:
            held = self._known.get(name.removesuffix(_SUFFIX)) or self._read(f"{self._root}/{name}")
            if held is not None:
                yield held

    def _read(self, path: str) -> Held | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # what cannot be looked at is not nothing
                raise
            return None  # ended just now, or not meant to be read
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            claim = msgspec.json.decode(os.pread(descriptor, _LARGEST, 0), type=Claim)
            if (
                f"{claim.id}{_SUFFIX}" != path.rpartition("/")[2]
                or claim.memory_bytes < 0
                or not 0 <= claim.compute_milli <= ALL_MILLI
            ):
                return None
            if (
                not claim.kept
                and claim.id not in self._mine
                and self._is_dead(descriptor, path, status.st_uid)
            ):
                return None
            return Held(claim, status.st_uid)
        except (msgspec.MsgspecError, OSError):
            return None
        finally:
            os.close(descriptor)

    def _is_dead(self, descriptor: int, path: str, uid: int) -> bool:
        """Nobody holds it. What is left of a dead maker's is removed by who may."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if os.geteuid() in (0, uid):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        return True


def _written(claim: Claim, size: int = 0) -> bytes:
    """As long as most are, and as the one before: one that is changed has no rest of that. Raises StateError
    for one that others would not read."""
    content = msgspec.json.encode(claim).ljust(max(_LARGEST // 16, size))
    if len(content) > _LARGEST:
        raise StateError(f"a claim has at most {_LARGEST} bytes, and this one {len(content)}")
    return content


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
