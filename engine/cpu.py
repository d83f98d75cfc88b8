"""vLLM's V1 runner on CPU, with seeds that survive chunked prefill.

A step that ends inside a prompt samples a token and throws it away, and the draw must be taken back, or a seed would
mean something else in other company. vLLM winds the request's generator back by an offset, which only CUDA's have: on
CPU one seeded prompt that is cut in two ends the engine ("CPU Generator does not use offset", vLLM 0.32). Here the
state before the step is put back instead. Named as `worker_cls`, vLLM's own way to bring a worker.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from trimtab.engine.gang_rows import GangRunner


class SeededRunner(GangRunner, CPUModelRunner):  # type: ignore[misc]
    def _unfinished_prompts(self) -> list[int]:
        """Seeded requests whose sampled token is thrown away, by their place in the batch."""
        places = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]
        return [place for place in places.tolist() if place in self.input_batch.generators]

    def _sample(self, *args: Any) -> Any:
        generators = [self.input_batch.generators[place] for place in self._unfinished_prompts()]
        states = [generator.get_state() for generator in generators]
        output = super()._sample(*args)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return output

    def _bookkeeping_sync(self, *args: Any) -> Any:
        generators = self.input_batch.generators
        wound_back = self._unfinished_prompts()
        self.input_batch.generators = {i: g for i, g in generators.items() if i not in wound_back}
        try:
            return super()._bookkeeping_sync(*args)
        finally:
            self.input_batch.generators = generators


class SeededWorker(CPUWorker):  # type: ignore[misc]
    def init_device(self) -> None:
        super().init_device()
        if type(self.model_runner) is CPUModelRunner:  # not Model Runner V2
            self.model_runner.__class__ = SeededRunner  # its own init builds the runner and offers no choice of class
