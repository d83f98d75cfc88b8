"""The documentation that is made from the code.

`python -m trimtab.server.docs` rewrites it, and a test holds it to date.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trimtab.decoders import STRATEGIES
from trimtab.decoders.registry import summarise
from trimtab.rewards import COMBINES, KINDS, TRANSFORMS
from trimtab.rewards.protocols import reads_conversation
from trimtab.server import metrics
from trimtab.server.config import SECTIONS, SINGLE_SECTIONS, ConeConfig, Config, Section

DOCS = Path(__file__).resolve().parent.parent / "docs"
INTRODUCTION = """\
A reward scores whole answers, or beginnings of them; higher is better. The configuration names them under `rewards:`,
each with its `kind` and that kind's keys; which published models load as which: [own_models.md](own_models.md). What
a request's answers are scored by is its `weights`, over objectives with a `reward`, or its `reward`:

| `alignment.reward` | is |
|---|---|
| `"name"` | a reward with one score, or an objective, standardised |
| `"name.label"` | one score of a reward with several |
| `{"of": X, "combine": C, "transform": T}` | X is one of these, a list of them, or an object from name to weight |

C is a combination (without one, the sum) and T a transform, each by name or as `{"name": {parameter: value}}`.
`weights` are the sum of weight × (reward − mean) / spread over objectives, with the figures of `trimtab calibrate`.
References of a transform are answers of the frozen base (or of the adapter that a request names), drawn once for
all requests with seeds of their own, to the power of two that is no less than `max_tokens`, and scored as they end: the
request's budget, deadline and stop strings do not touch them. The request that has them drawn counts them.

With `engine.reasoning_parser` or `engine.tool_call_parser` a completion is taken apart as vLLM takes it apart for the
client: thoughts, an answer, calls of tools. A reward reads the answer, which is the client's `content`, unless its
key `on` says `thoughts` or `both`; judges and reward models with a template also read the calls. So do votes,
likenesses and the `candidates` that a report shows, which have their `thoughts` and `tool_calls` beside their `text`.
A completion that ends amid its thoughts has an empty answer, `warnings` say so of one that is returned, and where
others ended it is not scored. While thoughts last, a search that scores beginnings sees empty answers: `on: both`
lets a reward read them. In `/v1/alignment/score` and after a bare prompt, a text without a mark of thoughts is all
answer.

## The conversation

READERS read the conversation beside the answer,
the other kinds the answer alone. It is the conversation that the model has, whichever API it came by, with its
instructions, tools, calls and results; thoughts of earlier turns are left out.
`log_ratio` reads it in the base's tokens. A reward model with `format: chat` reads it by its own chat template: with
`tools` where the template reads them, and with `tool_calls` and messages of role `tool` where it reads both. What a
template does not read, and all of it under another `format` and for a judge, is spelt out:

| of the conversation | as text |
|---|---|
| tools | `Tools:` and each as a line of JSON, before the first words of the system or the user |
| a call | `{"name": "look", "arguments": {"at": "it"}}`, a line behind the assistant's text |
| a result | `Result of look: …`, and where a turn has several calls, `Result of call 2, look: …` |

The calls of a response are read the same way, and spelt out where its turn stays open or has steps (`turn: open`,
`process`). A result is a turn of the tool's; for a chat template one of the user's, together with other results and
with what the user says on them.

An image, or any other part that is no text, is a 400 that names its place, unless all rewards of the
request read the answer alone. In `/v1/alignment/score` and `/infer`, where nothing is drawn with the image, no
transform may compare with answers of the base either."""
TABLE = "<!-- The table is made by `python -m trimtab.server.docs`. -->"
KEY_COLUMNS = ("type", "default", "meaning")
END = "<!-- The end of the table. -->"
MADE = "<!-- Made by `python -m trimtab.server.docs`: change the code instead. -->\n"


def strategies() -> str:
    """docs/strategies.md: a table of all, then each with its parameters."""
    rows = [
        (
            f"`{name}`",
            _paper(entry.paper),
            _names(entry.takes),
            _names(entry.shows),
            "yes" if entry.streams else "no",
        )
        for name, entry in STRATEGIES.items()
    ]
    lines = [
        MADE,
        "# Strategies",
        "",
        *render_table(("strategy", "paper", "carries out", "can return", "streams"), rows),
    ]
    for name, entry in STRATEGIES.items():
        lines += ["", f"## {name}", "", describe(entry.load()), ""]
        keys = list(_parameters(entry.parameters))
        lines += render_table(("`params`", *KEY_COLUMNS), keys) if keys else ["No `params`."]
    return "\n".join(lines) + "\n"


def rewards() -> str:
    """docs/rewards.md: every kind of reward, combination and transform, with its parameters."""
    lines = [MADE, "# Rewards", ""]
    readers = [f"`{name}`" for name, entry in KINDS.items() if reads_conversation(entry.load())]
    lines += [INTRODUCTION.replace("READERS", f"{', '.join(readers[:-1])} and {readers[-1]}")]
    for title, kinds in (("Kinds", KINDS), ("Combinations", COMBINES), ("Transforms", TRANSFORMS)):
        lines += ["", f"## {title}"]
        for name, entry in kinds.items():
            if getattr(entry.load(), "in_pool", False):
                continue  # what compares candidates cannot be asked for: answers are scored as they come
            paper = f" ({_paper(entry.paper)})" if entry.paper else ""
            model = " Needs `model`, and takes `engine`; of an adapter, `base`." if "pooler" in entry.uses else ""
            keys = list(_parameters(entry.parameters))
            lines += ["", f"### {name}", "", f"{describe(entry.load())}{paper}{model}", ""]
            lines += render_table(("key", *KEY_COLUMNS), keys) if keys else ["No keys of its own."]
    return "\n".join(lines) + "\n"


def render_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Its lines. A cell is one line, whatever its text was, and its bars are no borders."""
    bodies = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in bodies]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def describe(build: Any) -> str:
    """The summary, and where that ends with a colon, the formula that it announces and what goes on behind it."""
    _, *rest = inspect.cleandoc(build.__doc__ or "").split("\n\n")
    text = summarise(build)
    if not text.endswith(":") or not rest:
        return text
    formula, *after = rest
    shown = f"{text}\n\n```\n{textwrap.dedent(formula)}\n```"
    goes_on = after and after[0][0].islower()
    return f"{shown}\n\n{' '.join(after[0].split())}" if goes_on else shown


