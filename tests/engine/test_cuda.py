"""Which captured graph a step replays. Nothing here runs on a GPU: vLLM's capture and replay are stood in for."""

from types import SimpleNamespace

import pytest
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.sampling_params import SamplingParams

pytest.importorskip("triton")

from trimtab.engine.cuda import GuideGraphs, ModelCudaGraphManager
from trimtab.engine.mixture import KL
from trimtab.engine.table import BASE_ALONE, KEY, WeightTable, pack

SIZES = {CUDAGraphMode.PIECEWISE: ["mixed"], CUDAGraphMode.FULL: ["1", "8"]}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> GuideGraphs:
    """Two guides; what would be captured is the use that the model is told, by size."""

    def capture(self, model, state, note):
        for mode, sizes in self._capture_descs.items():
            model.captured.append((mode, state.capturing))
            if mode is CUDAGraphMode.FULL:
                assert not self.graphs
                self.graphs.update(dict.fromkeys(sizes, state.capturing))
                self.hidden_states = state.capturing.guides
        assert note == "passed on"

    monkeypatch.setattr(ModelCudaGraphManager, "capture", capture)
    monkeypatch.setattr(
        ModelCudaGraphManager, "run_fullgraph", lambda self, desc: (self.graphs[desc], self.hidden_states)
    )
    made = GuideGraphs.__new__(GuideGraphs)
    made._capture_descs = dict(SIZES)
    made.model = SimpleNamespace(table=WeightTable(3, 4, torch.device("cpu"), owner=None), captured=[])
    made.capture(made.model, SimpleNamespace(capturing=None), note="passed on")
    return made


def serve(graphs: GuideGraphs, *rows: list[float]) -> None:
    for slot in range(4):
        graphs.model.table.clear(slot)
    for slot, row in enumerate(rows):
        graphs.model.table.write(slot, SamplingParams(extra_args={KEY: pack(row)}))
    graphs.model.table.publish()


def test_sizes_are_captured_for_each_use_and_piecewise_graphs_once(graphs):
    everything = graphs.model.table.all_guides
    full = [use for mode, use in graphs.model.captured if mode is CUDAGraphMode.FULL]
    assert [use.guides for use in full] == [(1, 2), (1,), (2,), ()]
    assert full[0] == everything
    assert full[-1] == BASE_ALONE
    assert [use for mode, use in graphs.model.captured if mode is CUDAGraphMode.PIECEWISE] == [everything]
    assert graphs._capture_descs == SIZES, "they can be captured again"


@pytest.mark.parametrize(
    ("rows", "guides"),
    [
        ([[1, 0, 0]], ()),
        ([[1, 0.5, 0]], (1,)),
        ([[1, 0, 0], [1, 0, -1]], (2,)),
        ([[1, 0.5, 0], [1, 0, -1]], (1, 2)),
        ([[0.5, 0, 0]], (1,)),  # its weight is read from the table, whose slots the base's own graph does not give
    ],
)
@pytest.mark.parametrize("size", SIZES[CUDAGraphMode.FULL])
def test_the_smallest_that_serves_is_replayed(graphs, rows, guides, size):
    serve(graphs, *rows)
    use, buffer = graphs.run_fullgraph(size)
    assert buffer == use.guides == guides
    assert (use == BASE_ALONE) == (guides == ())


def test_while_experts_wait_for_each_other_there_is_one_graph_of_a_size():
    table = WeightTable(3, 4, torch.device("cpu"), owner=None)
    table.always_all = True
    assert table.captures == [table.all_guides]
    for row in (pack([1, 0, 0]), pack([1, 0, 0.5], scalar=KL)):
        table.write(0, SamplingParams(extra_args={KEY: row}))
        table.publish()
        assert table.active.guides == (1, 2)
        assert table.all_guides.covers(table.active)
    assert table.active.scalars
