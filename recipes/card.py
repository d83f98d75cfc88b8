"""Measures the demo family and writes its card, demo/README.md.

    python -m trimtab.recipes.card

Every figure on the card is computed here from the checkpoints, or read from the `recipe.json` that a recipe left beside
its weights.  Intervals are 95 %, normal approximation over prompts.
"""

import itertools
import json
import math
import os
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.recipes import base, corpus, gold, guides, rewards
from trimtab.recipes.base import DEMO, keep_memory, load_tokenizer, perplexity
from trimtab.recipes.records import adapter, control, obedience, reward_models, table, twin, value_head
from trimtab.recipes.sample import MAX_NEW, Sampled, sample

SEED = 3
PROMPTS = 180  # held-out, 20 a domain
DRAWS = 3  # answers a prompt for the base's own figures
ALPHAS = (0.25, 0.5, 1.0, 2.0)
ANGLES = (-45, -30, -15, 0, 15, 30, 45)  # degrees
SHOWN = 12  # sample answers printed

Member = tuple[LlamaForCausalLM, float]


def load(path: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def mean_ci(values: Sequence[float]) -> str:
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.2f} ± {half:.2f}"


def scores(objective: str, prompts: Sequence[corpus.Prompt], answers: Sequence[Sampled]) -> list[float]:
    return [gold.GOLD[objective](p.text, a.text) for p, a in zip(prompts, answers, strict=True)]


def accuracy(prompts: Sequence[corpus.Prompt], answers: Sequence[Sampled]) -> list[float]:
    pairs = [(p, a) for p, a in zip(prompts, answers, strict=True) if p.domain == "arithmetic"]
    return [gold.arithmetic(p.text, a.text) for p, a in pairs]


def draw(
    members: Sequence[Member], tokenizer: PreTrainedTokenizerFast, prompts: Sequence[corpus.Prompt]
) -> list[Sampled]:
    return sample(members, tokenizer, [p.messages for p in prompts], SEED)


def heldout_conversations(n: int) -> Iterator[corpus.Dialogue]:
    """The grammar's own answers to held-out prompts, for perplexity."""
    rng = random.Random(SEED)
    for prompt in corpus.heldout_prompts(n, SEED):
        topic: corpus.Topic | corpus.Sum | None = corpus.topic_of(prompt.text)
        if topic is not None:
            behaviour = corpus.draw_behaviour(rng)
            turn = {"role": "assistant", "content": corpus.answer(rng, topic, behaviour)}
            yield corpus.Dialogue((*prompt.messages, turn), prompt.domain, behaviour)


def trained_on(tokenizer: PreTrainedTokenizerFast, tokens: int) -> list[corpus.Dialogue]:
    """The conversations that the base's training saw: its own batches, replayed."""
    seen, rows = 0, 0
    for ids, _ in base.batches(tokenizer, corpus.train_conversations(base.SEED), base.BATCH):
        seen, rows = seen + ids.numel(), rows + len(ids)
        if seen >= tokens:
            break
    return list(itertools.islice(corpus.train_conversations(base.SEED), rows))


def hardware() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{os.cpu_count()} cores of {names[0] if names else 'an unnamed processor'}"


def family(records: dict[str, dict[str, object]]) -> str:
    rows = []
    for path, record in records.items():
        size = (DEMO / path / "model.safetensors").stat().st_size
        shape = json.loads((DEMO / path / "config.json").read_text())
        rows.append(
            (
                f"`demo/{path}`",
                f"{record['parameters']:,}",
                f"{size / 1e6:.2f} MB",
                shape["num_hidden_layers"],
                shape["hidden_size"],
                f"{shape['num_attention_heads']} / {shape['num_key_value_heads']} × {shape['head_dim']}",
                f"{record['perplexity']:.3f}",
            )
        )
    total = sum(f.stat().st_size for f in DEMO.rglob("*.safetensors"))
    header = ("member", "parameters", "weights", "layers", "hidden", "heads / kv × size", "perplexity")
    return table(header, rows) + f"\nAll weights together: {total / 1e6:.2f} MB, bf16.\n"


