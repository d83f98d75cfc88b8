"""What guides cost in memory: every request holds the keys and values of all members, whichever it asks for.

The members share one cache and its block tables, so the room for tokens is what is left of the base's alone:

    tokens = tokens_without_guides * bytes_base / sum_i bytes_i                                                      (1)

with bytes_i = 2 * layers * key-value heads * head size * bytes of a number, on one device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm.config import ModelConfig, VllmConfig
from vllm.utils.torch_utils import get_kv_cache_torch_dtype

from trimtab.decoders.protocols import BASE
from trimtab.engine.members import Guide, guide_model_config
from trimtab.engine.plugin import FIELD


@dataclass(frozen=True, kw_only=True)
class CacheMemory:
    bytes_per_token: Mapping[str, int]
    """member -> bytes of a token's keys and values on one device, the base first, windows not considered."""
    tokens: int
    """What the cache of the running engine holds."""
    merged: tuple[str, ...]
    """Guides that are LoRA adapters: each is loaded as a copy of the base's weights with the adapter merged in."""

    @property
    def tokens_without_guides(self) -> int:
        """What it would hold for the base alone, (1)."""
        return self.tokens * sum(self.bytes_per_token.values()) // self.bytes_per_token[BASE]

    def __str__(self) -> str:
        kv = ", ".join(f"{name} {size}" for name, size in self.bytes_per_token.items())
        summary = f"the KV cache holds {self.tokens} tokens, {sum(self.bytes_per_token.values())} bytes each ({kv})"
        if len(self.bytes_per_token) > 1:
            summary += f"; without guides it would hold {self.tokens_without_guides}"
        if self.merged:
            summary += f"; a copy of the base's weights each: {', '.join(self.merged)}"
        return summary


def cache_memory(config: VllmConfig) -> CacheMemory | None:
    """Of a running engine whose arguments came from `engine.members.engine_args`; None where there is no engine, or
    one of vLLM's own model, whose cache may hold more than keys and values."""
    tokens, base = config.cache_config.kv_cache_size_tokens, config.model_config
    served = getattr(base.hf_config, FIELD, {})
    if tokens is None or "obstacle" in served:
        return None
    guides = [Guide(**options) for options in served["guides"]]
    configs = {guide.name: guide_model_config(guide, base, base.max_model_len) for guide in guides}
    return CacheMemory(
        bytes_per_token={name: count_bytes(member, config) for name, member in {BASE: base, **configs}.items()},
        tokens=tokens,
        merged=tuple(guide.name for guide in guides if guide.adapter is not None),
    )


def count_bytes(member: ModelConfig, config: VllmConfig) -> int:
    """Of one token's keys and values, on one device."""
    parallel = config.parallel_config
    number = get_kv_cache_torch_dtype(config.cache_config.cache_dtype, member.dtype).itemsize
    heads = member.get_num_kv_heads(parallel)
    return int(2 * member.get_num_layers(parallel) * heads * member.get_head_size() * number)
