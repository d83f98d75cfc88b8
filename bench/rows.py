"""python -m trimtab.bench.rows: what guides cost that are rows of the batch, in the engine itself.

A prompt or an adapter as a guide is one row more of the base's own batch (engine.gangs); an adapter may also be merged
into a copy of the base, which is a second model. Each round runs every contender once at every batch size, on the same
machine; a ratio is taken within a round, and the median round is reported.

    speed(contender, B) = t_plain(B) / t_contender(B)

t: seconds in which B requests prefill a prompt and draw the same number of tokens. 1 is as fast as plain requests on an
engine that knows no guides; a gang of k rows that cost as much as k requests would be at 1 / k.

Below it: the same by arithmetic for a model of 8B on an H100, whose step reads all weights once and each row's keys and
values, and nothing else; launches and LoRA kernels are left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trimtab.bench import report
from trimtab.bench.engine import BASE, Contender, Workload, measure, spread, vllm_engine
from trimtab.engine import gangs
from trimtab.engine.gang_config import number_adapters, schedule_gangs
from trimtab.engine.gangs import Adapter, Follower, GangSpec
from trimtab.engine.launch import EngineSpec
from trimtab.engine.members import CPU_EXECUTOR, engine_args
from trimtab.engine.table import KEY, pack

PLAIN, BESIDE, PROMPT, AGAINST = "plain", "plain, gangs possible", "prompt", "prompt and against"
LORA_PLAIN, LORA, COPY = "plain, adapters possible", "adapter, a row", "adapter, a copy"
CONTEXT = 16
"""Tokens of an instruction."""
WEIGHT = 0.5

WEIGHTS_GB, KV_BYTES, GB_PER_S = 15.0, 131_072, 2900.0
"""Of Llama 3.1 8B in bf16: what a step reads, and what of each token of context; and what an H100 reads a second."""


def write_adapter(path: Path, base: str) -> Path:
    """A random LoRA of all linear layers, rank 8."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(path)
    return path


def gang(prompt: Sequence[int], followers: int, adapter: Adapter | None) -> dict[str, bytes]:
    """The extra arguments of a request with rows beside it: under instructions, or of an adapter."""
    contexts = [[*range(10 + i, 10 + i + CONTEXT * (adapter is None)), *prompt] for i in range(followers)]
    rows = [Follower((-1) ** i * WEIGHT, tokens, adapter) for i, tokens in enumerate(contexts)]
    return {gangs.KEY: gangs.pack(GangSpec(weight=1.0, followers=rows))}