def training_table(records: dict[str, dict[str, object]]) -> str:
    first = records["base"]
    rows = [("base", first["steps"], f"{first['tokens']:,}", f"{first['final_loss']:.3f}", f"{first['seconds']:.0f} s")]
    guide = records["guides/helpfulness"]
    start = guide["start"]
    assert isinstance(start, dict)
    rows.append(
        (
            "guides' shared start",
            start["steps"],
            f"{start['tokens']:,}",
            f"{start['final_loss']:.3f}",
            f"{start['seconds']:.0f} s",
        )
    )
    for name in guides.OBJECTIVES:
        arm = records[f"guides/{name}"]["arm"]
        assert isinstance(arm, dict)
        rows.append(
            (
                f"{name} (equation 1)",
                arm["steps"],
                f"{arm['pairs']:,} pairs × {guides.EPOCHS}",
                f"{arm['final_loss']:.3f}; held-out pairs ordered right {arm['accuracy']:.3f}",
                f"{arm['seconds']:.0f} s",
            )
        )
    return table(("what", "steps", "data", "final loss", "wall time"), rows) + (
        f"\nDrawing the pairs took {guide['drawing_seconds']:.0f} s. Wall times are of the run that made these "
        f"weights, other work on the machine included; this page was measured on {hardware()}.\n"
    )


def data(seen: Sequence[corpus.Dialogue]) -> str:
    turns = sum(len([m for m in c.messages if m["role"] == "user"]) > 1 for c in seen)
    rows = [
        (
            d,
            f"{sum(c.domain == d for c in seen):,}",
            f"{sum(c.domain == d for c in seen) / len(seen):.1%}",
            *(
                (len(t), sum(x.composed and corpus.is_heldout(x.key) for x in t))
                if (t := corpus.topics().get(d))
                else ("unbounded", f"1 in {corpus.HELDOUT_ONE_IN}")
            ),
        )
        for d in corpus.DOMAINS
    ]
    return table(("domain", "conversations", "share", "topics", "of these held out"), rows) + (
        f"\n{len(seen):,} conversations in training, each seen once; "
        f"{sum(c.theta is not None for c in seen) / len(seen):.1%} with a preference direction, "
        f"{sum(c.theta is None and c.messages[0]['role'] == 'system' for c in seen) / len(seen):.1%} with a plain "
        f"system message, {turns / len(seen):.1%} of two turns.\n"
    )


def behaviour(prompts: Sequence[corpus.Prompt], answers: Sequence[Sampled], seen_answers: set[str]) -> str:
    rows = [(o, mean_ci(s), f"{statistics.stdev(s):.2f}") for o in gold.GOLD for s in [scores(o, prompts, answers)]]
    out = table(("objective", "gold, points", "standard deviation"), rows) + "\n"
    by_domain = []
    for d in corpus.DOMAINS:
        of = [(p, a) for p, a in zip(prompts, answers, strict=True) if p.domain == d]
        by_domain.append(
            (
                d,
                mean_ci([gold.helpfulness(p.text, a.text) for p, a in of]),
                mean_ci([gold.fluency(a.text) for _, a in of]),
                f"{statistics.fmean(len(gold.words(a.text)) for _, a in of):.1f}",
                f"{sum(a.text in seen_answers for _, a in of) / len(of):.1%}",
            )
        )
    right = accuracy(prompts, answers)
    return (
        out
        + table(("domain", "helpfulness", "fluency", "words", "verbatim in training"), by_domain)
        + (
            f"\nWord problems solved: {mean_ci(right)} of {len(right)} answers. Answers that stand verbatim, whole, in "
            f"the training data: {sum(a.text in seen_answers for a in answers) / len(answers):.1%}. "
            f"Answers cut at {MAX_NEW} tokens: {sum(not a.ended for a in answers) / len(answers):.1%}.\n"
        )
    )


