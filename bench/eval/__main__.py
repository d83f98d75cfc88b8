from __future__ import annotations

from trimtab.bench.eval.cli import main

main()
