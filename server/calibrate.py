"""`trimtab calibrate`: what makes equal preference weights pull equally, measured on the base's own answers.

Per objective, over answers y to the given prompts:

    mean, spread   of its reward r on y ~ base
    gain = 1 / (d E[(r - mean) / spread] / d alpha)  at alpha = 0,  y ~ base * guide^alpha                           (1)

A search tilts by exp(w (r - mean) / spread), under which the standardised reward rises by its variance, 1, per unit of
w. With (1) a guide at the exponent w * gain rises by as much, to first order: one weight, one wish, however it is
carried out. The slope is fitted through 0 to a few small exponents, with the same seeds at each.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trimtab.decoders.protocols import BASE, AllAnswer, Engine, Mixture, Sampling, Tokens, base_alone, member_alone
from trimtab.preferences.preference_direction import PreferenceDirection, angle_between, choose_neighbours
from trimtab.rewards.protocols import Host, Question, Response, RewardError
from trimtab.runtime.contexts import Instruction
from trimtab.server.config import ConfigError, PromptConfig
from trimtab.server.request.messages import CHAT, instruct
from trimtab.server.request.preference_prompts import build_cone, build_template, read_slots
from trimtab.server.request.reward_tree import Spec, evaluate, parse_spec
from trimtab.server.scoring import BaseHost, Scoring, take_apart

log = logging.getLogger("trimtab")

EXPONENTS = (0.25, 0.5, 1.0)
DISTINCT = 0.01
"""Nats, of log-odds or of a token's log-probability, below which a model does not tell two things apart."""
PROBE = ({"role": "user", "content": "My friend is ill. What can I say to her?"},)
PROBE_ANSWERS = (
    "I am sorry to hear that. Tell her that you are thinking of her, and ask what she needs.",
    "No.",
    "Buy now! Buy now! Buy now!",
)
"""As unlike as answers can be in a few words."""
CLEAR = 3.0
"""Standard errors by which a guide must raise its own objective for a gain to be taken from it."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """An objective's calibration; `gain` is None where its guide does not clearly raise it, or it has none."""

    mean: float
    spread: float
    gain: float | None = None
    slope: float | None = None
    """Rise per unit of exponent, in spreads."""
    error: float | None = None
    """Its standard error."""


def read_prompts(path: Path) -> list[tuple[Mapping[str, str], ...]]:
    """One conversation per line: text, or JSON with "messages"; raises ConfigError."""
    prompts: list[tuple[Mapping[str, str], ...]] = []
    try:
        for line in path.read_text().splitlines():
            if line.startswith("{"):
                prompts.append(tuple(json.loads(line)["messages"]))
            elif line.strip():
                prompts.append(({"role": "user", "content": line.strip()},))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--prompts {path}: {error}") from None
    if len(prompts) < 2:
        raise ConfigError(f"--prompts {path}: needs two prompts or more, one a line")
    return prompts


