"""An engine that writes what a test says, and a tokenizer that has learnt it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.server import toy_server
from trimtab.decoders.protocols import Chunk, Mixture, Parts, Sampling, Tokens
from trimtab.decoders.report import SearchProgress
from trimtab.engine.detokenizer import decode_answer, encode_answer


def learn_words(texts: Iterable[str]) -> Any:
    """A tokenizer that has learnt words and marks of JSON as models' tokenizers have: a quote comes with the space
    before it, and parsers rely on that."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=["<pad>", "<s>", "</s>"])
    raw.train_from_iterator(list(texts), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = toy_server.TEMPLATE
    return tokenizer


class Author:
    """An engine whose i-th answer is the i-th of its texts, over and over; log-probs depend on tokens and prompt."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.answers: Sequence[tuple[int, ...]] = ((),)
        self.cut = False
        """Whether answers end at `max_tokens`."""

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset({self.tokenizer.eos_token_id})

    def report_progress(self, progress: SearchProgress) -> None:
        """Nobody follows it."""

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        for i in range(n):
            answer = self.answers[i % len(self.answers)][: sampling.max_tokens]
            whole = bool(answer) and answer[-1] in self.eos_ids
            yield Chunk(index=i, tokens=answer, finish="stop" if whole else "length")

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        def logprob(place: int) -> float:
            read = repr(([*prompt, *completion[: place + 1]], sorted(guides.items())))
            return -1.0 - hashlib.blake2b(read.encode(), digest_size=1).digest()[0] / 256

        return [logprob(place) for place in range(len(completion))]

    def text(self, completion: Tokens) -> str:
        return decode_answer(self.tokenizer, completion, [self.tokenizer.eos_token_id])

    def decode(self, completion: Tokens) -> str:
        return self.text(completion)

    def parts(self, completion: Tokens) -> Parts:
        return Parts(answer=self.text(completion))

    def tokens(self, text: str) -> Tokens:
        return encode_answer(self.tokenizer, text)

    def write(self, *texts: str) -> None:
        """Whole answers."""
        self.answers = [(*self.tokens(text), self.tokenizer.eos_token_id) for text in texts]
