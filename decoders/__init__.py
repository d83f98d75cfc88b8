"""Alignment strategies: one file, one paper. Tokens in, tokens out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the strategy table."""

    target: str
    """"module:name" of what builds the strategy from its parameters."""
    paper: str = ""
    """arXiv id; empty for none."""
    takes: frozenset[str] = frozenset()
    """Which of "weights" and "guides" it carries out as its parameter `guides`, whether it wants a "reward", which then
    carries out the weights, or the weights as a "direction", its parameter `wish`."""
    reward_optional: bool = False
    """Whether some of its parameters let it do without a reward."""
    shows: frozenset[str] = frozenset()
    """What a client may ask to see beside the answers."""
    streams: bool = True
    """Whether tokens reach the client as they are drawn; a search sends them when it has chosen."""

    def load(self) -> Any:
        """The builder: a callable with keyword parameters that returns a `Strategy`."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)


_trace = frozenset({"trace"})

_search = frozenset({"guides", "reward"})
_pool = frozenset({"candidates", "rewards"})

STRATEGIES: dict[str, Entry] = {
    "args": Entry(target="trimtab.decoders.args:Args", paper="2402.01694", takes=_search, shows=_trace),
    "beam": Entry(target="trimtab.decoders.beam:Beam", takes=_search, shows=_pool, streams=False),
    "best_of_n": Entry(
        target="trimtab.decoders.best_of_n:BestOfN", paper="2112.09332", takes=_search, shows=_pool, streams=False
    ),
    "blockwise": Entry(target="trimtab.decoders.blockwise:Blockwise", paper="2310.17022", takes=_search),
    "contrastive": Entry(target="trimtab.decoders.guided:contrastive", paper="2210.15097", shows=_trace),
    "dera": Entry(target="trimtab.decoders.guided:dera", paper="2402.02992", shows=_trace),
    "directional": Entry(
        target="trimtab.decoders.dpa:Directional", paper="2402.18571", takes=frozenset({"direction", "guides"})
    ),
    "genarm": Entry(
        target="trimtab.decoders.guided:genarm",
        paper="2410.08193",
        takes=frozenset({"weights", "guides"}),
        shows=_trace,
    ),
    "guided": Entry(target="trimtab.decoders.guided:Guided", takes=frozenset({"weights", "guides"}), shows=_trace),
    "mbr": Entry(
        target="trimtab.decoders.mbr:MinimumBayesRisk", takes=_search, reward_optional=True, shows=_pool, streams=False
    ),
    "mod": Entry(target="trimtab.decoders.guided:mod", paper="2406.18853", takes=frozenset({"guides"}), shows=_trace),
    "particles": Entry(
        target="trimtab.decoders.particles:Particles", paper="2502.01618", takes=_search, shows=_pool, streams=False
    ),
    "plain": Entry(target="trimtab.decoders.plain:Plain"),
    "proxy_tuning": Entry(target="trimtab.decoders.guided:proxy_tuning", paper="2401.08565", shows=_trace),
    "qalign": Entry(
        target="trimtab.decoders.qalign:QAlign",
        paper="2504.03790",
        takes=_search,
        shows=_pool | _trace,
        streams=False,
    ),
    "rejection": Entry(
        target="trimtab.decoders.rejection:RejectionSampling",
        paper="2309.06657",
        takes=_search,
        shows=_pool,
        streams=False,
    ),
    "rps": Entry(
        target="trimtab.decoders.rps:Rps",
        paper="2510.20498",
        takes=_search | {"direction"},
        shows=_pool,
        streams=False,
    ),
    "soft_best_of_n": Entry(
        target="trimtab.decoders.soft_best_of_n:SoftBestOfN",
        paper="2505.03156",
        takes=_search,
        shows=_pool,
        streams=False,
    ),
    "speculative_rejection": Entry(
        target="trimtab.decoders.speculative_rejection:SpeculativeRejection",
        paper="2410.20290",
        takes=_search,
        shows=_pool,
        streams=False,
    ),
    "transfer_q": Entry(
        target="trimtab.decoders.transfer_q:TransferQ", paper="2405.20495", takes=_search, shows=_trace
    ),
    "vote": Entry(
        target="trimtab.decoders.vote:Vote",
        paper="2203.11171",
        takes=_search,
        reward_optional=True,
        shows=_pool,
        streams=False,
    ),
}
