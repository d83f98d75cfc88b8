"""`search`: gold and cost of every kind of search.

One answer to each of the same held-out prompts by every way, all by one reward model (proxy), for an objective that the
aligned twin was trained for and for another. Proxy is in the reward's units, gold in points from 0 to 10; ± is half a
95 % interval over prompts, and `rise` is gold above the base's answer to the same prompt. KL to the base is exact along
the answer for guides, a bound for best of N and blockwise (log K - (K - 1) / K per decision), the search's own estimate
for tokenwise ones and particles, and missing for chains and beams. Tokens are per answer.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from trimtab.bench.intervals import half, plus_minus
from trimtab.bench.quality.points import Bench
from trimtab.bench.report import table
from trimtab.recipes.corpus import Prompt, heldout_prompts
from trimtab.recipes.gold import GOLD, fluency

TWIN = {"aligned": 1.0}
BETA = 0.5
"""Of every method that tilts by the reward, in its units: about half a spread."""

Way = tuple[str, str, dict[str, Any]]
"""family, name, alignment without its reward"""


def search(strategy: str, **params: Any) -> dict[str, Any]:
    return {"strategy": strategy, "params": params}


def ways(objective: str, *, quick: bool) -> list[Way]:
    """With the value head `value` of the objective, and the twin and the base as baselines."""
    value = f"value.{objective}"
    ahead = {"k": 5, "alpha": BETA, "horizon": 10, "min_p": 0.05}
    chosen: list[Way] = [
        ("base", "base", {"strategy": "plain"}),
        ("guided", "aligned twin", {"strategy": "dera", "params": {"aligned": "aligned", "lambda": 1.0}}),
        ("best of N", "best of 4", search("best_of_n", n=4)),
        ("best of N", "best of 16", search("best_of_n", n=16)),
        ("qalign", "4 chains, 8 steps", search("qalign", chains=4, steps=8, beta=BETA)),
        ("blockwise", "4 x 16", search("blockwise", n=4, block=16)),
        ("blockwise", "4 x 8, value head", search("blockwise", n=4, block=8, prefix_reward=value)),
        ("particles", "16 x 8", search("particles", n=16, block=8, beta=BETA)),
        ("particles", "16 x 8, value head", search("particles", n=16, block=8, beta=BETA, prefix_reward=value)),
        ("beam", "16 / 4 x 8", search("beam", n=16, width=4, block=8)),
        ("beam", "16 / 4 x 8, value head", search("beam", n=16, width=4, block=8, prefix_reward=value)),
        ("args", "reward", search("args", k=10, weight=1 / BETA, min_p=0.05)),
        ("transfer_q", "twin", search("transfer_q", **ahead, baseline=TWIN)),
        ("transfer_q", "base, soft, M = 4", search("transfer_q", **ahead, value="soft", rollouts=4)),
    ]
    if objective == "helpfulness":
        chosen.insert(2, ("guided", "GenARM", {"guides": {"helpfulness": 1.0}}))
    else:
        indirect = {"value": "transfer", "rollouts": 4, "baseline_reward": "rm-a.helpfulness", "beta": 1.0}
        chosen.append(("transfer_q", "twin, M = 4", search("transfer_q", **ahead, baseline=TWIN, rollouts=4)))
        chosen.append(("transfer_q", "twin, indirect, M = 4", search("transfer_q", **ahead, baseline=TWIN, **indirect)))
    chosen.append(("args", "value head", search("args", k=10, weight=1 / BETA, min_p=0.05) | {"reward": value}))
    if quick:
        return chosen
    return [
        *chosen,
        ("best of N", "best of 64", search("best_of_n", n=64)),
        ("qalign", "4 chains, 32 steps", search("qalign", chains=4, steps=32, beta=BETA)),
        ("blockwise", "16 x 16", search("blockwise", n=16, block=16)),
        ("blockwise", "16 x 8, value head", search("blockwise", n=16, block=8, prefix_reward=value)),
        ("particles", "64 x 8, value head", search("particles", n=64, block=8, beta=BETA, prefix_reward=value)),
        ("beam", "64 / 4 x 8, value head", search("beam", n=64, width=4, block=8, prefix_reward=value)),
        ("beam", "16 / 4 x 8, dvts", search("beam", n=16, width=4, block=8, variant="dvts", prefix_reward=value)),
        ("transfer_q", "twin, min_p 0", search("transfer_q", **ahead | {"min_p": 0.0}, baseline=TWIN)),
        ("transfer_q", "twin, to the end", search("transfer_q", **ahead | {"horizon": None}, baseline=TWIN)),
    ]


@dataclass(frozen=True)
class SearchAnswer:
    text: str
    kl: float | None
    sampled: int
    scored: int


@dataclass(frozen=True)
class WayRow:
    """One way's answers, measured per prompt."""

    objective: str
    family: str
    name: str
    proxy: tuple[float, ...]
    gold: tuple[float, ...]
    rise: tuple[float, ...]
    fluency: float
    words: float
    kl: float | None
    sampled: float
    scored: float

    def figures(self) -> dict[str, Any]:
        means = {name: statistics.fmean(getattr(self, name)) for name in ("proxy", "gold", "rise")}
        halves = {f"{name}_half_ci95": half(getattr(self, name)) for name in ("proxy", "gold", "rise")}
        single = ("objective", "family", "name", "fluency", "words", "kl", "sampled", "scored")
        return {name: getattr(self, name) for name in single} | means | halves


