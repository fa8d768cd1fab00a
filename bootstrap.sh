#!/bin/sh
# Makes .venv, with hal and all that it needs, from a fresh clone. `make` calls it when something has changed,
# and it may be run again at any time.
#   ./bootstrap.sh          what running and testing need
#   ./bootstrap.sh check    also what `make check` needs
# It writes to .venv and build/ only (and pip to its cache); as root it may install system packages with apt-get.
set -eu
unset CDPATH VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH PYTHONOPTIMIZE MAKEFLAGS MAKELEVEL
cd "$(dirname "$0")"

# Of pip's settings, those that say how to reach an index hold here; those that say what is put where do not.
for name in $(env | sed -n 's/^\(PIP_[A-Z_]*\)=.*/\1/p'); do
  case $name in
    *INDEX* | *LINKS | *CERT | *HOST | *PROXY | *TIMEOUT | *RETRIES | *CACHE* | *KEYRING* | PIP_CONFIG_FILE) ;;
    *) unset "$name" ;;
  esac
done
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

export TMPDIR="$PWD/build/tmp"
log=build/bootstrap.log
sound=.venv/.hal-sound # there while .venv is whole; says which checkout it was made for

say() { echo "hal: $*"; }
fail() {
  tail -n 40 "$log" >&2
  say "that failed; the whole log is in $PWD/$log" >&2
  exit 1
}

# ---- what the system must have: a C compiler with libc's headers, Python with its headers and venv ----

compiles() {
  printf '#include <stdlib.h>\nint main(void) { return 0; }\n' |
    ${CC:-cc} -x c - -o "$TMPDIR/probe" >/dev/null 2>&1
}

suits() { # is $1 a Python that can make .venv and build against its own headers?
  "$1" -c '
import ctypes, ensurepip, pathlib, ssl, sys, sysconfig, venv, zlib
free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")  # has no stable ABI to build for
headers = pathlib.Path(sysconfig.get_path("include"), "Python.h").is_file()
sys.exit(sys.version_info < (3, 11) or bool(free_threaded) or not headers)' >/dev/null 2>&1
}

find_python() { # the one on PATH may be a version manager's, and older or barer than the system's
  for version in 3 3.14 3.13 3.12 3.11; do
    for python in "python$version" "/usr/bin/python$version"; do
      if suits "$python"; then return; fi
    done
  done
  return 1
}

whole() { # is .venv as an earlier run left it, for this place and for a Python that is still there?
  [ "$(cat "$sound" 2>/dev/null)" = "$(pwd -P)" ] && suits .venv/bin/python &&
    .venv/bin/python -m pip --version >/dev/null 2>&1
}

find_missing() { # sets lacks (in words), install (the command) and packages (its arguments)
  version=3 # where the system's own Python is too old, its distribution may offer 3.11 beside it
  if /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info >= (3, 11))' 2>/dev/null; then version=3.11; fi
  if command -v apt-get >/dev/null; then
    install="apt-get install -y" for_c="gcc libc6-dev" for_python="python$version-dev python$version-venv"
  elif command -v dnf >/dev/null; then
    install="dnf install -y" for_c="gcc" for_python="python$version-devel"
  elif command -v pacman >/dev/null; then
    install="pacman -S --needed" for_c="gcc" for_python="python"
  else
    install="" for_c="" for_python=""
  fi
  lacks="" packages=""
  if ! compiles; then
    lacks="a C compiler" packages=$for_c
  fi
  if ! whole && ! find_python; then
    lacks="${lacks:+$lacks and }Python 3.11 or newer with its headers and venv"
    packages="${packages:+$packages }$for_python"
  fi
  [ -n "$lacks" ]
}

install_missing() { # one broken source among many need not stop it
  say "installing $packages with apt-get"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update; $install --no-install-recommends $packages; } >>"$log" 2>&1 </dev/null || fail
}

stop_for_missing() {
  sudo="sudo "
  if [ "$(id -u)" = 0 ]; then sudo=""; fi
  if [ -n "$install" ]; then
    say "this needs $lacks; type: $sudo$install $packages" >&2
  else
    say "this needs $lacks; please install that and try again" >&2
  fi
  exit 1
}

# ---- .venv ----

pip_install() { # .venv is not whole until pip has come to its end, be it good or bad
  rm -f "$sound"
  status=0
  .venv/bin/python -m pip install "$@" >>"$log" 2>&1 </dev/null || status=$?
  pwd -P >"$sound"
  [ "$status" = 0 ] || fail
}

make_venv() {
  say "making .venv"
  rm -rf .venv build/asan # what CMake made knows where it was made
  "$python" -m venv .venv >>"$log" 2>&1 || fail
  pip_install 'pip>=25.1' # the first that knows dependency groups
}

# ---- the run ----

case ${1:-} in
  "") stamp=.venv/.hal-stamp ;;
  check) stamp=.venv/.hal-check-stamp ;;
  *) say "type ./bootstrap.sh or ./bootstrap.sh check" >&2 && exit 2 ;;
esac
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p build
if command -v flock >/dev/null; then # two terminals, one .venv
  exec 9>build/bootstrap.lock
  if ! flock -n 9; then
    say "waiting for another set-up to end"
    flock 9
    if make -q "$stamp"; then exit; fi
  fi
fi
rm -rf "$TMPDIR" && mkdir "$TMPDIR"
: >"$log"
: >build/stamp # as old as the start, so that what is edited meanwhile is newer than it

tries=2 # the distribution's Python may turn out, once it is there, to be too old
while find_missing; do
  if [ $tries = 0 ] || [ "$(id -u)" != 0 ] || [ "${install%% *}" != apt-get ]; then stop_for_missing; fi
  tries=$((tries - 1))
  install_missing
done
whole || make_venv
if [ "$stamp" = .venv/.hal-stamp ]; then
  if [ -e "$stamp" ]; then say "building"; else say "building (about half a minute the first time)"; fi
  pip_install --editable '.[amd]' --group test
  # The editable install knows each module's file: Makefile compares this list.
  find hal backends native/hal_native -name '*.py' | LC_ALL=C sort | cksum >.venv/.hal-modules
else
  say "installing the checkers"
  case $(cmake --version 2>/dev/null) in
    "cmake version 3."2[5-9]* | "cmake version 3."[3-9][0-9]* | "cmake version "[4-9]*) cmake="" ;;
    *) cmake="cmake>=3.25" ;;
  esac
  pip_install --group check $cmake
fi
mv build/stamp "$stamp"
rm -rf "$TMPDIR"
