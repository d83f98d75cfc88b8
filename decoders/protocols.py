"""What a strategy, an engine and a reward know of each other: token ids, weights and scores, nothing else.

Shapes: T response tokens, N completions, K objectives. Token ids are those of the base's tokenizer; a response
includes its end-of-sequence token. Log-probabilities are natural.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from trimtab.decoders.report import Report, SearchProgress

BASE = "base"
"""The frozen model's name in every mixture."""

Tokens = Sequence[int]
Mixture = Mapping[str, float]
"""member -> w: the distribution softmax(sum_i w_i log p_i). A base that is not named has w = 1, and {BASE: 1} is the
frozen model. An empty mixture, or one of zeros, is no distribution of anybody's: every engine refuses it."""


def base_alone() -> Mixture:
    """The frozen model: what a strategy draws with by default."""
    return {BASE: 1.0}


def member_alone(member: str) -> Mixture:
    """One member's own distribution."""
    return {BASE: 0.0, member: 1.0}


def normalise_mixture(mixture: Mixture) -> dict[str, float]:
    """The mixture with its base named; raises ValueError for one that is empty or all zeros."""
    if not mixture:
        raise ValueError(f"guides: an empty mixture is no distribution; {{{BASE!r}: 1}} is the frozen model")
    named = {BASE: 1.0, **mixture}
    if not any(named.values()):
        raise ValueError(f"guides: {named} gives no member a weight, and would draw every token alike")
    return named


