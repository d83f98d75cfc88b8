"""The guides of the demo family: autoregressive reward models after GenARM (arXiv 2410.08193), one per objective.

    python -m trimtab.recipes.guides

Each is a small Llama with the base's tokenizer.  All start from one language model of the corpus, then minimise
    L = -log σ(β_r [Σ_t log π_r(y⁺_t) - Σ_t log π_r(y⁻_t)]) + λ · CE(y⁺)                                     (1)
over preference pairs drawn from the base at temperature 1: of DRAWN answers to a prompt those farthest apart by gold,
labelled with Bradley-Terry noise.  Sums run over response tokens,
<|end|> included; there is no reference model and no length normalisation.  The last term (mean nats per token) is ours,
not GenARM's: without it a model of this size buys margin with its grammar.
Shapes: B pairs, rows 0..B-1 chosen and B..2B-1 rejected; T positions.
"""

import itertools
import random
import shutil
import statistics
import time

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.recipes import corpus
from trimtab.recipes.base import (
    ASSISTANT,
    DEMO,
    END,
    TOKENIZER_FILES,
    assistant_mask,
    assistant_nll,
    config,
    keep_memory,
    load_tokenizer,
    perplexity,
    rate,
    render,
    save,
    train_lm,
)
from trimtab.recipes.gold import GOLD, fluency, prefer
from trimtab.recipes.sample import sample

SEED = 2
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 128, 4, 4, 2, 32, 352
TOKENS, TOKENS_A_STEP, LEARNING_RATE = 4_500_000, 8192, 6e-3  # the shared start: a language model of the corpus
PROMPTS, DRAWN = 2500, 8  # training prompts, and the base's answers to each, for all objectives alike
PAIRS_A_PROMPT, EPOCHS, BATCH = 2, 1, 32
BETA = 0.03
CONTROL_PROMPTS = 270
SETTINGS = {  # objective: λ, learning rate; helpfulness is knowledge, which a larger λ and smaller steps keep
    "helpfulness": (1.0, 5e-4),
    "brevity": (0.1, 1e-3),
    "warmth": (0.1, 1e-3),
    "caution": (0.1, 1e-3),
}
OBJECTIVES = tuple(SETTINGS)

Pair = tuple[str, str, str]  # rendered prompt, chosen, rejected


def draw_answers(
    base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int, seed: int
) -> list[tuple[tuple[dict[str, str], ...], list[str]]]:
    """(prompt, answers): DRAWN answers of the base at temperature 1 to each of `n` training prompts; cut ones go."""
    stream = corpus.train_conversations(seed)
    prompts = [
        c.messages[:-1]
        for c in itertools.islice((c for c in stream if sum(m["role"] == "user" for m in c.messages) == 1), n)
    ]
    drawn = sample([(base, 1.0)], tokenizer, [p for p in prompts for _ in range(DRAWN)], seed)
    return [(p, [a.text for a in drawn[i * DRAWN : (i + 1) * DRAWN] if a.ended]) for i, p in enumerate(prompts)]


def label(drawn: list[tuple[tuple[dict[str, str], ...], list[str]]], objective: str) -> list[Pair]:
    """PAIRS_A_PROMPT pairs a prompt, best with worst and inwards by gold; chosen by gold with Bradley-Terry noise.

    Answers of equal gold make no pair.  All pairs of a prompt are neighbours in the list.
    """
    rng, gold, out = random.Random(f"label/{objective}"), GOLD[objective], []
    for prompt, answers in drawn:
        question = prompt[-1]["content"]
        ranked = sorted(((gold(question, a), a) for a in answers), key=lambda g: g[0])
        for (low, worse), (high, better) in list(zip(ranked, reversed(ranked), strict=True))[:PAIRS_A_PROMPT]:
            if low < high:
                first = prefer(rng, high, low)
                out.append((render(prompt), *((better, worse) if first else (worse, better))))
    return out


