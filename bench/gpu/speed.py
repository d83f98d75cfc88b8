"""`speed`: one engine for base and guides, its members alone, and the lower bound of a step.

Random weights in the shapes of Llama-3.1-8B and Llama-3.2-1B, bf16, one engine after another. B requests prefill
`prompt` tokens each and draw `short` or `long` tokens; a decode step takes

    step = (t(long) - t(short)) / (long - short)                                                                    (1)

seconds, the median of the rounds. Prefill, the overhead of a call, and the first and last steps with part of the batch
cancel out. The steps of (1) have a mean length of prompt + (short + long) / 2.

    ratio = (step_base + Σ_i step_guide_i) / step_composite: above 1, lock-step is faster than engines in turn       (2)
    share = floor / step, bench/gpu/shapes.py (1)                                                                    (3)
    prefill = B · prompt / (t(short) - short · step) tokens a second
"""

from __future__ import annotations

import gzip
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trimtab.bench.gpu import device
from trimtab.bench.gpu.shapes import Shape, bound, floor
from trimtab.engine.members import engine_args

DEVICE = "device"
APART = "trimtab.engine.cuda.GuideGraphsWorker"
ENGINES = ("8b", "1b", "8b+1b", "8b+8b", "8b+1b+1b")
"""Members of each, the base first; a guide of the base's shape needs no run alone, its time is the base's."""

SHAPES = {
    "8b": Shape(hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocabulary=128256),
    "1b": Shape(
        hidden=2048, layers=16, heads=32, kv_heads=8, head_dim=64, intermediate=8192, vocabulary=128256, tied=True
    ),
}
STAND_INS = {
    "8b": Shape(hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, intermediate=768, vocabulary=2048),
    "1b": Shape(hidden=128, layers=2, heads=4, kv_heads=2, head_dim=32, intermediate=384, vocabulary=2048, tied=True),
}
"""Shapes of --quick."""

ALPHA = 0.5
ENOUGH = 0.85
"""Share of the floor's rate below which the kernels are shown."""
PROFILED, TOP = 8, 15
"""Steps that are profiled, and kernels that are reported."""
GUIDED, PLAIN = "guided", "plain"


@dataclass(frozen=True, kw_only=True)
class DecodeLoad:
    batches: tuple[int, ...]
    rounds: int
    prompt: int
    short: int
    long: int

    @property
    def length(self) -> float:
        """Mean length of a sequence in the steps of (1)."""
        return self.prompt + (self.short + self.long) / 2

    def prompts(self, batch: int, draw: random.Random, vocabulary: int) -> list[dict[str, list[int]]]:
        return [{"prompt_token_ids": [draw.randrange(3, vocabulary) for _ in range(self.prompt)]} for _ in range(batch)]


FULL = DecodeLoad(batches=(1, 8, 64, 256), rounds=3, prompt=256, short=32, long=160)
QUICK = DecodeLoad(batches=(1, 8), rounds=2, prompt=32, short=4, long=36)


def cases() -> list[str]:
    return [DEVICE, *ENGINES]


def members(name: str, *, quick: bool) -> list[Shape]:
    shapes = STAND_INS if quick else SHAPES
    return [shapes[member] for member in name.split("+")]


def options(*, seqs: int, length: int) -> dict[str, Any]:
    """vLLM's arguments of every engine here; the cache gets most of a GPU's memory, and little of a CPU's."""
    cuda = torch.cuda.is_available()
    return {
        "dtype": "bfloat16",
        "load_format": "dummy",
        "enforce_eager": not cuda,
        "max_model_len": length,
        "max_num_seqs": seqs,
        "max_num_batched_tokens": 8192,
        **({"gpu_memory_utilization": 0.9} if cuda else {"kv_cache_memory_bytes": 1 << 28, "block_size": 32}),
    }


def write_checkpoints(name: str, folder: Path, *, quick: bool) -> tuple[str, dict[str, str]]:
    """The directories of the base and of its guides by name."""
    base, *guides = [shape.write(folder / f"member{i}") for i, shape in enumerate(members(name, quick=quick))]
    return base, {f"g{i}": guide for i, guide in enumerate(guides)}


@contextmanager
def open_engine(name: str, load: DecodeLoad, folder: Path, *, quick: bool, profile: bool, apart: bool) -> Iterator[Any]:
    from vllm import LLM

    base, guides = write_checkpoints(name, folder, quick=quick)
    arguments = options(seqs=max(load.batches), length=load.prompt + load.long + 1) | {"enable_prefix_caching": False}
    if not arguments["enforce_eager"]:
        arguments["compilation_config"] = {"cudagraph_capture_sizes": list(load.batches)}
    if apart and guides:
        arguments["worker_cls"] = APART
    if profile:
        arguments["profiler_config"] = {
            "profiler": "torch",
            "torch_profiler_dir": str(folder / "traces"),
            "torch_profiler_with_stack": False,
            "ignore_frontend": True,
        }
    llm = LLM(**(engine_args(base, guides, **arguments) if guides else {"model": base, **arguments}))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def measure(
    name: str, folder: Path, save: Callable[[Any], None], *, quick: bool, profile: bool, apart: bool
) -> dict[str, Any]:
    """Seconds of every round, by batch and kind of requests; `save` gets those so far after each."""
    if name == DEVICE:
        return device.limits(quick=quick)
    from trimtab.engine.table import pack

    load = QUICK if quick else FULL
    shapes = members(name, quick=quick)
    rows: dict[str, bytes | None] = {PLAIN: None}
    if guides := shapes[1:]:
        rows[GUIDED] = pack([1.0, *[ALPHA / len(guides)] * len(guides)])
    figures: list[dict[str, Any]] = []
    result = {"load": asdict(load), "figures": figures}
    draw = random.Random(0)
    with open_engine(name, load, folder, quick=quick, profile=profile, apart=apart) as llm:
        cache = llm.llm_engine.vllm_config.cache_config
        room = cache.num_gpu_blocks * cache.block_size
        for batch in load.batches:
            for kind, row in rows.items():
                figure: dict[str, Any] = {"batch": batch, "requests": kind, "short": [], "long": []}
                figures.append(figure)
                if batch * (load.prompt + load.long) > room:
                    figure["left_out"] = f"left out, the cache holds {room} tokens"
                    continue

                def run(new: int, batch: int = batch, row: bytes | None = row) -> float:
                    return seconds(llm, load.prompts(batch, draw, shapes[0].vocabulary), new, row)

                run(load.short)
                for _ in range(load.rounds):
                    figure["short"].append(run(load.short))
                    figure["long"].append(run(load.long))
                if profile:
                    llm.start_profile(f"{kind}{batch}", delay_iterations=load.short, max_iterations=PROFILED)
                    run(load.long)
                    llm.stop_profile()
                    figure["profile"] = kernels(folder / "traces", f"{kind}{batch}_")
                save(result)
    return result


