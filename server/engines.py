"""The engines of a configuration, the base's and the reward models', up together and down together."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trimtab.engine.aligned_client import AlignedClient
from trimtab.engine.launch import running_engines
from trimtab.engine.pooling import PoolingSpec, pooling_engine, pooling_spec
from trimtab.engine.toy_client import build_toy_pooler
from trimtab.server.config import Config
from trimtab.server.http.vllm_app import aligned_client, base_spec, build_toy
from trimtab.server.scoring import Scoring, build_scoring, engine_key


@asynccontextmanager
async def running_models(config: Config, args: Namespace) -> AsyncIterator[tuple[AlignedClient, Scoring]]:
    """The base's client and the rewards; `args` are `vllm_app.arguments`.

    Raises MemberError for what cannot run together or cannot score, ConfigError for rewards that cannot be built.
    """
    base, rewards = base_spec(config, args), reward_specs(config)
    async with running_engines([base, *rewards.values()]) as [client, *others]:
        poolers = {
            key: await pooling_engine(spec, other) for (key, spec), other in zip(rewards.items(), others, strict=True)
        }
        aligned = aligned_client(client, config)
        yield aligned, build_scoring(config, aligned, poolers)


@asynccontextmanager
async def toy_models(config: Config, args: Namespace) -> AsyncIterator[tuple[AlignedClient, Scoring]]:
    """`running_models` without an engine: a toy model in the base's and the guides' place, made-up reward models."""
    aligned = build_toy(config, args).aligned()
    models = [reward for reward in config.rewards.values() if reward.model is not None]
    yield aligned, build_scoring(config, aligned, {engine_key(r) or "": build_toy_pooler(*r.served()) for r in models})


def reward_specs(config: Config) -> dict[str, PoolingSpec]:
    """The reward models' engines by `engine_key`."""
    specs: dict[str, PoolingSpec] = {}
    for name, reward in config.rewards.items():
        if (key := engine_key(reward)) is not None and key not in specs:
            model, options = reward.served()
            specs[key] = pooling_spec(name, model, **options)
    return specs
