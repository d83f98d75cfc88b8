"""The reward models of the demo family: two small classifiers of whole answers, with a score for each objective.

    python -m trimtab.recipes.rewards

Each is a Llama with the base's tokenizer and a bias-free head of one label per objective, read at the answer's last
token. A member starts from its own initialisation and a short language model of the corpus, then minimises
    L = -mean log σ(r_k(x, y⁺) - r_k(x, y⁻))                                                                       (1)
over the objectives k and all pairs of answers that the base gives to a training prompt at temperature 1. Which of two
is y⁺ is gold's word with Bradley-Terry noise (`recipes.gold.prefer`), drawn anew for each member and objective, so a
score's unit is NOISE points of gold, and it has no zero: only differences between answers to one prompt mean anything.

They are imperfect on purpose, as reward models are: small, of few noisy labels, and each wrong in its own way, so that
an ensemble has something to disagree about. How imperfect stands in recipe.json: on held-out prompts, against gold
without noise.

Shapes: B answers, K objectives, P pairs.
"""

import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from trimtab.recipes import corpus
from trimtab.recipes.base import (
    DEMO,
    TOKENIZER_FILES,
    config,
    keep_memory,
    load_tokenizer,
    rate,
    render,
    train_lm,
)
from trimtab.recipes.gold import GOLD, prefer
from trimtab.recipes.preferences import draw_answers
from trimtab.recipes.sample import sample

MEMBERS = {"a": 11, "b": 12}  # member: its seed, of initialisation, corpus, labels and order
SEED = 10  # of the answers, the same for both
OBJECTIVES = tuple(GOLD)
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 128, 4, 4, 2, 32, 344  # under a million parameters
TOKENS, TOKENS_A_STEP, START_RATE = 500_000, 4096, 6e-3  # the language model that a member starts from
PROMPTS = 1000  # training prompts, `recipes.preferences.DRAWN` answers each
EPOCHS, PROMPTS_A_STEP, LEARNING_RATE = 2, 8, 1e-3
HELDOUT_PROMPTS, HELDOUT_DRAWN = 180, 4

Drawn = tuple[tuple[dict[str, str], ...], list[str]]  # a prompt and the base's answers to it


def trunk(tokenizer: PreTrainedTokenizerFast, seed: int) -> tuple[LlamaForSequenceClassification, dict[str, float]]:
    """A member before equation (1), its head at zero, and what the language model's training tells."""
    torch.manual_seed(seed)
    sizes = config(HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, tokenizer)
    lm = LlamaForCausalLM(sizes)
    training = train_lm(lm, tokenizer, seed, TOKENS, TOKENS_A_STEP, START_RATE)
    sizes.id2label = dict(enumerate(OBJECTIVES))
    sizes.label2id = {objective: k for k, objective in enumerate(OBJECTIVES)}
    sizes.problem_type = "regression"  # raw scores, also where a server would put a sigmoid on a classifier
    model = LlamaForSequenceClassification(sizes)
    model.model.load_state_dict(lm.model.state_dict())
    torch.nn.init.zeros_(model.score.weight)
    return model, training


def read(tokenizer: PreTrainedTokenizerFast, drawn: Sequence[Drawn]) -> torch.Tensor:
    """[B, T] all the answers as a member reads them: after their conversation, the turn closed."""
    texts = [render((*prompt, {"role": "assistant", "content": a})) for prompt, answers in drawn for a in answers]
    ids: torch.Tensor = tokenizer(
        texts, padding=True, padding_side="right", pad_to_multiple_of=16, return_tensors="pt", add_special_tokens=False
    )["input_ids"]
    return ids


def judge(model: LlamaForSequenceClassification, ids: torch.Tensor) -> torch.Tensor:
    """[B, K] scores."""
    with torch.autocast("cpu", torch.bfloat16):
        scores: torch.Tensor = model(input_ids=ids).logits
    return scores.float()


def gold(drawn: Drawn) -> torch.Tensor:
    """[B, K] points of each answer to one prompt."""
    prompt, answers = drawn
    return torch.tensor([[GOLD[o](prompt[-1]["content"], answer) for o in OBJECTIVES] for answer in answers])


def differences(scores: torch.Tensor) -> torch.Tensor:
    """[P, K] of each pair of answers to one prompt, the first's score above the second's."""
    first, second = torch.combinations(torch.arange(len(scores))).T
    return scores[first] - scores[second]


def label(drawn: Sequence[Drawn], seed: int) -> list[torch.Tensor]:
    """[P, K] for each prompt: is a pair's first answer the preferred one?"""
    rng = random.Random(seed)
    return [
        torch.tensor([[prefer(rng, g, 0.0) for g in row] for row in differences(gold(one)).tolist()]) for one in drawn
    ]


