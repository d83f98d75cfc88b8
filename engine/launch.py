"""Engines up side by side, and down again whatever happens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from vllm import envs
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from trimtab.engine.fork_server import fork_engines
from trimtab.engine.members import engine_config

log = logging.getLogger("trimtab")


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """An engine that can be started: its options are checked, and nothing runs yet.

    Raises MemberError for options that vLLM refuses.
    """

    name: str
    """A member's, for the log."""
    args: AsyncEngineArgs
    usage: UsageContext = UsageContext.ENGINE_CONTEXT
    """vLLM's defaults, such as how many tokens a step may have, go by it."""
    config: VllmConfig = field(init=False)

    def __post_init__(self) -> None:
        fork_engines()
        object.__setattr__(self, "config", engine_config(self.name, self.args, usage_context=self.usage))

    def start(self) -> AsyncLLM:
        """Returns when the engine is up, which may take minutes; raises what vLLM raises."""
        return AsyncLLM.from_vllm_config(
            vllm_config=self.config,
            usage_context=self.usage,
            enable_log_requests=self.args.enable_log_requests,
            aggregate_engine_logging=self.args.aggregate_engine_logging,
            disable_log_stats=self.args.disable_log_stats,
        )


@dataclass
class Progress:
    """Seconds that each engine took, one line of the log whenever another one is up."""

    seconds: dict[str, float | None]

    def start(self, spec: EngineSpec) -> AsyncLLM:
        began = time.monotonic()
        try:
            client = spec.start()
        except Exception:
            log.error("%s did not start", spec.name)
            raise
        self.seconds[spec.name] = time.monotonic() - began
        log.info("%s", self)
        return client

    def __str__(self) -> str:
        return "engines: " + " · ".join(
            f"{name} waiting" if took is None else f"{name} {took:.1f} s" for name, took in self.seconds.items()
        )


@asynccontextmanager
async def running_engines(specs: Sequence[EngineSpec]) -> AsyncIterator[list[AsyncLLM]]:
    """The engines in the order of their specs. The first error of one that does not start is raised when no other one
    is still starting."""
    progress = Progress(dict.fromkeys(spec.name for spec in specs))
    clients: list[AsyncLLM | BaseException] = []
    log.info("%s", progress)
    try:
        if can_start_together(specs):
            starts = [asyncio.to_thread(progress.start, spec) for spec in specs]
            clients += await asyncio.gather(*starts, return_exceptions=True)
        else:
            for spec in specs:
                clients.append(progress.start(spec))
        for client in clients:
            if isinstance(client, BaseException):
                raise client
            await client.get_supported_tasks()  # from its first call on it listens, and hears of its engine's death
        yield clients
    finally:
        for spec, client in zip(specs, clients, strict=False):
            if not isinstance(client, BaseException):
                client.shutdown(timeout=spec.config.shutdown_timeout or None)  # None: vLLM's own patience


def can_start_together(specs: Sequence[EngineSpec]) -> bool:
    """Whether what one engine takes does not depend on what another has taken when it looks: on CPU, with a cache whose
    size is said."""
    sized = envs.is_set("VLLM_CPU_KVCACHE_SPACE") or all(
        spec.config.cache_config.kv_cache_memory_bytes is not None for spec in specs
    )
    return len(specs) > 1 and sized and bool(current_platform.is_cpu())
