"""The demo family's reader of directions: the base, fine-tuned whole to obey a direction told to it (DPA).

    python -m trimtab.recipes.directional

As in DPA (arXiv 2402.18571) answers are drawn, a direction u keeps one of them, and the model learns to say it under
the text s(u). Each training prompt x has a pool of answers that reaches far along every axis: drawn from the base, from
the base under s(u) at both ends, and from the base with guides mixed in. With z(x, y) reward model `a`'s scores on a
preference prompt's two objectives, less the pool's mean and in units of spread,
    y_u = argmin_y |z(x, y) - R u|²,                                                                              (1)
and R → ∞ is DPA's argmax u · z. Where two objectives do not trade off, as warmth and caution do not, that keeps one and
the same answer for most u, which teaches nothing about numbers; the answer nearest to R u turns with u. Then
    L = CE(y_u | x, s(u)) + LAMBDA |W h - u|²                                                                     (2)
with CE in nats per token, h the normed state after layer PROBED at every token that says y_u, and W a matrix that is
dropped in the end. The second term, which is ours, has u read off its digits early, where the layers above can use it;
without it a model of this size goes on reading the sign alone (docs/log.md). Gold is what is measured below; training
never reads it.

Two prompts are learnt: DPA's own over helpfulness and verbosity, and one over warmth and caution that the base has
never read. Shapes: B rows, T positions, N answers of a pool, K objectives, X said tokens of a batch, D state.
"""

import itertools
import json
import math
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from trimtab.recipes import corpus
from trimtab.recipes.base import (
    ASSISTANT,
    DEMO,
    END,
    TOKENIZER_FILES,
    assistant_mask,
    keep_memory,
    load_tokenizer,
    rate,
    render,
    save,
)
from trimtab.recipes.gold import GOLD, fluency
from trimtab.recipes.preferences import OBJECTIVES as GUIDES
from trimtab.recipes.rewards import OBJECTIVES, judge, read
from trimtab.recipes.sample import Sampled, sample

SEED = 30
TEACHER = "a"
PROMPTS = 1200
STYLES: tuple[tuple[float | None, dict[str, float]], ...] = (  # of answers: DPA's angle told, guides' exponents
    (None, {}),
    (-45.0, {"helpfulness": 0.5}),
    (45.0, {"helpfulness": 0.5}),
    (None, {"helpfulness": 1.0}),
    (None, {"helpfulness": 0.5, "brevity": 0.5}),
    (None, {"helpfulness": 0.5, "brevity": -0.25}),
    (None, {"warmth": 0.5}),
    (None, {"caution": 0.5}),
    (None, {"warmth": 0.25, "caution": 0.25}),
    (None, {"warmth": 0.5, "caution": -0.25}),
    (None, {"warmth": -0.25, "caution": 0.5}),
)
DRAWN = 2  # answers a style
RADIUS = 2.5
TOKENS, BATCH = 4_000_000, 32  # padded training tokens in all, rows a step
LEARNING_RATE, WARMUP = 2e-3, 20
LAMBDA, PROBED = 3.0, 3
HELDOUT_ONE_IN = 10  # of the training prompts, for the figures of training
HELDOUT_PROMPTS = 90  # of the corpus, for obedience

Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class PreferencePrompt:
    """A preference prompt over two objectives, each a reward model's score up to its sign."""

    text: str
    axes: tuple[tuple[str, str, float], tuple[str, str, float]]
    """(name, objective, sign)"""
    low: float
    high: float
    """Degrees."""

    def render(self, theta: float) -> str:
        h, w = round(100 * math.cos(math.radians(theta))), round(100 * math.sin(math.radians(theta)))
        return self.text.format(h=h, w=w)

    def gold(self, question: str, answer: str) -> tuple[float, float]:
        """Points of each axis; of one that is turned round, 10 less them."""
        points = [GOLD[objective](question, answer) for _, objective, _ in self.axes]
        first, second = (p if sign > 0 else 10 - p for p, (_, _, sign) in zip(points, self.axes, strict=True))
        return first, second