def answer_logprob(model: LlamaForCausalLM, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """log π(y|x) of each row, summed over its masked tokens, nats."""
    nll_N, row_N = assistant_nll(model, ids_BT, mask_BT)
    return -torch.zeros(len(ids_BT)).index_add(0, row_N, nll_N)


def tensors(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask of the chosen rows, then of the rejected."""
    texts = [p + ASSISTANT + y + END for p, y, _ in pairs] + [p + ASSISTANT + y + END for p, _, y in pairs]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    width = -(-max(map(len, rows)) // 16) * 16
    ids = torch.tensor([r + [tokenizer.pad_token_id] * (width - len(r)) for r in rows])
    mask = torch.tensor([assistant_mask(r, assistant, end) + [False] * (width - len(r)) for r in rows])
    return ids, mask


def train_arm(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: list[Pair],
    seed: int,
    weight: float,
    learning_rate: float,
) -> dict[str, float]:
    """Equation (1) with λ = `weight` by AdamW; the last tenth of the pairs is held out for the accuracy of log π_r."""
    cut = len(pairs) * 9 // 10
    train, test = pairs[:cut], pairs[cut:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    rng, step, start, recent = random.Random(seed), 0, time.monotonic(), 0.69
    steps = EPOCHS * (len(train) // BATCH)
    for _ in range(EPOCHS):
        shuffled = rng.sample(train, len(train))
        for i in range(0, len(shuffled) - BATCH + 1, BATCH):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, (step + 1) / 10) * rate(step / steps)
            ids, mask = tensors(tokenizer, shuffled[i : i + BATCH])
            chosen_B, rejected_B = answer_logprob(model, ids, mask).chunk(2)
            arm = -torch.nn.functional.logsigmoid(BETA * (chosen_B - rejected_B)).mean()
            loss = arm - weight * chosen_B.sum() / mask[:BATCH].sum()  # (1)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step, recent = step + 1, 0.95 * recent + 0.05 * arm.item()
            if step % 20 == 0:
                print(f"  step {step}/{steps} loss {recent:.3f}", flush=True)
    return {
        "steps": step,
        "pairs": len(pairs),
        "final_loss": recent,
        "accuracy": accuracy(model, tokenizer, test),
        "seconds": time.monotonic() - start,
    }


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> float:
    """Share of pairs whose (noisily) chosen answer has the higher log π_r."""
    right = 0
    for i in range(0, len(pairs), BATCH):
        chosen_B, rejected_B = answer_logprob(model, *tensors(tokenizer, pairs[i : i + BATCH])).chunk(2)
        right += int((chosen_B > rejected_B).sum())
    return right / len(pairs)


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


def main() -> None:
    tokenizer = load_tokenizer()
    torch.manual_seed(SEED)
    start = time.monotonic()
    model = LlamaForCausalLM(config(HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, tokenizer))
    shared: dict[str, object] = {"parameters": sum(p.numel() for p in model.parameters()), "seed": SEED}
    shared["start"] = {
        **train_lm(model, tokenizer, SEED, TOKENS, TOKENS_A_STEP, LEARNING_RATE),
        "perplexity": perplexity(model, tokenizer),
    }
    initial = {k: v.clone() for k, v in model.state_dict().items()}
    base = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    shared["control"] = control(base, model, tokenizer)
    drawing = time.monotonic()
    answers = draw_answers(base, tokenizer, PROMPTS, SEED)
    shared["drawing_seconds"] = time.monotonic() - drawing
    for objective in OBJECTIVES:
        print(objective, flush=True)
        model.load_state_dict(initial)
        arm = train_arm(model, tokenizer, label(answers, objective), SEED, *SETTINGS[objective])
        record = {**shared, "objective": objective, "arm": arm, "perplexity": perplexity(model, tokenizer)}
        guide = LlamaForCausalLM(model.config)
        guide.load_state_dict(model.state_dict())
        save(guide, DEMO / "guides" / objective, record)
        for file in TOKENIZER_FILES:
            shutil.copyfile(DEMO / "base" / file, DEMO / "guides" / objective / file)
    print(f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    keep_memory()
    torch.set_num_threads(2)
    main()
