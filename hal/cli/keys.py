"""``hal keys new``, ``add``, ``list`` and ``revoke``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from hal.backend import StateError
from hal.cli.output import note, print_json, print_table
from hal.scheduler.config import configuration_file, keys_directory, load_config
from hal.scheduler.places import Places
from hal.scheduler.security.keys import Key, Keys, check_name, check_public, new_pair, write_secret
from hal.scheduler.security.roles import Role


def configure_keys(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = (
        "The keys with which agents and clients of other machines reach this machine's scheduler.\n"
        "A key has a name, a role and an owner. Its file is secret: who has it, is its owner."
    )
    parser.epilog = (
        "examples:\n  hal keys new alice --output alice.key\n  hal keys new node7 --role agent\n"
        "  HAL_SCHEDULER=tcp://head:7421 HAL_KEY=alice.key hal lease list     (on another machine)\n"
        "  hal keys list\n  hal keys revoke alice"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="new|add|list|revoke", required=True)
    making = verbs.add_parser(
        "new",
        help="make a key, know it from now on, and write its file",
        description="Make a key, know it from now on, and write its file (NAME.key, mode 0600).",
        epilog="examples:\n  hal keys new alice\n  hal keys new node7 --role agent --output /root/node7.key\n"
        "  hal keys new bob --server-key 'rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7' (where bob is)",
    )
    making.add_argument("name", metavar="NAME", help="of a person or program; of an agent the node's name")
    making.add_argument("--output", metavar="FILE", help="where to write it (NAME.key, here)")
    making.add_argument(
        "--server-key",
        metavar="KEY",
        help="only write the file, for a scheduler elsewhere that has this public key ('hal keys list' shows "
        "it there); its operator then uses 'hal keys add'. So the secret never travels",
    )
    adding = verbs.add_parser(
        "add",
        help="know somebody else's public key",
        description="Know a public key whose secret half was made, and stays, elsewhere.",
        epilog="example:\n  hal keys add bob 'Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID'",
    )
    adding.add_argument("name", metavar="NAME")
    adding.add_argument("public", metavar="KEY", help="40 characters, as 'hal keys new --server-key' says")
    for verb in (making, adding):
        verb.add_argument(
            "--role", choices=[one.value for one in Role], default="user", help="what it may do (user)"
        )
        verb.add_argument(
            "--uid", type=int, metavar="N", help="whose its leases are: a user of this machine (a new owner)"
        )
    listing = verbs.add_parser(
        "list",
        help="who is known, and the scheduler's public key",
        description="Who is known, or was, and the scheduler's own public key.",
        epilog="example:\n  hal keys list --json",
    )
    revoking = verbs.add_parser(
        "revoke",
        help="a key opens nothing from now on",
        description="A key opens nothing from now on; connections made with it are refused, too.",
        epilog="example:\n  hal keys revoke alice",
    )
    revoking.add_argument("name", metavar="NAME")
    for verb in (making, adding, listing, revoking):
        verb.add_argument("--config", metavar="FILE", help="the scheduler's configuration (see 'hal serve')")
        verb.add_argument("--directory", metavar="DIR", help="the directory of keys (the configuration's)")
        verb.add_argument("--json", action="store_true", help="print JSON (schema hal.keys/1)")
    return _run


def _run(options: argparse.Namespace) -> int:
    if options.verb == "new" and options.server_key is not None:
        return _elsewhere(options)
    keys = Keys(_directory(options))
    _must_be_a_schedulers(keys)
    match options.verb:
        case "new":
            return _new(keys, options)
        case "add":
            key = keys.add(options.name, Role(options.role), options.public, options.uid)
            _tell_of_an_earlier_owner(keys, key)
            return _said(keys, [key], options)
        case "revoke":
            return _said(keys, [keys.revoke(options.name)], options)
    keys.refresh()
    return _said(keys, keys.all(), options)


def _must_be_a_schedulers(keys: Keys) -> None:
    """Else a pair would be made for a scheduler that nobody has, and keys that open nothing."""
    if os.environ.get("HAL_SCHEDULER", "").startswith("tcp://") and not keys.directory.is_dir():
        raise StateError(
            f"there is no {keys.directory}: keys are known where the scheduler runs, and HAL_SCHEDULER names "
            "another machine; one whose secret stays here is made with --server-key"
        )


def _directory(options: argparse.Namespace) -> Path:
    if options.directory is not None:
        return Path(options.directory)
    runtime = Places().directory
    return keys_directory(load_config(configuration_file(options.config, runtime)), runtime)


def _new(keys: Keys, options: argparse.Namespace) -> int:
    path = Path(options.output or f"{options.name}.key")
    _must_not_exist(path)
    pair = new_pair()
    key = keys.add(options.name, Role(options.role), pair.public, options.uid)
    try:
        write_secret(path, _file(key.name, pair.public, pair.secret, keys.own().public), replace=False)
    except StateError:
        keys.revoke(key.name)  # nobody has it
        raise
    note(f"wrote {path}: give it to {key.name} and to nobody else")
    _tell_of_an_earlier_owner(keys, key)
    return _said(keys, [key], options)


def _tell_of_an_earlier_owner(keys: Keys, key: Key) -> None:
    """A name is nobody's: what the key before it has made is shown to this one only with the same owner."""
    keys.refresh()
    before = [one for one in keys.all() if one.name == key.name and one.revoked is not None]
    owners = [one.uid for one in before if one.role is not Role.AGENT]
    if key.role is not Role.AGENT and owners and key.uid not in owners:
        note(
            f"{key.name} had owner {owners[-1]} before: a key with --uid {owners[-1]} keeps the leases and "
            f"jobs made until now, this one does not see them (to change that: hal keys revoke {key.name})"
        )


def _elsewhere(options: argparse.Namespace) -> int:
    check_name(options.name)
    check_public(options.server_key)
    path = Path(options.output or f"{options.name}.key")
    _must_not_exist(path)
    pair = new_pair()
    write_secret(path, _file(options.name, pair.public, pair.secret, options.server_key), replace=False)
    note(f"wrote {path}; at the scheduler: hal keys add {options.name} '{pair.public}' --role {options.role}")
    if options.json:
        print_json("hal.keys/1", directory=None, scheduler=options.server_key, keys=[])
    return 0


def _must_not_exist(path: Path) -> None:
    """Before anything is made: a name that is taken by then is no loss."""
    if path.exists():
        raise StateError(f"{path} exists; a key is not overwritten")


def _file(name: str, public: str, secret: str, scheduler: str) -> str:
    return (
        f"# A key of hal: who has this file, is '{name}' to the scheduler.\n"
        f'name = "{name}"\npublic = "{public}"\nsecret = "{secret}"\nscheduler = "{scheduler}"\n'
    )


def _said(keys: Keys, of: list[Key], options: argparse.Namespace) -> int:
    own = keys.own().public
    if options.json:
        print_json("hal.keys/1", directory=str(keys.directory), scheduler=own, keys=of)
        return 0
    print_table(
        ("NAME", "ROLE", ">OWNER", "SINCE", "STATE", "PUBLIC KEY"),
        [
            (
                key.name,
                key.role.value,
                str(key.uid),
                key.created,
                "in force" if key.revoked is None else f"revoked {key.revoked}",
                key.public,
            )
            for key in of
        ],
    )
    if options.verb == "list":
        print(f"\nthe scheduler's own public key: {own}")
    return 0
