"""A reward model that is arithmetic on token ids, and tokenizers to read with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from trimtab.rewards.protocols import Question, Response

DEMO = Path(__file__).parents[2] / "demo" / "base"


@dataclass(frozen=True, kw_only=True)
class FakePooler:
    """Column k of a token's score is (place + 1) * id + k * 1000, of a sequence's the sum over its tokens."""

    tokenizer: Any
    labels: tuple[str, ...] = ("LABEL_0",)
    max_tokens: int = 4096
    seen: list[list[int]] = field(default_factory=list)

    async def score(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[sum(column) for column in zip(*rows, strict=True)] for rows in await self.score_tokens(inputs)]

    async def score_tokens(self, inputs: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        self.seen.extend(list(tokens) for tokens in inputs)
        K = range(len(self.labels))
        return [[[(t + 1.0) * token + 1000 * k for k in K] for t, token in enumerate(tokens)] for tokens in inputs]


def demo_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(DEMO)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def framing_tokenizer() -> PreTrainedTokenizerFast:
    """Without a chat template; puts <|user|> before a text and <|end|> behind it, as some do with <s> and </s>."""
    raw = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    raw.post_processor = processors.TemplateProcessing(
        single="<|user|> $A <|end|>", special_tokens=[("<|user|>", 2), ("<|end|>", 4)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|user|>", eos_token="<|end|>")


def question(*contents: str, system: str | None = None) -> Question:
    """Turns of the user and the assistant, in turn."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    first = [] if system is None else [{"role": "system", "content": system}]
    return Question(messages=(*first, *turns), prompt=())


def response(text: str) -> Response:
    return Response(text=text, tokens=())
