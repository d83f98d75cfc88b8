"""The engines of a configuration, the base's and the reward models', up together and down together."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from trimtab.decoders.protocols import BASE
from trimtab.engine.aligned_client import AlignedClient
from trimtab.engine.errors import MemberError
from trimtab.engine.flags import name_keys
from trimtab.engine.launch import EngineSpec, running_engines
from trimtab.engine.members import load_base_tokenizer
from trimtab.engine.plugin import FIELD
from trimtab.engine.pooling import PoolingSpec, pooling_engine, pooling_spec
from trimtab.engine.toy_client import ToyPooler, build_toy_pooler
from trimtab.server.config import Config, ConfigError
from trimtab.server.http.vllm_app import aligned_client, arguments, base_spec, build_toy
from trimtab.server.scoring import BaseHost, Scoring, build_scorers, build_scoring, engine_key


@asynccontextmanager
async def running_models(config: Config, args: Namespace) -> AsyncIterator[tuple[AlignedClient, Scoring]]:
    """The base's client and the rewards; `args` are `vllm_app.arguments`.

    Raises ConfigError, before any engine starts where files show it, for what cannot run together, cannot score or
    cannot be built.
    """
    specs = checked_specs(config, args)
    async with running_engines([specs.base, *specs.rewards.values()]) as [client, *others]:
        poolers = {
            key: await pooling_engine(spec, other)
            for (key, spec), other in zip(specs.rewards.items(), others, strict=True)
        }
        aligned = aligned_client(client, config)
        yield aligned, build_scoring(config, aligned, poolers)


@asynccontextmanager
async def toy_models(config: Config, args: Namespace) -> AsyncIterator[tuple[AlignedClient, Scoring]]:
    """`running_models` without an engine: a toy model in the base's and the guides' place, made-up reward models."""
    aligned = build_toy(config, args).aligned()
    models = [reward for reward in config.rewards.values() if reward.model is not None]
    yield aligned, build_scoring(config, aligned, {engine_key(r) or "": build_toy_pooler(*r.served()) for r in models})


@dataclass(frozen=True, kw_only=True)
class EngineSpecs:
    """The engines of a configuration, ready to be started."""

    base: EngineSpec
    rewards: Mapping[str, PoolingSpec]
    """By `engine_key`."""


def checked_specs(config: Config, args: Namespace) -> EngineSpecs:
    """Raises ConfigError for whatever files show not to run together, not to score, or not to be built."""
    with name_key(config):
        base = base_spec(config, args)
    rewards = reward_specs(config)
    tokenizer = load_base_tokenizer(base)
    stand_ins = {
        key: ToyPooler(tokenizer=spec.tokenizer, labels=spec.labels, max_tokens=spec.config.model_config.max_model_len)
        for key, spec in rewards.items()
    }
    host = BaseHost(engine=Unstarted(), tokenizer=tokenizer)
    Scoring(config=config, scorers=build_scorers(config, host, stand_ins), host=host, poolers=stand_ins)
    return EngineSpecs(base=base, rewards=rewards)


def check_start(config: Config) -> Iterator[str]:
    """`trimtab check`: what was checked, a line each; raises ConfigError for what would stop a server from starting, as
    far as files show it."""
    specs = checked_specs(config, arguments(config))
    yield f"model id {config.model_name}"
    yield f"{BASE} {describe(specs.base)}"
    if not (config.engine.get("chat_template") or load_base_tokenizer(specs.base).chat_template):
        yield f"{BASE} has no chat template: chats are refused until engine.chat_template sets one"
    yield from describe_unknown(BASE, specs.base.config.model_config, load_base_tokenizer(specs.base))
    for name, guide in config.guides.items():
        yield f"guide {name} {guide.model or guide.adapter or 'is the base under a prompt'}"
    models = {spec.name: spec for spec in specs.rewards.values()}
    for name, reward in config.rewards.items():
        adapter = f"{reward.model} on " if name in models and models[name].adapter else ""
        yield f"reward {name} {adapter}{describe(models[name]) if name in models else reward.kind}"
        yield from describe_limit(config, name, specs)
    for spec in specs.rewards.values():
        yield from describe_unknown(f"reward {spec.name}", spec.config.model_config, spec.tokenizer)
    yield f"objectives {', '.join(config.objectives) or 'none'}"
    yield f"presets {', '.join(config.presets) or 'none'}"


def describe(spec: EngineSpec) -> str:
    model = spec.config.model_config
    architectures = getattr(model.hf_config, FIELD, {"architectures": model.architectures})["architectures"]
    return f"{model.model} ({', '.join(architectures)}, {model.max_model_len} positions, {model.dtype})"


def describe_limit(config: Config, name: str, specs: EngineSpecs) -> Iterator[str]:
    """That a reward model reads less than the base writes, if it does and does not cut what it reads."""
    reward = config.rewards[name]
    spec = specs.rewards.get(engine_key(reward) or "")
    if spec is None or (reward.model_extra or {}).get("truncate") == "left":
        return
    reads, served = (s.config.model_config.max_model_len for s in (spec, specs.base))
    if reads < served:
        yield (
            f"reward {name} reads {reads} tokens and the base serves {served}: longer conversations are refused until "
            "truncate: left drops their oldest tokens"
        )


def describe_unknown(model: str, config: Any, tokenizer: Any) -> Iterator[str]:
    """What its tokenizer knows and the model does not, if anything."""
    beyond = sorted(index for index in tokenizer.get_vocab().values() if index >= config.get_vocab_size())
    if beyond and not config.is_multimodal_model:
        first = tokenizer.convert_ids_to_tokens(beyond[0])
        yield (
            f"{model} has {config.get_vocab_size()} tokens and its tokenizer {len(beyond)} more, from {first!r} on: "
            "prompts that hold one are refused"
        )


class Unstarted:
    """In an engine's place while rewards are only checked."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(f"{name}: no engine runs")


@contextmanager
def name_key(config: Config, reward: str | None = None) -> Iterator[None]:
    """A MemberError as a ConfigError under the key of the configuration that it is about."""
    try:
        yield
    except MemberError as error:
        if reward is not None:
            key = f"rewards.{reward}.{error.option or 'model'}"
        elif error.member in config.guides:
            key = f"guides.{error.member}{'.' if error.option else ''}{error.option}"
        else:
            key = f"engine.{error.option}" if error.option else error.member
        raise ConfigError(name_keys(error.problem), key=key) from error


def reward_specs(config: Config) -> dict[str, PoolingSpec]:
    """The reward models' engines by `engine_key`; raises ConfigError."""
    specs: dict[str, PoolingSpec] = {}
    for name, reward in config.rewards.items():
        if (key := engine_key(reward)) is not None and key not in specs:
            model, base, options = reward.served()
            with name_key(config, reward=name):
                try:
                    specs[key] = pooling_spec(name, model, base, **options)
                except TypeError as error:  # of an argument that vLLM does not know
                    raise ConfigError(str(error).split(") ", 1)[-1], key=f"rewards.{name}.engine") from None
    return specs
