"""The demo family's reader of directions: the base with a LoRA adapter that obeys a direction told to it (DPA).

    python -m recipes.directional

As in DPA (arXiv 2402.18571) answers are drawn and a direction keeps the one that it likes best. Each training prompt x
has several answers of the base, and for two directions u, v of a preference prompt, whose texts are s(u) and s(v),
    y_u = argmax_y u · z(x, y),   y_v = argmax_y v · z(x, y),                                                      (1)
z being reward model `a`'s scores in their spread over the answers to one prompt. Where they differ,
    L = CE(y_u | x, s(u)) + CE(y_v | x, s(v)) - LAMBDA log σ(BETA [log π(y_u | u) - log π(y_u | v)
                                                                   + log π(y_v | v) - log π(y_v | u)])            (2)
with CE in nats per token and log π summed. DPA has the first two terms alone and draws under s(v): a model of this size
then learnt of the number in the text its sign and nothing more (docs/log.md). The last term, which is ours, is large
where the same answers are as likely under the other direction. Gold is what is measured below; training never reads it.

Two prompts are learnt: DPA's own over helpfulness and verbosity, and one over warmth and caution that the base has
never read. Shapes: B pairs of directions, K objectives.
"""

import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from recipes import corpus
from recipes.aligned import LoRA, adapted, save, switch
from recipes.base import DEMO, keep_memory, load_tokenizer, rate, render
from recipes.gold import GOLD, fluency
from recipes.guides import draw_answers, said_logprob, tensors
from recipes.rewards import OBJECTIVES, Drawn, judge, read
from recipes.sample import Sampled, sample

SEED = 30
TEACHER = "a"
PROMPTS, DIRECTIONS = 500, 2  # pairs of directions per prompt and preference prompt
BATCH, LEARNING_RATE = 8, 2e-3
BETA, LAMBDA = 0.2, 1.0
HELDOUT_PROMPTS = 90

Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Pair:
    """A preference prompt over two objectives, each a reward model's score up to its sign."""

    text: str
    axes: tuple[tuple[str, str, float], tuple[str, str, float]]
    """(name, objective, sign)"""
    low: float
    high: float
    """Degrees."""

    def said(self, theta: float) -> str:
        h, w = round(100 * math.cos(math.radians(theta))), round(100 * math.sin(math.radians(theta)))
        return self.text.format(h=h, w=w)

    def gold(self, question: str, answer: str) -> tuple[float, float]:
        """Points of each axis; of one that is turned round, 10 less them."""
        points = [GOLD[objective](question, answer) for _, objective, _ in self.axes]
        first, second = (p if sign > 0 else 10 - p for p, (_, _, sign) in zip(points, self.axes, strict=True))
        return first, second


PAIRS = {
    "dpa": Pair(corpus.DPA_SYSTEM, (("helpfulness", "helpfulness", 1.0), ("verbosity", "brevity", -1.0)), -45.0, 45.0),
    "kindness": Pair(
        "Your response should maximize weighted rating = warmth*{h} + caution*{w}",
        (("warmth", "warmth", 1.0), ("caution", "caution", 1.0)),
        0.0,
        90.0,
    ),
}


@dataclass(frozen=True)
class Choice:
    """Two directions' favourites among the answers to one prompt."""

    told: tuple[str, str]
    """The prompt under each direction, rendered."""
    answers: tuple[str, str]


@torch.inference_mode()
def choices(
    teacher: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, drawn: list[Drawn]
) -> list[Choice]:
    """Equation (1) for DIRECTIONS pairs of angles of every prompt and preference prompt; equal favourites make none."""
    rng, found = random.Random(SEED), []
    tables = [judge(teacher, read(tokenizer, [one])) for one in drawn]
    spread_K = torch.stack([table.std(0) for table in tables]).mean(0)
    for (prompt, answers), table in zip(drawn, tables, strict=True):
        for pair in PAIRS.values():
            columns = torch.stack([s * table[:, OBJECTIVES.index(o)] / spread_K[OBJECTIVES.index(o)]
                                   for _, o, s in pair.axes])  # fmt: skip
            for _ in range(DIRECTIONS):
                angles = [rng.uniform(pair.low, pair.high) for _ in range(2)]
                shares = [torch.tensor([math.cos(math.radians(a)), math.sin(math.radians(a))]) for a in angles]
                first, second = (int((share @ columns).argmax()) for share in shares)
                if first != second:
                    one, other = (render(({"role": "system", "content": pair.said(a)}, *prompt)) for a in angles)
                    found.append(Choice((one, other), (answers[first], answers[second])))
    return found


def loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch: list[Choice]) -> tuple[Tensor, Tensor]:
    """Equation (2), and the share of the pairs that the model tells apart."""
    own = [(c.told[i], c.answers[i], c.answers[1 - i]) for i in range(2) for c in batch]
    ids, mask = tensors(tokenizer, own)
    obeyed_2B, swapped_2B = said_logprob(model, ids, mask).chunk(2)
    entropy = -obeyed_2B.sum() / mask.chunk(2)[0].sum()
    margin_B = torch.stack((obeyed_2B - swapped_2B).chunk(2)).sum(0)
    contrast = -torch.nn.functional.logsigmoid(BETA * margin_B).mean()
    return entropy + LAMBDA * contrast, (margin_B > 0).float().mean()


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, adapters: dict[str, LoRA], found: list[Choice]
) -> dict[str, float]:
    """Equation (2) by AdamW, each pair once; the last tenth is held out."""
    cut = len(found) * 9 // 10
    kept, test = found[:cut], found[cut:]
    weights = [w for adapter in adapters.values() for w in (adapter.A, adapter.B)]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    shuffled, start, step = random.Random(SEED).sample(kept, len(kept)), time.monotonic(), 0
    steps, recent, right = len(kept) // BATCH, 0.0, 0.5
    for i in range(0, steps * BATCH, BATCH):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 10) * rate(step / steps)
        value, apart = loss(model, tokenizer, shuffled[i : i + BATCH])
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, recent = step + 1, value.item() if step == 0 else 0.95 * recent + 0.05 * value.item()
        right = 0.95 * right + 0.05 * apart.item()
        if step % 20 == 0:
            print(f"  step {step}/{steps} loss {recent:.3f} told apart {right:.2f}", flush=True)
    with torch.no_grad():
        apart_heldout = [loss(model, tokenizer, test[i : i + BATCH])[1] for i in range(0, len(test), BATCH)]
    return {"pairs": len(found), "steps": step, "final_loss": recent, "seconds": time.monotonic() - start,
            "told_apart": torch.stack(apart_heldout).mean().item()}  # fmt: skip


def obedience(draw: Callable[[list[Messages]], list[Sampled]]) -> dict[str, list[dict[str, float]]]:
    """prompt -> per angle, mean gold of both axes, fluency and words, on held-out prompts."""
    told: dict[str, list[dict[str, float]]] = {}
    prompts = corpus.heldout_prompts(HELDOUT_PROMPTS, SEED)
    for name, pair in PAIRS.items():
        told[name] = []
        for theta in [pair.low + (pair.high - pair.low) * i / 6 for i in range(7)]:
            system = {"role": "system", "content": pair.said(theta)}
            answers = [a.text for a in draw([(system, *p.messages) for p in prompts])]
            points = [pair.gold(p.text, a) for p, a in zip(prompts, answers, strict=True)]
            told[name].append(
                {
                    "theta": theta,
                    pair.axes[0][0]: statistics.fmean(first for first, _ in points),
                    pair.axes[1][0]: statistics.fmean(second for _, second in points),
                    "fluency": statistics.fmean(map(fluency, answers)),
                    "words": statistics.fmean(len(a.split()) for a in answers),
                }
            )
    return told


def main(base_folder: Path = DEMO / "base", folder: Path = DEMO / "guides" / "directional") -> None:
    begun = time.monotonic()
    torch.manual_seed(SEED)
    tokenizer = load_tokenizer(base_folder)
    model = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    teacher = LlamaForSequenceClassification.from_pretrained(DEMO / "rewards" / TEACHER, dtype=torch.float32).eval()
    adapters = adapted(model)
    record: dict[str, object] = {"teacher": TEACHER, "seed": SEED}
    record["parameters"] = sum(a.A.numel() + a.B.numel() for a in adapters.values())
    drawn = [one for one in draw_answers(model, tokenizer, PROMPTS, SEED) if len(one[1]) > 1]
    plain = [(tuple(m for m in prompt if m["role"] == "user"), answers) for prompt, answers in drawn]
    record["drawing_seconds"] = time.monotonic() - begun
    record["training"] = train(model, tokenizer, adapters, choices(teacher, tokenizer, plain))
    print(record["training"], flush=True)
    for adapter in adapters.values():
        adapter.A.data, adapter.B.data = (w.data.to(torch.bfloat16).float() for w in (adapter.A, adapter.B))

    def draw(prompts: list[Messages]) -> list[Sampled]:
        return sample([(model, 1.0)], tokenizer, prompts, SEED)

    record["heldout"] = obedience(draw)
    switch(adapters, on=False)
    record["base"] = obedience(draw)
    switch(adapters, on=True)
    save(adapters, folder, record)
    print(json.dumps(record, indent=2), f"{time.monotonic() - begun:.0f} s", sep="\n", flush=True)


if __name__ == "__main__":
    keep_memory()
    torch.set_num_threads(2)
    main()
