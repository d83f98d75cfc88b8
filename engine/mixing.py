"""How a mixture of a request's guides is decoded: which are columns of the weight table, which are rows of a gang."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.decoders.protocols import BASE, Mixture, Tokens, is_base_alone, normalise_mixture
from trimtab.engine import gangs
from trimtab.engine.gangs import Adapter, Follower, GangSpec
from trimtab.engine.mixture import DISTRIBUTION, KL
from trimtab.engine.table import KEY, pack
from trimtab.runtime.strategy_run import StrategyRun

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

HEAVIEST = 1e6
"""|w| at most: beyond it, fp32 logits lose their units, and nothing but the sign of w would be left."""

Row = tuple[tuple[int, ...], Adapter | None]
"""A prompt, and the adapter that it is read with."""


@dataclass(frozen=True)
class Mixing:
    """How a mixture is decoded from one prompt."""

    extra_args: Mapping[str, bytes]
    """What the workers and the scheduler must know of it."""
    rows: int
    """Of the batch."""
    room: int
    """Tokens that there is room for, of those wanted."""


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """What a request's mixtures are made of."""

    client: EngineClient
    served: Mapping[str, Any]
    """`plugin.FIELD` of the base's config."""
    adapters: Mapping[str, Adapter]
    """Guides that are LoRA adapters of the base."""
    run: StrategyRun
    start: tuple[int, ...]
    """The request's own prompt, whose place contexts take; empty where it has none."""
    lora: Any
    """vLLM's `LoRARequest` of the request's own; None: the base."""
    salt: str | None
    """The client's, of the prefix cache."""
    media: bool
    """Whether the request's prompt is more than tokens."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Guides that are models of their own, in the order of the weight table's columns."""
        return tuple(guide["name"] for guide in self.served["guides"])

    def check(self, mixture: Mixture) -> dict[str, float]:
        """The mixture with its base named; raises ValueError for a member that there is not, or no weight."""
        mixture = normalise_mixture(mixture)
        names = (BASE, *self.columns, *self.adapters, *self.run.contexts.contexts)
        for name, weight in mixture.items():
            if name not in names:
                raise ValueError(f"guides.{name}: no such member; valid: {', '.join(names)}")
            if not abs(weight) <= HEAVIEST:
                raise ValueError(f"guides.{name}: {weight!r} is no weight; valid: a number within ±{HEAVIEST:g}")
        return mixture

    async def mix(
        self,
        prompt: Tokens,
        *,
        guides: Mixture,
        plausibility: float = 0.0,
        scalar: float = DISTRIBUTION,
        scored: int = 0,
        length: int = 1,
    ) -> Mixing:
        """How the mixture is decoded from a prompt, for at most `length` tokens: models of their own are columns of the
        prompt's own row, contexts and adapters are rows of a gang (engine.gangs).

        `scored`: of how many tokens, less the last, that the prompt ends with the log-probabilities are wanted.
        """
        mixture = self.check(guides)
        if not any(w and (name in self.adapters or name in self.run.contexts.contexts) for name, w in mixture.items()):
            row = self._row(mixture, plausibility=plausibility, scalar=scalar)
            return Mixing({KEY: row}, rows=1, room=length)
        leader: Row = (tuple(prompt), self.own_adapter)
        rows = await self._rows(leader, mixture)
        columns = {name: mixture.get(name, 0.0) for name in self.columns} | {BASE: rows.pop(leader, 0.0)}
        if not rows:
            row = self._row(columns, plausibility=plausibility, scalar=scalar)
            return Mixing({KEY: row}, rows=1, room=length)
        # A row that is the base's alone is weighed as a whole: so it may stand on an engine without columns, and is
        # what a divergence is measured from. Others carry their weights, and the base has a row of its own for that.
        alone = not plausibility and not any(columns[name] for name in self.columns)
        weight = columns[BASE] if alone else 1.0
        row = self._row({BASE: 1.0} if alone else columns, plausibility=plausibility)
        followers = [Follower(w, list(tokens), adapter) for (tokens, adapter), w in rows.items()]
        if scalar == KL and not alone:
            followers.append(Follower(0.0, list(prompt), self.own_adapter, reference=True))
        spec = GangSpec(weight=weight, followers=followers, salt=self.salt, scored=scored, scalar=scalar)
        lengths = [len(prompt), *(len(follower.prompt) for follower in followers)]
        return Mixing({KEY: row, gangs.KEY: gangs.pack(spec)}, rows=len(lengths), room=self._room(lengths, length))

    async def _rows(self, leader: Row, mixture: Mapping[str, float]) -> dict[Row, float]:
        """Weights of their logits; what comes to nothing is left out."""
        prompt, adapter = leader
        rows = defaultdict(float, {leader: mixture[BASE]})
        contexts, length = self.run.contexts, len(self.start)
        for name, weight in mixture.items():
            if name in self.adapters:
                rows[prompt, self.adapters[name]] += weight
            elif name in contexts.contexts and weight:
                if not length or prompt[:length] != self.start:
                    raise ValueError(f"guides.{name}: a prompt guides answers to the request's own prompt alone")
                context, begun = contexts.contexts[name], prompt[length:]
                for instruction, sign in ((context.prompt, 1), (context.against, -1)):
                    under = self.start if instruction is None else await contexts.prompt(instruction)
                    rows[(*under, *begun), adapter] += sign * weight
        return {row: weight for row, weight in rows.items() if weight}

    @property
    def own_adapter(self) -> Adapter | None:
        lora = self.lora
        return None if lora is None else (lora.lora_name, lora.lora_int_id, lora.lora_path)

    def _room(self, lengths: Sequence[int], length: int) -> int:
        """Tokens that rows of prompts of these lengths have room for, of `length`.

        Raises ValueError for none, and where the rows can never run together.
        """
        config = self.client.vllm_config
        if reason := self.served.get("row_obstacle"):
            raise ValueError(f"guides that are prompts or adapters cannot be had of this server's engine, for {reason}")
        if self.media:
            raise ValueError("guides that are prompts or adapters need messages that are all text")
        if len(lengths) > config.scheduler_config.max_num_seqs:
            most = config.scheduler_config.max_num_seqs
            raise ValueError(f"guides: the answer takes {len(lengths)} rows of a batch, which has {most}")
        if min(lengths) < 2:
            raise ValueError("guides: a prompt of one token cannot be decoded beside others")
        room: int = min(length, config.model_config.max_model_len - max(lengths))
        if room < 1:
            most = config.model_config.max_model_len
            raise ValueError(f"guides: a prompt under an instruction has {max(lengths)} tokens; valid: below {most}")
        size, blocks = config.cache_config.block_size, config.cache_config.num_gpu_blocks
        needed = sum(-(-(n + room) // size) for n in lengths)
        if blocks and needed > blocks - 1:
            raise ValueError(
                f"guides: {len(lengths)} rows of at most {max(lengths)} + {room} tokens take {needed} blocks of the "
                f"cache, which has {blocks - 1}; valid: a lower max_tokens, or fewer guides"
            )
        if room < length:
            longest = f"the longest of its {len(lengths)} prompts has {max(lengths)}"
            warning = f"an answer has at most {room} tokens here: {longest}"
            if warning not in self.run.warnings:
                self.run.warnings.append(warning)
        return room

    def _row(self, columns: Mapping[str, float], *, plausibility: float = 0.0, scalar: float = DISTRIBUTION) -> bytes:
        """Of the weight table; `columns` are weights of the base and of guides that are models of their own."""
        if not 0 <= plausibility <= 1:
            raise ValueError(f"plausibility: {plausibility!r}; valid: from 0 to 1")
        if obstacle := self.served.get("obstacle"):
            for what, needed in (
                ("a mixture other than the base alone", not is_base_alone(columns)),
                ("plausibility", plausibility > 0),
                ("the entropy of a distribution", scalar != DISTRIBUTION),
            ):
                if needed:
                    raise ValueError(f"{what} cannot be had of this server's engine, for {obstacle}")
        names = (BASE, *self.columns)
        return pack([columns.get(name, 0.0) for name in names], plausibility=plausibility, scalar=scalar)
