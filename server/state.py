"""What is served: a configuration and what was made of it, which a reload replaces whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from trimtab.decoders.protocols import BASE
from trimtab.engine.aligned_client import AlignedClient
from trimtab.engine.heartbeat import Heartbeat
from trimtab.engine.memory import CacheMemory, cache_memory
from trimtab.engine.structured_outputs import SchemaLimits
from trimtab.server.admission import Admission
from trimtab.server.config import Config, ConfigError, RewardConfig
from trimtab.server.metrics import READY, RELOADS, REWARD_ERRORS
from trimtab.server.scoring import Scoring, engine_key

BATCHES = 32
"""Full batches of longest answers that requests let in may come to, by default. Most answers are far shorter, so in
truth that is a few batches."""

FROZEN = ("base", "name", "guides", "auto_weights", "engine", "host", "port", "log_format", "otlp_endpoint")
"""Keys that are read once, when the server starts."""

log = logging.getLogger("trimtab")


@dataclass(kw_only=True)
class ServerState:
    client: AlignedClient
    scoring: Scoring
    load_config: Callable[[], Config] | None = None
    """Reads the file as it is now; raises ConfigError. None: there is no file."""
    on_reload: Callable[[], None] = lambda: None
    """Called when another configuration has taken the place of the one before."""
    admission: Admission = field(init=False)
    heartbeats: tuple[Heartbeat, ...] = field(init=False)
    """Of every engine; they run while the server does."""
    memory: CacheMemory | None = field(init=False)
    """What the guides cost; None where there is no engine."""

    def __post_init__(self) -> None:
        engines = {BASE: self.client, **{f"rewards {key}": pooler for key, pooler in self.scoring.poolers.items()}}
        self.heartbeats = tuple(
            Heartbeat(name=name, call=engine.ping, timeout_s=lambda: self.config.timeouts.engine_s)
            for name, engine in engines.items()
        )
        self.memory = cache_memory(self.client.vllm_config)
        if self.memory is not None:
            log.info("%s", self.memory)
        self.admission = Admission(
            capacity=self.capacity(self.config),
            max_wait=self.max_wait(self.config),
            batch=int(self.client.vllm_config.scheduler_config.max_num_seqs),
        )
        self.limit_schemas()
        READY.set_function(lambda: float(self.ready))
        for name in self.config.rewards:
            REWARD_ERRORS.labels(name)  # reads 0 until there is one

    @property
    def config(self) -> Config:
        return self.scoring.config

    def capacity(self, config: Config) -> int:
        """Tokens that all requests let in may cost together."""
        batch = self.client.vllm_config.scheduler_config.max_num_seqs * self.client.model_config.max_model_len
        return config.limits.max_tokens or BATCHES * int(batch)

    @staticmethod
    def max_wait(config: Config) -> float | None:
        """Seconds that a request may wait; None where what is in flight is bounded in tokens."""
        return config.limits.max_wait_s if config.limits.max_tokens is None else None

    @property
    def alive(self) -> bool:
        """Whether every engine works: one that has died stays dead, one that hangs may yet go on."""
        dead = self.client.errored or not self.client.is_running or not self.scoring.alive
        return not (dead or any(heartbeat.stalled for heartbeat in self.heartbeats))

    def limit_schemas(self) -> None:
        """As the configuration has it now."""
        names = [limit.name for limit in fields(SchemaLimits)]
        self.client.schema_limits = SchemaLimits(**{name: getattr(self.config.limits, name) for name in names})

    @property
    def ready(self) -> bool:
        """Everything is warm before the first request is let in, so what runs is ready until it closes."""
        return self.alive and not self.admission.closing

    def reload(self) -> list[str]:
        """The configuration read anew, and the keys that have changed; raises ConfigError and keeps the old one.

        Requests that are being answered end as they began.
        """
        try:
            if self.load_config is None:
                raise ConfigError("this server has no configuration file")
            config = self.load_config()
            changed = [key for key in Config.model_fields if getattr(config, key) != getattr(self.config, key)]
            for key in changed:
                if key in FROZEN:
                    raise ConfigError("is read when the server starts: start it anew", key=key)
            if engine_keys(config.rewards) - set(self.scoring.poolers):
                raise ConfigError("models are loaded when the server starts: start it anew", key="rewards")
            self.scoring = self.scoring.with_config(config)
        except ConfigError as error:
            RELOADS.labels("refused").inc()
            log.error("reload refused: %s", error)
            raise
        self.admission.resize(self.capacity(config), self.max_wait(config))
        self.limit_schemas()
        self.on_reload()
        RELOADS.labels("taken").inc()
        log.info("reloaded; changed: %s", ", ".join(changed) or "nothing")
        return changed


def engine_keys(rewards: Mapping[str, RewardConfig]) -> set[str]:
    """`engine_key`s of those that are models."""
    return {key for reward in rewards.values() if (key := engine_key(reward)) is not None}
