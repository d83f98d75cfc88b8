"""Who decodes together: a frozen base and its guides, checked before a worker starts.

`engine_args` turns names and paths into vLLM's engine arguments. Everything that can be refused is refused here, in the
process that a person is looking at, because what a worker raises reaches them as "engine core initialization failed".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trimtab.decoders.protocols import BASE
from trimtab.engine import lora
from trimtab.engine.errors import MemberError
from trimtab.engine.fork_server import fork_engines
from trimtab.engine.plugin import ARCHITECTURE, FIELD, register

if TYPE_CHECKING:
    from vllm.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Guide:
    """One guide's options."""

    name: str
    model: str
    """A checkpoint's directory or hub id; or a PEFT LoRA adapter of the base."""
    tokenizer: str | None = None
    """Where its tokenizer is, if not with the model: the one it was trained with, to be compared with the base's."""
    revision: str | None = None
    quantization: str | None = None
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    """Set by `engine_args`: the adapter to merge into `model`, which then is the base's."""
    adapter_revision: str | None = None

    @classmethod
    def parse(cls, name: str, options: str | Mapping[str, Any]) -> Guide:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or name == BASE:
            raise MemberError(name, f"not a guide's name: letters, digits, - and _, a letter first, and not {BASE!r}")
        fields = {"model": options} if isinstance(options, str) else dict(options)
        valid = ["hf_overrides", "model", "quantization", "revision", "tokenizer"]
        if unknown := sorted(set(fields) - set(valid)):
            raise MemberError(name, f"unknown option {unknown[0]!r}; valid: {', '.join(valid)}")
        if not isinstance(fields.get("model"), str):
            raise MemberError(name, f"`model` must be a path or a hub id, not {fields.get('model')!r}")
        return cls(name=name, **fields)


UNSUPPORTED_OPTIONS: dict[str, tuple[Any, str]] = {
    "pipeline_parallel_size": (1, "guides run in lock-step with the base, so a layer cannot be on another machine"),
    "enable_lora": (False, "a guide may be a LoRA adapter, but requests cannot bring their own"),
    "enable_prompt_embeds": (False, "a guide cannot read the base's embeddings"),
    "enable_dbo": (False, "half a batch does not say whose tokens it holds"),
    "kv_sharing_fast_prefill": (False, "it makes prompt log-probabilities wrong, which scoring reads"),
    "logprobs_mode": ("raw_logprobs", "scoring reads log-probabilities before masks and temperature"),
}
"""Engine options that cannot be honoured: the one valid value, and why."""

CPU_EXECUTOR = "trimtab.engine.cpu_executor.CPUExecutor"

LOCK_STEP_DRAFTS = {"draft_model", "ngram", "ngram_gpu", "suffix"}
"""Speculation that reads tokens only; the other methods read the base's hidden states, which here hold the guides'."""


