"""The card's tables that need no model: what the recipes wrote down beside the weights."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.recipes import directional, gold, orchestrator, rewards
from trimtab.recipes.base import DEMO
from trimtab.recipes.value import PARTS


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines) + "\n"


def reward_models() -> str:
    """What the members know of gold, by difference within pairs of held-out answers."""
    records = rewards.figures()
    rows = []
    for member, record in records.items():
        size = (DEMO / "rewards" / member / "model.safetensors").stat().st_size
        of = record["heldout"]
        rows += [
            (
                f"`demo/rewards/{member}`" if k == 0 else "",
                f"{record['parameters']:,}, {size / 1e6:.2f} MB" if k == 0 else "",
                objective,
                *(f"{of[name][objective]:.3f}" for name in ("accuracy", "correlation", "agreement")),
            )
            for k, objective in enumerate(rewards.OBJECTIVES)
        ]
    header = ("member", "size", "objective", "pairs ordered right", "correlation", "agrees with the other member")
    pairs = {record["heldout"]["pairs"] for record in records.values()}
    seconds = sum(record["training"]["seconds"] + record["start"]["seconds"] for record in records.values())
    return table(header, rows) + f"\n{max(pairs):,} pairs. Training both took {seconds:.0f} s.\n"


def read_guides() -> dict[str, Any]:
    """What `recipes.preferences` wrote down for all guides."""
    record: dict[str, Any] = json.loads((DEMO / "guides" / "recipe.json").read_text())
    return record


def read_training(member: str) -> dict[str, Any]:
    """What `trimtab train` wrote beside what it made; `member` is its folder in demo/."""
    record: dict[str, Any] = json.loads((DEMO / member / "training.json").read_text())
    return record


def trainings(names: Sequence[str]) -> list[Sequence[object]]:
    """(what, data, how it ended, wall time) of each."""
    return [
        (
            name,
            f"{record['data']['pairs']:,} pairs",
            f"held-out pairs ordered right {record['measured']['accuracy']:.3f}",
            f"{record['measured']['seconds of training']:.0f} s",
        )
        for name in names
        for record in [read_training(f"guides/{name}")]
    ]


def value_head(correlations: Mapping[str, Mapping[float, float]]) -> str:
    """Correlation of what it foretells with what reward model a says in the end, by the share of the answer read."""
    record = read_training("rewards/value")
    size = (DEMO / "rewards" / "value" / "model.safetensors").stat().st_size
    rows = [(objective, *(f"{row[part]:.2f}" for part in PARTS)) for objective, row in correlations.items()]
    return (
        table(("objective", *(f"{part:.0%} read" for part in PARTS)), rows)
        + f"\n{size / 1e6:.2f} MB, {record['measured']['seconds of training']:.0f} s.{record.get('note', '')}\n"
    )


def control() -> str:
    rows = read_guides()["control"]
    return table(
        ("α", *gold.GOLD, "fluency"),
        [(f"{r['alpha']:g}", *(f"{r[o]:.2f}" for o in (*gold.GOLD, "fluency"))) for r in rows],
    )


def obedience() -> str:
    """Gold along both axes of each preference prompt, by the base and by the member that was trained to obey it."""
    folder = DEMO / "guides" / "directional"
    record = json.loads((folder / "recipe.json").read_text())
    out = ""
    for name, pair in directional.PAIRS.items():
        first, second = (axis for axis, _, _ in pair.axes)
        rows = [
            (f"{ours['theta']:g}°", *(f"{row[of]:.2f}" for row in (base, ours) for of in (first, second)),
             f"{base['words']:.0f}", f"{ours['words']:.0f}", f"{ours['fluency']:.2f}")
            for base, ours in zip(record["base"][name], record["heldout"][name], strict=True)
        ]  # fmt: skip
        header = ("θ", f"base: {first}", second, f"member: {first}", second, "words: base", "member", "its fluency")
        out += f"`{pair.text}`\n\n" + table(header, rows) + "\n"
    size = (folder / "model.safetensors").stat().st_size
    training = record["training"]
    apart = "; ".join(
        f"`{name}` {record['apart'][name]['share']:.2f}, by the base {record['apart_before'][name]['share']:.2f}"
        for name in directional.PAIRS
    )
    return (
        out + f"{record['parameters']:,} parameters, {size / 1e6:.2f} MB; {record['answers']:,} answers to "
        f"{directional.PROMPTS:,} prompts, {training['steps']} steps, {training['tokens']:,} tokens, "
        f"{training['seconds']:.0f} s. "
        "Of prompts that training left out, a direction's favourite is likelier under it than under one of the cone's "
        f"other half in a share of: {apart}.\n"
    )


def adapter() -> str:
    """Mean weights that the adapter gives to held-out prompts, by domain, beside what is wanted there."""
    folder = DEMO / "weights"
    record = json.loads((folder / "recipe.json").read_text())
    rows = [
        (domain, *(f"{weights[o]:.2f} ({record['wanted'][domain].get(o, 0):g})" for o in rewards.OBJECTIVES))
        for domain, weights in record["heldout"].items()
    ]
    size = (folder / "adapter.safetensors").stat().st_size
    return (
        table(("domain", *rewards.OBJECTIVES), rows)
        + f"\n{record['parameters']:,} parameters before they are multiplied out, {size / 1e6:.2f} MB; "
        f"{record['prompts']:,} prompts, {orchestrator.STEPS} steps, {record['seconds']:.0f} s; KL to the targets "
        f"{record['kl']:.3f}, on the last tenth, held out, {record['kl_heldout']:.3f}.\n"
    )
