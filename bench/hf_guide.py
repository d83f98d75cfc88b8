"""A baseline without a lock-step engine: a Hugging Face model guides vLLM's base from inside a logits processor.

It uses vLLM's interface for per-request processors; each request has a key-value cache of the guide.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

KEY = "hf_guide"
"""Key of the guide's directory in the engine's `additional_config`, and of its weight in a request's `extra_args`."""


class HFGuide(AdapterLogitsProcessor):  # type: ignore[misc]
    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        path = vllm_config.additional_config[KEY]
        dtype = vllm_config.model_config.dtype
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        weight = (params.extra_args or {}).get(KEY)
        if weight is None:
            return None
        cache, seen = DynamicCache(config=self.model.config), 0

        @torch.inference_mode()
        def add_guide(prompt: list[int], output: list[int], logits: Tensor) -> Tensor:
            nonlocal seen
            tokens = [*prompt, *output][seen:]
            seen += len(tokens)
            new = torch.tensor([tokens], device=logits.device)
            guide_logits: Tensor = self.model(new, past_key_values=cache, logits_to_keep=1).logits[0, -1]
            return logits.add(guide_logits, alpha=weight)

        return add_guide
