"""Runs every query of the Grafana dashboard on a Prometheus: `python docker/check_queries.py http://127.0.0.1:9090`.

Prints a table of what each gives, and exits with 1 if one gives nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

DASHBOARD = Path(__file__).parent / "grafana" / "dashboards" / "trimtab.json"
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "$objective": ".*"}
"""What Grafana would fill in."""


@dataclass(frozen=True)
class Found:
    panel: str
    query: str
    series: int
    last: float | None
    """Of the first series; not the NaN of a ratio or a quantile over nothing."""


def queries(dashboard: Path = DASHBOARD) -> Iterator[tuple[str, str]]:
    """(panel, query) of each of the dashboard's targets."""
    for panel in json.loads(dashboard.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def filled(query: str, rate_interval: str) -> str:
    for name, value in {**VARIABLES, "$__rate_interval": rate_interval}.items():
        query = query.replace(name, value)
    return query


def asked(url: str, query: str) -> list[Any]:
    with urlopen(f"{url.rstrip('/')}/api/v1/query?{urlencode({'query': query})}", timeout=10) as response:
        series: list[Any] = json.load(response)["data"]["result"]
    return series


def found(url: str, panel: str, query: str) -> Found:
    """Series without a number are no data: Grafana would show an empty panel."""
    values = [float(series["value"][1]) for series in asked(url, query)]
    numbers = [value for value in values if not math.isnan(value)]
    return Found(panel, query, len(numbers), numbers[0] if numbers else None)


def table(rows: list[Found]) -> str:
    lines = ["| panel | query | series | last value |", "|---|---|---:|---:|"]
    for row in rows:
        query = row.query.replace("|", r"\|")
        last = "no data" if row.last is None else f"{row.last:.4g}"
        lines.append(f"| {row.panel} | `{query}` | {row.series} | {last} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every query of the dashboard on a Prometheus.")
    parser.add_argument("url", help="such as http://127.0.0.1:9090")
    parser.add_argument("--rate-interval", default=VARIABLES["$__rate_interval"], help="in place of $__rate_interval")
    parser.add_argument("--json", action="store_true", help="a list of objects in place of the table")
    args = parser.parse_args()
    try:
        rows = [found(args.url, panel, filled(query, args.rate_interval)) for panel, query in queries()]
    except HTTPError as error:
        sys.exit(f"check_queries: {args.url}: {error}: {error.read().decode()[:500]}")
    except (URLError, OSError) as error:
        sys.exit(f"check_queries: {args.url}: {error}")
    sys.stdout.write((json.dumps([asdict(row) for row in rows], indent=2) if args.json else table(rows)) + "\n")
    sys.exit(any(row.last is None for row in rows))


if __name__ == "__main__":
    main()
