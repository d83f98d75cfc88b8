"""optillm's best_of_n_sampling over vLLM's server. Interpreter: see `bench.search`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from openai import OpenAI
from optillm.bon import best_of_n_sampling

from trimtab.bench.peers.loop import MAX_TOKENS, Conversation, claim_output, in_closed_loop, serve

RATING_TOKENS = 4


async def main(url: str, model: str) -> None:
    client: Any = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)
    create = client.chat.completions.create

    def brief(**request: Any) -> Any:
        rating = request["temperature"] != 1
        return create(**request, **({"extra_body": {"max_tokens": RATING_TOKENS}} if rating else {}))

    client.chat.completions.create = brief

    async def answer(conversation: Conversation, n: int) -> str:
        [question] = conversation
        text, _ = await asyncio.to_thread(
            best_of_n_sampling, "", question["content"], client, model, n, {"max_tokens": MAX_TOKENS}
        )
        return str(text)

    await serve(in_closed_loop(answer), claim_output())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
