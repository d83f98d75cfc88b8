"""`search`: tokens that whole searches draw per second, and the GPU's utilisation.

The strategies run as in the server, over one engine of an 8B base and a 1B guide with random weights, with the budgets
of bench/search. The reward costs nothing, so that only search and engine are measured. Random weights hardly ever end
an answer, so that all have their full length.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.bench.gpu.device import utilisation
from trimtab.bench.gpu.speed import ALPHA, members, options, write_checkpoints
from trimtab.bench.peers.loop import MAX_TOKENS
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.protocols import Sampling, Strategy, Tokens
from trimtab.decoders.qalign import QAlign
from trimtab.decoders.transfer_q import TransferQ
from trimtab.engine.members import engine_args
from trimtab.engine.vllm_engine import VLLMEngine
from trimtab.runtime.metered import Metered
from trimtab.runtime.usage import Usage

ENGINE = "8b+1b"
PROMPT = 64
GUIDE = {"g0": ALPHA}


@dataclass(frozen=True, kw_only=True)
class Search:
    strategy: Strategy
    questions: int
    """At once."""
    max_tokens: int = MAX_TOKENS

    async def answer(self, prompt: Tokens, engine: Metered) -> None:
        sampling = Sampling(max_tokens=self.max_tokens, seed=0, stream=False)
        async for _ in self.strategy(prompt, sampling, engine, free_reward, n=1, include=frozenset()):
            pass


async def free_reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
    return [[sum(completion) % 97 / 97] for completion in completions]


def transfer_q() -> TransferQ:
    return TransferQ(k=10, horizon=20, rollout_temperature=0.0, baseline={"g0": 1.0})


FULL = {
    "best_of_n: n 16, 1 question": Search(strategy=BestOfN(n=16, guides=GUIDE), questions=1),
    "best_of_n: n 64, 4 questions": Search(strategy=BestOfN(n=64, guides=GUIDE), questions=4),
    "qalign: 8 chains, 16 steps": Search(strategy=QAlign(chains=8, steps=16, guides=GUIDE, answer="last"), questions=1),
    "qalign: 64 chains, 16 steps": Search(
        strategy=QAlign(chains=64, steps=16, guides=GUIDE, answer="last"), questions=1
    ),
    "transfer_q: k 10, 1 question": Search(strategy=transfer_q(), questions=1, max_tokens=32),
    "transfer_q: k 10, 16 questions": Search(strategy=transfer_q(), questions=16, max_tokens=32),
}
QUICK = {
    "best_of_n: n 4, 1 question": Search(strategy=BestOfN(n=4, guides=GUIDE), questions=1, max_tokens=32),
    "qalign: 4 chains, 4 steps": Search(
        strategy=QAlign(chains=4, steps=4, guides=GUIDE, answer="last"), questions=1, max_tokens=32
    ),
    "transfer_q: k 10, 1 question": Search(strategy=transfer_q(), questions=1, max_tokens=24),
}


def measure(folder: Path, save: Callable[[Any], None], *, quick: bool) -> list[dict[str, Any]]:
    """Figures of each search; `save` gets those so far after each."""
    return asyncio.run(measure_all(folder, save, quick=quick))


async def measure_all(folder: Path, save: Callable[[Any], None], *, quick: bool) -> list[dict[str, Any]]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    base, guides = write_checkpoints(ENGINE, folder, quick=quick)
    arguments = engine_args(base, guides, **options(seqs=256, length=1024))
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    draw = random.Random(0)
    vocabulary = members(ENGINE, quick=quick)[0].vocabulary
    figures = []
    try:
        for name, search in (QUICK if quick else FULL).items():
            usage = Usage()
            engine = Metered(VLLMEngine(client=llm), usage)
            prompts = [[draw.randrange(3, vocabulary) for _ in range(PROMPT)] for _ in range(search.questions)]
            await search.answer(prompts[0][::-1], engine)  # the first run compiles and allocates
            usage.sampled = 0
            with utilisation() as samples:
                start = time.perf_counter()
                await asyncio.gather(*(search.answer(prompt, engine) for prompt in prompts))
                seconds = time.perf_counter() - start
            figures.append(
                {
                    "search": name,
                    "seconds": seconds,
                    "drawn": usage.sampled,
                    "tokens_per_s": usage.sampled / seconds,
                    "busy": statistics.mean(samples) if samples else None,
                }
            )
            save(figures)
    finally:
        llm.shutdown()
    return figures
