"""A plain batched sampler of mixtures, z = Σ w_i log p_i, in Hugging Face models on the CPU.

The recipes draw preference pairs and measure with it, before and without any server.
Shapes: B rows, T positions, V vocabulary.  Prompts are padded on the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.recipes.base import ASSISTANT, render

MAX_NEW = 256  # tokens


@dataclass(frozen=True)
class Sampled:
    """An answer; `kl` is Σ_t KL(mixture ‖ first member) along its own prefixes, in nats; `ended`: it said <|end|>."""

    text: str
    ids: tuple[int, ...]
    kl: float
    ended: bool


@torch.inference_mode()
def sample(
    members: Sequence[tuple[LlamaForCausalLM, float]],
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[tuple[dict[str, str], ...]],
    seed: int,
    batch: int = 192,
) -> list[Sampled]:
    """One answer a prompt from the mixture of (model, weight) members, at temperature 1."""
    generator = torch.Generator().manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(render(prompts[i])))
    out: dict[int, Sampled] = {}
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        for row, sampled in zip(rows, _batch(members, tokenizer, [prompts[i] for i in rows], generator), strict=True):
            out[row] = sampled
    return [out[i] for i in range(len(prompts))]


def _batch(
    members: Sequence[tuple[LlamaForCausalLM, float]],
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[tuple[dict[str, str], ...]],
    generator: torch.Generator,
) -> list[Sampled]:
    encoded = tokenizer(
        [render(p) + ASSISTANT for p in prompts],
        padding=True,
        padding_side="left",
        return_tensors="pt",
        add_special_tokens=False,
    )
    ids_BT, seen_BT = encoded["input_ids"], encoded["attention_mask"]
    position_BT = (seen_BT.cumsum(1) - 1).clamp(min=0)
    caches = [DynamicCache(config=m.config) for m, _ in members]
    live = torch.arange(len(prompts))  # the rows still in the batch
    unfinished_B = torch.ones(len(prompts), dtype=torch.bool)  # of those, the ones that have not ended
    answer_ids: list[list[int]] = [[] for _ in prompts]
    kl_B = torch.zeros(len(prompts))
    for _ in range(MAX_NEW):
        mixed_BV: torch.Tensor | None = None
        first_BV: torch.Tensor | None = None
        for (model, weight), cache in zip(members, caches, strict=True):
            logits_BV = (
                model(
                    input_ids=ids_BT,
                    attention_mask=seen_BT,
                    position_ids=position_BT,
                    past_key_values=cache,
                    logits_to_keep=1,
                )
                .logits[:, -1]
                .float()
            )
            logprobs_BV = logits_BV.log_softmax(-1)
            first_BV = logprobs_BV if first_BV is None else first_BV
            mixed_BV = weight * logprobs_BV if mixed_BV is None else mixed_BV + weight * logprobs_BV
        assert mixed_BV is not None
        assert first_BV is not None
        mixed_BV = mixed_BV.log_softmax(-1)
        p_BV = mixed_BV.exp()
        kl_B[live] += (p_BV * (mixed_BV - first_BV)).sum(-1) * unfinished_B
        token_B = torch.multinomial(p_BV, 1, generator=generator)[:, 0]
        for row, token in zip(live[unfinished_B].tolist(), token_B[unfinished_B].tolist(), strict=True):
            answer_ids[row].append(token)
        unfinished_B = unfinished_B & (token_B != tokenizer.eos_token_id)
        if not unfinished_B.any():
            break
        ids_BT, position_BT = token_B[:, None], position_BT[:, -1:] + 1
        seen_BT = torch.cat([seen_BT, torch.ones_like(ids_BT)], 1)
        if unfinished_B.float().mean() < 0.75:  # drop the rows that have ended
            keep = unfinished_B.nonzero()[:, 0]
            live, unfinished_B = live[keep], unfinished_B[keep]
            ids_BT, position_BT, seen_BT = ids_BT[keep], position_BT[keep], seen_BT[keep]
            for cache in caches:
                cache.batch_select_indices(keep)
    return [
        Sampled(
            tokenizer.decode(ids, skip_special_tokens=True).strip(), tuple(ids), kl, ids[-1] == tokenizer.eos_token_id
        )
        for ids, kl in zip(answer_ids, kl_B.tolist(), strict=True)
    ]
