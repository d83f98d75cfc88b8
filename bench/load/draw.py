"""Requests drawn from a mix. A seed always draws the same requests, whatever the rate."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.bench.load.mix import CHAT, RANGED, STREAMS, MixEntry, Request


@dataclass(frozen=True, kw_only=True)
class Manners:
    """Shares of clients that hang up or read slowly."""

    disconnect: float = 0.0
    """Share of the requests whose client hangs up."""
    disconnect_within: float = 2.0
    """Seconds after sending; the moment is uniform in them."""
    slow: float = 0.0
    """Share of the streams that are read slowly."""
    slow_rate: float = 200.0
    """Bytes per second of a slow reader."""


def requests(
    entries: Sequence[MixEntry], prompts: Sequence[str], model: str, manners: Manners, seed: int
) -> Iterator[Request]:
    """An endless series."""
    rng = random.Random(f"requests {seed}")
    shares = [entry.share for entry in entries]
    while True:
        [entry] = rng.choices(entries, shares)
        content = json.dumps(request_body(entry, rng.choice(prompts), model, rng)).encode()
        leaves, at = rng.random() < manners.disconnect, rng.uniform(0, manners.disconnect_within)
        slow = rng.random() < manners.slow and entry.stream
        yield Request(entry=entry, content=content, hang_up=at if leaves else None, slow=slow)


def request_body(entry: MixEntry, prompt: str, model: str, rng: random.Random) -> dict[str, Any]:
    """The request of an entry with a prompt. Keys of the entry take precedence over those that are filled in."""
    filled: dict[str, Any] = {}
    if entry.path in STREAMS:
        filled = {"model": model}
        prompt_keys = {"messages": [{"role": "user", "content": prompt}]} if entry.path == CHAT else {"prompt": prompt}
        filled |= prompt_keys
    if entry.stream:
        filled |= {"stream": True, "stream_options": {"include_usage": True}}
    return filled | with_weights(entry.body, rng)


def with_weights(body: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """The body, with a drawn number in place of each range in `alignment`."""
    alignment = body.get("alignment")
    if not isinstance(alignment, Mapping):
        return dict(body)
    drawn = {
        name: {key: rng.uniform(*value) if isinstance(value, list) else value for key, value in weights.items()}
        for name, weights in alignment.items()
        if name in RANGED and isinstance(weights, Mapping)
    }
    return {**body, "alignment": {**alignment, **drawn}}
