"""What guides cost of the cache, against sizes that are worked out by hand and the bytes that the cache has."""

import pytest

from tests.engine.conftest import OPTIONS
from trimtab.engine.memory import CacheMemory, cache_memory

BYTES = 4
"""Of a number in float32."""


@pytest.mark.engine
async def test_every_member_s_keys_and_values_take_room(client):
    memory = cache_memory(client.vllm_config)
    keys_and_values = {  # layers, key-value heads, head size
        "base": (3, 1, 32), "llama": (2, 1, 64), "qwen": (2, 1, 32), "windowed": (2, 1, 32), "shorter": (1, 1, 32),
        "lora": (3, 1, 32),
    }  # fmt: skip
    assert memory.bytes_per_token == {
        name: 2 * layers * heads * size * BYTES for name, (layers, heads, size) in keys_and_values.items()
    }
    assert memory.merged == ("lora",)
    total = sum(memory.bytes_per_token.values())
    # vLLM rounds down to blocks, and pads where some layers have a window: it says "at most 11.11%" here.
    assert 0.88 * OPTIONS["kv_cache_memory_bytes"] <= memory.tokens * total <= OPTIONS["kv_cache_memory_bytes"]


def test_the_room_without_guides():
    """Of 8 billion parameters (32 layers, 8 heads of 128) and of one (16 layers, 8 heads of 64), in bf16."""
    memory = CacheMemory(bytes_per_token={"base": 131072, "guide": 32768}, tokens=80_000, merged=())
    assert memory.tokens_without_guides == 100_000
    assert str(memory) == (
        "the KV cache holds 80000 tokens, 163840 bytes each (base 131072, guide 32768); "
        "without guides it would hold 100000"
    )