async def calibrate(
    scoring: Scoring, prompts: Sequence[tuple[Mapping[str, str], ...]], *, answers: int, max_tokens: int
) -> dict[str, Calibration]:
    """objective -> its calibration, for every objective whose reward needs nothing from a request.

    One that is transformed against reference answers is in units of its own already. What makes no difference on this
    model, a reward, a guide or a preference prompt, is logged.
    """
    config, host = scoring.config, scoring.host
    specs = {
        name: parse_spec(objective.reward, config, at=f"objectives.{name}.reward", objectives=False)
        for name, objective in config.objectives.items()
        if objective.reward is not None
    }
    needy = {n for n, s in specs.items() if s.references or any(scoring.scorers[x.reward].needs for x in s.leaves)}
    specs = {name: spec for name, spec in specs.items() if name not in needy}
    questions = [await scoring.ask(messages) for messages in prompts]

    async def scores(
        names: Sequence[str], mixture: Mixture, drawn_from: Sequence[Question] = questions
    ) -> dict[str, list[list[float]]]:
        """objective -> prompt -> a score per answer, as an answer to the bare question"""
        drawn = await asyncio.gather(
            *(draw_answers(host.engine, q.prompt, mixture, i, answers, max_tokens) for i, q in enumerate(drawn_from))
        )
        return {
            name: await asyncio.gather(
                *(score_answers(scoring, specs[name], q, a) for q, a in zip(questions, drawn, strict=True))
            )
            for name in names
        }

    base = await scores(list(specs), {BASE: 1.0})
    calibrations: dict[str, Calibration] = {}
    for name, spec_scores in base.items():
        flat = [score for row in spec_scores for score in row]
        mean, spread = statistics.fmean(flat), statistics.stdev(flat)
        judges = any(config.rewards[leaf.reward].kind == "judge" for leaf in specs[name].leaves)
        if spread < (DISTINCT if judges else 1e-12 * max(1.0, abs(mean))):
            log.warning(
                "objectives.%s.reward makes no difference on this model: its answers score %.4g, all within %.2g; "
                "the file stays as it is there", name, mean, max(flat) - min(flat),
            )  # fmt: skip
            continue
        calibrations[name] = Calibration(mean=mean, spread=spread)
        guide = config.objectives[name].guide
        if guide is None:
            continue
        rises = []  # per exponent and prompt, in spreads
        for alpha in EXPONENTS:
            guided = (await scores([name], {BASE: 1.0, guide: alpha}))[name]
            means = [[statistics.fmean(row) for row in rows] for rows in (guided, spec_scores)]
            rises.append([(after - before) / spread for after, before in zip(*means, strict=True)])
        calibrations[name] = fit_gain(calibrations[name], rises)
        if calibrations[name].gain is None:
            log.warning("guides.%s does not clearly raise objective %r on this model: it has no gain", guide, name)
    for name, prompt in config.preference_prompts.items():
        objectives = [objective for objective, _ in read_slots(prompt).values()]
        if any(objective not in calibrations for objective in objectives):
            continue
        text, axis = build_template(prompt), build_cone(prompt).axis
        under_text = [await instruct_question(host, question, text.role, text.render(axis)) for question in questions]
        instructed = [replace(q, prompt=tokens) for q, tokens in zip(questions, under_text, strict=True)]
        after = await scores(objectives, read_by(prompt), instructed)
        along_axis = [
            math.fsum(
                share * (statistics.fmean(after[o][i]) - statistics.fmean(base[o][i])) / calibrations[o].spread
                for o, share in zip(objectives, axis, strict=True)
            )
            for i in range(len(questions))
        ]
        rise, error = statistics.fmean(along_axis), statistics.stdev(along_axis) / math.sqrt(len(along_axis))
        if rise <= CLEAR * error:
            log.warning(
                "preference_prompts.%s makes no clear difference on this model: along its own axis, answers under it "
                "rise by %.2g ± %.2g spreads",
                name,
                rise,
                error,
            )
    return calibrations


async def find_indifferent(scoring: Scoring) -> list[str]:
    """Judges by the base and preference prompts that make no difference on this model, a line each.

    A few short readings: `calibrate` measures whether the difference is the right one.
    """
    config, host, lines = scoring.config, scoring.host, list[str]()
    question = await scoring.ask(PROBE)
    responses = [Response(text=text, tokens=host.engine.tokens(text)) for text in PROBE_ANSWERS]
    for name, reward in config.rewards.items():
        if reward.kind != "judge" or (reward.model_extra or {}).get("endpoint"):
            continue
        scorer = scoring.scorers[name]
        try:
            columns = zip(*await scorer(question, responses), strict=True)
        except (RewardError, ValueError) as error:
            lines.append(f"rewards.{name} cannot judge on this model: {error}")
            continue
        for label, column in zip(scorer.labels, columns, strict=True):
            if max(column) - min(column) < DISTINCT:
                lines.append(f"rewards.{name}.{label} makes no difference on this model: unlike answers score alike")
    for name, prompt in config.preference_prompts.items():
        try:
            if await measure_reading(host, question, prompt, responses[0].tokens) < DISTINCT:
                lines.append(f"preference_prompts.{name} makes no difference on this model: it answers as without it")
        except ValueError as error:
            lines.append(f"preference_prompts.{name} cannot be read on this model: {error}")
    return lines


async def measure_reading(host: Host, question: Question, prompt: PromptConfig, answer: Tokens) -> float:
    """Mean change of an answer's log-probabilities, in nats a token, between two directions of a preference prompt; of
    one that says all directions alike, between the prompt and none."""
    text, cone = build_template(prompt), build_cone(prompt)
    direction = PreferenceDirection(objectives=text.slots, v=cone.axis, cone=cone)
    neighbours = choose_neighbours(direction, 8, min(cone.degrees, 45.0), np.random.default_rng(0))
    farthest = max(neighbours, key=lambda v: angle_between(cone.axis, v))
    texts = list(dict.fromkeys([text.render(cone.axis), text.render(farthest)]))
    prompts = [await instruct_question(host, question, text.role, t) for t in texts]
    one, other = [*prompts, question.prompt][:2]
    logprobs = [await host.engine.score(p, answer, guides=read_by(prompt)) for p in (one, other)]
    return statistics.fmean(abs(a - b) for a, b in zip(*logprobs, strict=True))