def _parameters(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    """A table's rows."""
    shown = model.model_json_schema(by_alias=True).get("properties", {})
    for name, info in model.model_fields.items():
        key = info.alias or name
        yield f"`{key}`", _type(shown[key]), _default(info), info.description or ""


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    return "none" if value in (None, "") else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def configuration() -> str:
    """docs/configuration.md: every key of the file."""
    lines = [MADE, "# Configuration", "", "`trimtab serve FILE.yaml`; any key may be put over on the command line:"]
    lines += [
        "`--set engine.max_model_len=512`. An unknown key is refused with its line, and `trimtab check FILE.yaml`"
    ]
    lines += ["says within seconds, without an engine, whatever else would stop a server from starting."]
    sections: list[tuple[str, type[Section]]] = [
        ("Top level", Config),
        *SINGLE_SECTIONS.items(),
        *((f"{key}.NAME", section) for key, section in SECTIONS.items()),
        ("preference_prompts.NAME.cone", ConeConfig),
    ]
    for title, section in sections:
        lines += ["", f"## {title}", "", *render_table(("key", *KEY_COLUMNS), _keys(section))]
    return "\n".join(lines) + "\n"


def operations() -> str:
    """docs/operations.md as it stands, with the list of metrics made anew below `TABLE`."""
    text = (DOCS / "operations.md").read_text().partition(TABLE)[0]
    rows = []
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            [family] = metric.describe()
            labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "none"
            name = family.name + "_total" * (family.type == "counter")
            rows.append((f"`{name}`", family.type, labels, family.documentation))
    return "\n".join([text + TABLE, "", *render_table(("name", "type", "labels", "meaning"), sorted(rows))]) + "\n"


ROOMS = ("decoders", "preferences", "rewards", "runtime", "engine", "server")
"""Folders whose modules docs/architecture.md lists one by one; of the others it lists the folders."""


def architecture() -> str:
    """docs/architecture.md as it stands, with the table of folders and modules made anew between `TABLE` and `END`."""
    before, _, rest = (DOCS / "architecture.md").read_text().partition(TABLE)
    _, _, after = rest.partition(END)
    rows = [(f"`{name}`", sentence) for folder in (*ROOMS, "bench", "recipes") for name, sentence in _modules(folder)]
    return "\n".join([before + TABLE, "", *render_table(("file", "what it is"), rows), "", END + after])


def _modules(folder: str) -> Iterator[tuple[str, str]]:
    """What a folder is and holds, in the first sentence of each docstring: packages before what is in them."""
    root = DOCS.parent
    for file in sorted((root / folder).rglob("*.py"), key=lambda file: (file.parent, file.stem != "__init__", file)):
        package = file.stem == "__init__"
        if package or folder in ROOMS:
            name = f"{file.parent.relative_to(root)}/" if package else str(file.relative_to(root))
            yield name, first_sentence(ast.get_docstring(ast.parse(file.read_text())) or "")


def first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    sentence = re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0]
    return sentence.rstrip(".:")


def _keys(section: type[Section]) -> Iterator[tuple[str, ...]]:
    schema = section.model_json_schema()
    for name, field in schema["properties"].items():
        default = "required" if name in schema.get("required", ()) else field.get("default", "")
        shown = "none" if default in (None, "", {}, []) else "below" if isinstance(default, dict) else f"`{default}`"
        yield f"`{name}`", _type(field), shown, field.get("description", "")


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"] if option.get("type") != "null")
    if "enum" in field:
        *others, last = (f"`{value}`" for value in field["enum"])
        return f"{', '.join(others)} or {last}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f" {sign} {field[key]}" for key, sign in signs.items() if key in field]
    return str(field.get("type", "object")) + "".join(bounds)


def _names(words: Collection[str]) -> str:
    return ", ".join(f"`{word}`" for word in sorted(words)) or "none"


def _paper(arxiv: str) -> str:
    return f"[{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else ""


PAGES = {
    "architecture.md": architecture,
    "strategies.md": strategies,
    "rewards.md": rewards,
    "configuration.md": configuration,
    "operations.md": operations,
}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
