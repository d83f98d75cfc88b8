"""What stands beside a trained model: a model card, and the lines of a configuration that serves it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from trimtab.training.directions import read_prompts
from trimtab.training.settings import Settings

LOSSES = {
    "genarm": "GenARM's, -log σ(β(log π(y⁺|x) − log π(y⁻|x))), without a reference (arXiv 2410.08193)",
    "dpo": "DPO's, with the base as the reference (arXiv 2305.18290)",
    "reward": "Bradley-Terry's, -log σ(r(x, y⁺) − r(x, y⁻))",
    "value": "the squared error of a whole answer's reward, foretold from its beginnings (FUDGE, arXiv 2104.05218)",
    "directional": "−log π(y|x, s(u)) of the answer that a direction u likes best, under its text s(u) (DPA, arXiv "
    "2402.18571)",
}
PAIRS = (
    "The interval is Wilson's, of 95 %, with pairs of one prompt taken to be alike as far as they are. The calibration "
    "error is the expected one of σ(|margin|), the confidence in the answer that is preferred."
)
MEANING = {
    "value": "The squared error is against the score of the whole answer, whose variance it explains a share of.",
    "directional": "The cross entropy is in nats a token. Obeyed: of the answers that another direction would not "
    "choose the share that is likelier under its direction's text than under the other's, with Wilson's 95 % interval, "
    "answers to one prompt taken to be alike as far as they are.",
}
"""kind -> what its figures are; of the others they are of pairs"""


def name_loss(settings: Settings) -> str:
    if settings.kind == "guide":
        return settings.loss
    return "dpo" if settings.kind == "twin" else settings.kind


def snippet(settings: Settings, *, folder: Path | None = None) -> dict[str, Any]:
    """The member as `trimtab serve` reads it in a configuration that lies in `folder`; without one, paths are those of
    the command line."""

    def place(path: str | Path) -> str:
        return str(path) if folder is None or not Path(path).exists() else os.path.relpath(path, folder.resolve())

    name, model = settings.member, place(settings.out)
    if settings.kind in ("reward", "value"):
        head = {"kind": "classifier", "model": model}
        if settings.trains_adapter:
            head["base"] = place(settings.origin)
        if settings.kind == "value":
            return {"rewards": {name: {**head, "turn": "open"}}}
        objectives = {name: {"reward": name}}
        if settings.labels:  # no adapter says what its labels are called
            shown = [f"LABEL_{k}" for k in range(len(settings.labels))] if settings.trains_adapter else settings.labels
            objectives = {o: {"reward": f"{name}.{label}"} for o, label in zip(settings.labels, shown, strict=True)}
        return {"rewards": {name: head}, "objectives": objectives}
    guides: dict[str, Any] = {"guides": {name: {"model": model}}}
    if settings.kind == "guide" and settings.loss == "genarm":
        return {**guides, "objectives": {name: {"guide": name}}}
    if settings.preference_prompts is not None:
        prompts = read_prompts(settings.preference_prompts, name)
        entries = {key: p.model_dump(exclude_defaults=True) | {"reader": name} for key, p in prompts.items()}
        return {**guides, "preference_prompts": entries}
    preset = {"strategy": "dera", "params": {"aligned": name, "lambda": 1.0}}
    return {**guides, "presets": {f"{name}-dera": preset}}


NOT_STEERING = (
    "Accuracy on pairs does not say that a guide steers: measure what answers become under it, with `--steer` or with "
    "`trimtab eval`."
)


def write_card(
    settings: Settings, summary: Mapping[str, Any], measured: Mapping[str, float], steering: Sequence[str] = ()
) -> str:
    """A model card for the Hugging Face hub; `measured` is of the pairs to test on, `steering` lines of answers that
    were drawn."""
    if not steering and settings.kind in ("guide", "twin"):
        steering = [NOT_STEERING]
    metadata = {
        "base_model": settings.origin,
        "library_name": "peft" if settings.trains_adapter else "transformers",
        "tags": ["trimtab", settings.kind],
    }
    measured_on = (
        f"On {', '.join(settings.test)}, which training did not see."
        if settings.test
        else "On the pairs held out, which were not trained on, but ended training early."
    )
    figures = [f"| {key.replace('_', ' ')} | {value:.4g} |" for key, value in measured.items()]
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        "",
        f"# {settings.member}",
        "",
        f"A {settings.kind} for `{settings.base}`, made by `trimtab train`. The loss is {LOSSES[name_loss(settings)]}.",
        "",
        "```sh",
        shlex.join(["trimtab", *sys.argv[1:]]),
        "```",
        "",
        "## Data",
        "",
        "| | |",
        "|---|---|",
        *[f"| {key} | {value} |" for key, value in summary.items()],
        "",
        "## Measured",
        "",
        f"{measured_on} {MEANING.get(settings.kind, PAIRS)}",
        "",
        "| | |",
        "|---|---|",
        *figures,
        "",
        *(["## Steering", "", *steering, ""] if steering else []),
        "## Serving",
        "",
        "```yaml",
        yaml.safe_dump(snippet(settings), sort_keys=False).strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def write_record(settings: Settings, summary: Mapping[str, Any], measured: Mapping[str, float]) -> str:
    """What the card says, for programs."""
    chosen = {"learning_rate": settings.rate} | ({"beta": settings.scale} if settings.kind in ("guide", "twin") else {})
    record = {"settings": asdict(settings) | chosen, "data": summary, "measured": measured}
    return json.dumps(record, indent=2, default=str, ensure_ascii=False) + "\n"


def add_to_configuration(path: Path, added: Mapping[str, Any]) -> str:
    """The configuration's text with the member in it; what is there, or would be the same, stays as it was written.

    Raises ValueError where a name is taken.
    """
    text = path.read_text()
    there = yaml.safe_load(text) or {}
    for section, entries in added.items():
        present = there.get(section) or {}
        entries = {name: entry for name, entry in entries.items() if name not in present or present[name] != entry}
        if taken := sorted(entries.keys() & present.keys()):
            raise ValueError(f"{path} has {section}.{taken[0]} already, and not as it would be: choose another name")
        if not entries:
            continue
        block = yaml.safe_dump(dict(entries), sort_keys=False)
        indented = "".join(f"  {line}\n" for line in block.splitlines())
        text = insert_section(text, section, indented, known=section in there)
    return text


def insert_section(text: str, section: str, indented: str, *, known: bool) -> str:
    """`indented` lines at the end of a top-level section, which is made where it is missing."""
    if not known:
        return f"{text.rstrip()}\n\n{section}:\n{indented}"
    node: Any = yaml.compose(text)
    for key, value in node.value:
        if key.value == section:
            if value.flow_style:
                raise ValueError(f"{section} is written in one line: put its entries on lines of their own first")
            lines = text.splitlines(keepends=True)
            end = value.end_mark.line
            while end > 0 and not lines[end - 1].strip():
                end -= 1
            return "".join([*lines[:end], indented, *lines[end:]])
    raise AssertionError(section)


def describe_run(
    settings: Settings, counts: Mapping[str, Any], dropped: Mapping[str, int], lengths: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """The data of a run, for the screen and for the card."""
    return {
        "data": ", ".join(settings.data),
        **counts,
        "dropped": json.dumps(dict(dropped)) if dropped else "none",
        **{f"tokens of {what}": ", ".join(f"{k} {v}" for k, v in values.items()) for what, values in lengths.items()},
    }


def render_summary(summary: Mapping[str, Any]) -> str:
    width = max(map(len, summary))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in summary.items())


def list_wrong(wrong: Sequence[str], source: str, most: int = 5) -> str:
    shown = "\n".join(f"  {line}" for line in wrong[:most])
    more = f"\n  and {len(wrong) - most} more" if len(wrong) > most else ""
    return f"{source}: {len(wrong)} rows are no preferences (--skip-wrong leaves them out):\n{shown}{more}"
