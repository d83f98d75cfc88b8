"""Gangs: one request that is decoded as several rows of vLLM's batch, of which one distribution is made.

    z = Σ_i w_i l_i                                                                                              (1)

l_i are the base's logits of member i, which has a prompt of its own (the same conversation under an instruction), and
may have a LoRA adapter. All of a gang sample in the same step, and all append the token that was drawn from softmax(z):
gang scheduling (Ousterhout, 1982), in lock-step. Classifier-free guidance (arXiv 2306.17806), contrasts of prompts
(arXiv 2408.05094) and autoregressive rewards that are adapters (arXiv 2410.08193) are gangs that differ in w_i, prompts
and adapters alone.

The leader is the client's request; its followers are made by the scheduler, in the engine's process
(engine.gang_scheduler), so that nothing of a gang ever arrives, is aborted or is answered in part. What is written here
travels in `SamplingParams.extra_args[KEY]`, as bytes: those cannot be written in JSON, so no client can set it.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from trimtab.engine.mixture import DISTRIBUTION

KEY = "trimtab_gang"


Adapter = tuple[str, int, str]
"""A LoRA adapter's name, number and place, as `LoRARequest` takes them."""


class Follower(msgspec.Struct, frozen=True, array_like=True):
    weight: float
    """w of (1)"""
    prompt: list[int]
    """Its whole prompt, with all that the answer goes on from."""
    adapter: Adapter | None = None
    reference: bool = False
    """Whether a divergence is measured from its distribution; without one, it is from that of the leader's row."""


class GangSpec(msgspec.Struct, frozen=True, array_like=True):
    """What the engine's front end asks for."""

    weight: float
    """The leader's own."""
    followers: list[Follower]
    salt: str | None = None
    """Of the followers' blocks in the prefix cache: the client's. What salts the leader names guides as well, which run
    over its row alone."""
    scored: int = 0
    """Every prompt ends with the same completion of so many tokens, less the last of them: its log-probabilities under
    (1) are wanted."""
    scalar: float = DISTRIBUTION
    """What is wanted in place of (1): `engine.mixture` has the numbers."""

    @property
    def has_reference(self) -> bool:
        return any(follower.reference for follower in self.followers)


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """What a worker is told of a member."""

    leader: str
    """The id of the leader's request."""
    weight: float
    scored: int = 0
    scalar: float = DISTRIBUTION
    reference: bool = False


def pack(message: GangSpec | Membership) -> bytes:
    return msgspec.msgpack.encode(message)


def unpack_gang(packed: bytes) -> GangSpec:
    return msgspec.msgpack.decode(packed, type=GangSpec)


@lru_cache(maxsize=4096)
def unpack_membership(packed: bytes) -> Membership:
    return msgspec.msgpack.decode(packed, type=Membership)
