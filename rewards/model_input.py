"""The input of a reward model: a conversation and a response, as token ids in the format that it was trained on.

Both texts come from a client, and a tokenizer turns text that looks like a special token into one. Text without such a
look-alike is encoded as Hugging Face does it: rendered, then encoded in one piece. Text with one is encoded by itself,
as plain characters, and put between the ids of the template. Only at those joints may the tokens differ from those of
the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from jinja2 import TemplateError
from pydantic import Field

from trimtab.rewards.protocols import Question

CHAT = "chat"
"""The reward model's own chat template, which ArmoRM (arXiv 2406.12845) uses as it is."""

TEMPLATES = {
    "helpsteer_dpa": (
        "[INST] You must read the following conversation carefully and rate the assistant's response from score 0-100 "
        "in these aspects: helpfulness, correctness, coherence, honesty, complexity, verbosity\n\n"
        "User: {prompt}\n\nAssistant: {response} [/INST]"
    ),  # the ten-headed reward model of DPA (arXiv 2402.18571)
}
"""Published formats that are no chat template."""

Format = Annotated[
    str,
    Field(description='"chat" (the model\'s own template), a published form, or a text with {prompt} and {response}'),
]
Truncate = Annotated[
    Literal["error", "left"],
    Field(description="of an input too long: an error, or its oldest tokens go, never the response's"),
]
Messages = Sequence[Mapping[str, str]]

MARK = "\ue000"
"""Stands for a text while a template is rendered. From Unicode's private use area, so that no template contains it."""


@dataclass(frozen=True, kw_only=True)
class InputEncoder:
    """Encodes for one reward model. Raises ValueError for a format that the model cannot have."""

    name: str
    """Of the reward, for error messages."""
    tokenizer: Any
    limit: int
    """Most tokens of an input."""
    format: Format = CHAT
    """`CHAT`, a name of `TEMPLATES`, or a text with {prompt} and, after it, {response}."""
    truncation: Truncate = "error"

    def __post_init__(self) -> None:
        if self.format == CHAT:
            if self.tokenizer.chat_template is None:
                raise ValueError(f"{self.name}: the reward model has no chat template; valid: {self._forms()}")
        elif re.findall(r"\{(prompt|response)\}", self._template) != ["prompt", "response"]:
            raise ValueError(f"{self.name}: no format {self.format!r}; valid: {self._forms(CHAT)}")

    def encode_whole(self, question: Question, response: str) -> list[int]:
        """The conversation and the response as the assistant's whole turn, with what the format puts after it.

        An unfinished response is encoded the same way, since reward models are trained on whole turns. Raises
        ValueError for a conversation that the model's template refuses, and for one that is too long.
        """
        if self._contains_special(*(message["content"] for message in question.messages), response):
            before, after = self.encode_context(question)
            tokens = [*before, *self.encode_verbatim(response), *after]
        else:
            tokens = self._encode(self._render(question.messages, response), framed=True)
        if len(tokens) <= self.limit:
            return tokens
        return self.truncate(tokens, suffix=len(self.encode_verbatim(response)) + len(self.encode_context(question)[1]))

    def encode_prefix(self, question: Question, response: str) -> list[int]:
        """The conversation and the response as the start of the assistant's turn; raises as `encode_whole` does."""
        before, _ = self.encode_context(question)
        response_ids = self.encode_verbatim(response)
        return self.truncate([*before, *response_ids], suffix=len(response_ids) + 1)

    def encode_context(self, question: Question) -> tuple[list[int], list[int]]:
        """The tokens before the response, and those after it."""
        texts = [message["content"] for message in question.messages]
        head, tail = self._frame
        if not self._contains_special(*texts):
            before, _, after = self._render(question.messages, MARK).rpartition(MARK)
            return [*head, *self._encode(before)], [*self._encode(after), *tail]
        # The client's texts are not in what is rendered here, so none of them can pass for a mark.
        marked = [{**m, "content": f"{MARK}{i}{MARK}"} for i, m in enumerate(question.messages)]
        before, _, after = self._render(marked, f"{MARK}{len(texts)}{MARK}").rpartition(f"{MARK}{len(texts)}{MARK}")
        first, *rest = re.split(f"{MARK}(\\d+){MARK}", before)
        tokens = [*head, *self._encode(first)]
        for i, literal in zip(rest[::2], rest[1::2], strict=True):
            tokens += [*self.encode_verbatim(texts[int(i)]), *self._encode(literal)]
        return tokens, [*self._encode(after), *tail]

    def encode_verbatim(self, text: str) -> list[int]:
        """The text as plain characters: a special token spelt out in it does not become one."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def truncate(self, tokens: list[int], *, suffix: int) -> list[int]:
        """At most `limit` tokens. "left" drops the oldest, except a beginning-of-sequence token and the suffix.

        Raises ValueError for too long an input if that is an error, or if the suffix alone is too long.
        """
        if len(tokens) <= self.limit:
            return tokens
        start = tokens[:1] if tokens[0] == self.tokenizer.bos_token_id else []
        reads = f"and the reward model reads {self.limit}"
        if self.truncation == "error":
            raise ValueError(f"{self.name}: conversation and response have {len(tokens)} tokens, {reads}")
        if suffix + len(start) > self.limit:
            raise ValueError(f"{self.name}: the response alone has {suffix} tokens, {reads}")
        return [*start, *tokens[len(tokens) - self.limit + len(start) :]]

    @property
    def _template(self) -> str:
        return TEMPLATES.get(self.format, self.format)

    def _forms(self, *more: str) -> str:
        return ", ".join([*more, *sorted(TEMPLATES), "a text with {prompt} and then {response}"])

    def _render(self, messages: Messages, response: str) -> str:
        if self.format != CHAT:
            first, _, rest = self._template.partition("{prompt}")
            between, _, last = rest.partition("{response}")
            return f"{first}{as_prompt(messages)}{between}{response}{last}"
        turns = [*messages, {"role": "assistant", "content": response}]
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        except TemplateError as error:
            raise ValueError(f"{self.name}: the reward model's chat template refuses this: {error}") from error
        return text

    def _encode(self, text: str, *, framed: bool = False) -> list[int]:
        """`framed`: with the special tokens that the tokenizer adds around a text; a chat template has its own."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=framed and self.format != CHAT)["input_ids"]
        return ids

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer adds before and after a text."""
        bare, framed = self._encode("a"), self._encode("a", framed=True)
        start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        return framed[:start], framed[start + len(bare) :]

    @cached_property
    def _special(self) -> frozenset[str]:
        return frozenset(t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special)

    def _contains_special(self, *texts: str) -> bool:
        """Whether a special token is spelt out in one of the texts."""
        return any(token in text for text in texts for token in self._special)


def as_prompt(messages: Messages) -> str:
    """A conversation as one text, for a format with one slot; a single user message is its text alone.

    System messages come before the first turn, as in chat templates without a system role. Later turns follow as
    "Assistant: …" and "User: …".
    """
    system = [m["content"] for m in messages if m["role"] in ("system", "developer")]
    turns = [m for m in messages if m["role"] not in ("system", "developer")]
    later = [f"{m['role'].capitalize()}: {m['content']}" for m in turns[1:]]
    return "\n\n".join([*system, *(m["content"] for m in turns[:1]), *later])