PAIRS = {
    "dpa": PreferencePrompt(
        corpus.DPA_SYSTEM, (("helpfulness", "helpfulness", 1.0), ("verbosity", "brevity", -1.0)), -45.0, 45.0
    ),
    "kindness": PreferencePrompt(
        "Your response should maximize weighted rating = warmth*{h} + caution*{w}",
        (("warmth", "warmth", 1.0), ("caution", "caution", 1.0)),
        0.0,
        90.0,
    ),
}


def unit(theta: float) -> Tensor:
    return torch.tensor([math.cos(math.radians(theta)), math.sin(math.radians(theta))])


@dataclass(frozen=True)
class AnswerPool:
    """A prompt's answers, and by preference prompt where each stands: z of (1), [N, 2]."""

    prompt: Messages
    answers: list[str]
    z: dict[str, Tensor]

    def favourite(self, name: str, theta: float) -> str:
        """Equation (1)."""
        return self.answers[int((self.z[name] - RADIUS * unit(theta)).square().sum(1).argmin())]


def draw_pools(
    base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, guides: dict[str, LlamaForCausalLM]
) -> list[tuple[Messages, list[str]]]:
    """DRAWN answers of every style to each of PROMPTS training prompts, without repeats and those that were cut."""
    stream = (c for c in corpus.train_conversations(SEED) if sum(m["role"] == "user" for m in c.messages) == 1)
    prompts: list[Messages] = [(c.messages[-2],) for c in itertools.islice(stream, PROMPTS)]
    answers_by_prompt: list[list[str]] = [[] for _ in prompts]
    for i, (theta, exponents) in enumerate(STYLES):
        system = () if theta is None else ({"role": "system", "content": corpus.dpa_system(theta)},)
        members = [(base, 1.0), *((guides[name], exponent) for name, exponent in exponents.items())]
        drawn = sample(members, tokenizer, [(*system, *p) for p in prompts for _ in range(DRAWN)], SEED + i)
        for j, one in enumerate(drawn):
            if one.ended:
                answers_by_prompt[j // DRAWN].append(one.text)
    return [(p, list(dict.fromkeys(answers))) for p, answers in zip(prompts, answers_by_prompt, strict=True)]


@torch.inference_mode()
def place(
    teacher: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    drawn: list[tuple[Messages, list[str]]],
) -> list[AnswerPool]:
    """Scores every pool; its centre is its own, the unit the mean spread of all."""
    tables = [judge(teacher, read(tokenizer, [one])) for one in drawn]
    spread_K = torch.stack([table.std(0) for table in tables]).mean(0)
    pools = []
    for (prompt, answers), table in zip(drawn, tables, strict=True):
        z_NK = (table - table.mean(0)) / spread_K
        z = {
            name: torch.stack([sign * z_NK[:, OBJECTIVES.index(o)] for _, o, sign in pair.axes], 1)
            for name, pair in PAIRS.items()
        }
        pools.append(AnswerPool(prompt, answers, z))
    return pools


@dataclass(frozen=True)
class Batch:
    ids_BT: Tensor
    mask_BT: Tensor
    """True where an answer is said."""
    direction_B2: Tensor


Row = tuple[str, str, float]  # the prompt with its direction, rendered; the answer; the angle


def tensors(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> Batch:
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    encoded = tokenizer([prompt + ASSISTANT + y + END for prompt, y, _ in rows], add_special_tokens=False)["input_ids"]
    width = -(-max(map(len, encoded)) // 8) * 8
    ids = torch.tensor([r + [tokenizer.pad_token_id] * (width - len(r)) for r in encoded])
    mask = torch.tensor([assistant_mask(r, assistant, end) + [False] * (width - len(r)) for r in encoded])
    return Batch(ids, mask, torch.stack([unit(theta) for _, _, theta in rows]))


def render_prompt(pool: AnswerPool, pair: PreferencePrompt, theta: float) -> str:
    return render(({"role": "system", "content": pair.render(theta)}, *pool.prompt))


def draws(pools: list[AnswerPool], rng: random.Random) -> Iterator[Row]:
    """Every pool in turn, in an order of its own each time, and for either prompt a direction."""
    while True:
        for pool in rng.sample(pools, len(pools)):
            for name, pair in PAIRS.items():
                theta = rng.uniform(pair.low, pair.high)
                yield render_prompt(pool, pair, theta), pool.favourite(name, theta), theta


def batches(tokenizer: PreTrainedTokenizerFast, rows: Iterator[Row], rng: random.Random) -> Iterator[Batch]:
    """Rows of similar length together, so that little is padding."""
    while True:
        some = sorted(itertools.islice(rows, 32 * BATCH), key=lambda row: len(row[0]) + len(row[1]))
        for i in rng.sample(range(0, len(some), BATCH), len(some) // BATCH):
            yield tensors(tokenizer, some[i : i + BATCH])


def forward(model: LlamaForCausalLM, probe: torch.nn.Linear, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Of each answer -log p and its number of tokens, [B]; of each of their tokens the probe's direction less u."""
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(input_ids=batch.ids_BT[:, :-1], output_hidden_states=True)
        answer_BT = batch.mask_BT[:, 1:]
        logits_XV = model.lm_head(states.last_hidden_state[answer_BT])
    nll_X = torch.nn.functional.cross_entropy(logits_XV.float(), batch.ids_BT[:, 1:][answer_BT], reduction="none")
    row_X = answer_BT.nonzero()[:, 0]
    h_XD = states.hidden_states[PROBED][answer_BT].float()
    off_X2 = probe(torch.nn.functional.rms_norm(h_XD, h_XD.shape[1:])) - batch.direction_B2[row_X]
    nll_B = torch.zeros(len(answer_BT)).index_add(0, row_X, nll_X)
    return nll_B, answer_BT.sum(1), off_X2


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, probe: torch.nn.Linear, pools: list[AnswerPool]
) -> dict[str, float]:
    """Equation (2) by AdamW over all parameters, until TOKENS padded tokens are seen."""
    rng, weights = random.Random(SEED), [*model.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    seen, step, recent, start = 0, 0, torch.zeros(2), time.monotonic()
    for batch in batches(tokenizer, draws(pools, rng), rng):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * rate(seen / TOKENS)
        nll_B, tokens_B, off_X2 = forward(model, probe, batch)
        entropy, off = nll_B.sum() / tokens_B.sum(), off_X2.square().sum(1).mean()
        (entropy + LAMBDA * off).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen, step = seen + batch.ids_BT.numel(), step + 1
        now = torch.stack([entropy, off]).detach()
        recent = now if step == 1 else 0.95 * recent + 0.05 * now
        if step % 20 == 0:
            speed = seen / (time.monotonic() - start)
            print(f"  step {step} {seen / 1e6:.2f}M tokens CE {recent[0]:.3f} off {recent[1]:.4f} {speed:.0f} tokens/s",
                  flush=True)  # fmt: skip
        if seen >= TOKENS:
            break
    return {"steps": step, "tokens": seen, "final_loss": recent[0].item(), "final_off": recent[1].item(),
            "seconds": time.monotonic() - start}  # fmt: skip


@torch.no_grad()
def apart(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, probe: torch.nn.Linear, pools: list[AnswerPool]
) -> dict[str, dict[str, float]]:
    """On prompts that training left out: is u's favourite likelier under u than under v of the other half of the cone?

    share: how often; nats: by how much a token; cross_entropy under u; off: the probe's distance, root mean square.
    """
    rng, figures = random.Random(SEED), {}
    for name, pair in PAIRS.items():
        target_rows, other_rows = [], []
        for pool in pools:
            for _ in range(4):
                middle = (pair.low + pair.high) / 2
                u, v = rng.uniform(pair.low, middle), rng.uniform(middle, pair.high)
                if rng.random() < 0.5:
                    u, v = v, u
                y = pool.favourite(name, u)
                target_rows.append((render_prompt(pool, pair, u), y, u))
                other_rows.append((render_prompt(pool, pair, v), y, u))
        margins, entropy, count, off = [], 0.0, 0, []
        for i in range(0, len(target_rows), BATCH):
            nll_B, tokens_B, off_X2 = forward(model, probe, tensors(tokenizer, target_rows[i : i + BATCH]))
            swapped_B, _, _ = forward(model, probe, tensors(tokenizer, other_rows[i : i + BATCH]))
            margins.append(swapped_B - nll_B)
            entropy, count = entropy + float(nll_B.sum()), count + int(tokens_B.sum())
            off.append(off_X2.square().sum(1))
        margin = torch.cat(margins)
        figures[name] = {"share": (margin > 0).float().mean().item(), "nats": margin.sum().item() / count,
                       "cross_entropy": entropy / count, "off": torch.cat(off).mean().sqrt().item()}  # fmt: skip
    return figures


def obedience(draw: Callable[[list[Messages]], list[Sampled]]) -> dict[str, list[dict[str, float]]]:
    """prompt -> per angle, mean gold of both axes, fluency and words, on held-out prompts."""
    figures: dict[str, list[dict[str, float]]] = {}
    prompts = corpus.heldout_prompts(HELDOUT_PROMPTS, SEED)
    for name, pair in PAIRS.items():
        figures[name] = []
        for theta in [pair.low + (pair.high - pair.low) * i / 6 for i in range(7)]:
            system = {"role": "system", "content": pair.render(theta)}
            answers = [a.text for a in draw([(system, *p.messages) for p in prompts])]
            points = [pair.gold(p.text, a) for p, a in zip(prompts, answers, strict=True)]
            figures[name].append(
                {
                    "theta": theta,
                    pair.axes[0][0]: statistics.fmean(first for first, _ in points),
                    pair.axes[1][0]: statistics.fmean(second for _, second in points),
                    "fluency": statistics.fmean(map(fluency, answers)),
                    "words": statistics.fmean(len(a.split()) for a in answers),
                }
            )
    return figures


def main(base_folder: Path = DEMO / "base", folder: Path = DEMO / "guides" / "directional") -> None:
    begun = time.monotonic()
    torch.manual_seed(SEED)
    tokenizer = load_tokenizer(base_folder)
    model = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    guides = {name: LlamaForCausalLM.from_pretrained(DEMO / "guides" / name, dtype=torch.float32) for name in GUIDES}
    teacher = LlamaForSequenceClassification.from_pretrained(DEMO / "rewards" / TEACHER, dtype=torch.float32).eval()

    def draw(prompts: list[Messages]) -> list[Sampled]:
        return sample([(model, 1.0)], tokenizer, prompts, SEED)

    record: dict[str, object] = {"teacher": TEACHER, "seed": SEED}
    record["parameters"] = sum(p.numel() for p in model.parameters())
    record["base"] = obedience(draw)
    drawing = time.monotonic()
    pools = place(teacher, tokenizer, draw_pools(model, tokenizer, guides))
    record["drawing_seconds"] = time.monotonic() - drawing
    record["answers"] = sum(len(pool.answers) for pool in pools)
    training, test = [p for i, p in enumerate(pools) if i % HELDOUT_ONE_IN], pools[::HELDOUT_ONE_IN]
    probe = torch.nn.Linear(model.config.hidden_size, 2, bias=False)
    torch.nn.init.zeros_(probe.weight)
    record["apart_before"] = apart(model, tokenizer, probe, test)
    record["training"] = train(model, tokenizer, probe, training)
    record["apart"] = apart(model, tokenizer, probe, test)
    for weights in model.parameters():
        weights.data = weights.data.to(torch.bfloat16).float()  # as saved
    record["heldout"] = obedience(draw)
    save(model, folder, record)
    for file in TOKENIZER_FILES:
        shutil.copyfile(base_folder / file, folder / file)
    print(json.dumps(record, indent=2), f"{time.monotonic() - begun:.0f} s", sep="\n", flush=True)


if __name__ == "__main__":
    keep_memory()
    torch.set_num_threads(2)
    main()