def seconds(llm: Any, prompts: Sequence[Any], new: int, row: bytes | None) -> float:
    from vllm import SamplingParams

    from trimtab.engine.table import KEY

    extra = None if row is None else {KEY: row}
    params = SamplingParams(max_tokens=new, ignore_eos=True, detokenize=False, extra_args=extra)
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    taken = time.perf_counter() - start
    assert all(len(output.outputs[0].token_ids) == new for output in outputs)
    return taken


def kernels(folder: Path, prefix: str) -> dict[str, Any] | None:
    """Milliseconds of the profiled steps: from first to last, in kernels, and in the `TOP` kernels.

    On CPU there are no kernels: operators take their place, whose times overlap where they are nested. None without a
    trace.
    """
    traces = [json.loads(gzip.decompress(file.read_bytes())) for file in folder.glob(f"{prefix}*.gz")]
    events = [event for trace in traces for event in trace["traceEvents"] if event.get("ph") == "X"]
    kernel_events = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    kernel_events = kernel_events or [e for e in events if e.get("cat") == "cpu_op"]
    if not kernel_events:
        return None
    took: dict[str, list[float]] = {}
    for event in kernel_events:
        took.setdefault(event["name"], []).append(event["dur"] / 1000)
    span = max(e["ts"] + e["dur"] for e in kernel_events) - min(e["ts"] for e in kernel_events)
    most = sorted(took.items(), key=lambda item: -sum(item[1]))[:TOP]
    return {
        "span_ms": span / 1000,
        "busy_ms": sum(sum(times) for times in took.values()),
        "top": [{"name": name[:160], "ms": sum(times), "calls": len(times)} for name, times in most],
    }


def step(figure: Mapping[str, Any], load: DecodeLoad) -> float | None:
    """(1)"""
    rounds = [
        (long - short) / (load.long - load.short) for short, long in zip(figure["short"], figure["long"], strict=True)
    ]
    return statistics.median(rounds) if rounds else None


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One engine at one batch size, for one kind of requests. None: a figure that it needs is missing."""

    engine: str
    batch: int
    requests: str
    step: float | None
    tokens_per_s: float | None
    prefill_per_s: float | None
    ratio: float | None
    """(2)"""
    of_base: float | None
    """The step of the base alone over this one: the share of its speed that is left with the guides."""
    share: float | None
    """(3); for plain requests the floor is that of the base alone."""
    share_of_bound: float | None
    """As `share`, with (2) of bench/gpu/shapes.py."""
    profile: Mapping[str, Any] | None = None
    left_out: str | None = None


def rows(results: Mapping[str, Mapping[str, Any]], *, quick: bool) -> list[SpeedRow]:
    """From the results of `measure`, by case."""
    limits = results.get(DEVICE)
    steps: dict[tuple[str, int, str], float | None] = {}
    for name in ENGINES:
        for figure in results.get(name, {}).get("figures", ()):
            load = DecodeLoad(**results[name]["load"])
            steps[name, figure["batch"], figure["requests"]] = step(figure, load)
    speed_rows = []
    for name in ENGINES:
        base, *guides = parts = name.split("+")
        for figure in results.get(name, {}).get("figures", ()):
            batch, kind = figure["batch"], figure["requests"]
            step_s, load = steps[name, batch, kind], DecodeLoad(**results[name]["load"])
            alone = [steps.get((part, batch, PLAIN)) for part in parts]
            known = [taken for taken in alone if taken is not None]
            shapes = members(name if kind == GUIDED else base, quick=quick)
            at_most: dict[str, float | None] = {"share": None, "share_of_bound": None}
            if step_s and limits:
                floored = floor(shapes, batch, load.length, bandwidth=limits["bandwidth"])
                bounded = bound(shapes, batch, load.length, bandwidth=limits["bandwidth"], flops=limits["flops"])
                at_most = {"share": floored / step_s, "share_of_bound": bounded / step_s}
            prefill = statistics.median(figure["short"]) - load.short * step_s if step_s else 0.0
            speed_rows.append(
                SpeedRow(
                    engine=name,
                    batch=batch,
                    requests=kind,
                    step=step_s,
                    tokens_per_s=batch / step_s if step_s else None,
                    prefill_per_s=batch * load.prompt / prefill if prefill > 0 else None,
                    ratio=sum(known) / step_s if step_s and kind == GUIDED and len(known) == len(parts) else None,
                    of_base=alone[0] / step_s if step_s and guides and alone[0] else None,
                    profile=figure.get("profile"),
                    left_out=figure.get("left_out"),
                    **at_most,
                )
            )
    return speed_rows
