"""The input of a reward model: a conversation and a response, as token ids in the format that it was trained on.

Both texts come from a client, and a tokenizer turns text that looks like a special token into one. Text without such a
look-alike is encoded as Hugging Face does it: rendered, then encoded in one piece. Text with one is encoded by itself,
as plain characters, and put between the ids of the template. Only at those joints may the tokens differ from those of
the whole text.

Tools, calls and results are the chat template's where it reads them, and are spelt out in the turns where it does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, Literal

from jinja2 import TemplateError, meta, nodes
from pydantic import Field
from transformers.utils.chat_template_utils import _compile_jinja_template

from trimtab.rewards.conversation import (
    RESULT,
    Message,
    as_dialogue,
    as_message,
    has_calls,
    parse_arguments,
    spell_out,
    spell_out_calls,
    spell_out_response,
    spell_out_tools,
)
from trimtab.rewards.protocols import Question, Response

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
Messages = Sequence[Message]

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
                problem = f"{self.name}: the reward model has no chat template: say in `format` how it reads a chat"
                raise ValueError(f"{problem}; valid: {self._forms()}")
        elif re.findall(r"\{(prompt|response)\}", self._template) != ["prompt", "response"]:
            raise ValueError(f"{self.name}: no format {self.format!r}; valid: {self._forms(CHAT)}")

    def encode_whole(self, question: Question, response: Response) -> list[int]:
        """The conversation and the response as the assistant's whole turn, with what the format puts after it.

        An unfinished response is encoded the same way, since reward models are trained on whole turns. Raises
        ValueError for a conversation that the model's template refuses, and for one that is too long.
        """
        messages, tools = self._arrange(question)
        turn = self._arrange_response(question, response)
        text, calls = turn["content"], turn.get("tool_calls", ())
        if self._contains_special(*find_client_texts([*messages, turn], tools)):
            before, after = self.encode_context(question, calls)
            tokens = [*before, *self.encode_verbatim(text), *after]
        else:
            tokens = self._encode(self._render([*messages, turn], tools), framed=True)
        if len(tokens) <= self.limit:
            return tokens
        after = self.encode_context(question, calls)[1]
        return self.truncate(tokens, suffix=len(self.encode_verbatim(text)) + len(after))

    def encode_prefix(self, question: Question, response: str) -> list[int]:
        """The conversation and the response as the start of the assistant's turn; raises as `encode_whole` does."""
        before, _ = self.encode_context(question)
        response_ids = self.encode_verbatim(response)
        return self.truncate([*before, *response_ids], suffix=len(response_ids) + 1)

    def encode_context(self, question: Question, calls: Sequence[Message] = ()) -> tuple[list[int], list[int]]:
        """The tokens before the text of a response that makes these calls, and those after it."""
        messages, tools = self._arrange(question)
        head, tail = self._frame
        beside = {"role": "assistant", **({"tool_calls": calls} if calls else {})}
        special = self._contains_special(*find_client_texts([*messages, beside], tools))
        if not special and not any(MARK in text for text in find_texts(calls)):
            turns = [*messages, {**beside, "content": MARK}]
            before, _, after = self._render(turns, tools).rpartition(MARK)
            return [*head, *self._encode(before)], [*self._encode(after), *tail]
        # No special token of the client's, and no mark, is in what is rendered here, so none can pass for one.
        texts: list[str] = []

        def mark(text: str) -> str:
            texts.append(text)
            return f"{MARK}{len(texts) - 1}{MARK}"

        def mark_special(text: str) -> str:
            return self._special_or_mark.sub(lambda match: mark(match[0]), text)

        def mark_message(message: Message) -> Message:
            others = {key: value for key, value in message.items() if key != "content"}
            # What a call or a result says, a template may quote; what anybody else says it shows as it is.
            content = (mark_special if has_calls([message]) else mark)(message["content"])
            return {**change_texts(others, mark_special), "content": content}

        def encode_marked(rendered: str) -> list[int]:
            first, *rest = re.split(f"{MARK}(\\d+){MARK}", rendered)
            tokens = self._encode(first)
            for i, literal in zip(rest[::2], rest[1::2], strict=True):
                tokens += [*self.encode_verbatim(texts[int(i)]), *self._encode(literal)]
            return tokens

        marked = [mark_message(message) for message in messages]
        tools, beside = change_texts(tools, mark_special), change_texts(beside, mark_special)
        last = f"{MARK}{len(texts)}{MARK}"
        before, _, after = self._render([*marked, {**beside, "content": last}], tools).rpartition(last)
        return [*head, *encode_marked(before)], [*encode_marked(after), *tail]

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

    def _arrange(self, question: Question) -> tuple[list[Message], list[Message]]:
        """The messages and tools as the format reads them."""
        if self.format != CHAT:
            return list(spell_out(question.messages, question.tools)), []
        messages, tools = list(question.messages), list(question.tools)
        if not tools and not has_calls(messages):
            return messages, tools
        reading = self._read_template(tools)
        if reading.calls:
            messages = [parse_calls(message) for message in messages]
        elif has_calls(messages):
            messages = list(as_dialogue(spell_out_calls(messages)))
        return (messages, tools) if reading.tools else (spell_out_tools(messages, tools), [])

    def _arrange_response(self, question: Question, response: Response) -> Message:
        """The response as the format reads it."""
        if response.calls and self.format == CHAT and self._read_template(question.tools).calls:
            return parse_calls(as_message(response))
        return {"role": "assistant", "content": spell_out_response(response)}

    def _read_template(self, tools: Sequence[Message]) -> TemplateReading:
        return TemplateReading.of(self.tokenizer.get_chat_template(tools=list(tools) or None))

    def _render(self, turns: Messages, tools: Sequence[Message]) -> str:
        """The conversation and the response, which is the last turn."""
        if self.format != CHAT:
            first, _, rest = self._template.partition("{prompt}")
            between, _, last = rest.partition("{response}")
            return f"{first}{as_prompt(turns[:-1])}{between}{turns[-1]['content']}{last}"
        options: dict[str, Any] = {"tools": list(tools)} if tools else {}
        try:
            text: str = self.tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=False, **options
            )
        except TemplateError as error:
            raise ValueError(f"{self.name}: the reward model's chat template refuses this: {error}") from error
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
            # Templates look into what a client wrote: tools, arguments.
            kind = type(error).__name__
            raise ValueError(f"{self.name}: the reward model's chat template cannot read this ({kind})") from error
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

    @cached_property
    def _special_or_mark(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, [*sorted(self._special, key=len, reverse=True), MARK])))

    def _contains_special(self, *texts: str) -> bool:
        """Whether a special token is spelt out in one of the texts."""
        return any(token in text for text in texts for token in self._special)


