"""`parity`: the engine against a plain recompute, token for token.

A family of tiny random models: a base, a guide with another head size, one with biases, tied embeddings and a smaller
vocabulary, and one with only the first 200 tokens. Requests of different lengths and mixtures, plain ones among them,
are answered greedily in one batch, twice: the second time their prompts are in the prefix cache. Steps of at most
`CHUNK` tokens split the prompts, and CUDA graphs are captured for all such steps. Then Hugging Face's code recomputes
each prompt and answer on the same device in fp64, and the engine's token is compared with the mixture there:

    the best token                                       right
    within `TIE` nats of the best                        a tie
    anything else                                        a mismatch

In fp32 there must be no mismatch; TF32 is off, in Triton's kernels too. In bf16 both sides start from the same rounded
weights, and the mismatches are reported beside those of Hugging Face's own code in bf16.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from trimtab.bench.gpu.shapes import tokenizer
from trimtab.bench.gpu.speed import APART
from trimtab.decoders.protocols import BASE, Mixture, member_alone
from trimtab.engine.members import engine_args

VOCABULARY = 264
KNOWN = 200
"""Tokens that every member knows."""
POSITIONS = 256
CHUNK = 64
NEW = 24
TIE = 1e-4

Verdict = Literal["right", "tie", "mismatch"]


def cases(*, cuda: bool) -> list[str]:
    """dtype.mode.runner. `checked`: graphs, with vLLM's check that each finds its inputs where it was captured;
    `apart`: full graphs for each set of guides (engine.cuda)."""
    if not cuda:
        return ["float32.eager.v1", "bfloat16.eager.v1"]
    first = ["float32.eager.v2", "float32.graphs.v2", "float32.checked.v2", "float32.apart.v2"]
    every = map(".".join, itertools.product(("float32", "bfloat16"), ("eager", "graphs"), ("v2", "v1")))
    return [*first, *(case for case in every if case not in first)]


def environment(case: str) -> dict[str, str]:
    dtype, mode, runner = case.split(".")
    exact = {"NVIDIA_TF32_OVERRIDE": "0", "TRITON_F32_DEFAULT": "ieee"}
    return {
        **(exact if dtype == "float32" else {}),
        **({"VLLM_LOGGING_LEVEL": "DEBUG"} if mode == "checked" else {}),
        **({"VLLM_USE_V2_MODEL_RUNNER": "0"} if runner == "v1" else {}),  # V2 is the default where there is Triton
    }


def sizes(hidden: int, layers: int, heads: int, vocabulary: int = VOCABULARY, *, tied: bool = False) -> dict[str, Any]:
    """With initial weights so large that distributions are peaked."""
    return {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 1, "max_position_embeddings": POSITIONS,
        "initializer_range": 0.25, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tied,
    }  # fmt: skip


FAMILY = {
    BASE: LlamaConfig(**sizes(64, 3, 2)),
    "llama": LlamaConfig(**sizes(64, 2, 1)),
    "qwen": Qwen2Config(**sizes(64, 2, 2, 259, tied=True)),
    "shorter": LlamaConfig(**sizes(64, 1, 2, KNOWN)),
}
GUIDES = [name for name in FAMILY if name != BASE]


def write(folder: Path) -> dict[str, str]:
    """member -> its checkpoint's directory"""
    paths = {}
    for seed, (name, config) in enumerate(FAMILY.items()):
        torch.manual_seed(seed)
        paths[name] = str(folder / name)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(paths[name])
        tokenizer(folder / name, config.vocab_size)
    return paths


@dataclass(frozen=True)
class Case:
    prompt: list[int]
    mixture: Mixture | None
    """None: a plain request, which names no mixture."""


def requests() -> list[Case]:
    """Prompts of one token, of many chunks, and with a common prefix; each guide alone, with the base, and with all."""
    draw = random.Random(0)
    shared = [draw.randrange(KNOWN) for _ in range(130)]
    prompts = [[draw.randrange(KNOWN) for _ in range(length)] for length in (1, 3, 17, 40, 64, 65, 90, 150, 200)]
    prompts += [shared + [draw.randrange(KNOWN) for _ in range(length)] for length in (1, 20, 40)]
    mixtures: list[Mixture | None] = [
        None,
        {BASE: 0.3, "llama": -0.7},
        {BASE: 1.0, **{guide: round(draw.uniform(-0.5, 1.5), 3) for guide in GUIDES}},
        *map(member_alone, GUIDES),
        *({BASE: 1.0, guide: round(draw.uniform(0.2, 1.5), 3)} for guide in GUIDES),
    ]
    return [Case(prompt, mixture) for prompt, mixture in zip(prompts, itertools.cycle(mixtures), strict=False)]


@dataclass(frozen=True)
class Reference:
    """The members in Hugging Face's code, one sequence at a time; logits are mixed in fp64."""

    models: Mapping[str, Any]

    @classmethod
    def load(cls, paths: Mapping[str, str], weights: torch.dtype, computed: torch.dtype) -> Reference:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        load = AutoModelForCausalLM.from_pretrained
        return cls({name: load(path, dtype=weights).to(device, computed).eval() for name, path in paths.items()})

    @torch.inference_mode()
    def logprobs(self, tokens: Sequence[int], mixture: Mixture) -> Tensor:
        """[T, V] of the next token after each; on the CPU."""
        z = torch.zeros(len(tokens), VOCABULARY, dtype=torch.float64)
        for member, weight in mixture.items():
            model = self.models[member]
            known = torch.tensor([tokens], device=model.device).clamp(max=model.config.vocab_size - 1)
            logits = model(known).logits[0].double().cpu()
            z[:, : logits.shape[-1]] += weight * logits.log_softmax(-1)
            if weight != 0:
                z[:, logits.shape[-1] :] = float("-inf")
        return z.log_softmax(-1)


