"""The documentation that is made from the code: `python -m server.docs` rewrites it, and a test holds it to date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from decoders import STRATEGIES
from server.alignment import parameters
from server.config import Config, GuideConfig, ObjectiveConfig, Section

DOCS = Path(__file__).resolve().parent.parent / "docs"
MADE = "<!-- Made by `python -m server.docs`: change the code instead. -->\n"


def strategies() -> str:
    """docs/strategies.md: a table of all, then each with its parameters."""
    rows = [
        f"| `{name}` | {_paper(entry.paper)} | {', '.join(f'`{t}`' for t in sorted(entry.takes)) or 'none'} "
        f"| {', '.join(f'`{s}`' for s in sorted(entry.shows)) or 'none'} | {'yes' if entry.streams else 'no'} |"
        for name, entry in STRATEGIES.items()
    ]
    lines = [
        MADE,
        "# Strategies",
        "",
        "| strategy | paper | carries out | can return | streams |",
        "|---|---|---|---|---|",
    ]
    lines += rows
    for name, entry in STRATEGIES.items():
        lines += ["", f"## {name}", "", (entry.load().__doc__ or "").split("\n")[0], ""]
        fields = [(key, f) for key, f in parameters(name).model_json_schema()["properties"].items() if key != "guides"]
        lines += ["| `params` | type | default | meaning |", "|---|---|---|---|"] if fields else ["No `params`."]
        lines += [
            f"| `{key}` | {_type(f)} | {f.get('default', 'required')} | {f.get('description', '')} |"
            for key, f in fields
        ]
    return "\n".join(lines) + "\n"


def configuration() -> str:
    """docs/configuration.md: every key of the file."""
    lines = [MADE, "# Configuration", "", "`trimtab serve FILE.yaml`; any key may be put over on the command line:"]
    lines += ["`--set engine.max_model_len=512`. An unknown key is refused with its line."]
    for title, section in (("Top level", Config), ("guides.NAME", GuideConfig), ("objectives.NAME", ObjectiveConfig)):
        lines += ["", f"## {title}", "", "| key | type | default | meaning |", "|---|---|---|---|", *_keys(section)]
    return "\n".join(lines) + "\n"


def _keys(section: type[Section]) -> Iterator[str]:
    schema = section.model_json_schema()
    for name, field in schema["properties"].items():
        default = "required" if name in schema.get("required", ()) else field.get("default", "")
        shown = "none" if default in (None, "", {}, []) else f"`{default}`"
        yield f"| `{name}` | {_type(field)} | {shown} | {field.get('description', '')} |"


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"] if option.get("type") != "null")
    name = str(field.get("type", "object"))
    low, high = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
    return name + (f" ≥ {low}" if low is not None else "") + (f" ≤ {high}" if high is not None else "")


def _paper(arxiv: str) -> str:
    return f"[{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else ""


PAGES = {"strategies.md": strategies, "configuration.md": configuration}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
