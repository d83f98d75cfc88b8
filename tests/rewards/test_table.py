from __future__ import annotations

from typing import get_type_hints

import pytest

from trimtab.rewards import COMBINES, KINDS, TRANSFORMS

TABLES = {"kind": KINDS, "transform": TRANSFORMS, "combine": COMBINES}
ROWS = [(table, name) for table, rows in TABLES.items() for name in rows]


@pytest.mark.parametrize("table", TABLES)
def test_sorted(table: str) -> None:
    assert list(TABLES[table]) == sorted(TABLES[table])


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_a_row_loads_and_every_parameter_says_what_it_is(table: str, name: str) -> None:
    entry = TABLES[table][name]
    built = entry.load()
    assert entry.uses <= {"host", "name", "pooler"}
    assert entry.uses <= set(get_type_hints(built.__init__ if isinstance(built, type) else built))
    for parameter, field in entry.parameters.model_fields.items():
        assert field.description, f"{name}.{parameter}"
