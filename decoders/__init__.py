"""Alignment strategies: one file, one paper, one row of the table. Tokens in, tokens out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.decoders.protocols import BASE, Sampling, UnsupportedSampling
from trimtab.decoders.registry import Entry

Draws = Literal["stream", "whole", "pieces", "readings"]
"""How a strategy's answers come about:

"stream"  the engine's own stream, passed on as it comes
"whole"   the engine's own answers, whole, of which some are chosen
"pieces"  pieces of an answer, each drawn behind those before it; nothing but their tokens reaches the client
"readings"  pieces too, where the model's distributions are read, which no mask or penalty of the engine's changes
"""

GUIDE, OTHER = "{guide}", "{other}"
"""In `StrategyEntry.example`: two of the server's guides, whichever they are."""


PROGRESS = frozenset({"progress", "best"})
"""What a client may ask to hear while a search runs: how far it is, and with that the text of its best so far."""


@dataclass(frozen=True, kw_only=True)
class StrategyEntry(Entry):
    """A row of the strategy table: all that a server and the laws need to know of a strategy before it is built."""

    uses: frozenset[str] = frozenset({"guides", "direction"})
    takes: frozenset[str] = frozenset()
    """What of a request the strategy carries out. "weights" and "guides" reach it as its parameter `guides`; "reward":
    weights are what its reward is made of; "direction": weights reach it as its parameter of that name."""
    reward_optional: bool = False
    """Whether some of its parameters let it do without a reward."""
    draws: Draws
    shows: frozenset[str] = frozenset()
    """What a client may ask to see beside the answers."""
    streams: bool = True
    """Whether tokens reach the client as they are decided; a search sends them when it has chosen, and tells its
    progress until then."""
    example: Mapping[str, Any]
    """`params` and `guides` of a short request that exercises it: the laws, the feature matrix and the load mix send
    it."""
    neutral: Mapping[str, Any] | None
    """`params` and `guides` with which it is plain sampling, token for token; None: there are none."""
    neutral_when: Literal["always", "greedy"] = "always"
    """"greedy": the neutral values give the base's tokens at temperature 0, and other draws of its law elsewhere."""

    @property
    def returns(self) -> frozenset[str]:
        """What a request's `return` may name."""
        return self.shows if self.streams else self.shows | PROGRESS

    def check_sampling(self, name: str, sampling: Sampling) -> None:
        """Raises ValueError for sampling that answers drawn this way would not carry out."""
        if self.draws not in ("pieces", "readings"):
            return
        if self.draws == "readings" and (sampling.constrained or sampling.restarts):
            message = "penalties, grammars, min_tokens and the like would change what it reads of the model"
            raise UnsupportedSampling(f"strategy {name!r}: {message}")
        if sampling.restarts:
            message = f"{' and '.join(sampling.restarts)} cannot be carried on from the middle of an answer"
            raise UnsupportedSampling(f"strategy {name!r}: {message}", names=sampling.restarts)
        if sampling.logprobs:
            raise ValueError(
                f"strategy {name!r} cannot be combined with logprobs: an answer is drawn in several pieces"
            )


_trace = frozenset({"trace"})
_search = frozenset({"guides", "reward"})
_pool = frozenset({"candidates", "rewards"})
_one = {"params": {"n": 1}}

