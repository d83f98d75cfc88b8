"""An engine client without an engine: vLLM's front end (renderer, tokenizer, input checks) over an enumerable toy.

`trimtab serve --engine toy` and the tests of the HTTP surface serve it. Answers are made of two of the tokenizer's
letters and are drawn exactly; reward models are arithmetic on token ids.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoTokenizer
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.renderers.registry import renderer_from_config
from vllm.v1.engine.input_processor import InputProcessor

from trimtab.decoders.protocols import BASE, Chunk, Engine, Mixture, Sampling, Strategy, Tokens
from trimtab.engine.aligned_client import AlignedClient
from trimtab.engine.detokenizer import decode_answer, encode_answer
from trimtab.engine.errors import MemberError
from trimtab.engine.lora import is_adapter
from trimtab.engine.pooling import merge_options
from trimtab.runtime.strategy_run import StrategyRun, current_run
from trimtab.runtime.toy_engine import Prefix, ToyEngine, ToyModel, Vector

MAX_TOKENS = 8
"""Longest answer of a served toy."""
UNKNOWN = -10.0
"""Log-prob, in nats, of a token that the toy never draws, where one is scored."""


def check_prompt(prompt: Tokens) -> None:
    """Raises, as vLLM's input processor does, for a prompt without a token."""
    if not prompt:
        raise VLLMValidationError("The decoder prompt cannot be empty")


class TokenizedToy(ToyEngine):
    """A toy whose text is a tokenizer's, and which goes on from any prompt.

    What of a prompt is response already is the run of the toy's own tokens that it ends with.
    """

    def __init__(self, model: ToyModel, *, start: int, tokenizer: Any) -> None:
        super().__init__(model, start=start)
        self.tokenizer = tokenizer

    def text(self, completion: Tokens) -> str:
        return decode_answer(self.tokenizer, completion, [self.model.eos])

    def tokens(self, text: str) -> Tokens:
        return encode_answer(self.tokenizer, text)

    def generate(self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture) -> AsyncGenerator[Chunk, None]:
        """Raises ValueError for log-probs, which vLLM's app takes from an engine's own outputs, and for an empty
        prompt, as an engine does."""
        check_prompt(prompt)
        if sampling.logprobs:
            raise ValueError("the toy engine gives no logprobs")
        return super().generate(prompt, sampling, n=n, guides=guides)

    async def greedy_top_logprobs(
        self, prompt: Tokens, *, k: int, length: int, guides: Mixture
    ) -> list[list[tuple[int, float]]]:
        check_prompt(prompt)
        return await super().greedy_top_logprobs(prompt, k=k, length=length, guides=guides)

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        logprobs, vocab = self.model.next(guides), self.model.vocab
        return [
            float(logprobs(prefix)[vocab.index(token)]) if token in vocab else UNKNOWN
            for prefix, token in self._steps(prompt, completion)
        ]

    def _response(self, prompt: Tokens) -> Prefix:
        drawable = [token in self.model.vocab[:-1] for token in prompt]
        run = drawable[::-1].index(False) if not all(drawable) else len(drawable)
        return tuple(prompt[len(prompt) - run :])

    def _steps(self, prompt: Tokens, completion: Tokens) -> Iterator[tuple[Prefix, int]]:
        read = list(prompt)
        for token in completion:
            yield self._response(read)[: self.model.max_tokens - 1], token
            read.append(token)


class ToyClient:
    """What vLLM's app asks of an engine client; `plain` answers where no strategy does."""

    is_running = True
    errored = False

    def __init__(self, args: AsyncEngineArgs, engine: Engine, plain: Strategy) -> None:
        self.engine = engine
        self.plain = plain
        self.vllm_config = args.create_engine_config()
        self.model_config = self.vllm_config.model_config
        self.renderer = renderer_from_config(self.vllm_config)
        self.input_processor = InputProcessor(self.vllm_config, self.renderer)

    def generate(self, *args: Any, **context: Any) -> AsyncGenerator[RequestOutput, None]:
        before = current_run.set(StrategyRun(strategy=self.plain))
        try:
            return self.aligned().generate(*args, **context)
        finally:
            current_run.reset(before)

    def aligned(self) -> AlignedClient:
        return AlignedClient(self, lambda _: self.engine)

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def add_lora(self, lora_request: Any) -> bool:
        """A toy has no weights that an adapter could change."""
        return True

    async def is_tracing_enabled(self) -> bool:
        return False

    async def check_health(self) -> None:
        pass

    async def is_sleeping(self) -> bool:
        return False

    def shutdown(self, *_: object, **__: object) -> None:
        pass

    def check_admission(self, *_: object, **__: object) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class ToyPooler:
    """A reward model's tokenizer and labels; a token's score is a function of its id and the label, in [-1, 1]."""

    tokenizer: Any
    labels: tuple[str, ...]
    max_tokens: int
    alive: bool = True

    async def ping(self) -> None:
        pass

    async def score(self, inputs: Sequence[Tokens]) -> list[list[float]]:
        """[N, K] means over an input's tokens."""
        return [np.mean(rows, axis=0).tolist() for rows in await self.score_tokens(inputs)]

    async def score_tokens(self, inputs: Sequence[Tokens]) -> list[list[list[float]]]:
        """[N, T, K]"""
        columns = 1 + np.arange(len(self.labels))
        return [np.sin(np.outer(np.asarray(tokens) + 1, columns)).tolist() for tokens in inputs]


def build_toy_client(args: AsyncEngineArgs, guides: Iterable[str], plain: Strategy) -> ToyClient:
    """A client of a toy with the base's tokenizer and members of these names. No weights are read."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    known = tokenizer.get_vocab()
    letters = [known[letter] for letter in "abcdefghijklmnopqrstuvwxyz" if letter in known][:2]
    if len(letters) < 2 or tokenizer.eos_token_id is None:
        raise MemberError(args.model, "the toy engine needs a tokenizer with two letters and an end of sequence")
    model = invent_model([BASE, *guides], (*letters, tokenizer.eos_token_id))
    return ToyClient(args, TokenizedToy(model, start=tokenizer.eos_token_id, tokenizer=tokenizer), plain)


def build_toy_pooler(model: str, base: str | None, options: Mapping[str, Any]) -> ToyPooler:
    """A reward model's stand-in; of `options`, vLLM's engine arguments, it heeds `tokenizer` and `max_model_len`."""
    if is_adapter(model, options.get("revision")):
        options = merge_options(model, model, base, options)
        model = options["model"]
    config = AutoConfig.from_pretrained(model)
    config.update(options.get("hf_overrides") or {})
    return ToyPooler(
        tokenizer=AutoTokenizer.from_pretrained(options.get("tokenizer") or model),
        labels=tuple(config.id2label[i] for i in sorted(config.id2label)),
        max_tokens=options.get("max_model_len") or config.max_position_embeddings,
    )


def invent_model(members: Iterable[str], vocab: tuple[int, ...]) -> ToyModel:
    """Next-token probabilities that are a function of the member's name alone."""
    prefixes = [p for length in range(MAX_TOKENS) for p in product(vocab[:-1], repeat=length)]

    def table(member: str) -> dict[Prefix, Vector]:
        rng = np.random.Generator(np.random.Philox(zlib.crc32(member.encode())))
        rows = rng.dirichlet(np.array([3.0] * (len(vocab) - 1) + [1.0]), size=len(prefixes))
        return dict(zip(prefixes, np.clip(rows, 1e-3, None), strict=True))

    return ToyModel(tables={member: table(member) for member in members}, vocab=vocab, max_tokens=MAX_TOKENS)