@dataclass(frozen=True, kw_only=True)
class TemplateReading:
    """What a chat template reads beside roles and texts."""

    tools: bool
    """The tools that may be called."""
    calls: bool
    """The calls in an assistant's message, and messages of tools."""

    @classmethod
    @cache
    def of(cls, template: str) -> TemplateReading:
        tree = _compile_jinja_template(template).environment.parse(template)
        names = {node.attr for node in tree.find_all(nodes.Getattr)}
        names |= {node.value for node in tree.find_all(nodes.Const)}
        return cls(tools="tools" in meta.find_undeclared_variables(tree), calls={"tool_calls", RESULT} <= names)


def parse_calls(message: Message) -> Message:
    """A message with the arguments of its calls as objects, as chat templates read them; what is none is empty, as in
    vLLM."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": arguments if isinstance(arguments, dict) else {}}}
        for call in message["tool_calls"]
        for arguments in [parse_arguments(call)]
    ]
    return {**message, "tool_calls": calls}


def find_client_texts(messages: Messages, tools: Sequence[Message]) -> Iterator[str]:
    """What a client wrote of a conversation."""
    for message in messages:
        yield from find_texts([value for key, value in message.items() if key != "role"])
    yield from find_texts(tools)


def find_texts(value: Any) -> Iterator[str]:
    """All texts in it, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from find_texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from find_texts(inner)


def change_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same with all texts changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): change_texts(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [change_texts(inner, change) for inner in value]
    return value


def as_prompt(messages: Messages) -> str:
    """A conversation as one text, for a format with one slot; a single user message is its text alone.

    System messages come before the first turn, as in chat templates without a system role. Later turns follow as
    "Assistant: …" and "User: …".
    """
    system = [m["content"] for m in messages if m["role"] in ("system", "developer")]
    turns = [m for m in messages if m["role"] not in ("system", "developer")]
    later = [f"{m['role'].capitalize()}: {m['content']}" for m in turns[1:]]
    return "\n\n".join([*system, *(m["content"] for m in turns[:1]), *later])
