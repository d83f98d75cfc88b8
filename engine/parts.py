"""What a completion holds, as vLLM's own reasoning and tool parsers read it: thoughts, an answer, calls of tools."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.parser.abstract_parser import Parser

from trimtab.decoders.protocols import Call, Parts, Tokens

log = logging.getLogger("trimtab")


@dataclass(frozen=True, kw_only=True)
class PartsReader:
    """A `decoders.protocols.Split` of one request: what it calls the answer is the content that the client gets."""

    begin: Callable[[], tuple[Parser, Any]]
    """A parser, which holds the state of one completion, and vLLM's request, whose `tool_choice` says whether calls are
    looked for."""
    auto_tools: bool
    written: bool = False
    """Whether the texts are a client's, or go on from a client's. A parser takes what has no mark of thoughts for
    thoughts that have not ended, as where the prompt opens them; of a client's text that is the answer."""
    thinks: bool = True
    """Whether there is a reasoning parser."""

    def __call__(self, prompt: Tokens, text: str, tokens: Tokens) -> Parts:
        """A text that the parsers cannot read is all answer."""
        try:
            parser, request = self.begin()
            parser.set_prompt_token_ids(list(prompt))
            thoughts, content, calls = parser.parse(
                text, request, enable_auto_tools=self.auto_tools, model_output_token_ids=list(tokens)
            )
        except Exception:  # parsers raise what they like; whoever returns this text to a client meets it again
            log.debug("a completion cannot be parsed", exc_info=True)
            return Parts(answer=text)
        content = content or ""
        reasoning = parser.reasoning_parser
        if reasoning is not None:
            start = reasoning.reasoning_start_str
            if self.written and not content and not calls and not (start and start in text):
                thoughts, content = "", text
        called = tuple(Call(name=call.name, arguments=call.arguments) for call in calls or ())
        return Parts(thoughts=thoughts or "", answer=content, calls=called)
