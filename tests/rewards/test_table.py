from __future__ import annotations

from pathlib import Path
from typing import get_type_hints

import pytest

from rewards import COMBINES, KINDS, TRANSFORMS, Entry

ROOT = Path(__file__).parent.parent.parent
TABLES = {"kind": KINDS, "transform": TRANSFORMS, "combine": COMBINES}
ROWS = [(table, name) for table, rows in TABLES.items() for name in rows]


def there(entry: Entry) -> bool:
    return (ROOT / entry.target.partition(":")[0].replace(".", "/")).with_suffix(".py").exists()


@pytest.mark.parametrize("table", TABLES)
def test_sorted(table: str) -> None:
    assert list(TABLES[table]) == sorted(TABLES[table])


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_a_row_loads_and_every_parameter_says_what_it_is(table: str, name: str) -> None:
    entry = TABLES[table][name]
    if name in ("classifier", "process") and not there(entry):
        pytest.skip(f"{entry.target} is not there yet")
    built = entry.load()
    assert entry.uses <= {"host", "pooler"}
    assert entry.uses <= set(get_type_hints(built.__init__ if isinstance(built, type) else built))
    for parameter, field in entry.parameters.model_fields.items():
        assert field.description, f"{name}.{parameter}"
