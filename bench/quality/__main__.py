"""python -m bench.quality guided [--quick] [--url http://…] [--json out/guided.json] [--png out/guided.png]"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from bench.quality import guided
from bench.quality.points import Bench
from bench.report import write
from bench.serving import trimtab
from recipes.corpus import heldout_prompts


async def study(url: str, *, prompts: int, quick: bool, strength: float) -> guided.Study:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as client:
        catalogue: Any = await client.get("/alignment", cast_to=object)
        bench = Bench(client, catalogue["model"], heldout_prompts(prompts, seed=1), asyncio.Semaphore(64))
        return await guided.run(bench, catalogue, quick=quick, strength=strength)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description="Gold scores of served answers.")
    parser.add_argument("study", choices=["guided"])
    parser.add_argument("--url", help="a server that runs already; by default one is started")
    parser.add_argument("--config", type=Path, help="its configuration; by default the embedded demo")
    parser.add_argument("--quick", action="store_true", help="fewer prompts and points: under 5 minutes on 2 cores")
    parser.add_argument("--prompts", type=int, help="held-out prompts per point")
    parser.add_argument("--strength", type=float, default=1.0, help="what the frontier's weights sum to")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path, default=Path("out/guided.png"))
    args = parser.parse_args()
    prompts = args.prompts or (60 if args.quick else 240)
    with trimtab(args.url, args.config) as url:
        found = asyncio.run(study(url, prompts=prompts, quick=args.quick, strength=args.strength))
    figures = guided.show(found)
    guided.draw(found, args.png)
    write(args.json, {"prompts": prompts, "strength": args.strength, **figures})
    print(f"\n{prompts} prompts per point; figure in {args.png}")


if __name__ == "__main__":
    main()
