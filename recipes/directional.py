"""The demo family's reader of directions: the base with a LoRA adapter, fine-tuned as DPA is (arXiv 2402.18571).

    python -m recipes.directional

Rejection-sampling fine-tuning. Per training prompt x and direction v, DRAWN answers y of the model under s(v), the text
that says v, and of these the one that v likes best; then, over these pairs alone,
    L = -mean log π(y* | x under s(v)),    y* = argmax_y v · z(x, y)                                               (1)
per token, z being reward model `a`'s scores in their spread over the answers to one prompt. ROUNDS times, the next
round's answers drawn from what the last one made. What is measured below is gold, which the training never reads.

Two prompts are learned: DPA's own over helpfulness and verbosity, which the base knows from its own training but
obeys in the sign of verbosity alone, and one over warmth and caution that the base has never read.
Shapes: B answers, K objectives.
"""

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from recipes import corpus
from recipes.aligned import LoRA, adapted, save, switch
from recipes.base import DEMO, keep_memory, load_tokenizer, rate, render, said_loss
from recipes.gold import GOLD, fluency
from recipes.guides import tensors
from recipes.rewards import OBJECTIVES, judge, read
from recipes.sample import Sampled, sample

SEED = 30
TEACHER = "a"
ROUNDS, PROMPTS, DRAWN = 2, 400, 8  # per round and preference prompt
EPOCHS, BATCH, LEARNING_RATE = 3, 32, 3e-3
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


def asked(seed: int, n: int) -> Iterator[Messages]:
    """n training prompts of one turn, without the system messages that some have."""
    count = 0
    for conversation in corpus.train_conversations(seed):
        if [m["role"] for m in conversation.messages if m["role"] != "system"] == ["user", "assistant"]:
            yield tuple(m for m in conversation.messages if m["role"] == "user")
            count += 1
        if count == n:
            return


@torch.inference_mode()
def scores(
    teacher: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, prompt: Messages, answers: list[str]
) -> torch.Tensor:
    """[B, K]"""
    return judge(teacher, read(tokenizer, [(prompt, answers)]))


def chosen(
    model: LlamaForCausalLM,
    teacher: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
) -> list[tuple[str, str]]:
    """(rendered prompt under s(v), y*) of every pair's prompts."""
    rng, rows = random.Random(seed), list[tuple[Pair, float, Messages]]()
    for pair in PAIRS.values():
        rows += [(pair, rng.uniform(pair.low, pair.high), prompt) for prompt in asked(rng.randrange(2**31), PROMPTS)]
    told = [({"role": "system", "content": pair.said(theta)}, *prompt) for pair, theta, prompt in rows]
    drawn = sample([(model, 1.0)], tokenizer, [t for t in told for _ in range(DRAWN)], seed)
    tables = []
    for i, (_, _, prompt) in enumerate(rows):
        texts = [a.text for a in ended(drawn[i * DRAWN : (i + 1) * DRAWN])]
        tables.append((texts, scores(teacher, tokenizer, prompt, texts) if texts else torch.zeros(0, len(OBJECTIVES))))
    spread_K = torch.stack([table.std(0) for _, table in tables if len(table) > 1]).mean(0)
    out = []
    for (pair, theta, _), message, (texts, table) in zip(rows, told, tables, strict=True):
        if texts:
            v = (math.cos(math.radians(theta)), math.sin(math.radians(theta)))
            at = [OBJECTIVES.index(objective) for _, objective, _ in pair.axes]
            signed = [share * sign for share, (_, _, sign) in zip(v, pair.axes, strict=True)]
            best = int((table / spread_K)[:, at].matmul(torch.tensor(signed)).argmax())  # (1)
            out.append((render(message), texts[best]))
    return out


def ended(answers: Sequence[Sampled]) -> list[Sampled]:
    return [a for a in answers if a.ended]


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    adapters: dict[str, LoRA],
    rows: list[tuple[str, str]],
    seed: int,
) -> dict[str, float]:
    """Equation (1) by AdamW."""
    weights = [w for adapter in adapters.values() for w in (adapter.A, adapter.B)]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    rng, start, step, recent = random.Random(seed), time.monotonic(), 0, 0.0
    steps = EPOCHS * (len(rows) // BATCH)
    for _ in range(EPOCHS):
        shuffled = rng.sample(rows, len(rows))
        for i in range(0, len(rows) - BATCH + 1, BATCH):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 10) * rate(step / steps)
            ids, mask = (t[:BATCH] for t in tensors(tokenizer, [(p, y, y) for p, y in shuffled[i : i + BATCH]]))
            loss = said_loss(model, ids, mask)  # (1)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step, recent = step + 1, loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
            if step % 20 == 0:
                print(f"  step {step}/{steps} loss {recent:.3f}", flush=True)
    return {"steps": step, "answers": len(rows), "final_loss": recent, "seconds": time.monotonic() - start}


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
    rounds = []
    for i in range(ROUNDS):
        drawing = time.monotonic()
        rows = chosen(model, teacher, tokenizer, SEED + i)
        drawing_seconds = time.monotonic() - drawing
        rounds.append(train(model, tokenizer, adapters, rows, SEED + i) | {"drawing_seconds": drawing_seconds})
        print(rounds[-1], flush=True)
    record["rounds"] = rounds
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
