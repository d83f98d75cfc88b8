"""What an answer's tokens read as: vLLM's own incremental detokeniser, for clients, rewards and votes alike.

An answer follows its prompt, so what it begins with (SentencePiece's first space) is decoded behind the prompt's end.
Its last token is left out where it is what ends it, unfinished characters wait for their other bytes, and what may
begin a stop string waits for its end. A token is decoded once, however many chunks an answer comes in.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from copy import copy
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from trimtab.decoders.protocols import Tokens

CONTEXT = 8
"""Tokens of the prompt that are decoded with an answer, at least: one character has at most four, and vLLM's slow
detokeniser looks at seven."""

MAX_REMEMBERED = 2**17
"""Tokens of beginnings that are remembered as decoded, in all."""


class AnswerText:
    """The text of one answer as its tokens arrive. `prompt` is what it follows."""

    def __init__(self, tokenizer: Any, params: SamplingParams, prompt: Tokens) -> None:
        request = EngineCoreRequest("", list(prompt), None, params, None, 0.0, None, None, None)
        self._decoder = IncrementalDetokenizer.from_new_request(tokenizer, request)
        self._params = params
        self.ended = False
        """At a stop string or an end of sequence: what comes behind is not the answer's."""
        self.stop_reason: str | int | None = None
        """The stop string or token that ended it, if it was not its end of sequence."""

    def append(self, tokens: Tokens) -> None:
        params = self._params
        for token in tokens:
            if self.ended:
                return
            is_eos, is_stop = token == params.eos_token_id, token in (params.stop_token_ids or ())
            self.stop_reason = self._decoder.update([token], is_eos or is_stop)
            self.ended = is_eos or is_stop or self.stop_reason is not None
            if is_stop and not is_eos and self.stop_reason is None:
                self.stop_reason = token

    def next(self, tokens: Tokens, *, last: bool) -> str:
        """The text that these add."""
        self.append(tokens)
        text: str = self._decoder.get_next_output_text(last or self.ended, delta=True)
        return text

    @property
    def text(self) -> str:
        """The whole, as if nothing more came."""
        text: str = self._decoder.get_next_output_text(True, delta=False)
        return text

    def copy(self) -> AnswerText:
        twin = copy(self)
        twin._decoder = copy(self._decoder)
        for name in ("token_ids", "tokens", "stream"):  # what vLLM's decoders change in place
            if hasattr(twin._decoder, name):
                setattr(twin._decoder, name, copy(getattr(twin._decoder, name)))
        return twin


class Detokenizer:
    """How the answers to one request read: `params` are vLLM's, with the tokens that end an answer (`with_ends`)."""

    def __init__(self, tokenizer: Any, params: SamplingParams) -> None:
        self.tokenizer = tokenizer
        self.params = params
        self._uncut = copy(params)
        self._uncut.stop = []
        self._remembered: OrderedDict[tuple[bool, tuple[int, ...], tuple[int, ...]], AnswerText] = OrderedDict()
        """(cut, end of the prompt, beginning of an answer) -> where its decoding stands, oldest use first"""
        self._lengths: Counter[int] = Counter()
        """Of the beginnings that are remembered."""

    def begin(self, prompt: Tokens, *, cut: bool = True) -> AnswerText:
        """The text of an answer to this prompt, which has no token yet; `cut`: it ends at a stop string."""
        return AnswerText(self.tokenizer, self.params if cut else self._uncut, self._context(prompt))

    def text(self, prompt: Tokens, tokens: Tokens, *, cut: bool = True) -> str:
        """An answer, whole or not, as the client reads it; `cut` false: with what lies behind a stop string."""
        context, answer = tuple(self._context(prompt)), tuple(tokens)
        known = self._longest_known(cut, context, answer)
        if known is None:
            decoded, start = self.begin(context, cut=cut), 0
        else:
            decoded, start = self._remembered[cut, context, known], len(known)
        if start < len(answer):
            decoded = decoded.copy()
            decoded.append(answer[start:])
            self._remember(cut, context, answer, decoded)
        return decoded.text

    def _context(self, prompt: Tokens) -> Tokens:
        """The prompt's end, as far back as it matters to what follows: some text of its own, and whole characters."""
        length = CONTEXT
        while length < len(prompt):
            end = list(prompt[-length:])
            text = self.tokenizer.decode(end, skip_special_tokens=self.params.skip_special_tokens)
            if text and not text.endswith("\ufffd"):
                return end
            length *= 2
        return prompt

    def _longest_known(self, cut: bool, context: tuple[int, ...], answer: tuple[int, ...]) -> tuple[int, ...] | None:
        for length in sorted(self._lengths, reverse=True):
            if length <= len(answer) and (key := (cut, context, answer[:length])) in self._remembered:
                self._remembered.move_to_end(key)
                return answer[:length]
        return None

    def _remember(self, cut: bool, context: tuple[int, ...], answer: tuple[int, ...], decoded: AnswerText) -> None:
        self._remembered[cut, context, answer] = decoded
        self._lengths[len(answer)] += 1
        while sum(length * count for length, count in self._lengths.items()) > MAX_REMEMBERED:
            (_, _, oldest), _ = self._remembered.popitem(last=False)
            self._lengths[len(oldest)] -= 1
            self._lengths += Counter()  # drops what is 0


def with_ends(params: SamplingParams, client: EngineClient) -> SamplingParams:
    """The parameters with the tokens that end an answer, as vLLM's input processor fills them in."""
    filled = copy(params)
    filled._all_stop_token_ids = set(params._all_stop_token_ids)
    filled.update_from_generation_config(
        client.input_processor.generation_config_fields, client.renderer.get_eos_token_id()
    )
    return filled


def decode_answer(tokenizer: Any, tokens: Tokens, ends: Sequence[int]) -> str:
    """An answer to no request in particular, behind some text as an answer always is. `ends` end it."""
    params = SamplingParams(stop_token_ids=list(ends))
    return Detokenizer(tokenizer, params).text(tokenizer.encode("a", add_special_tokens=False), tokens)


def encode_answer(tokenizer: Any, text: str) -> list[int]:
    """A text as the base would read it within an answer: `decode_answer` gives it back.

    A SentencePiece tokenizer puts a space before what it encodes by itself, so the text is encoded behind a line's end.
    """
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if decode_answer(tokenizer, tokens, ()) == text:
        return tokens
    before: list[int] = tokenizer.encode("\n", add_special_tokens=False)
    behind: list[int] = tokenizer.encode(f"\n{text}", add_special_tokens=False)
    return behind[len(before) :] if behind[: len(before)] == before else tokens
