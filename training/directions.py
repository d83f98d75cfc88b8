"""Answers for directions in reward space: directional preference alignment (DPA, arXiv 2402.18571) on rated answers.

With z(x, y) the scores of an answer to x, less their mean over the answers to x, in units of their spread, and u drawn
evenly from the directions that a preference prompt is for, the model learns to say, under the prompt's text for u,

    y_u = argmax_y u . z(x, y),    or with a radius R    y_u = argmin_y |z(x, y) - R u|^2                            (1)

of which the first is the second's limit. Where objectives do not trade off, the first takes the same answer for most
directions, which teaches nothing about numbers; the second's turns with u.
Shapes: N answers to a prompt, d objectives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from trimtab.preferences.preference_direction import PreferenceDirection, Template, Vector, choose_neighbours
from trimtab.runtime.contexts import Instruction
from trimtab.server.config import PromptConfig
from trimtab.server.request.messages import CHAT, instruct
from trimtab.server.request.preference_prompts import build_cone, build_template, read_slots
from trimtab.training.data import DataError, Message, Rated
from trimtab.training.rendering import Renderer
from trimtab.training.rows import Row, Rows, place_of

Table = NDArray[np.float64]


def read_prompts(path: Path, reader: str) -> dict[str, PromptConfig]:
    """Of a configuration's `preference_prompts` those that a member reads, or where there is none, those of nobody.

    Raises DataError for a file without any, or with one that no direction could be said with.
    """
    sections = yaml.safe_load(path.read_text())
    section = sections.get("preference_prompts") if isinstance(sections, Mapping) else None
    try:
        prompts = TypeAdapter(dict[str, PromptConfig]).validate_python(section or {})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("preference_prompts", *first["loc"])))
        raise DataError(first["msg"], field=key, place=str(path)) from None
    for name, prompt in prompts.items():
        try:
            build_template(prompt)
            build_cone(prompt)
        except ValueError as error:
            raise DataError(str(error), field=f"preference_prompts.{name}", place=str(path)) from None
    for owner in (reader, None):
        if chosen := {name: prompt for name, prompt in prompts.items() if prompt.reader == owner}:
            return chosen
    readers = ", ".join(f"{name}: {prompt.reader}" for name, prompt in prompts.items()) or "none"
    raise DataError(f"none is for reader {reader!r}; there: {readers}", field="preference_prompts", place=str(path))


def objectives_of(prompts: Mapping[str, PromptConfig]) -> list[str]:
    """All that their slots stand for, by name."""
    return sorted({objective for prompt in prompts.values() for objective, _ in read_slots(prompt).values()})


def state(template: Template, u: Vector, prompt: Sequence[Message]) -> list[Message]:
    """The conversation under a direction, as the server's strategies `directional` and `rps` have it read."""
    document = {"messages": [dict(message) for message in prompt]}
    messages: list[Message] = instruct(CHAT, document, Instruction(template.render(u), template.role))["messages"]
    return messages


def standardise(rated: Sequence[Rated], objectives: Sequence[str]) -> list[Table]:
    """z of each prompt's answers, [N, d]; an objective's unit is its mean standard deviation over the prompts.

    Raises DataError for an objective whose scores are equal everywhere.
    """
    tables = [np.array([[scores[o] for o in objectives] for _, scores in one.answers]) for one in rated]
    spread = np.mean([table.std(axis=0) for table in tables], axis=0)
    if flat := next((o for o, s in zip(objectives, spread, strict=True) if not s), None):
        raise DataError(f"no prompt's answers differ in {flat!r}: such scores choose nothing")
    return [(table - table.mean(axis=0)) / spread for table in tables]


def choose_answer(z: Table, u: Vector, radius: float | None) -> int:
    """(1): which of the N."""
    if radius is None:
        return int((z @ u).argmax())
    return int(np.square(z - radius * u).sum(axis=1).argmin())


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How directions are drawn, and answers for them."""

    directions: int
    """Drawn for a prompt and a preference prompt."""
    radius: float | None
    seed: int


def make_direction_rows(
    rated: Sequence[Rated],
    prompts: Mapping[str, PromptConfig],
    choice: Choice,
    renderer: Renderer,
    *,
    max_length: int,
    heldout: float,
) -> Rows:
    """`prompt_ids` under u, `chosen_ids` of y_u, and to compare with, `other_ids`: the prompt under another direction,
    empty where that one would choose y_u too.

    Raises DataError for scores that choose nothing.
    """
    rows, rng = Rows(), np.random.default_rng(choice.seed)
    for prompt in prompts.values() if rated else ():
        template, cone = build_template(prompt), build_cone(prompt)
        names = tuple(objective for objective, _ in read_slots(prompt).values())
        middle = PreferenceDirection(objectives=names, v=cone.axis, cone=cone)
        for one, z in zip(rated, standardise(rated, names), strict=True):
            place = place_of(one.prompt)
            part = rows.heldout if place < heldout else rows.train
            drawn = choose_neighbours(middle, 2 * choice.directions, cone.degrees, rng)
            for u, other in zip(drawn[::2], drawn[1::2], strict=True):
                chosen, other_chosen = (choose_answer(z, v, choice.radius) for v in (u, other))
                prompt_ids, answer_ids = renderer.encode(state(template, u, one.prompt), one.answers[chosen][0])
                if len(prompt_ids) + len(answer_ids) > max_length:
                    rows.dropped[f"longer than {max_length} tokens"] += 1
                    continue
                same = chosen == other_chosen
                other_ids = [] if same else renderer.encode_prompt(state(template, other, one.prompt))
                ids = {"prompt_ids": prompt_ids, "chosen_ids": answer_ids, "other_ids": other_ids}
                part.append({"place": place, **ids})
    return rows


def make_answer_rows(rows: Rows) -> Rows:
    """For a language model that learns the answers alone: the prompt's tokens have no label."""

    def label(row: Row) -> Iterable[Row]:
        prompt, answer = row["prompt_ids"], row["chosen_ids"]
        yield {"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + answer}

    return rows.map(label)
