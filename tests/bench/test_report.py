from __future__ import annotations

import json

from trimtab.bench.report import table, write


def test_a_table_lines_up() -> None:
    lines = table(["name", "ratio"], [["plain", 1.23456], ["guided, twice", 10]]).splitlines()
    assert lines[2] == "| plain         | 1.235 |"
    assert {len(line) for line in lines} == {len(lines[0])}


def test_figures_say_where_they_come_from(tmp_path) -> None:
    write(tmp_path / "deep" / "figures.json", {"ratio": 0.5})
    written = json.loads((tmp_path / "deep" / "figures.json").read_text())
    assert written["figures"] == {"ratio": 0.5}
    assert set(written["about"]) == {"command", "date", "machine", "versions"}
