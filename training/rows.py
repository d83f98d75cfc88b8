"""Preferences as tokens: what each kind of training reads, and what does not fit."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import combinations
from typing import Any

from trimtab.training.data import Message, Pair, Rated
from trimtab.training.rendering import Renderer

Row = dict[str, Any]


@dataclass(kw_only=True)
class Rows:
    """Tokenised rows of a training, and what was left out of them. Each has the `place` of its prompt."""

    train: list[Row] = field(default_factory=list)
    heldout: list[Row] = field(default_factory=list)
    """Ends training early."""
    test: list[Row] = field(default_factory=list)
    """Measured on at the end."""
    dropped: Counter[str] = field(default_factory=Counter)
    joined: int = 0
    """Pairs whose prompt is no token prefix of prompt and answer encoded together: the server encodes them apart, as is
    done here, and other trainers may not."""

    @property
    def all(self) -> list[Row]:
        return [*self.train, *self.heldout]

    def map(self, make: Callable[[Row], Iterable[Row]]) -> Rows:
        """Rows made of each."""
        parts = [[made for row in part for made in make(row)] for part in (self.train, self.heldout, self.test)]
        return replace(self, train=parts[0], heldout=parts[1], test=parts[2])

    def lengths(self, *keys: str) -> list[int]:
        """Tokens of these parts of each row together."""
        return [sum(len(row[key]) for key in keys) for row in self.all]


def count_tokens(row: Row) -> int:
    """Of the longest sequence in a row of any kind, to which a batch is padded."""
    ends = [len(row[key]) for key in ("chosen_ids", "rejected_ids", "input_ids") if key in row]
    return len(row.get("prompt_ids", ())) + max(ends)


def order_rows(lengths: Sequence[int], *, step: int, seed: int, epoch: int) -> list[int]:
    """Rows of an epoch at random, those of one step by length, so that the passes of a step pad little.

    What a step sees does not depend on lengths, so neither does what is learnt."""
    order = list(range(len(lengths)))
    random.Random(f"{seed} {epoch}").shuffle(order)
    steps = [order[begin : begin + step] for begin in range(0, len(order), step)]
    return [i for rows in steps for i in sorted(rows, key=lambda i: -lengths[i])]


def place_of(prompt: Sequence[Message]) -> float:
    """From 0 to 1, by a hash of the prompt alone, so that a split is the same in every run and for every kind."""
    text = json.dumps([dict(message) for message in prompt], sort_keys=True, ensure_ascii=False)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def make_pair_rows(pairs: Iterable[Pair], renderer: Renderer, *, max_length: int, heldout: float) -> Rows:
    """`prompt_ids`, `chosen_ids`, `rejected_ids` of each pair that fits."""
    rows = Rows()
    for pair in pairs:
        prompt, chosen = renderer.encode(pair.prompt, pair.chosen)
        _, rejected = renderer.encode(pair.prompt, pair.rejected)
        if len(prompt) + max(len(chosen), len(rejected)) > max_length:
            rows.dropped[f"longer than {max_length} tokens"] += 1
            continue
        rows.joined += not all(renderer.joins(pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
        place = place_of(pair.prompt)
        row = {"place": place, "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        (rows.heldout if place < heldout else rows.train).append(row)
    return rows


def make_label_rows(
    rated: Iterable[Rated], labels: Sequence[str], renderer: Renderer, *, max_length: int, heldout: float
) -> Rows:
    """All pairs of a prompt's answers, with `signs`: by each label 1 where the first is better, -1 where the second is,
    0 where neither."""
    rows = Rows()
    for one in rated:
        place = place_of(one.prompt)
        part = rows.heldout if place < heldout else rows.train
        read = [(*renderer.encode(one.prompt, text), scores) for text, scores in one.answers]
        for (prompt, first, a), (_, second, b) in combinations(read, 2):
            signs = [(a[label] > b[label]) - (a[label] < b[label]) for label in labels]
            if len(prompt) + max(len(first), len(second)) > max_length:
                rows.dropped[f"longer than {max_length} tokens"] += 1
            elif any(signs):
                ids = {"prompt_ids": prompt, "chosen_ids": first, "rejected_ids": second}
                part.append({"place": place, **ids, "signs": signs})
    return rows


def make_whole_rows(rows: Rows, renderer: Renderer) -> Rows:
    """For a reward model, which reads prompt and answer as one, to the end of what the template writes."""

    def whole(row: Row) -> Iterable[Row]:
        others = {key: row[key] for key in ("place", "signs") if key in row}
        ids = {key: [*row["prompt_ids"], *renderer.close(row[key])] for key in ("chosen_ids", "rejected_ids")}
        yield others | ids

    return rows.map(whole)


def make_value_rows(
    rows: Rows, renderer: Renderer, score: Callable[[list[int]], list[float]], *, seed: int, beginnings: int = 4
) -> Rows:
    """Of each answer some beginnings, at lengths drawn at random, with the scores of the whole."""
    rng = random.Random(seed)

    def begin(row: Row) -> Iterable[Row]:
        for key in ("chosen_ids", "rejected_ids"):
            value = score([*row["prompt_ids"], *renderer.close(row[key])])
            for length in sorted(rng.randint(1, len(row[key])) for _ in range(beginnings)):
                yield {"input_ids": [*row["prompt_ids"], *row[key][:length]], "labels": value}

    return rows.map(begin)
