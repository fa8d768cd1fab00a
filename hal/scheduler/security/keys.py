"""Keys for CURVE: the scheduler's own pair, and the list of whom it knows.

A directory (0700) holds ``scheduler.key`` (the pair) and ``known.json`` (names, roles and public keys,
also of revoked ones: an owner's number is never given to another). Files are 0600 and written whole:
a reader finds the old one or the new one. A client's key file is TOML and holds all that it needs::

    name = "alice"
    public = "…"
    secret = "…"
    scheduler = "…"          # the scheduler's public key: a client talks to no other
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec
import zmq
from zmq.utils import z85

from hal.backend import GoneError, StateError
from hal.lines import parse_toml, read_text
from hal.scheduler.security.roles import Role

__all__ = [
    "FIRST_NUMBER",
    "ClientKey",
    "Key",
    "Keys",
    "Pair",
    "check_name",
    "check_public",
    "new_pair",
    "read_client_key",
    "write_secret",
]

FIRST_NUMBER = 1 << 32  # owners without a local uid are numbered from here: no uid is as large (32 bits)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_FORMAT = 1


class Pair(msgspec.Struct, frozen=True):
    """Two halves in Z85, 40 characters each."""

    public: str
    secret: str


class Key(msgspec.Struct, frozen=True):
    """Somebody the scheduler knows. ``uid`` is the owner's number: the local user's, or one made up."""

    name: str
    role: Role
    public: str
    uid: int
    created: str
    revoked: str | None = None


class ClientKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client's key file says."""

    name: str
    public: str
    secret: str
    scheduler: str


class _Known(msgspec.Struct):
    format: int = _FORMAT
    next_number: int = FIRST_NUMBER
    keys: list[Key] = []


def new_pair() -> Pair:
    """Raises StateError where ZeroMQ was built without CURVE."""
    if not zmq.has("curve"):
        raise StateError("this pyzmq was built without CURVE; install one that has it (PyPI's wheels do)")
    public, secret = zmq.curve_keypair()
    while public.startswith(b"-"):  # on a command line it would be taken for an option
        public, secret = zmq.curve_keypair()
    return Pair(public.decode(), secret.decode())


