"""``hal metrics``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from hal.cli.output import print_json, print_table
from hal.telemetry.catalogue import CATALOGUE


def configure_metrics(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    parser.description = "List every figure that hal can read, with its unit and what it means."
    parser.epilog = "examples:\n  hal metrics\n  hal metrics --markdown > docs/metrics.md"
    parser.add_argument("--json", action="store_true", help="print JSON (schema hal.metrics/1)")
    parser.add_argument("--markdown", action="store_true", help="print the documentation page")
    return _metrics


def _metrics(options: argparse.Namespace) -> int:
    metrics = list(CATALOGUE.values())
    if options.json:
        print_json("hal.metrics/1", metrics=metrics)
    elif options.markdown:
        print(markdown(), end="")
    else:
        print_table(
            ("METRIC", "GROUP", "UNIT", "KIND", "SCOPE", "COST", "LABELS", "WHAT IT MEANS"),
            [
                (m.name, m.group, m.unit, m.kind, m.scope, m.cost, ",".join(m.labels) or "–", m.meaning)
                for m in metrics
            ],
        )
    return 0


def markdown() -> str:
    """The documentation page: docs/metrics.md is this text, and a test compares them."""
    lines = [
        "# Metrics",
        "",
        "<!-- Made by `hal metrics --markdown`; edit hal/telemetry/catalogue.py. -->",
        "",
        "Every figure is read per device, or per partition where it has its own. A reading carries a",
        "status; its value is null unless that is `ok`, `estimated`, `saturated` or `stale`. *Cost* says how",
        "often it is worth asking for: static figures once, fast ones every tick, slow ones one tick in ten.",
    ]
    head = ["| metric | unit | kind | scope | cost | meaning |", "|---|---|---|---|---|---|"]
    group = None
    for metric in CATALOGUE.values():
        if metric.group is not group:
            group = metric.group
            lines += ["", f"## {group}", "", *head]
        name = f"{metric.name}{{{','.join(metric.labels)}}}" if metric.labels else metric.name
        words = (f"`{name}`", metric.unit, metric.kind, metric.scope, metric.cost, metric.meaning)
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines) + "\n"