def verdict(logprobs: Tensor, token: int) -> Verdict:
    """Of a greedy choice, by the [V] log-probabilities of the recompute."""
    behind = float(logprobs.max() - logprobs[token])
    return "right" if behind == 0 else "tie" if behind < TIE else "mismatch"


@dataclass
class Tally:
    tokens: int = 0
    mismatches: int = 0
    ties: int = 0
    worst: float = 0.0
    """|Δ log-probability| of a chosen token."""
    where: list[tuple[int, int]] = field(default_factory=list)
    """(request, position in its answer) of mismatches."""

    def count(self, at: tuple[int, int], logprobs: Tensor, token: int, engine_logprob: float) -> None:
        kind = verdict(logprobs, token)
        if kind == "mismatch":
            self.where.append(at)
        self.tokens += 1
        self.mismatches += kind == "mismatch"
        self.ties += kind == "tie"
        self.worst = max(self.worst, abs(float(logprobs[token]) - engine_logprob))


@dataclass(frozen=True)
class Completion:
    tokens: list[int]
    logprobs: list[float]


def generate_all(llm: Any, cases: Sequence[Case]) -> tuple[list[Completion], int]:
    """Completions of all cases in one batch, and the number of prompt tokens from the prefix cache."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    from trimtab.engine.table import KEY, cache_salt, guides_of, pack

    def row(mixture: Mixture | None) -> dict[str, bytes] | None:
        return None if mixture is None else {KEY: pack([mixture.get(name, 0.0) for name in (BASE, *GUIDES)])}

    params = [
        SamplingParams(
            max_tokens=NEW, temperature=0.0, logprobs=0, ignore_eos=True, detokenize=False, extra_args=row(case.mixture)
        )
        for case in cases
    ]
    prompts = []
    for case, param in zip(cases, params, strict=True):
        guides = guides_of(param.extra_args[KEY]) if param.extra_args else []
        prompts.append(tokens_input(case.prompt, cache_salt=cache_salt(None, [GUIDES[i] for i in guides])))
    outputs = llm.generate(prompts, params, use_tqdm=False)
    completions = []
    for output in outputs:
        [one] = output.outputs
        logprobs = [entry[token].logprob for token, entry in zip(one.token_ids, one.logprobs, strict=True)]
        completions.append(Completion(list(one.token_ids), logprobs))
    return completions, sum(output.num_cached_tokens or 0 for output in outputs)


def recompute(answers: Sequence[tuple[Case, Completion]], reference: Reference) -> list[Tensor]:
    """[T, V] of each answer: log-probabilities at each of its tokens."""
    return [
        reference.logprobs([*case.prompt, *answer.tokens[:-1]], case.mixture or {BASE: 1.0})[len(case.prompt) - 1 :]
        for case, answer in answers
    ]


def measure(name: str, folder: Path) -> dict[str, Any]:
    from vllm import LLM

    dtype, mode, _ = name.split(".")
    paths = write(folder)
    options: dict[str, Any] = {
        "dtype": dtype,
        "enforce_eager": mode == "eager",
        "max_model_len": POSITIONS,
        "max_num_seqs": 16,
        "max_num_batched_tokens": CHUNK,
        "block_size": 32,
        "kv_cache_memory_bytes": 64 << 20,
        "gpu_memory_utilization": 0.1,
        "enable_prefix_caching": True,
    }
    if mode != "eager":
        options["compilation_config"] = {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, CHUNK]}
    if mode == "apart":
        options["worker_cls"] = APART
    llm = LLM(**engine_args(paths[BASE], {guide: paths[guide] for guide in GUIDES}, **options))
    config = llm.llm_engine.vllm_config
    cases = requests()
    try:
        cold, _ = generate_all(llm, cases)
        warm, cached = generate_all(llm, cases)
    finally:
        llm.llm_engine.engine_core.shutdown()
    answers = list(zip([*cases, *cases], [*cold, *warm], strict=True))

    weights = getattr(torch, dtype)
    expected = recompute(answers, Reference.load(paths, weights, torch.float64))
    tally, theirs = Tally(), Tally()
    for i, ((_, answer), rows) in enumerate(zip(answers, expected, strict=True)):
        for j, choice in enumerate(zip(rows, answer.tokens, answer.logprobs, strict=True)):
            tally.count((i, j), *choice)
    if weights != torch.float32:
        for i, (rough, rows) in enumerate(
            zip(recompute(answers, Reference.load(paths, weights, weights)), expected, strict=True)
        ):
            for j, choice in enumerate(zip(rows, rough.argmax(-1).tolist(), rough.amax(-1).tolist(), strict=True)):
                theirs.count((i, j), *choice)
    return {
        "engine": asdict(tally),
        "hugging_face": asdict(theirs),
        "cached": cached,
        "v2": config.use_v2_model_runner,
        "async": config.scheduler_config.async_scheduling,
        "graphs": str(config.compilation_config.cudagraph_mode),
    }
