"""On CPU: an engine of one rank in one process, its core and its worker together.

vLLM's CPU platform gives the worker a process of its own, because it sets OpenMP's threads through the environment,
which is read when a process is loaded. Here they are set by call, to the same cores, before anything is computed; so
there is a process less to start, and no message between core and worker. Named as `distributed_executor_backend`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from vllm import envs
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.utils.system_utils import set_process_title
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class CPUExecutor(UniProcExecutor):  # type: ignore[misc]
    """Computes on the cores that vLLM's own executor would bind the worker to: VLLM_CPU_OMP_THREADS_BIND, and by
    default all of a NUMA node but one."""

    def _init_executor(self) -> None:
        set_process_title("EngineCore", suffix=Path(self.model_config.model).name)
        self.set_threads()
        super()._init_executor()

    def set_threads(self) -> None:
        manager = OMPProcessManager(self.vllm_config)
        if not manager.skip_setup:
            [cores] = manager.cpu_lists
            os.sched_setaffinity(0, cores)
            torch.set_num_threads(len(cores))


class SharedCoresExecutor(CPUExecutor):
    """For an engine beside another one: free to run on any core, with threads for half of them (OMP_NUM_THREADS).

    vLLM would bind each engine to the same cores, the first ones. VLLM_CPU_OMP_THREADS_BIND decides instead where set.
    """

    def set_threads(self) -> None:
        if envs.is_set("VLLM_CPU_OMP_THREADS_BIND"):
            return super().set_threads()
        threads = os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // 2)
        torch.set_num_threads(int(threads))
