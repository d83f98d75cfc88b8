"""Transfer Q* (arXiv 2405.20495, direct, greedy) written around transformers, as its authors' code does it.

One answer at a time. For each token the base reads the whole prefix again, the baseline rolls out each of its k
likeliest tokens with `generate()`, which reads the prefix again too, and the reward model scores the texts. Unlike in
the authors' code, answers and rollouts end at EOS.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.bench.peers.hf_reward import HFReward
from trimtab.bench.peers.loop import MAX_TOKENS, Conversation


class HFTransferQ:
    def __init__(self, base: str, baseline: Path, reward: HFReward) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.base = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self.baseline = self._baseline(base, baseline)
        self.reward = reward
        self.end: int = self.base.config.eos_token_id
        self.lock = asyncio.Lock()

    @staticmethod
    def _baseline(base: str, path: Path) -> Any:
        if not (path / "adapter_config.json").exists():
            return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        from peft import PeftModel

        whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return PeftModel.from_pretrained(whole, str(path)).merge_and_unload().eval()

    async def __call__(self, conversation: Conversation, *, k: int, horizon: int, alpha: float) -> str:
        async with self.lock:
            return await asyncio.to_thread(self.answer, conversation, k, horizon, alpha)

    @torch.inference_mode()
    def answer(
        self, conversation: Conversation, k: int, horizon: int, alpha: float, max_tokens: int = MAX_TOKENS
    ) -> str:
        prompt = self.tokenizer.apply_chat_template(list(conversation), add_generation_prompt=True, return_dict=False)
        answer_ids: list[int] = []
        while len(answer_ids) < max_tokens and answer_ids[-1:] != [self.end]:
            ids = torch.tensor([[*prompt, *answer_ids]])
            logprobs, tokens = self.base(ids).logits[0, -1].log_softmax(-1).topk(k)
            rollouts = self._roll_out(ids, tokens, len(answer_ids), min(horizon, max_tokens - len(answer_ids) - 1))
            texts = [self.tokenizer.decode(rollout, skip_special_tokens=True) for rollout in rollouts]
            rewards = self.reward([[*conversation, {"role": "assistant", "content": text}] for text in texts])
            answer_ids = [*answer_ids, int(tokens[(logprobs + torch.tensor(rewards) / alpha).argmax()])]
        text: str = self.tokenizer.decode(answer_ids, skip_special_tokens=True)
        return text

    def _roll_out(self, ids: torch.Tensor, tokens: torch.Tensor, n_answer: int, length: int) -> list[list[int]]:
        """For each candidate the answer so far, the candidate and its rollout."""
        prefixes = torch.cat([ids.repeat(len(tokens), 1), tokens[:, None]], dim=1)
        unfinished = [i for i, token in enumerate(tokens.tolist()) if token != self.end]
        out = [row[ids.shape[1] - n_answer :] for row in prefixes.tolist()]
        if length and unfinished:
            drawn = self.baseline.generate(
                prefixes[unfinished],
                attention_mask=torch.ones_like(prefixes[unfinished]),
                max_new_tokens=length,
                do_sample=False,
            )
            for i, row in zip(unfinished, drawn.tolist(), strict=True):
                out[i] = row[ids.shape[1] - n_answer :]
        return out
