from __future__ import annotations

from bench.load.cli import main

main()
