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
    """Computes on the cores that vLLM's own executor would choose: those of VLLM_CPU_OMP_THREADS_BIND, and without it
    all of a NUMA node but one. A single one of those is left to the kernel to choose."""

    def _init_executor(self) -> None:
        set_process_title("EngineCore", suffix=Path(self.model_config.model).name)
        self.set_threads()
        super()._init_executor()

    def set_threads(self) -> None:
        chosen = OMPProcessManager(self.vllm_config)
        if chosen.skip_setup:
            return
        [cores] = chosen.cpu_lists
        torch.set_num_threads(len(cores))
        if len(cores) > 1 or not chosen.auto_setup:
            os.sched_setaffinity(0, cores)  # of this thread, and so of all that it starts


class SharedCoresExecutor(CPUExecutor):
    """For an engine beside another one: free to run on any core, with threads for half of them, or OMP_NUM_THREADS.

    vLLM would bind all engines to the same cores. VLLM_CPU_OMP_THREADS_BIND decides instead where it is set.
    """

    def set_threads(self) -> None:
        if envs.is_set("VLLM_CPU_OMP_THREADS_BIND"):
            return super().set_threads()
        threads = os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // 2)
        torch.set_num_threads(int(threads))
