from __future__ import annotations

import gzip
import json
import math
import time
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from trimtab.bench.gpu import parity, show, speed
from trimtab.bench.gpu.__main__ import Job, announce_plugin, choose, jobs, run
from trimtab.bench.gpu.job import counts
from trimtab.bench.gpu.shapes import bound, cache_bytes, floor, weight_bytes
from trimtab.bench.gpu.speed import DEVICE, SHAPES, STAND_INS, DecodeLoad, kernels, rows, step

BASE, SMALL = SHAPES["8b"], SHAPES["1b"]
LOAD = DecodeLoad(batches=(8,), rounds=3, prompt=256, short=32, long=160)


def test_what_a_step_multiplies_with() -> None:
    layer = 4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14336 + 2 * 4096
    assert BASE.read_parameters == 32 * layer + 4096 + 128256 * 4096 == 8_030_261_248 - 128256 * 4096
    assert SMALL.read_parameters == 1_235_814_400, "all of a model whose head is its embedding"


@pytest.mark.parametrize("shape", [*SHAPES.values(), *STAND_INS.values()])
def test_sizes_are_those_of_the_model_that_is_built(shape) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config())
    unread = 0 if shape.tied else model.get_input_embeddings().weight.numel()
    assert shape.read_parameters == sum(p.numel() for p in model.parameters()) - unread
    attention = model.model.layers[0].self_attn
    keys_and_values = attention.k_proj.out_features + attention.v_proj.out_features
    assert shape.kv_bytes == 2 * shape.layers * keys_and_values


def test_the_floor_is_bytes_over_bandwidth() -> None:
    assert (BASE.kv_bytes, SMALL.kv_bytes) == (131_072, 32_768)
    assert weight_bytes([BASE]) == 15_009_849_344
    assert cache_bytes([BASE, SMALL], 8, 352.0) == 8 * 352 * (131_072 + 32_768)
    assert floor([BASE], 8, 352.0, bandwidth=3e12) == pytest.approx((15_009_849_344 + 369_098_752) / 3e12)
    assert floor([BASE, SMALL, SMALL], 1, 0.0, bandwidth=1.0) == 15_009_849_344 + 2 * 2_471_628_800


def test_a_large_batch_is_bound_by_multiplying() -> None:
    small, large = 8, 1024
    assert bound([BASE], small, 352.0, bandwidth=3e12, flops=7e14) == floor([BASE], small, 352.0, bandwidth=3e12)
    operations = 2 * BASE.read_parameters * large
    expected = operations / 7e14 + cache_bytes([BASE], large, 352.0) / 3e12
    assert bound([BASE], large, 352.0, bandwidth=3e12, flops=7e14) == pytest.approx(expected)


def figure(batch: int, requests: str, *steps: float, start: float = 1.0) -> dict[str, object]:
    """Rounds whose steps take so many seconds each, after `start` seconds."""
    short, long = ([start + new * taken for taken in steps] for new in (LOAD.short, LOAD.long))
    return {"batch": batch, "requests": requests, "short": short, "long": long}


def test_a_step_is_what_more_tokens_take() -> None:
    assert step(figure(8, "plain", 0.010, 0.030, 0.011, start=5.0), LOAD) == pytest.approx(0.011), "the median round"
    assert step({"short": [], "long": []}, LOAD) is None


