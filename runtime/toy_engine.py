"""An enumerable language model: the oracle that strategies are tested against, and an engine that needs no GPU.

A table gives p(next token | prefix of the response) for a handful of tokens, and a response ends at EOS or at a total
length cap, so that every response and its exact probability can be listed. The prompt only says where the response
begins: after its last `start` token. Everything a strategy may ask of an `Engine` is answered exactly.

Shapes: V vocabulary, T response tokens.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.decoders.protocols import BASE, Chunk, Mixture, Parts, Sampling, Tokens, normalise_mixture
from trimtab.decoders.report import SearchProgress
from trimtab.decoders.shared.candidates import warp

Vector = NDArray[np.float64]
Prefix = tuple[int, ...]
REMEMBERED = 4096
"""Of mixtures, prefixes, distributions and draws, each."""
Next = Callable[[Prefix], Vector]
"""response prefix -> [V] log-probs of the next token"""


@dataclass(frozen=True, kw_only=True)
class ToyModel:
    """Tables of next-token probabilities by member, over one vocabulary."""

    tables: Mapping[str, Mapping[Prefix, Vector]]
    """member -> response prefix -> [V] probabilities, all positive"""
    vocab: tuple[int, ...]
    """The V token ids, EOS last."""
    max_tokens: int
    """Longest response, EOS included; one of that length without EOS is truncated."""

    @classmethod
    def load(cls, path: Path, tables: Mapping[str, str]) -> ToyModel:
        """A model from JSON; `tables` renames its tables to members. Prefixes are strings of digits."""
        data = json.loads(path.read_text())
        return cls(
            tables={
                member: {tuple(map(int, s)): np.array(p) for s, p in data[table].items()}
                for member, table in tables.items()
            },
            vocab=tuple(range(data["vocab"])),
            max_tokens=data["max_tokens"],
        )

    @property
    def eos(self) -> int:
        return self.vocab[-1]

    @cached_property
    def _logs(self) -> dict[str, dict[Prefix, Vector]]:
        return {member: {s: np.log(p) for s, p in table.items()} for member, table in self.tables.items()}

    def next(self, guides: Mixture, plausibility: float = 0.0) -> Next:
        """Next-token log-probs of the members named, computed from the tables; raises ValueError for an unknown one.

        What the function that it returns gives is shared, and read-only.
        """
        if unknown := set(guides) - set(self.tables):
            raise ValueError(f"unknown members {sorted(unknown)}; known: {sorted(self.tables)}")
        return self._mixed(tuple(guides.items()), plausibility)

    @cached_property
    def _mixed(self) -> Callable[[tuple[tuple[str, float], ...], float], Next]:
        """`next` of a mixture's items, remembered."""

        @lru_cache(maxsize=REMEMBERED)
        def make(guides: tuple[tuple[str, float], ...], plausibility: float) -> Next:
            @lru_cache(maxsize=REMEMBERED)
            def mixed(prefix: Prefix) -> Vector:
                z: Vector = sum((w * self._logs[m][prefix] for m, w in guides), np.zeros(len(self.vocab)))
                if plausibility:
                    base = self._logs[BASE][prefix]
                    z = np.where(base >= base.max() + np.log(plausibility), z, -np.inf)
                logprobs = np.asarray(z - np.logaddexp.reduce(z))
                logprobs.flags.writeable = False
                return logprobs

            return mixed

        return make

    def ended(self, tokens: Prefix) -> bool:
        return len(tokens) >= self.max_tokens or tokens[-1:] == (self.eos,)

    def sequences(self, next_logprobs: Next, prefix: Prefix = ()) -> Iterator[tuple[Prefix, float]]:
        """Every complete response that starts with `prefix`, with its probability given the prefix."""
        if self.ended(prefix):
            yield prefix, 1.0
            return
        for token, p in zip(self.vocab, np.exp(next_logprobs(prefix)), strict=True):
            for tokens, rest in self.sequences(next_logprobs, (*prefix, token)):
                yield tokens, float(p) * rest


class UniformDraws:
    """Uniforms in [0, 1), each a function of nothing but its seed, answer and position.

    The one at a position is the first of the four that Philox makes of the counter of that number, so one stream holds
    an answer's all. There is one generator, set anew for each: making one costs more than what it is made for.
    """

    def __init__(self) -> None:
        philox = np.random.Philox(0)
        self._generator, self._state = np.random.Generator(philox), philox.state
        self._state |= {"buffer_pos": 4, "has_uint32": 0}
        self._state["state"]["counter"] = np.zeros(4, np.uint64)

    def __call__(self, seed: int, answer: int, length: int) -> list[float]:
        """[length]"""
        self._state["state"]["key"] = np.array([seed % 2**64, answer], np.uint64)
        self._generator.bit_generator.state = self._state
        draws: list[float] = self._generator.random(4 * length)[::4].tolist()
        return draws


def _warp(sampling: Sampling) -> Sampling:
    """What `warp` reads of it, so that requests which differ in the rest share what is remembered."""
    return Sampling(max_tokens=1, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)


