"""``python -m benchmarks [NAME…] [--json]``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import sys
from types import ModuleType

import benchmarks
from benchmarks import frame


def _found() -> dict[str, ModuleType]:
    """Every module of this package that has figures to give, by name."""
    names = sorted(info.name for info in pkgutil.iter_modules(benchmarks.__path__) if info.name != "__main__")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "figures")}


def main() -> int:
    found = _found()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure, and print the figures."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (all): {', '.join(found)}")
    parser.add_argument("--json", action="store_true", help="print JSON (schema hal.benchmarks/1)")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in found]
    if unknown:
        parser.error(f"there is no benchmark '{unknown[0]}'; there are: {', '.join(found)}")
    measured = list(frame.run(found[name] for name in options.names or found))
    if options.json:
        figures = [{"benchmark": name, **figure._asdict()} for name, figure in measured]
        machine = {
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
        }
        json.dump(
            {"schema": "hal.benchmarks/1", "machine": machine, "figures": figures}, sys.stdout, indent=2
        )
        print()
    else:
        print("\n".join(frame.table([figure for _, figure in measured])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