STRATEGIES: dict[str, StrategyEntry] = {
    "args": StrategyEntry(
        target="trimtab.decoders.args:Args",
        paper="2402.01694",
        takes=_search,
        draws="readings",
        shows=_trace,
        example={"params": {"k": 3, "weight": 0.5}},
        neutral={"params": {"weight": 0.0}},
        neutral_when="greedy",
    ),
    "beam": StrategyEntry(
        target="trimtab.decoders.beam:Beam",
        takes=_search,
        draws="pieces",
        shows=_pool,
        streams=False,
        example={"params": {"n": 4, "width": 2, "block": 4}, "guides": {GUIDE: 0.5}},
        neutral={"params": {"n": 1, "width": 1}},
    ),
    "best_of_n": StrategyEntry(
        target="trimtab.decoders.best_of_n:BestOfN",
        paper="2112.09332",
        takes=_search,
        draws="whole",
        shows=_pool,
        streams=False,
        example={"params": {"n": 4}, "guides": {GUIDE: 0.5}},
        neutral=_one,
    ),
    "blockwise": StrategyEntry(
        target="trimtab.decoders.blockwise:Blockwise",
        paper="2310.17022",
        takes=_search,
        draws="pieces",
        example={"params": {"n": 3, "block": 4}},
        neutral=_one,
    ),
    "contrastive": StrategyEntry(
        target="trimtab.decoders.guided:contrastive",
        paper="2210.15097",
        draws="stream",
        shows=_trace,
        example={"params": {"amateur": GUIDE, "alpha": 0.1}},
        neutral=None,
    ),
    "dera": StrategyEntry(
        target="trimtab.decoders.guided:dera",
        paper="2402.02992",
        draws="stream",
        shows=_trace,
        example={"params": {"aligned": GUIDE, "lambda": 0.5}},
        neutral={"params": {"aligned": GUIDE, "lambda": 0.0}},
    ),
    "directional": StrategyEntry(
        target="trimtab.decoders.dpa:Directional",
        paper="2402.18571",
        takes=frozenset({"direction", "guides"}),
        draws="stream",
        example={},
        neutral=None,
    ),
    "genarm": StrategyEntry(
        target="trimtab.decoders.guided:genarm",
        paper="2410.08193",
        takes=frozenset({"weights", "guides"}),
        draws="stream",
        shows=_trace,
        example={"params": {"alpha": 0.5}, "guides": {GUIDE: 1.0}},
        neutral={"params": {"alpha": 0.0}, "guides": {GUIDE: 1.0}},
    ),
    "guided": StrategyEntry(
        target="trimtab.decoders.guided:Guided",
        takes=frozenset({"weights", "guides"}),
        draws="stream",
        shows=_trace,
        example={"guides": {GUIDE: 0.7, OTHER: 0.3}},
        neutral={"guides": {GUIDE: 0.0}},
    ),
    "mbr": StrategyEntry(
        target="trimtab.decoders.mbr:MinimumBayesRisk",
        takes=_search,
        reward_optional=True,
        draws="whole",
        shows=_pool,
        streams=False,
        example={"params": {"n": 4}},
        neutral=_one,
    ),
    "mod": StrategyEntry(
        target="trimtab.decoders.guided:mod",
        paper="2406.18853",
        takes=frozenset({"guides"}),
        draws="stream",
        shows=_trace,
        example={"guides": {GUIDE: 0.5, OTHER: 0.5}},
        neutral={"guides": {"base": 1.0}},
    ),
    "particles": StrategyEntry(
        target="trimtab.decoders.particles:Particles",
        paper="2502.01618",
        takes=_search,
        draws="pieces",
        shows=_pool,
        streams=False,
        example={"params": {"n": 4, "block": 4, "beta": 0.5}},
        neutral=_one,
    ),
    "plain": StrategyEntry(target="trimtab.decoders.plain:Plain", draws="stream", example={}, neutral={}),
    "proxy_tuning": StrategyEntry(
        target="trimtab.decoders.guided:proxy_tuning",
        paper="2401.08565",
        draws="stream",
        shows=_trace,
        example={"params": {"expert": GUIDE, "antiexpert": OTHER, "alpha": 0.5}},
        neutral={"params": {"expert": GUIDE, "antiexpert": OTHER, "alpha": 0.0}},
    ),
    "qalign": StrategyEntry(
        target="trimtab.decoders.qalign:QAlign",
        paper="2504.03790",
        takes=_search,
        draws="pieces",
        shows=_pool | _trace,
        streams=False,
        example={"params": {"chains": 3, "steps": 4}},
        neutral={"params": {"chains": 1, "steps": 0, "answer": "last"}},
    ),
    "rejection": StrategyEntry(
        target="trimtab.decoders.rejection:RejectionSampling",
        paper="2309.06657",
        takes=_search,
        draws="whole",
        shows=_pool,
        streams=False,
        example={"params": {"n": 4, "beta": 0.5}},
        neutral=_one,
    ),
    "rps": StrategyEntry(
        target="trimtab.decoders.rps:Rps",
        paper="2510.20498",
        takes=_search | {"direction"},
        draws="whole",
        shows=_pool,
        streams=False,
        example={"params": {"k": 4}},
        neutral=None,
    ),
    "segments": StrategyEntry(
        target="trimtab.decoders.segments:Segments",
        paper="2406.16306",
        takes=_search,
        draws="readings",
        example={"params": {"entropy": 1.0, "block": 4, "beta": 0.5, "target": 1.0, "rise": 4, "tries": 3}},
        neutral={"params": {"tries": 1}},
    ),
    "soft_best_of_n": StrategyEntry(
        target="trimtab.decoders.soft_best_of_n:SoftBestOfN",
        paper="2505.03156",
        takes=_search,
        draws="whole",
        shows=_pool,
        streams=False,
        example={"params": {"n": 4, "lambda": 0.5}},
        neutral={"params": {"n": 1, "lambda": 0.5}},
    ),
    "speculative_rejection": StrategyEntry(
        target="trimtab.decoders.speculative_rejection:SpeculativeRejection",
        paper="2410.20290",
        takes=_search,
        draws="pieces",
        shows=_pool,
        streams=False,
        example={"params": {"n": 4, "decisions": [3, 6]}},
        neutral=_one,
    ),
    "transfer_q": StrategyEntry(
        target="trimtab.decoders.transfer_q:TransferQ",
        paper="2405.20495",
        takes=_search,
        draws="readings",
        shows=_trace,
        example={"params": {"k": 3, "horizon": 4, "min_p": 0.1, "baseline": {GUIDE: 1.0}, "rollout_temperature": 0.0}},
        neutral={"params": {"k": 1}},
        neutral_when="greedy",
    ),
    "vote": StrategyEntry(
        target="trimtab.decoders.vote:Vote",
        paper="2203.11171",
        takes=_search,
        reward_optional=True,
        draws="whole",
        shows=_pool,
        streams=False,
        example={"params": {"n": 4, "extractor": "text", "weighting": "softmax"}},
        neutral=_one,
    ),
}


def example_request(name: str, guides: Sequence[str], *, neutral: bool = False) -> dict[str, Any]:
    """The row's example, or its neutral values, as an `alignment` object: with the server's guides, and without what
    the strategy is to prefer (`weights` or `reward`). Raises ValueError where there are no neutral values.

    `guides` are at least one guide's name; with one alone, the base stands for the other.
    """
    row = STRATEGIES[name]
    chosen = row.neutral if neutral else row.example
    if chosen is None:
        raise ValueError(f"strategy {name!r} has no neutral values")
    members = {GUIDE: guides[0], OTHER: [*guides, BASE][1]}

    def named(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {members.get(key, key): named(inner) for key, inner in value.items()}
        return members.get(value, value) if isinstance(value, str) else value

    return {"strategy": name, **named(chosen)}
