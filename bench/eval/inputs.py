"""What is compared on what: settings from YAML files, prompts from text or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.bench.load.mix import read_yaml

FILLED_IN = {
    "messages": "the messages come from --prompts",
    "prompt": "the messages come from --prompts",
    "seed": "every setting draws with the same seeds: --seed",
    "n": "answers to each prompt are --n",
    "stream": "answers are read whole",
    "stream_options": "answers are read whole",
}
"""Fields of a request that a setting cannot have."""


class EvalError(Exception):
    """What keeps an evaluation from beginning; the message names the option, the value and what is valid."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    name: str
    body: Mapping[str, Any]
    """Fields of a chat request beside its messages."""


@dataclass(frozen=True, kw_only=True)
class EvalPrompt:
    messages: Sequence[Mapping[str, Any]]
    given: Mapping[str, Any] = field(default_factory=dict)
    """What a reward compares answers to it with: `answer`, `references`."""


def read_settings(paths: Sequence[Path]) -> tuple[Setting, ...]:
    """One of each file, by the name of its stem. Raises EvalError, and MixError for what is no YAML."""
    settings: dict[str, Setting] = {}
    for path in paths:
        document = read_yaml(path)
        body = {} if document is None else document
        if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
            raise EvalError(f"--settings: {path}: must hold fields of a chat request, such as `temperature: 0.7`")
        for name in body.keys() & FILLED_IN.keys():
            raise EvalError(f"--settings: {path}: {name}: cannot be set here: {FILLED_IN[name]}")
        try:
            json.dumps(body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise EvalError(f"--settings: {path}: cannot be written as JSON: {error}") from None
        if path.stem in settings:
            raise EvalError(f"--settings: {path}: a second setting named {path.stem!r}: rename the file")
        settings[path.stem] = Setting(name=path.stem, body=body)
    return tuple(settings.values())


def read_prompts(path: Path, limit: int | None = None) -> tuple[EvalPrompt, ...]:
    """One a line: text, or a JSON object with `messages` or `prompt`, and `given`; other keys are not read.

    Empty lines are skipped, and a prompt that is repeated counts once: answers to it are not independent, and a file of
    preferences has it as often as pairs of answers to it. Raises EvalError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvalError(f"--prompts: {path}: cannot be read: {error}") from None
    prompts: dict[str, EvalPrompt] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if len(prompts) == limit:
            break
        if line.strip():
            try:
                prompt = _read_line(line.strip())
            except ValueError as error:
                raise EvalError(f"--prompts: {path}: line {number}: {error}") from None
            prompts.setdefault(json.dumps([prompt.messages, prompt.given], sort_keys=True), prompt)
    if not prompts:
        raise EvalError(f"--prompts: {path}: must hold at least one prompt, one a line")
    return tuple(prompts.values())


def _read_line(line: str) -> EvalPrompt:
    if not line.startswith("{"):
        return EvalPrompt(messages=({"role": "user", "content": line},))
    try:
        document = json.loads(line)
    except ValueError as error:
        raise ValueError(f"begins with {{ and is no JSON object: {error}") from None
    if ("messages" in document) == ("prompt" in document):
        raise ValueError("must have one of messages and prompt, and not both")
    name = "messages" if "messages" in document else "prompt"
    messages = document[name]
    if name == "prompt" and isinstance(messages, str) and messages:
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        text = "text or " if name == "prompt" else ""
        raise ValueError(f"{name}: must be {text}a list of messages with a role, and not empty")
    comparands = document.get("given", {})
    if not isinstance(comparands, dict):
        raise ValueError('given: must be an object, such as {"answer": "12"}')
    return EvalPrompt(messages=messages, given=comparands)