def train(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, drawn: Sequence[Drawn], seed: int
) -> dict[str, float]:
    """Equation (1) by AdamW."""
    preferred, rng, start = label(drawn, seed), random.Random(seed), time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    steps, step, recent = EPOCHS * (len(drawn) // PROMPTS_A_STEP), 0, 0.69
    for _ in range(EPOCHS):
        order = rng.sample(range(len(drawn)), len(drawn))
        for i in range(0, len(order) - PROMPTS_A_STEP + 1, PROMPTS_A_STEP):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 10) * rate(step / steps)
            rows = [drawn[j] for j in order[i : i + PROMPTS_A_STEP]]
            scores = torch.split(judge(model, read(tokenizer, rows)), [len(answers) for _, answers in rows])
            margin_PK = torch.cat([differences(one) for one in scores])
            first_PK = torch.cat([preferred[j] for j in order[i : i + PROMPTS_A_STEP]])
            loss = -logsigmoid(torch.where(first_PK, margin_PK, -margin_PK)).mean()  # (1)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step, recent = step + 1, 0.95 * recent + 0.05 * loss.item()
            if step % 20 == 0:
                print(f"  step {step}/{steps} loss {recent:.3f}", flush=True)
    pairs = sum(len(one) for one in preferred)
    return {"steps": step, "pairs": pairs, "final_loss": recent, "seconds": time.monotonic() - start}


@torch.inference_mode()
def margins(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, drawn: Sequence[Drawn]
) -> torch.Tensor:
    """[P, K] a member's differences over the pairs of every prompt."""
    return torch.cat([differences(judge(model, read(tokenizer, [one]))) for one in drawn])


def heldout_figures(member_PK: torch.Tensor, other_PK: torch.Tensor, gold_PK: torch.Tensor) -> dict[str, object]:
    """How well a member knows gold, by its differences, and how often it orders a pair as the other member does.

    accuracy: share of the pairs that gold tells apart and the member orders as gold does. correlation: of the
    member's differences with gold's, without a mean, since which answer of a pair comes first means nothing.
    """
    figures_by_name: dict[str, dict[str, float]] = {"accuracy": {}, "correlation": {}, "agreement": {}}
    for k, objective in enumerate(OBJECTIVES):
        member, other, real = member_PK[:, k], other_PK[:, k], gold_PK[:, k]
        apart = real != 0
        figures_by_name["accuracy"][objective] = (member.sign() == real.sign())[apart].float().mean().item()
        figures_by_name["correlation"][objective] = (member @ real / (member.norm() * real.norm())).item()
        figures_by_name["agreement"][objective] = (member.sign() == other.sign()).float().mean().item()
    return {"pairs": len(gold_PK), **figures_by_name}


def heldout_answers(base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> list[Drawn]:
    prompts = [p.messages for p in corpus.heldout_prompts(HELDOUT_PROMPTS, SEED) for _ in range(HELDOUT_DRAWN)]
    drawn = sample([(base, 1.0)], tokenizer, prompts, SEED)
    n = HELDOUT_DRAWN
    return [(prompts[i], [a.text for a in drawn[i : i + n] if a.ended]) for i in range(0, len(prompts), n)]


def figures(folder: Path = DEMO / "rewards") -> dict[str, dict[str, Any]]:
    """member -> what its recipe.json tells, for the card."""
    return {member: json.loads((folder / member / "recipe.json").read_text()) for member in MEMBERS}


def main(base_folder: Path = DEMO / "base", folder: Path = DEMO / "rewards") -> None:
    begun = time.monotonic()
    tokenizer = load_tokenizer(base_folder)
    base = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    drawn = [one for one in draw_answers(base, tokenizer, PROMPTS, SEED) if len(one[1]) > 1]
    unseen = [one for one in heldout_answers(base, tokenizer) if len(one[1]) > 1]
    drawing_seconds = time.monotonic() - begun
    records: dict[str, dict[str, object]] = {}
    margins_by_member: dict[str, torch.Tensor] = {}
    for member, seed in MEMBERS.items():
        print(member, flush=True)
        model, start = trunk(tokenizer, seed)
        parameters = sum(p.numel() for p in model.parameters())
        records[member] = {"member": member, "seed": seed, "parameters": parameters, "start": start}
        records[member] |= {"drawing_seconds": drawing_seconds, "training": train(model, tokenizer, drawn, seed)}
        model.to(torch.bfloat16).save_pretrained(folder / member)
        (folder / member / "model.safetensors").chmod(0o644)
        for file in TOKENIZER_FILES:
            shutil.copyfile(base_folder / file, folder / member / file)
        margins_by_member[member] = margins(model.to(torch.float32), tokenizer, unseen)  # as saved, rounded to bf16
    gold_PK = torch.cat([differences(gold(one)) for one in unseen])
    for member, other in zip(MEMBERS, reversed(MEMBERS), strict=True):
        records[member]["heldout"] = heldout_figures(margins_by_member[member], margins_by_member[other], gold_PK)
        (folder / member / "recipe.json").write_text(json.dumps(records[member], indent=2) + "\n")
    print(f"{time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    keep_memory()
    torch.set_num_threads(2)
    main()
