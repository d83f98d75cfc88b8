"""Which mixture each request in the running batch is decoded with.

A request brings its row as bytes in `SamplingParams.extra_args[KEY]`: bytes cannot be written in JSON, so no client can
set it, and a row that did not come from `pack` never reaches the workers. The worker keeps the rows in a table [S + 1,
W] (S request slots, and the default row last; W as in engine.mixture), written by the runner's side and read by the
composite. Under the V1 runner a slot is the request's place in the persistent batch, under V2 its request state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from vllm.exceptions import VLLMValidationError
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2LogitsProcessor

from trimtab.engine import gangs
from trimtab.engine.mixture import DISTRIBUTION, NEG_INF, PLAUSIBILITY, SCALAR
from trimtab.engine.plugin import FIELD
from trimtab.engine.structured_outputs import BEGUN

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams

KEY = "trimtab"


def pack(weights: list[float], *, plausibility: float = 0.0, scalar: float = DISTRIBUTION) -> bytes:
    """One row. `weights` are the members' in order, base first."""
    log_a = math.log(plausibility) if plausibility > 0 else NEG_INF
    return np.array([*weights, log_a, scalar], dtype=np.float32).tobytes()


def guides_of(row: bytes) -> list[int]:
    """The guides, from 0, that a packed row gives a weight: as the worker reads it, so 1e-50 is none."""
    return np.frombuffer(row, dtype=np.float32)[1:PLAUSIBILITY].nonzero()[0].tolist()  # type: ignore[no-any-return]


def is_default(row: bytes | None) -> bool:
    """Whether a packed row is the base alone, with nothing masked or measured."""
    return row is None or row == np.array(default_row(len(row) // 4 - 2), dtype=np.float32).tobytes()


def cache_salt(salt: str | None, guides: Iterable[str] = ()) -> str | None:
    """What salts the prefix cache for a request of these guides: blocks are shared by requests of the very same ones.

    Plain requests without a salt share blocks as in plain vLLM. No client's salt is one of ours: a name has no `|`.
    """
    names = ",".join(guides)
    return f"{names}|{salt or ''}" if names or salt else None


def default_row(members: int) -> list[float]:
    """The base alone."""
    return [1.0, *[0.0] * (members - 1), NEG_INF, 0.0]


@dataclass(frozen=True, slots=True)
class ActiveGuides:
    """What at least one request in the table asks for; what none does is not computed."""

    guides: tuple[int, ...]
    """Their columns, from 1."""
    rescale: bool
    plausibility: bool
    scalars: bool

    def covers(self, other: ActiveGuides) -> bool:
        """Whether hidden states of a step run for these hold what the other asks for: the base's alone hold no slot
        of the table, all others do."""
        return other == BASE_ALONE if self == BASE_ALONE else set(other.guides) <= set(self.guides)


BASE_ALONE = ActiveGuides(guides=(), rescale=False, plausibility=False, scalars=False)


class WeightTable:
    def __init__(self, members: int, slots: int, device: torch.device, owner: object) -> None:
        self.members = members
        self.default = slots
        self.owner = owner
        """Kept alive with the table: `WeightTable.of` knows an engine by its identity."""
        self.always_all = False
        """Whether every guide runs in every step."""
        self._default_row = torch.tensor(default_row(members))
        self.host = self._default_row.repeat(slots + 1, 1)
        self.rows = self.host if device.type == "cpu" else self.host.to(device)
        self.occupied = np.zeros(slots, dtype=bool)
        self.active = self.all_guides
        self._stale = False

    _tables: ClassVar[WeakValueDictionary[int, WeightTable]] = WeakValueDictionary()

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> WeightTable:
        """The engine's table. Model and runner build it in either order; neither knows the other."""
        owner = vllm_config.compilation_config  # the one object that every replaced VllmConfig of an engine shares
        table = cls._tables.get(id(owner))
        if table is None:
            members = 1 + len(getattr(vllm_config.model_config.hf_config, FIELD)["guides"])
            slots = vllm_config.scheduler_config.max_num_seqs
            table = cls._tables[id(owner)] = cls(members, slots, vllm_config.device_config.device, owner)
        return table

    @property
    def all_guides(self) -> ActiveGuides:
        """While nobody is served: memory is measured, models are compiled and graphs captured with every guide."""
        return ActiveGuides(guides=tuple(range(1, self.members)), rescale=True, plausibility=True, scalars=False)

    @property
    def captures(self) -> list[ActiveGuides]:
        """What CUDA graphs are captured for, where they are captured apart: all guides first, for they need most."""
        if self.always_all:
            return [self.all_guides]
        each = [(column,) for column in self.all_guides.guides if self.members > 2]
        return [self.all_guides, *(replace(self.all_guides, guides=guides) for guides in each), BASE_ALONE]

    def write(self, slot: int, params: SamplingParams | None) -> None:
        packed = (params.extra_args or {}).get(KEY) if params is not None else None
        self.clear(slot)
        self.occupied[slot] = True
        if packed is not None:
            self.host[slot] = torch.from_numpy(np.frombuffer(packed, dtype=np.float32).copy())

    def clear(self, slot: int) -> None:
        self.host[slot] = self._default_row
        self.occupied[slot] = False
        self._stale = True

    def move(self, source: int, target: int) -> None:
        self.host[target], self.occupied[target] = self.host[source], self.occupied[source]
        self.clear(source)

    def swap(self, one: int, other: int) -> None:
        self.host[[one, other]], self.occupied[[one, other]] = self.host[[other, one]], self.occupied[[other, one]]
        self._stale = True

    def publish(self) -> None:
        """Bring what was written to the device, in stream order: steps already queued still read the old rows."""
        if not self._stale:
            return
        self._stale = False
        if self.rows is not self.host:
            async_tensor_h2d(self.host, out=self.rows)  # stages a snapshot, so that the next write cannot overtake it
        if not self.occupied.any():
            self.active = self.all_guides
            return
        weights = self.host[:, : self.members]
        columns = tuple(i for i in (weights != 0).any(0).nonzero().flatten().tolist() if i > 0)
        self.active = ActiveGuides(
            guides=self.all_guides.guides if self.always_all else columns,
            rescale=bool((weights[:, 0] != 1).any()),
            plausibility=bool((self.host[:, PLAUSIBILITY] > NEG_INF).any()),
            scalars=bool(self.host[:, SCALAR].any()),
        )


class RowWriter(V1LogitsProcessor, V2LogitsProcessor):  # type: ignore[misc]
    """Under V1, tells the table what the batch holds. It never touches logits: mixing is the model's, before any mask.

    One class with both runners' interfaces, because both load what the same engine argument names; under V2 the model
    state writes the rows and this only validates.
    """

    def __init__(self, vllm_config: VllmConfig, *_: Any) -> None:
        self.table = WeightTable.of(vllm_config)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        for key in (KEY, BEGUN, gangs.KEY):
            if not isinstance((sampling_params.extra_args or {}).get(key, b""), bytes):
                raise VLLMValidationError(f"{key!r} is reserved: use the request field `alignment`", parameter=key)

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for slot in batch_update.removed:
            self.table.clear(slot)
        for slot, params, _, _ in batch_update.added:
            self.table.write(slot, params)
        for one, other, direction in batch_update.moved:
            if direction is MoveDirectionality.SWAP:
                self.table.swap(one, other)
            else:
                self.table.move(one, other)
        self.table.publish()

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        return False

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        return logits
