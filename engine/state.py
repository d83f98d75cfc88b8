"""Model Runner V2's hook: the model names its own state, which learns of requests and prepares each step's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.states import RequestState

    from trimtab.engine.composite import Composite
    from trimtab.engine.table import ActiveGuides


class CompositeState(DefaultModelState):  # type: ignore[misc]
    """Writes the weight table and, per token, the slot to read there."""

    def __init__(self, vllm_config: VllmConfig, model: Composite, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self.table = model.table
        self.slot_of: dict[str, int] = {}
        self.capturing: ActiveGuides | None = None
        """What the next CUDA graph is captured for; None: for all guides, which are right for any step."""
        # One address for ever, so that a captured CUDA graph reads what each step writes here.
        self.slots = torch.full((self.max_num_tokens,), self.table.default, dtype=torch.int32, device=device)
        model.slots = self.slots

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        self.slot_of[new_req_data.req_id] = req_index
        self.table.write(req_index, new_req_data.sampling_params)

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        slot = self.slot_of.pop(req_id, None)
        if slot is not None:
            self.table.clear(slot)

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, torch.Tensor | None]:
        self.table.publish()
        ends = input_batch.query_start_loc[1 : input_batch.num_reqs + 1]
        token = torch.arange(input_batch.num_tokens, dtype=ends.dtype, device=ends.device)
        place = torch.searchsorted(ends, token, right=True)
        self.slots[: input_batch.num_tokens] = input_batch.idx_mapping[place].to(torch.int32)
        inputs: dict[str, torch.Tensor | None] = super().prepare_inputs(input_batch, req_states)
        return inputs

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        """Of a CUDA graph to be captured."""
        self.table.active = self.capturing or self.table.all_guides
        inputs: dict[str, Any] = super().prepare_dummy_inputs(num_reqs, num_tokens)
        return inputs
