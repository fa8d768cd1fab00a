"""What of systemctl the documents use, for hosts without systemd: runs what a unit of share/systemd says.

    systemctl.py enable --now UNIT | reload UNIT | restart UNIT | stop UNIT

HOST names the host; STARTED is a folder for the units' processes and logs, which outlive this program.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

UNITS = Path(__file__).parents[1] / "share/systemd"


def settings(unit: str) -> dict[str, str]:
    lines = (UNITS / f"{unit}.service").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def start(unit: str, pid_file: Path) -> None:
    said = settings(unit)
    for kind, above in (("Runtime", "/run"), ("State", "/var/lib"), ("Logs", "/var/log")):
        if f"{kind}Directory" in said:
            directory = Path(above, said[f"{kind}Directory"])
            directory.mkdir(exist_ok=True)
            directory.chmod(int(said[f"{kind}DirectoryMode"], 8))
    program, *arguments = shlex.split(said["ExecStart"])
    environment = os.environ | dict(pair.split("=", 1) for pair in said.get("Environment", "").split())
    found = shutil.which(Path(program).name)
    assert found is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        if said["Type"] == "notify":
            environment["NOTIFY_SOCKET"] = f"/run/{unit}.notify"
            Path(environment["NOTIFY_SOCKET"]).unlink(missing_ok=True)
            notified.bind(environment["NOTIFY_SOCKET"])
        with pid_file.with_suffix(".log").open("ab") as log:
            process = subprocess.Popen(
                [found, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        pid_file.write_text(str(process.pid))
        if said["Type"] == "notify":
            notified.settimeout(0.1)
            for _ in range(600):
                with suppress(TimeoutError):
                    assert notified.recv(64) == b"READY=1"
                    return
                if process.poll() is not None:
                    sys.exit(f"{unit}.service has ended with {process.returncode}")
            sys.exit(f"{unit}.service does not get ready")


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        time.sleep(0.02)


def main() -> None:
    verb, *_, unit = sys.argv[1:]
    pid_file = Path(os.environ["STARTED"], f"{os.environ['HOST']}-{unit}.pid")
    match verb:
        case "enable" | "start":
            start(unit, pid_file)
        case "stop" | "disable":
            stop(int(pid_file.read_text()))
        case "restart":
            stop(int(pid_file.read_text()))
            start(unit, pid_file)
        case "reload":
            assert settings(unit)["ExecReload"] == "/bin/kill -HUP $MAINPID"
            os.kill(int(pid_file.read_text()), signal.SIGHUP)
        case _:
            sys.exit(f"this systemctl does not know '{verb}'")


if __name__ == "__main__":
    main()