def engine_args(base: str, guides: Mapping[str, str | Mapping[str, Any]], **options: Any) -> dict[str, Any]:
    """vLLM's engine arguments (`AsyncEngineArgs(**…)`) for the base and its guides, in this order.

    `options` are vLLM's own and pass through. Raises MemberError naming the member, what was found and what is valid.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    register()
    fork_engines()
    check_options(options)
    overrides = options.pop("hf_overrides", None) or {}
    base_config = model_config(
        BASE, lambda: AsyncEngineArgs(model=base, hf_overrides=overrides, **options).create_model_config()
    )
    check_kind(BASE, base_config)
    vocabulary_of_base = cache(partial(base_vocabulary, base_config))
    members = []
    for name, guide_options in guides.items():
        guide = Guide.parse(name, guide_options)
        if lora.is_adapter(guide.model, guide.revision):
            check_adapter(guide, base_config)
            guide = replace(
                guide,
                model=base,
                revision=base_config.revision,
                hf_overrides=overrides,
                adapter=guide.model,
                adapter_revision=guide.revision,
            )
        else:
            check_guide(guide, base_config, asked_length=options.get("max_model_len"))
            check_vocabulary(guide, base_config, vocabulary_of_base())
        members.append(asdict(guide))
    composite = {"architectures": base_config.architectures, "guides": members}
    if current_platform.is_cpu():
        options.setdefault("worker_cls", "trimtab.engine.cpu.SeededWorker")
        if options.get("tensor_parallel_size", 1) == 1:
            options.setdefault("distributed_executor_backend", CPU_EXECUTOR)
    return {
        **options,
        "model": base,
        "hf_overrides": {**overrides, "architectures": [ARCHITECTURE], FIELD: composite},
        "logits_processors": [*(options.get("logits_processors") or ()), "trimtab.engine.table:RowWriter"],
    }


def check_options(options: Mapping[str, Any]) -> None:
    for name, (valid, why) in UNSUPPORTED_OPTIONS.items():
        if options.get(name, valid) not in (valid, None):
            raise MemberError("engine", f"{name}={options[name]!r} cannot be honoured: {why}; valid: {valid!r}")
    if callable(options.get("hf_overrides")):
        raise MemberError("engine", "hf_overrides must be a mapping")
    if (most := options.get("max_logprobs", 20)) != -1 and most < 2:
        raise MemberError("engine", f"max_logprobs={most} is too few: a divergence is read from 2")
    speculative = options.get("speculative_config") or {}
    method = speculative.get("method", "draft_model")
    if method not in LOCK_STEP_DRAFTS:
        valid = ", ".join(sorted(LOCK_STEP_DRAFTS))
        raise MemberError("engine", f"speculative method {method!r} reads the base's hidden states; valid: {valid}")


def model_config(member: str, build: Callable[[], ModelConfig]) -> ModelConfig:
    """vLLM's config of one member; what it objects to, under the member's name."""
    try:
        config = build()
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise MemberError(member, reason.split(" Supported architectures:")[0]) from error  # hundreds of them
    except (OSError, ValueError, KeyError) as error:
        raise MemberError(member, str(error)) from error
    local = Path(config.model)
    if local.is_dir() and not any(any(local.glob(f"*.{kind}")) for kind in ("safetensors", "bin", "pt")):
        raise MemberError(member, f"no weights in {local}; valid: safetensors, or PyTorch's bin")
    return config


def guide_model_config(guide: Guide, base: ModelConfig, max_model_len: int | None) -> ModelConfig:
    """The config a guide is built with: its own checkpoint, the base's dtype, seed and tokenizer.

    Its name stands in its Hugging Face config, so that two members of one path do not share a compile cache.
    """
    from vllm.config import ModelConfig

    return ModelConfig(
        model=guide.model,
        runner="generate",
        tokenizer=base.tokenizer,
        tokenizer_mode=base.tokenizer_mode,
        trust_remote_code=base.trust_remote_code,
        dtype=base.dtype,
        seed=base.seed,
        revision=guide.revision,
        quantization=guide.quantization,
        enforce_eager=base.enforce_eager,
        max_model_len=max_model_len,
        hf_overrides={**guide.hf_overrides, "trimtab_member": guide.name},
    )


def check_kind(member: str, config: ModelConfig) -> None:
    """Only decoders over text tokens with a plain KV cache run in lock-step."""
    refused_kinds = {
        "an encoder-decoder": config.is_encoder_decoder,
        "a multimodal model": config.is_multimodal_model,
        "a hybrid or state-space model": config.is_hybrid or config.is_attention_free or config.has_inner_state,
        "a diffusion model": config.is_diffusion,
        "a pooling model": config.runner_type != "generate",
    }
    for kind, is_it in refused_kinds.items():
        if is_it:
            raise MemberError(member, f"{config.model} is {kind} ({config.architecture}); valid: a causal text model")


def check_guide(guide: Guide, base: ModelConfig, asked_length: int | None) -> None:
    config = model_config(guide.name, lambda: guide_model_config(guide, base, None))
    check_kind(guide.name, config)
    if config.max_model_len < base.max_model_len:
        whose = "max_model_len asks for" if asked_length and asked_length > 0 else "the base serves"
        raise MemberError(
            guide.name,
            f"{guide.model} has {config.max_model_len} positions and {whose} {base.max_model_len}; "
            f"valid: the engine option max_model_len of at most {config.max_model_len}",
        )


def vocabulary(member: str, tokenizer: str, *, trust_remote_code: bool, revision: str | None) -> dict[int, str]:
    """id -> token."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise MemberError(
            member, f"no tokenizer in {tokenizer} to compare with the base's; say where it is in the option `tokenizer`"
        ) from error
    return {index: token for token, index in loaded.get_vocab().items()}


def base_vocabulary(base: ModelConfig) -> dict[int, str]:
    return vocabulary(BASE, base.tokenizer, trust_remote_code=base.trust_remote_code, revision=base.tokenizer_revision)


def check_vocabulary(guide: Guide, base: ModelConfig, ours: Mapping[int, str]) -> None:
    """A mixture adds log-probabilities id by id, so an id must mean the same token to both; `ours` is the base's.

    One may know more ids than the other (padding, later additions): those are forbidden where the guide has a say.
    """
    theirs = vocabulary(
        guide.name,
        guide.tokenizer or guide.model,
        trust_remote_code=base.trust_remote_code,
        revision=guide.revision if guide.tokenizer is None else None,
    )
    differ = sorted(index for index in ours.keys() & theirs.keys() if ours[index] != theirs[index])
    if differ:
        first = differ[0]
        raise MemberError(
            guide.name,
            f"another tokenizer than the base's: {len(differ)} of {len(ours)} ids mean another token (id {first} is "
            f"{ours[first]!r} to the base, {theirs[first]!r} to the guide); valid: the base's vocabulary",
        )


def check_adapter(guide: Guide, base: ModelConfig) -> None:
    for option in ("hf_overrides", "quantization", "tokenizer"):
        if getattr(guide, option):
            raise MemberError(guide.name, f"{option} does not apply to a LoRA adapter, which is merged into the base")
    if base.is_quantized:
        raise MemberError(guide.name, "a LoRA adapter cannot be merged into a quantised base; valid: a full checkpoint")
    try:
        lora.Adapter.read(guide.model, guide.revision).check(lora.read_shapes(base.model))
    except lora.AdapterError as error:
        raise MemberError(guide.name, str(error)) from error