def results(**engines: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    return {name.replace("_", "+"): {"load": vars(LOAD), "figures": figures} for name, figures in engines.items()}


def test_rates_and_shares_of_an_engine() -> None:
    timed = results(**{
        "8b": [figure(8, "plain", 0.010)],
        "1b": [figure(8, "plain", 0.002)],
        "8b_1b_1b": [figure(8, "plain", 0.0125), figure(8, "guided", 0.016)],
    })  # fmt: skip
    timed[DEVICE] = {"bandwidth": 3e12, "flops": 7e14}
    base, _, plain, guided = rows(timed, quick=False)
    assert base.tokens_per_s == pytest.approx(800)
    assert base.prefill_per_s == pytest.approx(8 * 256), "in the second before the first token"
    assert (base.ratio, base.of_base) == (None, None)
    assert base.share == pytest.approx(floor([BASE], 8, 352.0, bandwidth=3e12) / 0.010)
    assert (plain.ratio, plain.of_base) == (None, pytest.approx(0.8))
    assert plain.share == pytest.approx(floor([BASE], 8, 352.0, bandwidth=3e12) / 0.0125), "it needs no guide"
    assert (guided.ratio, guided.of_base) == (pytest.approx(0.014 / 0.016), pytest.approx(0.625))
    assert guided.share == pytest.approx(floor([BASE, SMALL, SMALL], 8, 352.0, bandwidth=3e12) / 0.016)


def test_what_was_not_measured_is_told_as_missing() -> None:
    left_out = {"batch": 256, "requests": "plain", "short": [], "long": [], "left_out": "left out"}
    timed = results(**{"8b": [left_out], "8b_1b": [figure(8, "guided", 0.016)]})
    for row in rows(timed, quick=False):
        assert row.ratio is row.share is row.of_base is None
    outcomes = {f"speed.{name}": {"state": show.HUNG, "result": result} for name, result in timed.items()}
    assert "8b, batch 256, plain: left out" in show.tables(outcomes, quick=False)
    assert [row["engine"] for row in show.figures(outcomes, quick=False)["speed"]] == ["8b", "8b+1b"]


def test_greedy_choices_are_right_ties_or_mismatches() -> None:
    logprobs = torch.tensor([-1.0, -1.0 - 0.5e-4, -1.0 - 2e-4, -9.0], dtype=torch.float64)
    assert [parity.verdict(logprobs, token) for token in range(4)] == ["right", "tie", "mismatch", "mismatch"]
    tally = parity.Tally()
    for token, engine_logprob in ((0, -1.0), (1, -1.25), (3, -9.0)):
        tally.count((7, token), logprobs, token, engine_logprob)
    assert (tally.tokens, tally.ties, tally.mismatches, tally.where) == (3, 1, 1, [(7, 3)])
    assert tally.worst == pytest.approx(0.25 - 0.5e-4)


def parity_outcome(mismatches: int) -> dict[str, object]:
    tally = {"tokens": 9, "mismatches": mismatches, "ties": 1, "worst": 1e-5, "where": []}
    result = {"engine": tally, "hugging_face": {**tally, "tokens": 0}, "cached": 3, "v2": True, "async": True}
    return {"state": "done", "result": {**result, "graphs": "NONE"}}


def test_only_fp32_must_not_differ() -> None:
    assert (
        show.problems({"parity.float32.eager.v2": parity_outcome(0), "parity.bfloat16.eager.v2": parity_outcome(2)})
        == []
    )
    assert show.problems({"parity.float32.eager.v2": parity_outcome(1)}) == ["parity.float32.eager.v2: 1 mismatches"]
    assert show.problems({"search": {"state": show.HUNG}}) == ["search: timed out"]
    assert show.problems({"demo": {"state": "done", "result": {"passed": 3, "failed": 1}}}) == ["demo: 1 failed"]


def test_every_kind_of_guide_and_request_is_held_against_the_recompute() -> None:
    requests = parity.requests()
    mixtures = [case.mixture for case in requests if case.mixture is not None]
    assert len(mixtures) < len(requests), "plain requests among them"
    assert {name for mixture in mixtures for name in mixture} == set(parity.FAMILY)
    assert max(len(case.prompt) for case in requests) > 2 * parity.CHUNK
    assert all(len(case.prompt) + parity.NEW <= parity.POSITIONS for case in requests)


def test_a_trace_says_where_the_time_went(tmp_path: Path) -> None:
    def event(cat: str, name: str, ts: float, dur: float) -> dict[str, object]:
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

    events = [
        event("cpu_op", "aten::mm", 0.0, 9000.0),
        event("kernel", "gemm", 1000.0, 2000.0),
        event("kernel", "gemm", 4000.0, 1000.0),
        event("kernel", "flash", 3000.0, 500.0),
        {"ph": "M", "name": "process_name"},
    ]
    (tmp_path / "guided8_rank0.1.pt.trace.json.gz").write_bytes(
        gzip.compress(json.dumps({"traceEvents": events}).encode())
    )
    outcomes = kernels(tmp_path, "guided8_")
    assert outcomes is not None
    assert (outcomes["span_ms"], outcomes["busy_ms"]) == (4.0, 3.5)
    assert outcomes["top"] == [{"name": "gemm", "ms": 3.0, "calls": 2}, {"name": "flash", "ms": 0.5, "calls": 1}]
    assert kernels(tmp_path, "guided64_") is None


def test_cases_are_named_in_whole_or_up_to_a_dot() -> None:
    every = jobs(cuda=True)
    assert [job.name for job in choose(every, ["speed.8b", "demo"], quick=False)] == ["speed.8b", "demo"]
    assert len(choose(every, ["parity.float32"], quick=False)) == 6
    assert choose(every, [], quick=False) == every
    assert "demo" not in [job.name for job in choose(every, [], quick=True)]
    with pytest.raises(ValueError, match="no such case"):
        choose(every, ["speed.7b"], quick=False)


def test_only_fp32_turns_tf32_off_and_only_v1_leaves_the_default_runner() -> None:
    assert parity.environment("float32.graphs.v2")["TRITON_F32_DEFAULT"] == "ieee"
    assert parity.environment("bfloat16.eager.v2") == {}
    assert parity.environment("bfloat16.eager.v1") == {"VLLM_USE_V2_MODEL_RUNNER": "0"}


def test_a_checkout_that_is_not_installed_still_has_its_plugin(tmp_path: Path) -> None:
    announce_plugin(tmp_path)
    [outcomes] = distributions(path=[str(tmp_path)])
    [plugin] = outcomes.entry_points
    assert plugin.group == "vllm.general_plugins"
    assert callable(plugin.load())


def test_a_directory_without_weights(tmp_path: Path) -> None:
    path = STAND_INS["1b"].write(tmp_path)
    assert AutoConfig.from_pretrained(path).architectures == ["LlamaForCausalLM"]
    assert len(AutoTokenizer.from_pretrained(path)) == STAND_INS["1b"].vocabulary
    assert load_file(tmp_path / "model.safetensors") == {}


def test_members_are_named_by_their_sizes() -> None:
    assert speed.members("8b+1b+1b", quick=False) == [BASE, SMALL, SMALL]
    assert {part for name in speed.ENGINES for part in name.split("+")} == set(SHAPES) == set(STAND_INS)


def test_outcomes_of_tests(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text('<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2"></testsuite></testsuites>')
    assert counts(report) == {"passed": 5, "failed": 2, "skipped": 2}


@pytest.mark.slow
def test_a_case_that_fails_or_hangs_is_told_and_ended(tmp_path: Path) -> None:
    failed = run(Job(name="parity.nonsense", limit=600), math.inf, [], tmp_path)
    assert failed["state"] == show.FAILED
    assert "ValueError" in failed["log"]
    assert "ValueError" in (tmp_path / "parity.nonsense.log").read_text()
    hung = run(Job(name="search", limit=600), time.monotonic() + 1.5, ["--quick"], None)
    assert hung["state"] == show.HUNG
    assert hung["seconds"] < 60
    assert run(Job(name="search", limit=600), time.monotonic(), [], None)["state"] == show.LEFT
    assert show.problems({"search": hung, "parity.nonsense": failed}) == [
        "search: timed out",
        "parity.nonsense: failed",
    ]
