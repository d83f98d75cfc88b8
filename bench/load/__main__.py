from __future__ import annotations

from trimtab.bench.load.cli import main

main()
