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
from typing import Any

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from trimtab.recipes import base, corpus, gold, preferences, rewards
from trimtab.recipes.base import DEMO, keep_memory, load_tokenizer, perplexity
from trimtab.recipes.records import (
    adapter,
    control,
    obedience,
    read_guides,
    read_training,
    reward_models,
    table,
    trainings,
    value_head,
)
from trimtab.recipes.sample import MAX_NEW, Sampled, sample
from trimtab.recipes.value import heldout_correlations

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


def family(tokenizer: PreTrainedTokenizerFast) -> str:
    rows = []
    for path in ["base", *(f"guides/{o}" for o in preferences.OBJECTIVES)]:
        model = load(DEMO / path)
        size = (DEMO / path / "model.safetensors").stat().st_size
        shape = model.config
        rows.append(
            (
                f"`demo/{path}`",
                f"{model.num_parameters():,}",
                f"{size / 1e6:.2f} MB",
                shape.num_hidden_layers,
                shape.hidden_size,
                f"{shape.num_attention_heads} / {shape.num_key_value_heads} × {shape.head_dim}",
                f"{perplexity(model, tokenizer):.3f}",
            )
        )
    total = sum(f.stat().st_size for f in DEMO.rglob("*.safetensors"))
    header = ("member", "parameters", "weights", "layers", "hidden", "heads / kv × size", "perplexity")
    return table(header, rows) + f"\nAll weights together: {total / 1e6:.2f} MB.\n"


def training_table(record: dict[str, Any]) -> str:
    shared = read_guides()
    rows: list[Sequence[object]] = [
        (what, f"{of['tokens']:,} tokens", f"loss {of['final_loss']:.3f}", f"{of['seconds']:.0f} s")
        for what, of in (("base", record), ("guides' shared start", shared["start"]))
    ]
    rows += trainings([*preferences.OBJECTIVES, "aligned"])
    return table(("what", "data", "in the end", "wall time"), rows) + (
        f"\nDrawing the pairs took {shared['drawing_seconds']:.0f} s. Wall times are of the run that made these "
        f"weights, other work on the machine included; this page was measured on {hardware()}."
        f"{shared.get('note', '')}\n"
    )


def twin(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[corpus.Prompt],
    plain: Sequence[Sampled],
) -> str:
    """The aligned twin and the base that it is an adapter of, on the same held-out prompts."""
    folder = DEMO / "guides" / "aligned"
    adapted = PeftModel.from_pretrained(load(DEMO / "base"), str(folder)).merge_and_unload()
    answers = draw([(model, 0.0), (adapted, 1.0)], tokenizer, prompts)
    rows = [
        (
            name,
            *(mean_ci(scores(objective, prompts, drawn)) for objective in gold.GOLD),
            f"{statistics.fmean(gold.fluency(a.text) for a in drawn):.2f}",
            f"{max(0.0, statistics.fmean(a.kl for a in drawn)):.2f}",
            f"{statistics.fmean(len(gold.words(a.text)) for a in drawn):.1f}",
        )
        for name, drawn in (("`demo/base`", plain), ("`demo/guides/aligned`", answers))
    ]
    size = (folder / "adapter_model.safetensors").stat().st_size
    header = ("model", *gold.GOLD, "fluency", "KL to base, nats an answer", "words")
    return table(header, rows) + f"\nThe adapter has {size / 1e6:.2f} MB.\n"


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
    for name in preferences.OBJECTIVES:
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


def correlate_value_head(
    base_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> dict[str, dict[float, float]]:
    """Of the value head: objective -> share of the answer read -> correlation with reward model a's word in the end."""
    head, teacher = (
        LlamaForSequenceClassification.from_pretrained(DEMO / "rewards" / name, dtype=torch.float32).eval()
        for name in ("value", "a")
    )
    drawn = [one for one in rewards.heldout_answers(base_model, tokenizer) if one[1]]
    return heldout_correlations(head, teacher, tokenizer, drawn)


def _side(prompts: Sequence[corpus.Prompt], answers: Sequence[Sampled]) -> tuple[str, str, str]:
    return (
        mean_ci(scores("helpfulness", prompts, answers)),
        f"{statistics.fmean(gold.fluency(a.text) for a in answers):.2f}",
        f"{statistics.fmean(len(gold.words(a.text)) for a in answers):.1f}",
    )


def sample_answers(prompts: Sequence[corpus.Prompt], answers: Sequence[Sampled]) -> str:
    pairs = list(zip(prompts, answers, strict=True))[:SHOWN]  # the first ones drawn, not chosen
    return "\n".join("> **" + p.text + "**\n>\n> " + a.text.replace("\n", "  \n> ") + "\n" for p, a in pairs)


def main(path: Path = DEMO / "README.md") -> None:
    start = time.monotonic()
    tokenizer = load_tokenizer()
    record = json.loads((DEMO / "base" / "recipe.json").read_text())
    model = load(DEMO / "base")
    seen = trained_on(tokenizer, record["tokens"])
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
            family=family(tokenizer),
            data=data(seen),
            training=training_table(record),
            behaviour=behaviour(repeated, answers, seen_answers),
            fresh=f"{fresh:.3f}",
            draws=DRAWS,
            prompts=PROMPTS,
            noise=gold.NOISE,
            drawn=preferences.DRAWN,
            asked=preferences.PROMPTS,
            directions=directions(model, tokenizer),
            guided=guided_tables(model, tokenizer, prompts, answers[::DRAWS]),
            control=control(),
            rewards=reward_models(),
            reward_prompts=rewards.PROMPTS,
            twin=twin(model, tokenizer, prompts, answers[::DRAWS]),
            value=value_head(correlate_value_head(model, tokenizer)),
            obedience=obedience(),
            adapter=adapter(),
            shown=sample_answers(prompts, answers[::DRAWS]),
            settings="; ".join(
                f"{name} β = {s['beta']:g}, λ = {s['likelihood']:g}, rate {s['learning_rate']:g}"
                for name in (*preferences.OBJECTIVES, "aligned")
                for s in [read_training(f"guides/{name}")["settings"]]
            ),
            seeds=f"{base.SEED}, {preferences.SEED}, {preferences.TWIN_SEED}, {SEED}; of the reward models "
            + ", ".join(str(seed) for seed in rewards.MEMBERS.values()),
        )
    )
    path.write_text(text)
    print(f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    keep_memory()
    torch.set_num_threads(2)
    main()
