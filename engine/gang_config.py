"""Whether an engine can run gangs (engine.gangs), and what of its config does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.engine.errors import MemberError
from trimtab.engine.gangs import Adapter
from trimtab.engine.plugin import FIELD

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SCHEDULERS = {
    False: "trimtab.engine.gang_scheduler.GangScheduler",
    True: "trimtab.engine.gang_scheduler.AsyncGangScheduler",
}
GPU_WORKERS = "vllm.v1.worker.gpu_worker"
"""The module of vLLM's own worker on CUDA."""
WORKERS = {
    "trimtab.engine.cpu.SeededWorker": "trimtab.engine.cpu.SeededWorker",
    f"{GPU_WORKERS}.Worker": "trimtab.engine.gang_worker.GangWorker",
}
"""A worker, and the one in its place that runs gangs."""

FIRST_NUMBER = 2**20
"""Of guides' adapters: vLLM counts those that requests may name from 1."""


def schedule_gangs(config: VllmConfig, needed: Sequence[str]) -> None:
    """Has the engine run gangs where it can, and says why where it cannot, in `row_obstacle` beside its guides.

    Raises MemberError where guides are `needed` that are prompts or adapters, and it cannot.
    """
    if reason := find_row_obstacle(config):
        if needed:
            raise MemberError(needed[0], f"is a row of the batch, and rows cannot be decoded together here: {reason}")
        served: dict[str, Any] = getattr(config.model_config.hf_config, FIELD)
        served["row_obstacle"] = reason
        return
    config.scheduler_config.scheduler_cls = SCHEDULERS[bool(config.scheduler_config.async_scheduling)]
    config.parallel_config.worker_cls = WORKERS[config.parallel_config.worker_cls]


def find_row_obstacle(config: VllmConfig) -> str | None:
    """Why the engine cannot run gangs; None where it can."""
    model, parallel = config.model_config, config.parallel_config
    obstacles = {
        "speculative_config: the rows of an answer would accept different drafts": config.speculative_config,
        "kv_transfer_config: blocks that are fetched come a row at a time": config.kv_transfer_config,
        "pipeline_parallel_size: the rows of an answer may be at different stages": parallel.pipeline_parallel_size > 1,
        "decode_context_parallel_size: a row is in pieces": parallel.decode_context_parallel_size > 1,
        "the base is no plain decoder with attention in every layer": model.has_inner_state
        or model.is_attention_free
        or model.is_encoder_decoder,
        f"scheduler_cls={config.scheduler_config.scheduler_cls!r} schedules requests by itself": (
            config.scheduler_config.scheduler_cls
        ),
        f"worker_cls={parallel.worker_cls!r} samples by itself": parallel.worker_cls not in WORKERS,
        "Model Runner V2 (VLLM_USE_V2_MODEL_RUNNER=0 chooses V1)": config.use_v2_model_runner,
    }
    return next((reason for reason, there in obstacles.items() if there), None)


def number_adapters(adapters: Mapping[str, str]) -> dict[str, Adapter]:
    """Guides' adapters as vLLM's workers know them."""
    return {name: (name, FIRST_NUMBER + i, place) for i, (name, place) in enumerate(adapters.items())}