async def instruct_question(host: Host, question: Question, role: str, text: str) -> Tokens:
    """The conversation in the base's tokens under an instruction in a message of that role."""
    body = instruct(CHAT, {"messages": list(question.messages)}, Instruction(text, role))
    return await host.render(body["messages"])


def read_by(prompt: PromptConfig) -> Mixture:
    """What answers under a preference prompt."""
    return base_alone() if prompt.reader is None else member_alone(prompt.reader)


def fit_gain(calibration: Calibration, rises: Sequence[Sequence[float]]) -> Calibration:
    """Equation (1) from the rise at each of EXPONENTS and each prompt, by least squares through 0 per prompt."""
    square = math.fsum(a * a for a in EXPONENTS)
    per_prompt = zip(*rises, strict=True)
    slopes = [math.fsum(a * r for a, r in zip(EXPONENTS, prompt, strict=True)) / square for prompt in per_prompt]
    slope, error = statistics.fmean(slopes), statistics.stdev(slopes) / math.sqrt(len(slopes))
    gain = 1 / slope if slope > CLEAR * error else None  # (1)
    return Calibration(mean=calibration.mean, spread=calibration.spread, gain=gain, slope=slope, error=error)


async def draw_answers(
    engine: Engine, prompt: Tokens, mixture: Mixture, seed: int, n: int, max_tokens: int
) -> list[list[int]]:
    """n answers' tokens."""
    answers: list[list[int]] = [[] for _ in range(n)]
    sampling = Sampling(max_tokens=max_tokens, seed=seed * n, stream=False)
    async for chunk in engine.generate(prompt, sampling, n=n, guides=mixture):
        answers[chunk.index] += chunk.tokens
    return answers


async def score_answers(scoring: Scoring, spec: Spec, question: Question, answers: Sequence[Tokens]) -> list[float]:
    """[N] one per answer; they count as no request's."""
    host = scoring.host
    split = host.split if isinstance(host, BaseHost) else AllAnswer()
    texts = [host.engine.text(a) for a in answers]
    responses = [
        take_apart(text, a, split(question.prompt, text, a), host) for text, a in zip(texts, answers, strict=True)
    ]
    return evaluate(spec, await scoring.rows([spec], question, responses), {}).values


def write_calibrations(text: str, calibrations: Mapping[str, Calibration]) -> str:
    """A configuration's text with the calibration put in, all else as it stood."""
    for name, calibration in calibrations.items():
        values = {"mean": calibration.mean, "spread": calibration.spread, "gain": calibration.gain}
        for key, value in values.items():
            if value is not None:
                text = set_key(text, ("objectives", name), key, f"{value:.4g}")
    return text


def set_key(text: str, path: Sequence[str], key: str, value: str) -> str:
    """`key: value` in the mapping at `path` of a YAML text, in its place if it is there, else after the last key."""
    node: Any = yaml.compose(text)
    for part in path:
        node = next(v for k, v in node.value if k.value == part)
    for k, v in node.value:
        if k.value == key:
            return text[: v.start_mark.index] + value + text[v.end_mark.index :]
    if node.flow_style:
        end = node.end_mark.index - 1
        return text[:end].rstrip() + f"{', ' if node.value else ''}{key}: {value}" + text[end:]
    last_key, last = node.value[-1]
    after = text.find("\n", last.end_mark.index if isinstance(last, yaml.ScalarNode) else last.end_mark.index - 1)
    after = len(text) if after < 0 else after
    return text[:after] + f"\n{' ' * last_key.start_mark.column}{key}: {value}" + text[after:]


def report(calibrations: Mapping[str, Calibration]) -> str:
    """A table."""
    lines = [f"{'objective':<16}{'mean':>9}{'spread':>9}{'slope':>9}{'± s.e.':>9}{'gain':>9}"]
    for name, m in calibrations.items():
        numbers = (m.mean, m.spread, m.slope, m.error, m.gain)
        lines.append(f"{name:<16}" + "".join(f"{x:>9.3f}" if x is not None else f"{'-':>9}" for x in numbers))
    return "\n".join(lines)
