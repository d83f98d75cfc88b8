"""vLLM's worker on CUDA whose V1 runner runs gangs. Named as `worker_cls`, vLLM's own way to bring a worker."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from trimtab.engine.gang_rows import GangRunner


class GangWorker(Worker):  # type: ignore[misc]
    def _make_model_runner(self) -> Any:
        runner = super()._make_model_runner()
        if type(runner) is GPUModelRunner:
            runner.__class__ = GangRunner  # made in there, with no choice of class
        return runner