def directions(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    rows = []
    for theta in ANGLES:
        prompts = corpus.heldout_prompts(PROMPTS, SEED, theta=theta)
        answers = draw([(model, 1.0)], tokenizer, prompts)
        system = re.search(r"helpfulness\*.*", corpus.dpa_system(theta))
        rows.append(
            (
                f"{theta}°",
                f"`{system.group() if system else ''}`",
                mean_ci([len(gold.words(a.text)) for a in answers]),
                mean_ci([10 - s for s in scores("brevity", prompts, answers)]),
                mean_ci(scores("helpfulness", prompts, answers)),
            )
        )
        print(f"direction {theta}", flush=True)
    return table(("θ", "direction", "words", "verbosity (10 − brevity)", "helpfulness"), rows)


def guided_tables(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[corpus.Prompt],
    plain: Sequence[Sampled],
) -> str:
    out = ""
    for name in guides.OBJECTIVES:
        guide = load(DEMO / "guides" / name)
        base_scores = scores(name, prompts, plain)
        spread = statistics.stdev(base_scores)
        rows = [("0", mean_ci(base_scores), "0.00", *_side(prompts, plain), "0.0")]
        for alpha in ALPHAS:
            answers = draw([(model, 1.0), (guide, alpha)], tokenizer, prompts)
            s = scores(name, prompts, answers)
            gain = (statistics.fmean(s) - statistics.fmean(base_scores)) / spread
            rows.append(
                (
                    f"{alpha:g}",
                    mean_ci(s),
                    f"{gain:+.2f}",
                    *_side(prompts, answers),
                    f"{statistics.fmean(a.kl for a in answers):.1f}",
                )
            )
            print(f"{name} {alpha} {gain:+.2f}", flush=True)
        out += (
            f"### {name}\n\n"
            + table(
                (
                    "α",
                    f"gold {name}",
                    "gain, base's standard deviations",
                    "helpfulness",
                    "fluency",
                    "words",
                    "KL to base, nats an answer",
                ),
                rows,
            )
            + "\n"
        )
    return out


def _side(prompts: Sequence[corpus.Prompt], answers: Sequence[Sampled]) -> tuple[str, str, str]:
    return (
        mean_ci(scores("helpfulness", prompts, answers)),
        f"{statistics.fmean(gold.fluency(a.text) for a in answers):.2f}",
        f"{statistics.fmean(len(gold.words(a.text)) for a in answers):.1f}",
    )


def sample_answers(prompts: Sequence[corpus.Prompt], answers: Sequence[Sampled]) -> str:
    pairs = list(zip(prompts, answers, strict=True))[:SHOWN]  # the first ones drawn, not chosen
    return "\n".join("> **" + p.text + "**\n>\n> " + a.text.replace("\n", "  \n> ") + "\n" for p, a in pairs)


def main() -> None:
    start = time.monotonic()
    tokenizer = load_tokenizer()
    paths = ["base", *(f"guides/{o}" for o in guides.OBJECTIVES)]
    records = {p: json.loads((DEMO / p / "recipe.json").read_text()) for p in paths}
    model = load(DEMO / "base")
    seen = trained_on(tokenizer, records["base"]["tokens"])
    seen_answers = {m["content"] for c in seen for m in c.messages if m["role"] == "assistant"}
    prompts = corpus.heldout_prompts(PROMPTS, SEED)
    repeated = [p for p in prompts for _ in range(DRAWS)]
    answers = draw([(model, 1.0)], tokenizer, repeated)
    fresh = perplexity(model, tokenizer, heldout_conversations(base.HELDOUT_SAMPLE))
    text = (
        Path(__file__)
        .with_name("card.md")
        .read_text()
        .format(
            family=family(records),
            data=data(seen),
            training=training_table(records),
            behaviour=behaviour(repeated, answers, seen_answers),
            fresh=f"{fresh:.3f}",
            draws=DRAWS,
            prompts=PROMPTS,
            noise=gold.NOISE,
            drawn=guides.DRAWN,
            asked=guides.PROMPTS,
            directions=directions(model, tokenizer),
            guided=guided_tables(model, tokenizer, prompts, answers[::DRAWS]),
            control=control(records),
            rewards=reward_models(),
            reward_prompts=rewards.PROMPTS,
            twin=twin(),
            value=value_head(),
            obedience=obedience(),
            adapter=adapter(),
            shown=sample_answers(prompts, answers[::DRAWS]),
            beta=guides.BETA,
            settings=", ".join(f"{o} {weight:g}" for o, (weight, _) in guides.SETTINGS.items()),
            seeds=f"{base.SEED}, {guides.SEED}, {SEED}; of the reward models "
            + ", ".join(str(seed) for seed in rewards.MEMBERS.values()),
        )
    )
    (DEMO / "README.md").write_text(text)
    print(f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    keep_memory()
    torch.set_num_threads(2)
    main()