def is_base_alone(mixture: Mixture) -> bool:
    """Whether its tokens are the frozen model's, token for token."""
    return all(w == (member == BASE) for member, w in mixture.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a token is drawn from a mixture: mix, `plausibility`, `engine_params`, temperature, min-p, top-k, top-p."""

    max_tokens: int
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    seed: int | None = None
    """With a seed, a draw depends on nothing but the request; None draws anew each time."""
    stream: bool = True
    """False: each answer is wanted whole, as one chunk once it has ended; searches draw so."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer; the engine sees to them where it draws whole answers."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer beside the engine's `eos_ids`; the engine sees to them in what it draws."""
    step: str = ""
    """A string that ends a draw too, with "step" for its finish; it stays in the tokens. Empty: none does."""
    logprobs: bool = False
    """Whether the client wants log-probs, which only the engine's own chunks have."""
    plausibility: float = 0.0
    """Only tokens with p_base >= plausibility * max p_base may be drawn (contrastive decoding's mask)."""
    engine_params: Any = None
    """The engine's own sampling object with what a strategy does not look into: stop strings, grammar, penalties."""
    measured: bool = False
    """Whether chunks carry `logprobs` and `entropies` of their tokens: for strategies that go by uncertainty. A chunk
    costs a reading of its own, so whole answers cost less than streams, and its tokens count as scored."""
    constrained: bool = False
    """Whether `engine_params` changes the distribution too (min-p, penalties, logit bias, grammar)."""
    begun: int = 0
    """How many tokens at the prompt's end are the answer's already: what reads an answer from its beginning, as a
    grammar does, begins with them."""
    restarts: tuple[str, ...] = ()
    """What of `engine_params` does not, and would start anew behind them."""

    @property
    def exact(self) -> bool:
        """Whether tokens are drawn from the mixture itself, neither sharpened nor truncated nor constrained."""
        warped = self.temperature != 1 or self.top_k != 0 or self.top_p != 1 or self.plausibility != 0
        return not (warped or self.constrained)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """The next piece of one answer. Pieces of one answer come in order, its last one with `finish`."""

    index: int
    """Which of the n answers."""
    tokens: tuple[int, ...]
    finish: str | None = None
    """"stop" (end of sequence or stop string), "length", "step", one of `LIMIT_REASONS`, or the engine's own reason."""
    report: Report = field(default_factory=Report)
    logprobs: tuple[float, ...] | None = None
    """[T] of the tokens under the mixture, as plausibility leaves it, untempered; None unless `Sampling.measured`."""
    entropies: tuple[float, ...] | None = None
    """[T] of the distribution that each was drawn from, untempered too, in nats; None unless `Sampling.measured`."""
    engine_output: Any = None
    """The engine's own object for these tokens (text, log-probs). None: the tokens are all there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """All that a server bounds of a request: the most that it can cost, in tokens where nothing else is said."""

    candidates: int
    """Answers in the making side by side."""
    sampled: int
    """Drawn, shown or not."""
    scored: int = 0
    """Whose log-probs the engine is asked for, once per mixture."""
    reward_tokens: int = 0
    """That each reward is given, those given again counted again."""
    readings: int = 0
    """Answers, whole or not, that each reward is given, each with the prompt; 0: as few as `reward_tokens` may be."""
    prompt: int = 0
    """Of the request's prompts, as the engine reads them once."""
    instructed: int = 0
    """How many prompts the engine reads beside them that are the request's under an instruction."""
    instruction_bytes: int = 0
    """Of the longest instruction, at most: no text has more tokens than bytes."""
    draws: int = 0
    """Whole answers drawn in all, to their end, whether begun or drawn anew from the middle; 0 is `candidates`. Blocks,
    segments and look-ahead are parts of an answer, which `sampled` bounds."""
    top_logprobs: int = 0
    """Next tokens whose log-probs the engine is asked for at a time."""
    mixtures: Mapping[str, Mixture] = field(default_factory=dict)
    """All that tokens may be drawn with, by the parameter that says it ("" is what answers are drawn with), each member
    at its largest exponent."""
    terms: Mapping[str, str] = field(default_factory=dict)
    """For messages: "candidates", "draws" or "top_logprobs" -> the parameters it comes from, as in "k * rollouts"."""

    def times(self, n: int) -> Work:
        """Of n such requests side by side."""
        return replace(
            self,
            candidates=n * self.candidates,
            sampled=n * self.sampled,
            scored=n * self.scored,
            reward_tokens=n * self.reward_tokens,
            readings=n * self.readings,
            prompt=n * self.prompt,
            instructed=n * self.instructed,
            draws=n * self.draws,
        )


LIMIT_REASONS = frozenset({"budget", "deadline"})
"""Reasons to end an answer before its time: the request may draw no more tokens, or take no more of them."""

UNFINISHED = LIMIT_REASONS | {"length"}
"""How an answer ends that did not end by itself: its last words are not what it came to."""


class LimitReached(Exception):
    """The request's budget or deadline, one of `LIMIT_REASONS`, ended it with nothing in hand."""


class UnsupportedSampling(ValueError):
    """Sampling that a strategy does not carry out; raised before anything is drawn, so that what of it are the model's
    defaults, and nobody's wish, can be left out."""

    def __init__(self, message: str, *, inexact: bool = False, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.inexact = inexact
        """Whether temperature, top-k and top-p stand in the way too, or penalties and the like alone."""
        self.names = names
        """The parameters that stand in the way; empty: all of those."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A tool that a completion calls."""

    name: str
    arguments: str
    """JSON, as the model wrote it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a completion holds."""

    thoughts: str = ""
    answer: str = ""
    """Without thoughts and calls, as the client gets it; empty where the completion was cut amid its thoughts."""
    calls: tuple[Call, ...] = ()

    @property
    def text(self) -> str:
        """The answer, and under it each call as JSON: what of a completion is compared with others."""
        calls = (f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}' for call in self.calls)
        return "\n".join([*filter(None, [self.answer]), *calls])

    @property
    def without_answer(self) -> bool:
        """Whether it came to nothing but thoughts."""
        return bool(self.thoughts) and not self.answer and not self.calls


class Split(Protocol):
    """How the completions of one request come apart."""

    @property
    def thinks(self) -> bool:
        """Whether thoughts are looked for."""
        ...

    def __call__(self, prompt: Tokens, text: str, tokens: Tokens) -> Parts:
        """What a completion of this text and these tokens holds, whole or not."""
        ...


class AllAnswer:
    """The `Split` of a model that neither thinks nor calls tools."""

    thinks = False

    def __call__(self, prompt: Tokens, text: str, tokens: Tokens) -> Parts:
        return Parts(answer=text)


class Engine(Protocol):
    """A frozen base and the guides that run in lock-step with it."""

    def generate(self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture) -> AsyncGenerator[Chunk, None]:
        """n answers drawn from the mixture, their pieces interleaved. Closing the iterator ends the work."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a response."""
        ...

    async def greedy_top_logprobs(
        self, prompt: Tokens, *, k: int, length: int, guides: Mixture
    ) -> list[list[tuple[int, float]]]:
        """The k likeliest next tokens and their log-probs under the mixture, untempered, best first.

        Then the same behind the first of them, and so on: at most `length` such lists along the greedy path, none
        behind an end of sequence or a full context. Raises LimitReached where the request may draw no more.
        """
        ...

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        """[T] log-probs of the completion's tokens under the mixture, untempered and untruncated."""
        ...

    async def divergence(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        """[T] exact KL(mixture || base) of the next token, in nats, before each of the completion's tokens."""
        ...

    def text(self, completion: Tokens) -> str:
        """A completion as the client reads it: up to a stop string, and without special tokens unless it wants them."""
        ...

    def decode(self, completion: Tokens) -> str:
        """`text` of a completion that no stop string ends."""
        ...

    def parts(self, completion: Tokens) -> Parts:
        """`text` apart: what strategies that compare answers go by."""
        ...

    def tokens(self, text: str) -> Tokens:
        """A text as the base would read it within a response: no special tokens."""
        ...

    async def render_with_instruction(self, instruction: str, *, role: str = "system") -> Tokens:
        """The request's prompt under an instruction: as a system message, or ("user") before the user's last words.

        Raises ValueError where the request has no messages.
        """
        ...

    def report_progress(self, progress: SearchProgress) -> None:
        """How far the search is that draws here, for whoever follows the request; where nobody does, nothing comes of
        it. Cheap, and called as often as something changes."""
        ...


class Reward(Protocol):
    """Higher is better. NaN and infinity are errors, never scores.

    One that goes by the answer that a text comes to, as a verifier does, has an attribute `reads_final_answer`, True:
    see `reads_final_answer`.
    """

    async def __call__(self, prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
        """[N, K] scores, one row per completion, whole or not; K = 1 for a strategy that maximises or tilts."""
        ...


class Strategy(Protocol):
    """A frozen dataclass of hyper-parameters under the paper's names, called once per request."""

    def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        """n answers. `include` names what the client asked to see beside them ("trace", "candidates", "rewards")."""
        ...

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        """The most that a call with these can cost, `max_tokens` being the longest answer's."""
        ...


def reads_final_answer(reward: object) -> bool:
    """Whether a reward goes by what a text comes to, so that one cut at `max_tokens` says nothing beside whole ones."""
    return bool(getattr(reward, "reads_final_answer", False))


async def no_reward(prompt: Tokens, completions: Sequence[Tokens]) -> list[list[float]]:
    """The reward with no objectives, [N, 0]: what a strategy gets that was given nothing to prefer."""
    return [[] for _ in completions]