class Searches(Bench):
    """Rows of the table, over shared prompts and seeds."""

    async def row(self, objective: str, way: Way, base: WayRow | None) -> WayRow:
        family, name, alignment = way
        reward = f"rm-a.{objective}"
        request = dict(alignment)
        if "params" in request and request["strategy"] != "dera":
            request.setdefault("reward", reward)
        answers = await asyncio.gather(*(self._answer_way(seed, request) for seed in range(len(self.prompts))))
        proxy = await asyncio.gather(
            *(self._score(p, a.text, reward) for p, a in zip(self.prompts, answers, strict=True))
        )
        gold = tuple(GOLD[objective](p.text, a.text) for p, a in zip(self.prompts, answers, strict=True))
        kls = [a.kl for a in answers if a.kl is not None]
        return WayRow(
            objective=objective,
            family=family,
            name=name,
            proxy=tuple(proxy),
            gold=gold,
            rise=tuple(g - b for g, b in zip(gold, base.gold if base else gold, strict=True)),
            fluency=statistics.fmean(fluency(a.text) for a in answers),
            words=statistics.fmean(len(a.text.split()) for a in answers),
            kl=statistics.fmean(kls) if len(kls) == len(answers) else None,
            sampled=statistics.fmean(a.sampled for a in answers),
            scored=statistics.fmean(a.scored for a in answers),
        )

    async def _answer_way(self, seed: int, alignment: Mapping[str, Any]) -> SearchAnswer:
        traced = "guides" in alignment or alignment["strategy"] == "dera"
        request = {**alignment, **({"return": ["trace"]} if traced else {})}
        answer = await self.ask(seed, request, seed=1000 + seed)
        report: Any = (answer.model_extra or {})["alignment"]
        [choice] = report.get("choices", [{}])
        return SearchAnswer(
            text=answer.choices[0].message.content or "",
            kl=divergence(alignment, choice),
            sampled=report["sampled_tokens"],
            scored=report["scored_tokens"],
        )

    async def _score(self, prompt: Prompt, text: str, reward: str) -> float:
        body = {"messages": list(prompt.messages), "responses": [text], "reward": reward}
        async with self.gate:
            answer: Any = await self.client.post("/alignment/score", cast_to=object, body=body)
        value: float = answer["scores"][0]["value"]
        return value


def divergence(alignment: Mapping[str, Any], choice: Mapping[str, Any]) -> float | None:
    if alignment.get("strategy") == "plain":
        return 0.0
    if "trace" in choice:
        return math.fsum(choice["trace"]["kl_exact"])
    if alignment["strategy"] == "best_of_n":
        n = alignment["params"]["n"]
        return float(math.log(n) - (n - 1) / n)
    known = [choice[key] for key in ("kl_exact", "kl_estimate", "kl_bound") if key in choice]
    return float(known[0]) if known else None


async def run(
    client: AsyncOpenAI, model: str, *, prompts: int, quick: bool, keep: Callable[[Sequence[WayRow]], None]
) -> list[WayRow]:
    """`keep` gets the rows so far after each, since a whole study takes an hour or two."""
    bench = Searches(client, model, heldout_prompts(prompts, seed=5), asyncio.Semaphore(8))
    rows: list[WayRow] = []
    for objective in ("helpfulness", "warmth"):
        base: WayRow | None = None
        for way in ways(objective, quick=quick):
            row = await bench.row(objective, way, base)
            base = base or row
            rows.append(row)
            keep(rows)
            print(objective, row.family, row.name, plus_minus(row.gold), flush=True)
    return rows


def show(rows: Sequence[WayRow]) -> dict[str, Any]:
    """Prints the tables and returns the figures."""
    headers = ["way", "", "proxy", "gold", "rise", "KL", "fluency", "words", "sampled", "scored"]
    for objective in dict.fromkeys(row.objective for row in rows):
        print(f"\n{objective}")
        shown = [
            [r.family, r.name, plus_minus(r.proxy), plus_minus(r.gold), plus_minus(r.rise),
             "-" if r.kl is None else f"{r.kl:.1f}", f"{r.fluency:.2f}", f"{r.words:.0f}", f"{r.sampled:.0f}",
             f"{r.scored:.0f}"]
            for r in rows if r.objective == objective
        ]  # fmt: skip
        print(table(headers, shown))
    return {"rows": [row.figures() for row in rows]}


def draw(rows: Sequence[WayRow], path: Path) -> None:
    """Gold and proxy against sampled tokens, and gold against divergence, for each objective, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    objectives = list(dict.fromkeys(row.objective for row in rows))
    families = list(dict.fromkeys(row.family for row in rows))
    figure, axes = plt.subplots(len(objectives), 3, figsize=(17, 5 * len(objectives)), layout="constrained")
    for line, objective in zip(axes, objectives, strict=True):
        for place, family in enumerate(families):
            mine = sorted((r for r in rows if (r.objective, r.family) == (objective, family)), key=lambda r: r.sampled)
            style: dict[str, Any] = {"marker": "osv^<>DPX*"[place % 10], "color": f"C{place}", "linestyle": ""}
            tokens = [r.sampled for r in mine]
            for axis, measure in ((line[0], "gold"), (line[1], "proxy")):
                values = [getattr(r, measure) for r in mine]
                axis.errorbar(tokens, [statistics.fmean(v) for v in values], [half(v) for v in values], capsize=3,
                              label=family, **style)  # fmt: skip
            near = [r for r in mine if r.kl is not None]
            line[2].errorbar([r.kl or 0 for r in near], [statistics.fmean(r.gold) for r in near],
                             [half(r.gold) for r in near], capsize=3, **style)  # fmt: skip
        line[0].set(title=f"{objective}: gold", xscale="log", xlabel="tokens sampled per answer", ylabel="points")
        line[1].set(title=f"{objective}: proxy", xscale="log", xlabel="tokens sampled per answer", ylabel="reward")
        line[2].set(title=f"{objective}: gold against divergence", xlabel="KL to the base, nats per answer")
        line[1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