class ToyEngine:
    """`Engine` over a `ToyModel`. Draws come from a counter-based generator keyed by (seed, answer, position)."""

    def __init__(self, model: ToyModel, *, start: int) -> None:
        self.model = model
        self.start = start
        self.live = 0
        """Generations begun and neither ended nor closed."""
        self._entropy = np.random.SeedSequence()
        self._uniforms = UniformDraws()
        self._cumulative = lru_cache(maxsize=REMEMBERED)(self._cumulate)

    def _response(self, prompt: Tokens) -> Prefix:
        """What of the prompt is already response; raises ValueError where no response can begin."""
        tokens = tuple(prompt)
        if self.start not in tokens:
            raise ValueError(f"prompt holds no start token {self.start}")
        return tokens[len(tokens) - tokens[::-1].index(self.start) :]

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        begun = self._response(prompt)
        logprobs = self.model.next(normalise_mixture(guides), sampling.plausibility)
        cumulative = partial(self._cumulative, logprobs, _warp(sampling))
        seed = int(self._entropy.spawn(1)[0].generate_state(1)[0]) if sampling.seed is None else sampling.seed
        draws = [self._uniforms(seed, i, self.model.max_tokens) for i in range(n)]
        answers = [begun] * n
        open_answers = dict.fromkeys(range(n))
        if self.model.ended(begun):
            for i in range(n):
                yield Chunk(index=i, tokens=(), finish="length")
            return
        self.live += 1
        try:
            while open_answers:
                for i in tuple(open_answers):
                    await asyncio.sleep(0)
                    cdf = cumulative(answers[i])
                    token = self.model.vocab[bisect_right(cdf, draws[i][len(answers[i])] * cdf[-1])]
                    answers[i] = (*answers[i], token)
                    ends = token == self.model.eos or token in sampling.stop_token_ids
                    if ends or self._stops(answers[i][len(begun) :], sampling):
                        finish = "stop"
                    elif sampling.step and sampling.step in self.text(answers[i][len(begun) :]):
                        finish = "step"
                    elif self.model.ended(answers[i]) or len(answers[i]) - len(begun) >= sampling.max_tokens:
                        finish = "length"
                    else:
                        if sampling.stream:
                            yield self._chunk(i, answers[i], 1, None, sampling, logprobs)
                        continue
                    del open_answers[i]
                    count = 1 if sampling.stream else len(answers[i]) - len(begun)
                    yield self._chunk(i, answers[i], count, finish, sampling, logprobs)
        finally:
            self.live -= 1

    def _stops(self, tokens: Prefix, sampling: Sampling) -> bool:
        text = self.text(tokens) if sampling.stop else ""
        return any(stop in text for stop in sampling.stop)

    def _chunk(
        self, index: int, answer: Prefix, count: int, finish: str | None, sampling: Sampling, logprobs: Next
    ) -> Chunk:
        """Of the answer's last `count` tokens."""
        tokens, before = answer[len(answer) - count :], len(answer) - count
        chunk = Chunk(index=index, tokens=tokens, finish=finish)
        if not sampling.measured:
            return chunk
        steps = [logprobs(answer[: before + t]) for t in range(count)]
        drawn = [step[self.model.vocab.index(token)] for step, token in zip(steps, tokens, strict=True)]
        possible = [step[np.isfinite(step)] for step in steps]
        return replace(
            chunk,
            logprobs=tuple(map(float, drawn)),
            entropies=tuple(-float(np.exp(step) @ step) for step in possible),
        )

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset({self.model.eos})

    async def greedy_top_logprobs(
        self, prompt: Tokens, *, k: int, length: int, guides: Mixture
    ) -> list[list[tuple[int, float]]]:
        answer, lists = self._response(prompt), list[list[tuple[int, float]]]()
        while len(lists) < length and not self.model.ended(answer):
            logprobs = self.model.next(normalise_mixture(guides))(answer)
            order = np.argsort(-logprobs, kind="stable")[:k]
            lists.append([(self.model.vocab[i], float(logprobs[i])) for i in order])
            answer = (*answer, lists[-1][0][0])
        return lists

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        logprobs = self.model.next(normalise_mixture(guides))
        return [
            float(logprobs(prefix)[self.model.vocab.index(token)]) for prefix, token in self._steps(prompt, completion)
        ]

    async def divergence(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        mixed, base = self.model.next(normalise_mixture(guides)), self.model.next({BASE: 1})
        return [
            float(np.exp(mixed(prefix)) @ (mixed(prefix) - base(prefix)))
            for prefix, _ in self._steps(prompt, completion)
        ]

    def text(self, completion: Tokens) -> str:
        """The tokens as numbers."""
        return " ".join(str(token) for token in completion if token != self.model.eos)

    def decode(self, completion: Tokens) -> str:
        return self.text(completion)

    def parts(self, completion: Tokens) -> Parts:
        return Parts(answer=self.text(completion))

    def tokens(self, text: str) -> Tokens:
        return [int(number) for number in text.split()]

    async def render_with_instruction(self, instruction: str, *, role: str = "system") -> Tokens:
        """The prompt: this model reads no instruction."""
        return [self.start]

    def report_progress(self, progress: SearchProgress) -> None:
        """Nobody follows an engine by itself."""

    def _cumulate(self, logprobs: Next, sampling: Sampling, prefix: Prefix) -> list[float]:
        """[V] cumulative probabilities of the next token."""
        cdf: list[float] = np.cumsum(warp(logprobs(prefix), sampling)).tolist()
        return cdf

    def _steps(self, prompt: Tokens, completion: Tokens) -> Iterator[tuple[Prefix, int]]:
        prefix = self._response(prompt)
        for token in completion:
            yield prefix, token
            prefix = (*prefix, token)
