"""What the demo family's guides, twin and value head learn from: gold's preferences between the base's own answers.

    python -m trimtab.recipes.preferences

Writes pairs as TRL has them, a file an objective, to out/demo/, and beside them the language model that guides start
from; `make models` then trains on them with `trimtab train`. Of DRAWN answers to a prompt those farthest apart by gold
make pairs, labelled with Bradley-Terry noise. Models so small need the likelihood of chosen answers beside the loss, or
they buy margin with grammar: without it 164 steps led the twin 65 nats away from the base, and fluency fell from 0.97
to 0.42. Helpfulness is knowledge, which more of it and smaller steps keep.
"""

import itertools
import json
import random
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.recipes import corpus
from trimtab.recipes.base import (
    DEMO,
    TOKENIZER_FILES,
    config,
    keep_memory,
    load_tokenizer,
    perplexity,
    save,
    train_lm,
)
from trimtab.recipes.gold import GOLD, fluency, prefer
from trimtab.recipes.sample import sample

FILES = Path("out") / "demo"
SEED = 2
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 128, 4, 4, 2, 32, 352
TOKENS, TOKENS_A_STEP, LEARNING_RATE = 4_500_000, 8192, 6e-3  # the shared start: a language model of the corpus
OBJECTIVES = tuple(GOLD)
PROMPTS, DRAWN = 2500, 8  # training prompts, and the base's answers to each, for all objectives alike
PAIRS_A_PROMPT = 2
TWIN, TWIN_PROMPTS, TWIN_SEED = "helpfulness", 1000, 20
CONTROL_PROMPTS = 270

Messages = tuple[dict[str, str], ...]
Drawn = tuple[Messages, list[str]]  # a prompt and the base's answers to it


def draw_answers(base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int, seed: int) -> list[Drawn]:
    """(prompt, answers): DRAWN answers of the base at temperature 1 to each of `n` training prompts; cut ones go."""
    stream = corpus.train_conversations(seed)
    prompts = [
        c.messages[:-1]
        for c in itertools.islice((c for c in stream if sum(m["role"] == "user" for m in c.messages) == 1), n)
    ]
    drawn = sample([(base, 1.0)], tokenizer, [p for p in prompts for _ in range(DRAWN)], seed)
    return [(p, [a.text for a in drawn[i * DRAWN : (i + 1) * DRAWN] if a.ended]) for i, p in enumerate(prompts)]


def label(drawn: Sequence[Drawn], objective: str) -> list[dict[str, object]]:
    """PAIRS_A_PROMPT pairs a prompt, best with worst and inwards by gold; chosen by gold with Bradley-Terry noise.

    Answers of equal gold make no pair.
    """
    rng, gold = random.Random(f"label/{objective}"), GOLD[objective]
    out: list[dict[str, object]] = []
    for prompt, answers in drawn:
        question = prompt[-1]["content"]
        ranked = sorted(((gold(question, a), a) for a in answers), key=lambda g: g[0])
        for (low, worse), (high, better) in list(zip(ranked, reversed(ranked), strict=True))[:PAIRS_A_PROMPT]:
            if low < high:
                chosen, rejected = (better, worse) if prefer(rng, high, low) else (worse, better)
                out.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return out


def match(drawn: Sequence[Drawn]) -> list[dict[str, object]]:
    """Each answer in one pair, for a value head, to which it is all the same which is which."""
    return [
        {"prompt": prompt, "chosen": one, "rejected": other}
        for prompt, answers in drawn
        for one, other in zip(answers[::2], answers[1::2], strict=False)
    ]


def write_pairs(path: Path, pairs: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def control(
    base: LlamaForCausalLM, start: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> list[dict[str, float]]:
    """Mean gold and fluency of base · start^α on held-out prompts: what a guide does that knows no preference."""
    prompts, rows = corpus.heldout_prompts(CONTROL_PROMPTS, SEED), []
    for alpha in (0.0, 0.5, 1.0, 2.0):
        answers = sample([(base, 1.0), (start, alpha)], tokenizer, [p.messages for p in prompts], SEED)
        row = {"alpha": alpha, "fluency": statistics.fmean(fluency(a.text) for a in answers)}
        for objective, gold in GOLD.items():
            row[objective] = statistics.fmean(gold(p.text, a.text) for p, a in zip(prompts, answers, strict=True))
        rows.append(row)
    return rows


def main(folder: Path = FILES, record: Path = DEMO / "guides" / "recipe.json") -> None:
    """The record, of the start and what the guides share, is the card's."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer()
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config(HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, tokenizer))
    start = train_lm(model, tokenizer, SEED, TOKENS, TOKENS_A_STEP, LEARNING_RATE)
    start["perplexity"] = perplexity(model, tokenizer)
    base = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    shared: dict[str, object] = {"seed": SEED, "start": start, "control": control(base, model, tokenizer)}
    save(model, folder / "start", shared)
    for file in TOKENIZER_FILES:
        shutil.copyfile(DEMO / "base" / file, folder / "start" / file)
    drawing = time.monotonic()
    drawn = draw_answers(base, tokenizer, PROMPTS, SEED)
    for objective in OBJECTIVES:
        write_pairs(folder / f"{objective}.jsonl", label(drawn, objective))
    shared["drawing_seconds"] = time.monotonic() - drawing
    drawn = draw_answers(base, tokenizer, TWIN_PROMPTS, TWIN_SEED)
    write_pairs(folder / "twin.jsonl", label(drawn, TWIN))
    write_pairs(folder / "value.jsonl", match(drawn))
    record.write_text(json.dumps(shared, indent=2) + "\n")


if __name__ == "__main__":
    keep_memory()
    torch.set_num_threads(2)
    main()