def start_contenders(stack: ExitStack, load: Workload, base: str, adapter: str, dtype: str) -> dict[str, Contender]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    shared: dict[str, Any] = {
        "dtype": dtype,
        "enforce_eager": True,
        "max_model_len": CONTEXT + load.prompt + load.new + 1,
        "max_num_seqs": 3 * max(load.batches),
        "max_num_batched_tokens": max(2048, 3 * max(load.batches) * (CONTEXT + load.prompt)),
        "enable_prefix_caching": False,
        "block_size": 32,
        "kv_cache_memory_bytes": int(load.cache_gib * 2**30),
        "gpu_memory_utilization": 0.1,
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():  # for all, as the composite has it
        shared["distributed_executor_backend"] = CPU_EXECUTOR

    def with_gangs(arguments: dict[str, Any]) -> dict[str, Any]:
        config = EngineSpec(name="base", args=AsyncEngineArgs(**arguments)).config
        schedule_gangs(config, needed=["base"])
        chosen = {
            "scheduler_cls": config.scheduler_config.scheduler_cls,
            "worker_cls": config.parallel_config.worker_cls,
        }
        return {**arguments, **chosen}

    def each(run: Any, followers: int, of: Adapter | None = None) -> Contender:
        return lambda prompts: run(prompts, tuple(gang(prompt, followers, of) for prompt in prompts))

    plain = stack.enter_context(vllm_engine(load, model=base, **shared))
    rows = stack.enter_context(vllm_engine(load, **with_gangs(engine_args(base, {}, **shared))))
    adapters = engine_args(base, {}, rows={"adapter": adapter}, enable_lora=True, **shared)
    lora = stack.enter_context(vllm_engine(load, **with_gangs(adapters)))
    copied = stack.enter_context(
        vllm_engine(load, {KEY: pack([1.0, WEIGHT])}, **engine_args(base, {"adapter": adapter}, **shared))
    )
    [numbered] = number_adapters({"adapter": adapter}).values()
    return {
        PLAIN: plain,
        BESIDE: rows,
        PROMPT: each(rows, 1),
        AGAINST: each(rows, 2),
        LORA_PLAIN: lora,
        LORA: each(lora, 1, numbered),
        COPY: copied,
    }


def speeds(seconds: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """contender -> of each round, the plain engine's time over its own"""
    return {
        name: [plain / its for plain, its in zip(seconds[PLAIN], of, strict=True)]
        for name, of in seconds.items()
        if name != PLAIN
    }


def step_over_plain(batch: int, context: int, *, rows: int = 1, copies: int = 1) -> float:
    """By arithmetic: the time of a step over that of a plain one."""

    def reads(rows: int, copies: int) -> float:
        return copies * (WEIGHTS_GB * 1e9 + rows * batch * context * KV_BYTES)

    return reads(rows, copies) / reads(1, 1)


def show(seconds: Mapping[int, Mapping[str, list[float]]], load: Workload) -> None:
    names = list(next(iter(seconds.values())))
    tokens = [
        [batch, *(round(batch * load.new / statistics.median(of[name])) for name in names)]
        for batch, of in seconds.items()
    ]
    print("Answers' tokens per second (median round)\n" + report.table(["batch", *names], tokens))
    against = [[batch, *(spread(of) for of in speeds(of).values())] for batch, of in seconds.items()]
    print(
        "\nOf the plain engine's speed: median (lowest–highest round)\n" + report.table(["batch", *names[1:]], against)
    )
    ways = {"2 rows": {"rows": 2}, "3 rows": {"rows": 3}, "a copy": {"copies": 2}}
    arithmetic = [
        [
            batch,
            *(f"{1 / step_over_plain(batch, context, **way):.2f}" for way in ways.values() for context in (512, 2048)),
        ]
        for batch in (1, 8, 64)
    ]
    headers = [f"{way}, {context} tokens" for way in ways for context in (512, 2048)]
    print("\nBy arithmetic, 8B on an H100\n" + report.table(["batch", *headers], arithmetic))
    print(f"A copy takes {WEIGHTS_GB:g} GB more, and twice as much of the cache for every token of everybody's.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="a checkpoint's directory; without it, random weights of 98M parameters")
    parser.add_argument("--adapter", help="a LoRA of it; without it, a random one of rank 8")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens")
    parser.add_argument("--cache-gib", type=float, default=1.0, help="each engine's key-value cache; there are four")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 16 tokens, at batch 1 and 8")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rounds, new, batches = (2, 16, [1, 8]) if args.quick else (args.rounds, args.new, args.batches)
    load = Workload(
        batches=tuple(batches), rounds=rounds, prompt=args.prompt, new=new, seed=args.seed, cache_gib=args.cache_gib
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # rows are decoded together on the V1 runner
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        base = args.base or str(BASE.write(Path(folder, "base"), load.seed))
        adapter = args.adapter or str(write_adapter(Path(folder, "adapter"), base))
        seconds = measure(start_contenders(stack, load, base, adapter, args.dtype), load)
    print(f"{report.hardware()}; eager, {args.dtype}; {load}\n")
    show(seconds, load)
    report.write(args.json, {"load": vars(load), "dtype": args.dtype, "seconds": seconds})


if __name__ == "__main__":
    main()
