"""its_hub's BestOfN over vLLM's server, with the reward model in its own process. Interpreter: see `bench.search`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from its_hub.api import AbstractOutcomeRewardModel, ChatMessage
from its_hub.core.algorithms.bon import BestOfN
from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
from its_hub.core.orchestrator import LMOrchestrator

from trimtab.bench.peers.hf_reward import HFReward
from trimtab.bench.peers.loop import MAX_TOKENS, Conversation, claim_output, in_closed_loop, serve


class OutcomeReward(AbstractOutcomeRewardModel):  # type: ignore[misc]
    def __init__(self, scorer: HFReward) -> None:
        self.scorer = scorer

    def score(self, messages: Any, **_: Any) -> Any:
        """The score of one conversation, or a list of several."""
        several = isinstance(messages[0], list)
        conversations = messages if several else [messages]
        scores = self.scorer([[m.to_dict() for m in conversation] for conversation in conversations])
        return scores if several else scores[0]

    async def ascore(self, messages: Any, orchestrator: Any = None, **_: Any) -> Any:
        return await asyncio.to_thread(self.score, messages)


async def main(url: str, model: str, reward: str, label: str) -> None:
    search = BestOfN(OutcomeReward(HFReward(Path(reward), label)), LMOrchestrator(max_concurrency=-1))
    async with OpenAICompatibleLanguageModel(
        endpoint=f"{url}/v1", api_key="none", model_name=model, max_completion_tokens=MAX_TOKENS, temperature=1.0
    ) as lm:

        async def answer(conversation: Conversation, n: int) -> str:
            best = await search.ainfer(lm, [ChatMessage(**message) for message in conversation], n)
            return str(best["content"])

        await serve(in_closed_loop(answer), claim_output())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
