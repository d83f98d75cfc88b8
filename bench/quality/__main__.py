"""python -m trimtab.bench.quality STUDY [--quick] [--url http://…] [--json PATH] [--png PATH]"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from trimtab.bench.quality import best_of_n, contexts, directions, guided, qalign, real, search, weights
from trimtab.bench.quality.points import Bench
from trimtab.bench.report import write
from trimtab.bench.serving import trimtab
from trimtab.recipes.corpus import heldout_prompts
from trimtab.server.cli import DEMO


def client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=3600, max_retries=2)


async def guided_study(url: str, prompts: int, args: argparse.Namespace) -> dict[str, Any]:
    async with client(url) as http:
        catalogue: Any = await http.get("/alignment", cast_to=object)
        bench = Bench(http, catalogue["model"], heldout_prompts(prompts, seed=1), asyncio.Semaphore(64))
        result = await guided.run(bench, catalogue, quick=args.quick, strength=args.strength)
    guided.draw(result, args.png)
    return guided.show(result) | {"strength": args.strength}


async def best_of_n_study(url: str, prompts: int, args: argparse.Namespace) -> dict[str, Any]:
    async with client(url) as http:
        catalogue: Any = await http.get("/alignment", cast_to=object)
        mixed, sums, speculation = await best_of_n.run(
            http, catalogue["model"], prompts=prompts, size=64 if args.quick else 256
        )
    figures = best_of_n.show(mixed, sums, speculation, len(mixed[0].texts))
    best_of_n.draw(figures, args.png)
    return figures


async def qalign_study(url: str, prompts: int, args: argparse.Namespace) -> dict[str, Any]:
    betas, steps, size = ((0.5, 1.0), (4, 16), 48) if args.quick else ((0.25, 0.5, 1.0, 2.0), (4, 16, 64), 192)
    betas = args.betas or betas
    async with client(url) as http:
        catalogue: Any = await http.get("/alignment", cast_to=object)
        studies = await qalign.run(http, catalogue["model"], prompts=prompts, size=size, betas=betas, steps=steps)
    figures = qalign.show(studies)
    qalign.draw(figures, args.png)
    return figures


async def search_study(url: str, prompts: int, args: argparse.Namespace) -> dict[str, Any]:
    async with client(url) as http:
        catalogue: Any = await http.get("/alignment", cast_to=object)

        def keep(rows: Sequence[search.WayRow]) -> None:
            write(args.json, {"prompts": prompts, "rows": [row.figures() for row in rows]})

        rows = await search.run(http, catalogue["model"], prompts=prompts, quick=args.quick, keep=keep)
    search.draw(rows, args.png)
    return search.show(rows)


async def directions_study(url: str, prompts: int, args: argparse.Namespace) -> dict[str, Any]:
    async with client(url) as http:
        catalogue: Any = await http.get("/alignment", cast_to=object)
        bench = directions.Directions(http, catalogue["model"], heldout_prompts(prompts, seed=6), asyncio.Semaphore(16))
        figures = directions.show(await directions.run(bench, quick=args.quick))
    directions.draw(figures, args.png)
    return figures


async def infer_study(url: str, prompts: int, args: argparse.Namespace) -> dict[str, Any]:
    async with client(url) as http:
        catalogue: Any = await http.get("/alignment", cast_to=object)
        figures = await weights.infer(http, catalogue, prompts=prompts, quick=args.quick)
    weights.draw_infer(figures, args.png)
    return figures


async def auto_study(url: str, prompts: int, args: argparse.Namespace) -> dict[str, Any]:
    async with client(url) as http:
        catalogue: Any = await http.get("/alignment", cast_to=object)
        bench = directions.Directions(http, catalogue["model"], heldout_prompts(prompts, seed=8), asyncio.Semaphore(16))
        return await weights.auto(bench, catalogue)


CONFIGS = {
    "search": DEMO.with_name("search.yaml"),
    "directions": DEMO.with_name("directions.yaml"),
    "real": Path("real/config.yaml"),
    "contexts": Path("real/contexts.yaml"),
}
"""study -> what serves it, where it is not the demo's own configuration"""
STUDIES = {
    "guided": (guided_study, 240, 60),
    "best_of_n": (best_of_n_study, 96, 24),
    "qalign": (qalign_study, 48, 8),
    "search": (search_study, 60, 3),
    "directions": (directions_study, 90, 18),
    "infer": (infer_study, 36, 12),
    "auto": (auto_study, 180, 36),
    "real": (real.study, 108, 3),
    "contexts": (contexts.study, 100, 3),
}
"""name -> study, held-out prompts, and those of --quick"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trimtab.bench.quality", description="Scores of served answers.")
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--url", help="a server that runs already; by default one is started")
    parser.add_argument("--config", type=Path, help="its configuration; by default the study's")
    parser.add_argument("--quick", action="store_true", help="fewer prompts and points: under 5 minutes on 2 cores")
    parser.add_argument("--prompts", type=int, help="held-out prompts per point")
    parser.add_argument("--strength", type=float, default=1.0, help="guided: what the frontier's weights sum to")
    parser.add_argument("--betas", type=float, nargs="+", help="qalign: temperatures, in spreads of the reward")
    parser.add_argument(
        "--data", type=Path, nargs="+", default=real.DATA, help="real, contexts: prompts, or preferences with some"
    )
    parser.add_argument("--out", type=Path, help="real, contexts: answers, and figures of each stage")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    args = parser.parse_args()
    study, many, few = STUDIES[args.study]
    args.out = args.out or Path("out", {"real": "study"}.get(args.study, args.study))
    args.png = args.png or Path(f"out/{args.study}.png")
    prompts = args.prompts or (few if args.quick else many)
    config = args.config or CONFIGS.get(args.study, DEMO)
    with trimtab(args.url, config) as url:
        figures = asyncio.run(study(url, prompts, args))
    write(args.json, {"prompts": prompts, **figures})
    drawn = f"; figure in {args.png}" if args.png.exists() else ""
    print(f"\n{figures.get('prompts', prompts)} prompts per point{drawn}")


if __name__ == "__main__":
    main()
