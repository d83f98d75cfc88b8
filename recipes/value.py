"""The value head of the demo family: what reward model `a` will say of an answer, foretold from its beginning.

    python -m trimtab.recipes.value

A Llama of a reward model's size with a head of one label per objective (controlled decoding's prefix scorer, CD-FUDGE,
arXiv 2310.17022). From reward model `a`'s own weights it minimises, over answers y of the base at temperature 1,
    L = mean over objectives k and t = 0 … |y| of (V_k(x, y_≤t) - r_k(x, y))²,                                     (1)
r being reward model `a`, whose units V's are, and t = 0 the turn just opened. V is read at the last token of the open
turn. Both are trained on the base's own answers, so V estimates E_π[r(x, y) | y_≤t].
Shapes: B answers, T positions, K objectives.
"""

import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from trimtab.recipes.base import (
    ASSISTANT,
    DEMO,
    END,
    TOKENIZER_FILES,
    assistant_mask,
    keep_memory,
    load_tokenizer,
    rate,
)
from trimtab.recipes.preferences import draw_answers
from trimtab.recipes.rewards import OBJECTIVES, Drawn, heldout_answers, judge, read

TEACHER = "a"
SEED = 20  # of the answers too, which are those of the twin's pairs
PROMPTS, EPOCHS, PROMPTS_A_STEP, LEARNING_RATE = 1000, 2, 8, 1e-3
PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of an answer's length, where held-out correlations are told."""


def value_positions(tokenizer: PreTrainedTokenizerFast, drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
    """ids [B, T], and [B, T] where V is read: at the token that opens the turn and at each of the answer's."""
    ids = read(tokenizer, drawn)
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    answer_mask = torch.tensor([assistant_mask(row, assistant, end) for row in ids.tolist()])
    last_turn = (ids == assistant).cumsum(1) == (ids == assistant).sum(1, keepdim=True)
    return ids, last_turn & ((answer_mask & (ids != end)) | (ids == assistant)) & (ids != tokenizer.pad_token_id)


def predict_values(model: LlamaForSequenceClassification, ids: Tensor) -> Tensor:
    """[B, T, K] V at every token."""
    with torch.autocast("cpu", torch.bfloat16):
        values: Tensor = model.score(model.model(input_ids=ids).last_hidden_state)
    return values.float()


def train(
    model: LlamaForSequenceClassification,
    teacher: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    drawn: Sequence[Drawn],
) -> dict[str, float]:
    """Equation (1) by AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    steps, step, recent = EPOCHS * (len(drawn) // PROMPTS_A_STEP), 0, 0.0
    rng, start = random.Random(SEED), time.monotonic()
    for _ in range(EPOCHS):
        order = rng.sample(range(len(drawn)), len(drawn))
        for i in range(0, len(order) - PROMPTS_A_STEP + 1, PROMPTS_A_STEP):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 10) * rate(step / steps)
            ids, at_BT = value_positions(tokenizer, [drawn[j] for j in order[i : i + PROMPTS_A_STEP]])
            with torch.no_grad():
                reward_BK = judge(teacher, ids)
            miss = (predict_values(model, ids) - reward_BK[:, None])[at_BT]
            loss = miss.square().mean()  # (1)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step, recent = step + 1, loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
            if step % 20 == 0:
                print(f"  step {step}/{steps} loss {recent:.3f}", flush=True)
    return {"steps": step, "final_loss": recent, "seconds": time.monotonic() - start}


@torch.inference_mode()
def heldout_correlations(
    model: LlamaForSequenceClassification,
    teacher: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    drawn: Sequence[Drawn],
) -> dict[str, dict[str, float]]:
    """objective -> share of the answer read -> correlation of V with r over all answers.

    At 0 it is what the question alone foretells; the rest is what the beginning adds.
    """
    rows: dict[float, list[Tensor]] = {part: [] for part in PARTS}
    rewards: list[Tensor] = []
    for one in drawn:
        ids, at_BT = value_positions(tokenizer, [one])
        rewards.append(judge(teacher, ids))
        values = predict_values(model, ids)
        for row, at in zip(values, at_BT, strict=True):
            places = at.nonzero()[:, 0]
            for part in PARTS:
                rows[part].append(row[places[round(part * (len(places) - 1))]])
    r_BK = torch.cat(rewards)
    correlations = {o: {} for o in OBJECTIVES}  # type: dict[str, dict[str, float]]
    for part, values_B in rows.items():
        v_BK = torch.stack(values_B)
        for k, objective in enumerate(OBJECTIVES):
            correlations[objective][str(part)] = torch.corrcoef(torch.stack([v_BK[:, k], r_BK[:, k]]))[0, 1].item()
    return correlations


def main(base_folder: Path = DEMO / "base", rewards: Path = DEMO / "rewards", member: str = "value") -> None:
    begun, folder = time.monotonic(), rewards / member
    torch.manual_seed(SEED)
    tokenizer = load_tokenizer(base_folder)
    base = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    drawn = [one for one in draw_answers(base, tokenizer, PROMPTS, SEED) if one[1]]
    unseen = [one for one in heldout_answers(base, tokenizer) if one[1]]
    drawing_seconds = time.monotonic() - begun
    teacher = LlamaForSequenceClassification.from_pretrained(rewards / TEACHER, dtype=torch.float32).eval()
    model = LlamaForSequenceClassification.from_pretrained(rewards / TEACHER, dtype=torch.float32)
    record: dict[str, object] = {"teacher": TEACHER, "seed": SEED, "drawing_seconds": drawing_seconds}
    record["parameters"] = sum(p.numel() for p in model.parameters())
    record["training"] = train(model, teacher, tokenizer, drawn)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    for file in TOKENIZER_FILES:
        shutil.copyfile(base_folder / file, folder / file)
    record["heldout"] = heldout_correlations(
        model.to(torch.float32), teacher, tokenizer, unseen
    )  # as saved, rounded to bf16
    (folder / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2), f"{time.monotonic() - begun:.0f} s", sep="\n", flush=True)


if __name__ == "__main__":
    keep_memory()
    torch.set_num_threads(2)
    main()
