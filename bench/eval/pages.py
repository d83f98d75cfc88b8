"""Answers side by side, to read: as Markdown and as an HTML page that needs nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined

from trimtab.bench.eval.ask import Place
from trimtab.bench.eval.figures import NOTE, Evaluation, TableOf
from trimtab.bench.eval.inputs import EvalPrompt
from trimtab.bench.report import table

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #222; }
table { border-collapse: collapse; margin: 0 0 1.5rem; }
th, td { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top; }
th { background: #f3f3f3; }
.answers { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(18rem, 1fr); gap: .8rem; overflow-x: auto; }
.answers > div { border: 1px solid #ccc; border-radius: 4px; padding: .6rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.facts { color: #666; font-size: 13px; }
.failure { color: #a00; }
h2 { margin-top: 2.5rem; font-size: 1.1rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for heading, headers, rows in tables %}
<h2>{{ heading }}</h2>
<table>
<tr>{% for header in headers %}<th>{{ header }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}
<p>{{ note }}.</p>
<ul>
{% for failure in failures %}<li class="failure">{{ failure }}</li>
{% endfor %}</ul>
{% for prompt in prompts %}
<h2 id="prompt-{{ prompt.number }}">Prompt {{ prompt.number }}</h2>
{% for role, text in prompt.messages %}<p class="text"><b>{{ role }}:</b> {{ text }}</p>
{% endfor %}{% for answers in prompt.samples %}
<div class="answers">
{% for answer in answers %}<div>
<b>{{ answer.setting }}</b>
<div class="facts">{{ answer.facts }}</div>
<div class="text{% if answer.failed %} failure{% endif %}">{{ answer.text }}</div>
</div>
{% endfor %}</div>
{% endfor %}{% endfor %}</body>
</html>
"""
TITLE = "Answers side by side"


def side_by_side(evaluation: Evaluation, prompts: Sequence[EvalPrompt]) -> list[dict[str, Any]]:
    """For each prompt its messages, and for each sample what every setting answered or why it did not."""
    failures = {failure.place: failure.message for failure in evaluation.failures if failure.reward is None}

    def show_answer(place: Place) -> dict[str, Any]:
        answer = evaluation.answers.get(place)
        if answer is None:
            return {"setting": place.setting, "facts": "failed", "text": failures.get(place, ""), "failed": True}
        scores = [f"{reward} {of[place]:.3f}" for reward, of in evaluation.scores.items() if place in of]
        tokens = "" if answer["visible_tokens"] is None else f"{answer['visible_tokens']} tokens"
        outcome = "" if answer["outcome"] == "ok" else str(answer["outcome"])
        facts = [*scores, tokens, f"{answer['latency']:.2f} s", outcome, f"ended by {answer['finish_reason']}"]
        return {
            "setting": place.setting,
            "facts": " · ".join(fact for fact in facts if fact),
            "text": answer["text"],
            "failed": False,
        }

    return [
        {
            "number": at + 1,
            "messages": [(str(m["role"]), read_content(m.get("content"))) for m in prompt.messages],
            "samples": [
                [show_answer(Place(setting=name, prompt=at, sample=sample)) for name in evaluation.settings]
                for sample in range(evaluation.n)
            ],
        }
        for at, prompt in enumerate(prompts)
    ]


def read_content(content: Any) -> str:
    """A message's text; what is no text is shown as JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        return "\n".join(part["text"] for part in content)
    return json.dumps(content, ensure_ascii=False)


def render_html(tables: Sequence[TableOf], failures: Sequence[str], prompts: Sequence[Mapping[str, Any]]) -> str:
    """Whatever models and prompts say is shown as text."""
    page = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True).from_string(PAGE)
    return page.render(title=TITLE, tables=tables, note=NOTE, failures=failures, prompts=prompts)


def render_tables(tables: Sequence[TableOf], failures: Sequence[str]) -> str:
    """As Markdown that reads well as text too."""
    parts = [
        table([escape_bar(h) for h in headers], [[*map(escape_bar, row)] for row in rows])
        for _, headers, rows in tables
    ]
    return "\n\n".join([*parts, f"{NOTE}.", *([quote_lines(failures)] if failures else [])])


def render_markdown(tables: Sequence[TableOf], failures: Sequence[str], prompts: Sequence[Mapping[str, Any]]) -> str:
    """Messages and answers stand in fences, so that their own Markdown is shown as it was written."""
    parts = [f"# {TITLE}", render_tables(tables, failures)]
    for prompt in prompts:
        parts.append(f"## Prompt {prompt['number']}")
        for role, text in prompt["messages"]:
            parts.append(f"{quote_code(role)}:\n\n{fence(text)}")
        for answers in prompt["samples"]:
            parts += [f"{quote_code(a['setting'])}: {a['facts']}\n\n{fence(a['text'])}" for a in answers]
    return "\n\n".join(parts) + "\n"


def fence(text: str) -> str:
    """A block of code that no text can end."""
    marks = "`" * max(3, longest_run(text) + 1)
    return f"{marks}text\n{text}\n{marks}"


def quote_code(text: str) -> str:
    marks = "`" * (longest_run(text) + 1)
    space = " " if "`" in text else ""
    return f"{marks}{space}{text}{space}{marks}"


def quote_lines(lines: Sequence[str]) -> str:
    """A list whose lines are shown as they are, whatever a server's message has in it."""
    return "\n".join(f"- {quote_code(line)}" for line in lines)


def longest_run(text: str) -> int:
    """Of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


def escape_bar(cell: str) -> str:
    return cell.replace("|", "\\|")
