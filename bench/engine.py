"""python -m trimtab.bench.engine: what guides cost, in the engine itself.

Every other bench speaks HTTP. This one drives vLLM directly: it compares one lock-step engine with its members as
separate engines, and a server would only add noise. Weights are random, since speed does not depend on them. Each round
runs every contender once at every batch size, one after the other on the same machine. A ratio is taken within a round,
so that a machine that slows down slows both sides; the median round is reported.

    ratio(K, B) = (t_base(B) + K t_guide(B)) / t_composite(K, B)

Two more ratios are of requests without guides in an engine with two guides: alone, against vLLM with the base; and as
half of a batch, where the guides run on all rows, against guides that run on the other half alone:

    plain(B) = t_base(B) / t_plain(2, B)        half(B) = (t_base(B) + 2 t_guide(B / 2)) / t_half(2, B)

t: seconds in which B requests prefill a prompt and draw the same number of tokens. Above 1, one engine is faster than
its members in turn. Two baselines with one guide stand for the usual alternatives: a loop over two Hugging Face models
with key-value caches, and a vLLM logits processor that runs a Hugging Face guide for each request.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from trimtab.bench import report
from trimtab.bench.gpu.shapes import tokenizer
from trimtab.bench.hf_guide import KEY as HF_KEY
from trimtab.engine.members import CPU_EXECUTOR, engine_args
from trimtab.engine.table import KEY, pack

VOCABULARY = 8192
ALPHA = 0.5
MOST_GUIDES = 3
PLAIN, HALF, HALF_GUIDE = "base + 2, plain", "base + 2, half", "guide, half"
HF_LOOP, HF_PROCESSOR = "two-model HF loop", "logits processor, HF guide"

Prompts = list[list[int]]
Extra = dict[str, Any] | None
Contender = Callable[[Prompts], None]
"""Generates for all prompts."""


@dataclass(frozen=True)
class LlamaSize:
    """A Llama's sizes: 98M and 21M parameters, of which the embeddings are 13M and 6M."""

    hidden: int
    layers: int

    def write(self, path: Path, seed: int) -> Path:
        """A checkpoint with random weights and a tokenizer of one word per id."""
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 8 // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.hidden // 64,
            max_position_embeddings=1024,
        )
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
        tokenizer(path, VOCABULARY)
        return path


BASE, GUIDE = LlamaSize(hidden=768, layers=12), LlamaSize(hidden=384, layers=8)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one measurement runs."""

    batches: tuple[int, ...]
    rounds: int
    prompt: int
    new: int
    seed: int
    cache_gib: float

    def prompts(self, batch: int, draw: random.Random) -> Prompts:
        return [[draw.randrange(3, VOCABULARY) for _ in range(self.prompt)] for _ in range(batch)]


@contextmanager
def vllm_engine(load: Workload, extra: Extra = None, **arguments: Any) -> Iterator[Callable[..., None]]:
    """A vLLM engine in its own process; prompt i of a run has the extra arguments `extras[i % len(extras)]`."""
    from vllm import LLM, SamplingParams

    llm = LLM(**arguments)

    def run(prompts: Prompts, extras: tuple[Extra, ...] = (extra,)) -> None:
        of = [SamplingParams(max_tokens=load.new, ignore_eos=True, detokenize=False, extra_args=e) for e in extras]
        params = [of[i % len(of)] for i in range(len(prompts))]
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == load.new for output in outputs)

    try:
        yield run
    finally:
        llm.llm_engine.engine_core.shutdown()


def hf_loop(load: Workload, base: str, guide: str, dtype: torch.dtype) -> Contender:
    """Both models step by step over one batch, mixed and sampled as in the engine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pair = [AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval() for path in (base, guide)]

    @torch.inference_mode()
    def run(prompts: Prompts) -> None:
        tokens = torch.tensor(prompts, device=device)
        caches: list[Any] = [None, None]
        for _ in range(load.new):
            z = 0.0
            for i, (model, weight) in enumerate(zip(pair, (1.0, ALPHA), strict=True)):
                output = model(tokens, past_key_values=caches[i], use_cache=True, logits_to_keep=1)
                caches[i] = output.past_key_values
                z = z + weight * output.logits[:, -1].float()
            tokens = torch.multinomial(torch.softmax(torch.as_tensor(z), -1), 1)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def start_contenders(
    stack: ExitStack, load: Workload, base: str, guide: str, dtype: str, *, eager: bool
) -> dict[str, Contender]:
    from vllm.platforms import current_platform

    shared: dict[str, Any] = {
        "dtype": dtype,
        "enforce_eager": eager,
        "max_model_len": load.prompt + load.new + 1,
        "max_num_seqs": max(load.batches),
        "max_num_batched_tokens": max(2048, max(load.batches) * load.prompt),
        "enable_prefix_caching": False,
        "block_size": 32,
        "kv_cache_memory_bytes": int(load.cache_gib * 2**30),
        "gpu_memory_utilization": 0.1,
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():  # for all, as the composite has it
        shared["distributed_executor_backend"] = CPU_EXECUTOR
    contenders: dict[str, Contender] = {
        "base": stack.enter_context(vllm_engine(load, model=base, **shared)),
        "guide": (alone := stack.enter_context(vllm_engine(load, model=guide, **shared))),
        HALF_GUIDE: lambda prompts: alone(prompts[::2]),
    }
    for K in range(1, MOST_GUIDES + 1):
        arguments = engine_args(base, {f"g{i}": guide for i in range(K)}, **shared)
        row = {KEY: pack([1.0, *[ALPHA / K] * K])}
        contenders[f"base + {K}"] = run = stack.enter_context(vllm_engine(load, row, **arguments))
        if K == 2:
            contenders[PLAIN] = partial(run, extras=(None,))
            contenders[HALF] = partial(run, extras=(row, None))
    processor = {"logits_processors": ["trimtab.bench.hf_guide:HFGuide"], "additional_config": {HF_KEY: guide}}
    with environment(VLLM_USE_V2_MODEL_RUNNER="0"):  # per-request processors are the V1 runner's
        contenders[HF_PROCESSOR] = stack.enter_context(
            vllm_engine(load, {HF_KEY: ALPHA}, model=base, **processor, **shared)
        )
    contenders[HF_LOOP] = hf_loop(load, base, guide, getattr(torch, dtype))
    return contenders


def measure(runs: dict[str, Contender], load: Workload) -> dict[int, dict[str, list[float]]]:
    """batch -> contender -> seconds of each round"""
    draw = random.Random(load.seed)
    seconds: dict[int, dict[str, list[float]]] = {batch: {name: [] for name in runs} for batch in load.batches}
    for batch in load.batches:  # the first time through compiles, allocates and fills caches
        for run in runs.values():
            run(load.prompts(min(batch, 8), draw))
    for _ in range(load.rounds):
        for batch in load.batches:
            names = list(runs)
            draw.shuffle(names)
            for name in names:
                prompts = load.prompts(batch, draw)
                start = time.perf_counter()
                runs[name](prompts)
                seconds[batch][name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], K: int) -> list[float]:
    """The sum of the members' times over the composite's, round by round."""
    rounds = zip(seconds["base"], seconds["guide"], seconds[f"base + {K}"], strict=True)
    return [(base + K * guide) / composite for base, guide, composite in rounds]


