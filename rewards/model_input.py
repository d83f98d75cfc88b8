"""What a reward model reads: a conversation and a response, as token ids in the form that it was trained on.

Both come from outside, and a tokenizer turns text that looks like a control token into one. Ordinary text is encoded
as Hugging Face does it, rendered and encoded in one piece. Text in which a special token is spelt out is encoded by
itself, as the characters it is, and put between the template's own ids; at those seams, and only there, a tokenizer
that merges across them may cut words in other places.
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
"""The reward model's own chat template. ArmoRM (arXiv 2406.12845) is one of those that use it plainly."""

TEMPLATES = {
    "helpsteer_dpa": (
        "[INST] You must read the following conversation carefully and rate the assistant's response from score 0-100 "
        "in these aspects: helpfulness, correctness, coherence, honesty, complexity, verbosity\n\n"
        "User: {prompt}\n\nAssistant: {response} [/INST]"
    ),  # the ten-headed reward model of DPA (arXiv 2402.18571)
}
"""Published forms of other kinds."""

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
"""Stands for a text while a template is rendered: of Unicode's private use, so no template writes it."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How one reward model reads. Raises ValueError for a form that does not fit the model."""

    name: str
    """The reward's, for messages."""
    tokenizer: Any
    limit: int
    """Tokens at most."""
    format: Format = CHAT
    """`CHAT`, a name of `TEMPLATES`, or a text with {prompt} and, after it, {response}."""
    truncate: Truncate = "error"

    def __post_init__(self) -> None:
        if self.format == CHAT:
            if self.tokenizer.chat_template is None:
                raise ValueError(f"{self.name}: the reward model has no chat template; valid: {self._forms()}")
        elif re.findall(r"\{(prompt|response)\}", self._template) != ["prompt", "response"]:
            raise ValueError(f"{self.name}: no format {self.format!r}; valid: {self._forms(CHAT)}")

    def closed(self, question: Question, response: str) -> list[int]:
        """The conversation with the response as the assistant's whole turn, closed as the format closes it.

        A beginning of a response is read the same way: reward models are trained on closed turns. Raises ValueError
        for a conversation that the model's template refuses, and for one that is too long.
        """
        if self._spelt(*(message["content"] for message in question.messages), response):
            before, after = self.around(question)
            tokens = [*before, *self.verbatim(response), *after]
        else:
            tokens = self._encode(self._rendered(question.messages, response), framed=True)
        if len(tokens) <= self.limit:
            return tokens
        return self.fitted(tokens, len(self.verbatim(response)) + len(self.around(question)[1]))

    def opened(self, question: Question, response: str) -> list[int]:
        """The conversation with the response as the beginning of the assistant's turn; raises as `closed` does."""
        before, _ = self.around(question)
        said = self.verbatim(response)
        return self.fitted([*before, *said], len(said) + 1)

    def around(self, question: Question) -> tuple[list[int], list[int]]:
        """What stands before the response, and what after it."""
        texts = [message["content"] for message in question.messages]
        head, tail = self._frame
        if not self._spelt(*texts):
            before, _, after = self._rendered(question.messages, MARK).rpartition(MARK)
            return [*head, *self._encode(before)], [*self._encode(after), *tail]
        # Not a word of the client's is in what is rendered here, so none can pass for a mark.
        marked = [{**m, "content": f"{MARK}{i}{MARK}"} for i, m in enumerate(question.messages)]
        before, _, after = self._rendered(marked, f"{MARK}{len(texts)}{MARK}").rpartition(f"{MARK}{len(texts)}{MARK}")
        first, *rest = re.split(f"{MARK}(\\d+){MARK}", before)
        tokens = [*head, *self._encode(first)]
        for i, own in zip(rest[::2], rest[1::2], strict=True):
            tokens += [*self.verbatim(texts[int(i)]), *self._encode(own)]
        return tokens, [*self._encode(after), *tail]

    def verbatim(self, text: str) -> list[int]:
        """The text as characters: a special token spelt out in it is not one."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def fitted(self, tokens: list[int], kept: int) -> list[int]:
        """At most `limit` tokens. "left" keeps a leading beginning-of-sequence token and, whole, the last `kept`."""
        if len(tokens) <= self.limit:
            return tokens
        begin = tokens[:1] if tokens[0] == self.tokenizer.bos_token_id else []
        reads = f"and the reward model reads {self.limit}"
        if self.truncate == "error":
            raise ValueError(f"{self.name}: conversation and response have {len(tokens)} tokens, {reads}")
        if kept + len(begin) > self.limit:
            raise ValueError(f"{self.name}: the response alone has {kept} tokens, {reads}")
        return [*begin, *tokens[len(tokens) - self.limit + len(begin) :]]

    @property
    def _template(self) -> str:
        return TEMPLATES.get(self.format, self.format)

    def _forms(self, *more: str) -> str:
        return ", ".join([*more, *sorted(TEMPLATES), "a text with {prompt} and then {response}"])

    def _rendered(self, messages: Messages, response: str) -> str:
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
        """`framed`: with the special tokens that a tokenizer puts around a text; a chat template writes its own."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=framed and self.format != CHAT)["input_ids"]
        return ids

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The special tokens that a tokenizer puts before and after a text."""
        bare, framed = self._encode("a"), self._encode("a", framed=True)
        start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        return framed[:start], framed[start + len(bare) :]

    @cached_property
    def _special(self) -> frozenset[str]:
        return frozenset(t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special)

    def _spelt(self, *texts: str) -> bool:
        """Whether a special token is spelt out in one of the texts."""
        return any(token in text for text in texts for token in self._special)


def as_prompt(messages: Messages) -> str:
    """A conversation for a format with one slot for it; one message of the user's is its own text.

    System messages stand before the first turn, as templates without a place for them have it; later turns follow as
    "Assistant: …" and "User: …".
    """
    system = [m["content"] for m in messages if m["role"] in ("system", "developer")]
    turns = [m for m in messages if m["role"] not in ("system", "developer")]
    later = [f"{m['role'].capitalize()}: {m['content']}" for m in turns[1:]]
    return "\n\n".join([*system, *(m["content"] for m in turns[:1]), *later])
