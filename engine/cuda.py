"""vLLM's worker on CUDA, with full CUDA graphs for each set of guides that a step may need.

vLLM captures the whole model once for each batch size, and ours with every guide: right for any step, and as dear as
the dearest. Here the same sizes are captured for all guides, for each alone, and for the base alone, whose graph is
plain vLLM's; a step replays the smallest that has all of its guides. Captures take as many times longer. Piecewise
graphs need none of this: they are the members' own, and the composite runs whichever it likes.

Named as the engine option `worker_cls`, vLLM's own way to bring a worker. Model Runner V2 only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker as GPUWorker

from trimtab.engine.table import ActiveGuides

if TYPE_CHECKING:
    from trimtab.engine.composite import Composite
    from trimtab.engine.state import CompositeState


class GuideGraphs(ModelCudaGraphManager):  # type: ignore[misc]
    """vLLM's manager, whose graphs and output buffer are those of one set of guides at a time."""

    model: Composite
    captures: list[tuple[ActiveGuides, dict[Any, Any], Tensor | None]]
    _capture_descs: dict[CUDAGraphMode, list[Any]]
    graphs: dict[Any, Any]
    hidden_states: Tensor | None

    def capture(self, model: Composite, model_state: CompositeState, *args: Any, **more: Any) -> None:
        every_mode, self.captures = self._capture_descs, []
        for active in model.table.captures:
            model_state.capturing = active
            self.graphs, self.hidden_states = {}, None
            super().capture(model, model_state, *args, **more)
            self.captures.append((active, self.graphs, self.hidden_states))
            self._capture_descs = {mode: sizes for mode, sizes in every_mode.items() if mode is CUDAGraphMode.FULL}
        self.model, self._capture_descs, model_state.capturing = model, every_mode, None

    def run_fullgraph(self, desc: Any) -> Any:
        needed = self.model.table.active
        fitting = [capture for capture in self.captures if capture[0].covers(needed)]
        _, self.graphs, self.hidden_states = min(fitting, key=lambda capture: len(capture[0].guides))
        return super().run_fullgraph(desc)


class GuideGraphsRunner(GPUModelRunner):  # type: ignore[misc]
    def initialize_kv_cache(self, *args: Any, **more: Any) -> None:
        super().initialize_kv_cache(*args, **more)
        self.cudagraph_manager.__class__ = GuideGraphs  # made in there, with no choice of class


class GuideGraphsWorker(GPUWorker):  # type: ignore[misc]
    def _make_model_runner(self) -> Any:
        runner = super()._make_model_runner()
        if type(runner) is GPUModelRunner:  # not the V1 runner
            runner.__class__ = GuideGraphsRunner
        return runner