def plain_ratios(seconds: dict[str, list[float]]) -> list[float]:
    return [base / plain for base, plain in zip(seconds["base"], seconds[PLAIN], strict=True)]


def half_ratios(seconds: dict[str, list[float]]) -> list[float]:
    rounds = zip(seconds["base"], seconds[HALF_GUIDE], seconds[HALF], strict=True)
    return [(base + 2 * guide) / half for base, guide, half in rounds]


def speedups(seconds: dict[str, list[float]], other: str) -> list[float]:
    return [theirs / ours for theirs, ours in zip(seconds[other], seconds["base + 1"], strict=True)]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.2f}–{max(values):.2f})"


def tables(seconds: dict[int, dict[str, list[float]]], load: Workload) -> str:
    Ks = range(1, MOST_GUIDES + 1)
    contenders = [name for name in next(iter(seconds.values())) if name != HALF_GUIDE]
    composites = [f"base + {K}" for K in Ks]
    speed = [
        [batch, *(round(batch * load.new / statistics.median(of[name])) for name in contenders)]
        for batch, of in seconds.items()
    ]
    against_sum = [[batch, *(spread(ratios(of, K)) for K in Ks)] for batch, of in seconds.items()]
    cost = [
        [batch, *(statistics.median(of[f"base + {K}"]) / statistics.median(of["base"]) for K in Ks)]
        for batch, of in seconds.items()
    ]
    plain = [[batch, spread(plain_ratios(of)), spread(half_ratios(of))] for batch, of in seconds.items()]
    others = [
        [batch, *(spread(speedups(of, other)) for other in (HF_LOOP, HF_PROCESSOR))] for batch, of in seconds.items()
    ]
    return "\n\n".join(
        [
            "Generated tokens per second (median round)\n" + report.table(["batch", *contenders], speed),
            "Ratio of the members' times in turn to one engine's: median (lowest–highest round)\n"
            + report.table(["batch", *composites], against_sum),
            "Time against the base's alone\n" + report.table(["batch", *composites], cost),
            "Requests without guides, in an engine that has two: plain(B) and half(B)\n"
            + report.table(["batch", "plain", "half"], plain),
            "Times faster, with one guide, than\n" + report.table(["batch", HF_LOOP, HF_PROCESSOR], others),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="a checkpoint's directory; without it, random weights of 98M parameters")
    parser.add_argument("--guide", help="one of the same vocabulary; without it, random weights of 21M parameters")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="vLLM's compiled mode and CUDA graphs, not eager")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens")
    parser.add_argument("--cache-gib", type=float, default=1.0, help="each engine's key-value cache; there are six")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 16 tokens")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rounds, new = (2, 16) if args.quick else (args.rounds, args.new)
    load = Workload(
        batches=tuple(args.batches),
        rounds=rounds,
        prompt=args.prompt,
        new=new,
        seed=args.seed,
        cache_gib=args.cache_gib,
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        base = args.base or str(BASE.write(Path(folder, "base"), load.seed))
        guide = args.guide or str(GUIDE.write(Path(folder, "guide"), load.seed + 1))
        runs = start_contenders(stack, load, base, guide, args.dtype, eager=not args.compile)
        seconds = measure(runs, load)
    print(f"{report.hardware()}; {'compiled' if args.compile else 'eager'}, {args.dtype}; {load}\n")
    print(tables(seconds, load))
    report.write(args.json, {"load": vars(load), "eager": not args.compile, "dtype": args.dtype, "seconds": seconds})


if __name__ == "__main__":
    main()
