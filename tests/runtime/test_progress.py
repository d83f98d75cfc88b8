"""A request's progress, of one search or of several."""

from __future__ import annotations

from opentelemetry.trace import INVALID_SPAN

from trimtab.decoders.report import SearchProgress, Stage
from trimtab.runtime.progress import RequestProgress
from trimtab.runtime.strategy_run import StrategyRun
from trimtab.runtime.toy_engine import ToyEngine, ToyModel

ENGINE = ToyEngine(ToyModel(tables={}, vocab=(0,), max_tokens=1), start=0)


def test_of_one_prompt_it_is_the_search_s() -> None:
    progress = RequestProgress()
    for one in (
        SearchProgress(stage="draw", done=1, of=2),
        SearchProgress(stage="score", done=1, of=2, best=(3,), value=0.5),
        SearchProgress(stage="draw", done=2, of=2, best=(3,), value=0.5),
    ):
        progress.record(0, one)
        assert progress.total() == one


def test_of_several_prompts_it_is_the_sum_at_the_stage_of_the_last() -> None:
    """And it says of nobody's best that it is the request's."""
    progress = RequestProgress(prompts=2)
    seen = []
    steps: list[tuple[int, Stage, int]] = [
        (0, "draw", 0),
        (1, "draw", 1),
        (0, "draw", 2),
        (0, "score", 1),
        (1, "draw", 2),
        (1, "score", 1),
        (0, "score", 2),
    ]
    for prompt, stage, done in steps:
        progress.record(prompt, SearchProgress(stage=stage, done=done, of=2, best=(prompt,), value=1.0))
        total = progress.total()
        seen.append((total.stage, total.done, total.of))
        assert total.best is None
        assert total.value is None
    assert seen == [
        ("draw", 0, 2), ("draw", 1, 4), ("draw", 3, 4), ("draw", 3, 4), ("draw", 4, 4), ("score", 2, 4), ("score", 3, 4)
    ]  # fmt: skip


def test_what_is_no_news_changes_nothing() -> None:
    progress = RequestProgress()
    for news in (True, False):
        progress.record(0, SearchProgress(stage="draw", done=1, of=2))
        assert progress.changed.is_set() == news
        progress.changed.clear()


def test_each_prompt_s_engine_reports_to_the_request_traced_or_not() -> None:
    for span in (None, INVALID_SPAN):
        run = StrategyRun(progress=RequestProgress(prompts=2), span=span)
        for prompt in range(2):
            run.instrument(ENGINE, [prompt]).report_progress(SearchProgress(stage="draw", done=prompt, of=3))
        assert run.progress is not None
        assert {prompt: one.done for prompt, one in run.progress.latest.items()} == {0: 0, 1: 1}
    StrategyRun().instrument(ENGINE, [0]).report_progress(SearchProgress(stage="draw", done=1, of=3))
