"""The workers' side of gangs (engine.gangs) on vLLM's V1 runner: rows become one distribution, and all get its token.

Logits are mixed between the model and what masks and samples them, so that log-probabilities, penalties, biases,
grammars and seeds are the mixture's. The token is copied where all later readers read it, asynchronous ones too. Both
are operations on rows of tensors that are there anyway, without synchronisation, and outside of any CUDA graph.

Shapes: N rows of a step, M members of G gangs among them, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from trimtab.engine.gangs import KEY, Place, unpack_place


@dataclass(frozen=True)
class Rows:
    """Which rows of a step's batch are of which gang, leaders among them."""

    row_M: Tensor
    leader_M: Tensor
    """Each member's leader's row."""
    gang_M: Tensor
    weight_M1: Tensor
    leader_G: Tensor

    @classmethod
    def of(cls, names: Sequence[str], places: Mapping[str, Place], device: torch.device) -> Rows | None:
        """None where no gang samples. A member whose leader is not in the batch is being prefilled: what is drawn for
        it is thrown away."""
        row_of = {name: row for row, name in enumerate(names)}
        members = [
            (row, row_of[place.leader], place.weight)
            for row, name in enumerate(names)
            if (place := places.get(name)) is not None and place.leader in row_of
        ]
        if not members:
            return None
        rows, leaders, weights = zip(*members, strict=True)
        gangs = {leader: i for i, leader in enumerate(dict.fromkeys(leaders))}

        def whole(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return cls(
            row_M=whole(rows),
            leader_M=whole(leaders),
            gang_M=whole([gangs[leader] for leader in leaders]),
            weight_M1=torch.tensor(weights, dtype=torch.float32, device=device).unsqueeze(-1),
            leader_G=whole(list(gangs)),
        )

    def mix(self, logits_NV: Tensor) -> Tensor:
        """[N, V] in fp32: each leader's row becomes Σ_i w_i l_i."""
        logits_NV = logits_NV.float()
        z_GV = logits_NV.new_zeros(len(self.leader_G), logits_NV.shape[-1])
        z_GV.index_add_(0, self.gang_M, logits_NV[self.row_M] * self.weight_M1)
        return logits_NV.index_copy_(0, self.leader_G, z_GV)

    def copy_tokens(self, sampled_N1: Tensor) -> None:
        """Every member's token becomes its leader's."""
        sampled_N1[self.row_M] = sampled_N1[self.leader_M]


class GangRunner(GPUModelRunner):  # type: ignore[misc]
    execute_model_state: Any
    """vLLM's, between a step's two halves."""
    batch: list[str] | None = None
    """Requests of the last step, by row."""
    rows: Rows | None = None

    def execute_model(self, *args: Any, **more: Any) -> Any:
        output = super().execute_model(*args, **more)
        state = self.execute_model_state
        if state is not None and state.logits is not None:
            if self.batch != self.input_batch.req_ids:
                self.batch = self.input_batch.req_ids.copy()
                places = {name: place for name in self.batch if (place := self.place_of(name)) is not None}
                self.rows = Rows.of(self.batch, places, state.logits.device)
            if self.rows is not None:
                self.execute_model_state = state._replace(logits=self.rows.mix(state.logits))
        return output

    def _sample(self, *args: Any) -> Any:
        output = super()._sample(*args)
        if self.rows is not None:
            self.rows.copy_tokens(output.sampled_token_ids)
        return output

    def place_of(self, name: str) -> Place | None:
        packed = (self.requests[name].sampling_params.extra_args or {}).get(KEY)
        return None if packed is None else unpack_place(packed)
