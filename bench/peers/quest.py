"""The authors' chains (quest-decoding 1.0.16) on the same base and reward. Interpreter: see `bench.search`.

Adapted so that they run, and at no disadvantage:
- their reward models are not imported: they need a class that trl no longer has;
- `langchain.prompts`, removed in langchain 1, is langchain_core's;
- their code marks ranges for NVIDIA's profiler, which fails in a torch without CUDA: the marks are no-ops here;
- their HF backend loads its weights onto CUDA with flash attention: here in fp32 on the device that is there;
- their vLLM backend calls `LLM.generate(prompt_token_ids=...)`, which vLLM no longer has: here today's form of the same
  call, with vLLM's prefix cache on;
- their reward models pad every answer to 512 tokens and read it in a data loader's process: here they are the reward of
  all other ways, one batch per step.

Their chains run in lock-step, and limit each suffix where ours limit the answer.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import langchain_core.prompts
import torch

sys.modules["quest.reward.model"] = MagicMock()
sys.modules["langchain"], sys.modules["langchain.prompts"] = MagicMock(), langchain_core.prompts

from quest.core import Quest
from quest.model.base import LocalLanguageModel
from quest.model.hf import HF
from quest.proposal import RLHFSuffixProposal
from quest.reward.base import Reward
from transformers import AutoModelForCausalLM

from trimtab.bench.peers.hf_reward import HFReward
from trimtab.bench.peers.loop import MAX_TOKENS, Conversation, Task, claim_output, serve, time_answers


class QuestScore(Reward):  # type: ignore[misc]
    def __init__(self, scorer: HFReward, conversation: Conversation) -> None:
        super().__init__("classifier")
        self.scorer = scorer
        self.conversation = conversation

    def evaluate(self, candidates: list[str], accepted_indices: Any = None, **_: Any) -> list[float]:
        return self.scorer([[*self.conversation, {"role": "assistant", "content": text}] for text in candidates])


class OnVLLM(LocalLanguageModel):  # type: ignore[misc]
    def __init__(self, path: str) -> None:
        from vllm import LLM

        super().__init__(path, max_new_tokens=MAX_TOKENS, max_prompt_length=1024, skip_special_tokens=True)
        self.llm = LLM(model=path, dtype="float32", enforce_eager=True, max_model_len=1024, max_num_seqs=64,
                       kv_cache_memory_bytes=1 << 29)  # fmt: skip

    def continuation(self, prompt: Sequence[list[int]], prefix: Any = None) -> Any:
        from vllm import SamplingParams

        params = SamplingParams(temperature=self.temperature, logprobs=1, max_tokens=self.max_new_tokens)
        whole = [[*p, *start] for p, start in zip(prompt, prefix or [[]] * len(prompt), strict=True)]
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in whole], params, use_tqdm=False)
        completions = [list(output.outputs[0].token_ids) for output in outputs]
        return completions, [None] * len(completions)


class OnHF(HF):  # type: ignore[misc]
    def __init__(self, path: str) -> None:
        LocalLanguageModel.__init__(
            self, path, max_new_tokens=MAX_TOKENS, max_prompt_length=1024, skip_special_tokens=True
        )
        self.device_map = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(self.device_map).eval()
        self.stop_words_ids = [self.tokenizer.eos_token_id]


async def main(backend: str, base: str, reward: str, label: str, beta: str) -> None:
    out = claim_output()
    if not torch.cuda.is_available():
        torch.cuda.nvtx.range_push = lambda _: None
        torch.cuda.nvtx.range_pop = lambda: None
    scorer = HFReward(Path(reward), label)
    model = OnVLLM(base) if backend == "vllm" else OnHF(base)

    def chains(conversation: Conversation, task: Task) -> list[str]:
        prompt = model.tokenizer.apply_chat_template(list(conversation), tokenize=False, add_generation_prompt=True)
        proposal = RLHFSuffixProposal(model=model, reward=QuestScore(scorer, conversation))
        quest = Quest([{"prompt": prompt}] * task.clients, proposal, beta=float(beta))
        path = quest.run(steps=task.n).state_path
        last = list(path[0]["text"])
        for step in path[1:]:
            for i, accepted in enumerate(step["accept"]):
                last[i] = step["text"][i] if accepted else last[i]
        return last

    async def answers(conversation: Conversation, task: Task) -> list[str]:
        return await asyncio.to_thread(chains, conversation, task)

    await serve(time_answers(answers), out)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
