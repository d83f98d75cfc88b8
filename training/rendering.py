"""A conversation and an answer in a base's tokens, as the server reads the one and the model writes the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from trimtab.training.data import DataError, Message

MARK = "\ue000"
"""Stands for a text while a template is rendered. From Unicode's private use area, so that no template contains it."""


@dataclass(frozen=True, kw_only=True)
class Renderer:
    """Renders by a chat template, or bare: then a conversation is the text of its one message."""

    tokenizer: Any
    ends: frozenset[int]
    """The tokens that end an answer."""
    bare: bool = False

    @classmethod
    def of(
        cls, base: str, *, template: Path | None = None, bare: bool = False, revision: str | None = None
    ) -> Renderer:
        """With the base's own tokenizer and ends; raises DataError for a base without a chat template."""
        from transformers import AutoTokenizer, GenerationConfig

        tokenizer = AutoTokenizer.from_pretrained(base, revision=revision)
        if template is not None:
            tokenizer.chat_template = template.read_text()
        if tokenizer.chat_template is None and not bare:
            raise DataError(
                f"{base} has no chat template: give one with --chat-template FILE (a Jinja template, the one that the "
                "server has as engine.chat_template), or train on bare prompts with --bare"
            )
        try:
            ids = GenerationConfig.from_pretrained(base, revision=revision).eos_token_id
        except OSError:
            ids = None
        ends = {*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id} - {None}
        if not ends:
            raise DataError(f"{base} has no end-of-sequence token: its tokenizer must say eos_token")
        return cls(tokenizer=tokenizer, ends=frozenset(map(int, ends)), bare=bare)

    def encode_prompt(self, prompt: Sequence[Message]) -> list[int]:
        """As the server renders it for an answer."""
        return self._encode(self._prompt(prompt))

    def encode(self, prompt: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
        """(prompt, answer): the answer with the end of its turn, without what the template writes behind that, which no
        model generates. They are encoded apart, as they are when the model writes behind a prompt.

        Raises DataError where the template renders the prompt otherwise once it is answered.
        """
        head = self._prompt(prompt)
        if self.bare:
            tokens = self._encode(answer)
        else:
            whole = self._template([*prompt, {"role": "assistant", "content": answer}], add_generation_prompt=False)
            if not whole.startswith(head):
                raise DataError(
                    "the chat template does not continue the prompt with the answer: with its generation prompt it "
                    f"ends in {head[-40:]!r}, and answered it has {whole[max(0, len(head) - 40) :][:80]!r} there; a "
                    "template that writes thoughts into one of them alone cannot be trained by"
                )
            tokens = self._encode(whole[len(head) :])
        end = next((i for i, token in enumerate(tokens) if token in self.ends), None)
        return self._encode(head), [*tokens, min(self.ends)] if end is None else tokens[: end + 1]

    def close(self, answer: Sequence[int]) -> list[int]:
        """The answer as a whole turn, with all that the template writes behind it, whether it had ended or not: what a
        reward model reads, here as on the server."""
        if not answer or answer[-1] not in self.ends:
            return [*answer, *self._closing]
        text = list(answer[:-1])  # with all of a closing that has no end, which `encode` put there
        return text if self.ends.isdisjoint(self._closing) else [*text, *self._closing]

    @cached_property
    def _closing(self) -> list[int]:
        if self.bare:
            return [min(self.ends)]
        turns = [{"role": "user", "content": MARK}, {"role": "assistant", "content": MARK}]
        return self._encode(self._template(turns).rpartition(MARK)[2])

    def joins(self, prompt: Sequence[Message], answer: str) -> bool:
        """Whether the prompt's tokens are a prefix of those of prompt and answer together."""
        head = self._prompt(prompt)
        tail = answer if self.bare else self._template([*prompt, {"role": "assistant", "content": answer}])[len(head) :]
        first = self._encode(head)
        return self._encode(head + tail)[: len(first)] == first

    def _prompt(self, prompt: Sequence[Message]) -> str:
        if not self.bare:
            return self._template(prompt, add_generation_prompt=True)
        if len(prompt) != 1 or prompt[0]["role"] != "user":
            raise DataError("a bare prompt is one text, and this is a conversation: train without --bare")
        return prompt[0]["content"]

    def _template(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise DataError(f"the chat template refuses this conversation: {error}") from None
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=self.bare)["input_ids"]
        return ids


def choose_padding(tokenizer: Any, ends: frozenset[int]) -> int:
    """A token that pads and ends no answer: a head that reads the last token that is no padding must read the end.

    The tokenizer's own where it is none of the ends, else another special one; raises DataError where there is none.
    """
    special = [
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        tokenizer.bos_token_id,
        *sorted(tokenizer.all_special_ids),
    ]
    for token in special:
        if token is not None and token not in ends:
            return int(token)
    raise DataError("the tokenizer has no special token besides its end of sequence, so nothing can pad")