class Keys:
    """The keys of one directory. Changing them takes turns by a lock; reading needs none."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._list = directory / "known.json"
        self._own = directory / "scheduler.key"
        self._stamp: tuple[int, int, int] | None = None
        self._by_public: dict[str, Key] = {}
        self._all: list[Key] = []

    # ---- reading ------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Read the list again if it was changed; True when it was. Raises StateError when it cannot be used;
        what was known before then stays."""
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return False
        known = self._read()
        self._all = known.keys
        self._by_public = {key.public: key for key in known.keys}
        self._stamp = stamp
        return True

    def of(self, public: str) -> Key | None:
        """Whose key this is, revoked or not, as of the last ``refresh``."""
        return self._by_public.get(public)

    def all(self) -> list[Key]:
        return list(self._all)

    def own(self) -> Pair:
        """The scheduler's pair, made at the first call. Raises StateError."""
        if not self._own.exists():
            with self._alone():
                if not self._own.exists():
                    pair = new_pair()
                    write_secret(self._own, f'public = "{pair.public}"\nsecret = "{pair.secret}"\n')
        return _read_secret(self._own, Pair)

    # ---- changing -----------------------------------------------------------------------------

    def add(self, name: str, role: Role, public: str, uid: int | None = None) -> Key:
        """Know one more. Raises StateError with what stands against it."""
        check_name(name)
        check_public(public)
        if uid is not None and uid < 0:
            raise StateError(f"{uid} is no user's number")
        if uid == 0 and role is not Role.ADMIN:
            raise StateError("only an admin's key can stand for root (uid 0)")
        with self._alone():
            known = self._read()
            for key in known.keys:
                if key.name == name and key.revoked is None:
                    raise StateError(f"there is a key '{name}' already: revoke it, or take another name")
                if key.public == public:
                    state = "was revoked" if key.revoked else "is known"
                    raise StateError(f"this public key {state} as '{key.name}'; make a new pair")
            if uid is not None and uid >= FIRST_NUMBER and all(key.uid != uid for key in known.keys):
                raise StateError(f"no key has the owner {uid}; leave it out to have one made up")
            if uid is None:
                uid, known.next_number = known.next_number, known.next_number + 1
            key = Key(name, role, public, uid, _now())
            known.keys.append(key)
            self._write(known)
        return key

    def revoke(self, name: str) -> Key:
        """From now on it opens nothing. Raises GoneError when no key of this name is in force."""
        with self._alone():
            known = self._read()
            for place, key in enumerate(known.keys):
                if key.name == name and key.revoked is None:
                    known.keys[place] = msgspec.structs.replace(key, revoked=_now())
                    self._write(known)
                    return known.keys[place]
        names = ", ".join(sorted(key.name for key in known.keys if key.revoked is None))
        raise GoneError(f"there is no key '{name:.64}' in force" + (f"; there are {names}" if names else ""))

    # ---- files --------------------------------------------------------------------------------

    def _stamp_now(self) -> tuple[int, int, int] | None:
        try:
            found = self._list.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"cannot read the keys {self._list}: {error.strerror}") from None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> _Known:
        if self.directory.exists():
            _is_ones_own(self.directory, "directory of keys")
        try:
            content = self._list.read_bytes()
        except FileNotFoundError:
            return _Known()
        except OSError as error:
            raise StateError(f"cannot read the keys {self._list}: {error.strerror}") from None
        _is_ones_own(self._list, "list of keys")
        try:
            known = msgspec.json.decode(content, type=_Known)
        except msgspec.MsgspecError as error:
            raise StateError(f"the list of keys {self._list} is damaged: {error}") from None
        if known.format != _FORMAT:
            raise StateError(f"{self._list} was written by another version of hal (format {known.format})")
        return known

    def _write(self, known: _Known) -> None:
        write_secret(self._list, msgspec.json.format(msgspec.json.encode(known), indent=1).decode() + "\n")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Make the directory, and let nobody else change what is in it meanwhile. Raises StateError."""
        try:
            for folder in (self.directory.parent, self.directory):  # the first may be a runtime directory
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise StateError(f"cannot use the directory of keys {self.directory}: {error.strerror}") from None
        try:
            _is_ones_own(self.directory, "directory of keys")
            fcntl.flock(handle, fcntl.LOCK_EX)  # held for one small write
            yield
        finally:
            os.close(handle)


def write_secret(path: Path, text: str, *, replace: bool = True) -> None:
    """A file of mode 0600, whole or not at all, durable. Raises StateError; without ``replace`` also when
    there is one."""
    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                Path(draft).rename(path)
            else:
                os.link(draft, path)
        finally:
            Path(draft).unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise StateError(f"{path} exists; a key is not overwritten") from None
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from None


def read_client_key(path: Path) -> ClientKey:
    """A client's key file. Raises StateError with what is wrong with it."""
    return _read_secret(path, ClientKey)


T = TypeVar("T", Pair, ClientKey)


def _read_secret(path: Path, kind: type[T]) -> T:
    try:
        content = read_text(path)
    except UnicodeDecodeError:
        raise StateError(f"the key {path} is not UTF-8") from None
    except OSError as error:
        raise StateError(f"cannot read the key {path}: {error.strerror}") from None
    _is_ones_own(path, "key")
    try:
        found = msgspec.convert(parse_toml(content), kind)
    except msgspec.ValidationError as error:
        raise StateError(f"{path} is no key: {error}") from None
    except ValueError as error:
        raise StateError(f"the key {path} is not TOML: {error}") from None
    if _public_of(found.secret) != found.public:
        raise StateError(f"the two halves of the key {path} do not belong together")
    if isinstance(found, ClientKey):
        check_public(found.scheduler)
    return found


def check_name(name: str) -> None:
    """Raises StateError when no key can have this name."""
    if not _NAME.fullmatch(name):
        raise StateError(
            f"'{name:.64}' is no name for a key: 1 to 32 letters, digits, '.', '_' and '-', the first "
            "a letter or digit"
        )


def check_public(public: str) -> None:
    """Raises StateError when it is no public key."""
    if not _is_z85(public):
        raise StateError(f"'{public:.60}' is no public key: it has 40 characters of Z85")


def _public_of(secret: str) -> str | None:
    return zmq.curve_public(secret.encode()).decode() if _is_z85(secret) else None


def _is_z85(text: str) -> bool:
    try:
        return len(text) == 40 and len(z85.decode(text)) == 32
    except (ValueError, KeyError, struct.error):
        return False


def _is_ones_own(path: Path, what: str) -> None:
    """Raises StateError when others could read or change it."""
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(found.st_mode) & 0o077:
        right = "0700" if path.is_dir() else "0600"
        raise StateError(f"the {what} {path} is open to others: make it yours alone (chmod {right} {path})")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
