"""Who decodes together: a frozen base and its guides, checked before a worker starts.

`engine_args` turns names and paths into vLLM's engine arguments. Everything that can be refused is refused here, in the
process that a person is looking at, because what a worker raises reaches them as "engine core initialization failed".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
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
    from vllm.config import ModelConfig, VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    from trimtab.engine.launch import EngineSpec


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
    "kv_sharing_fast_prefill": (False, "it makes prompt log-probabilities wrong, which scoring reads"),
    "logprobs_mode": ("raw_logprobs", "scoring reads log-probabilities before masks and temperature"),
}
"""Engine options that cannot be honoured: the one valid value, and why."""

UNGUIDED_OPTIONS: dict[str, tuple[Any, str]] = {
    "pipeline_parallel_size": (1, "guides run in lock-step with the base, so a layer cannot be on another machine"),
    "enable_prompt_embeds": (False, "a guide cannot read the base's embeddings"),
    "enable_dbo": (False, "half a batch does not say whose tokens it holds"),
}
"""Engine options that are honoured where there are no guides: the one valid value beside guides, and why."""

CPU_EXECUTOR = "trimtab.engine.cpu_executor.CPUExecutor"

LOCK_STEP_DRAFTS = {"draft_model", "ngram", "ngram_gpu", "suffix"}
"""Speculation that reads tokens only; other methods read the base's hidden states, beside which are the guides'."""

SALTED_CONNECTORS = {"MooncakeStoreConnector", "OffloadingConnector", "SimpleCPUOffloadConnector"}
"""KV connectors that know a block by vLLM's own hash, into which `cache_salt` goes, as vLLM 0.32 has them. The others
know it by its token ids, or fetch what another server computed, so a request of one guide may read blocks that only
another guide, or none, has filled."""

GUIDE_FORMATS = tuple(sorted([*lora.BASE_FORMATS, "dummy", "mistral", "runai_streamer"]))
"""vLLM's load formats in which each member is read from its own checkpoint, or made up. The others read one prepared
copy of the whole engine's weights, wherever it is."""

CHECKPOINT = "a folder with config.json, the weights as safetensors and a tokenizer, or a Hugging Face id"


def engine_args(
    base: str,
    guides: Mapping[str, str | Mapping[str, Any]],
    *,
    adapters: Mapping[str, str] | None = None,
    rows: Mapping[str, str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """vLLM's engine arguments (`AsyncEngineArgs(**…)`) for the base and its guides, in this order.

    `options` are vLLM's own and pass through. `adapters` are LoRA adapters that requests may name, with their places;
    `rows` those that are guides, a row of the batch each.
    A base without guides that cannot run in lock-step is vLLM's own model: it mixes nothing, see `FIELD`.
    Raises MemberError naming the member, what was found and what is valid.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    register()
    fork_engines()
    check_options(options)
    if guides:
        check_caches(options)
    overrides = options.pop("hf_overrides", None) or {}
    check_files(BASE, base, config_elsewhere=bool(options.get("hf_config_path")))
    base_config = model_config(
        BASE, lambda: AsyncEngineArgs(model=base, hf_overrides=overrides, **options).create_model_config(), base
    )
    check_generates(BASE, base_config)
    speculative = options.get("speculative_config") or {}
    head = find_head(base_config, speculative)
    if names_draft(speculative) and head is None:
        check_draft_name(speculative["model"])
    obstacle = find_obstacle(base_config, {**options, "hf_overrides": overrides}, head)
    if obstacle is not None and guides:
        raise obstacle
    ranks = options.get("tensor_parallel_size") or 1
    check_split(BASE, base_config, ranks)
    options |= lora.request_options(adapters or {}, rows or {}, options)
    vocabulary_of_base = cache(partial(base_vocabulary, base_config))
    members = []
    for name, guide_options in guides.items():
        guide = Guide.parse(name, guide_options)
        if lora.is_adapter(guide.model, guide.revision):
            check_adapter(guide, base_config)
            check_merged_format("engine", options.get("load_format") or "auto", option="load_format")
            guide = replace(
                guide,
                model=base,
                revision=base_config.revision,
                hf_overrides=overrides,
                adapter=guide.model,
                adapter_revision=guide.revision,
            )
        else:
            check_files(name, guide.model)
            config = model_config(name, partial(guide_model_config, guide, base_config, None), guide.model)
            check_kind(name, config)
            check_vocabulary(guide, base_config, vocabulary_of_base())
            check_length(guide, config, base_config, max_model_len=options.get("max_model_len"))
            check_split(name, config, ranks)
        members.append(asdict(guide))
    served: dict[str, Any] = {"architectures": base_config.architectures, "guides": members}
    if current_platform.is_cpu():
        options.setdefault("worker_cls", "trimtab.engine.cpu.SeededWorker")
        if options.get("tensor_parallel_size", 1) == 1 and options.get("pipeline_parallel_size", 1) == 1:
            options.setdefault("distributed_executor_backend", CPU_EXECUTOR)
    if obstacle is not None:
        served["obstacle"] = describe_obstacle(obstacle, base_config, options)
        return {**options, "model": base, "hf_overrides": {**overrides, FIELD: served}}
    return {
        **options,
        "model": base,
        "hf_overrides": {**overrides, "architectures": [ARCHITECTURE], FIELD: served},
        "logits_processors": [*(options.get("logits_processors") or ()), "trimtab.engine.table:RowWriter"],
    }


def find_obstacle(base: ModelConfig, options: Mapping[str, Any], head: str | None) -> MemberError | None:
    """Why the base cannot run in lock-step with guides; None where it can. `head`: what `find_head` says."""
    try:
        check_kind(BASE, base)
        if (form := options.get("load_format") or "auto") not in GUIDE_FORMATS:
            message = f"load_format={form!r} cannot be honoured beside guides: it reads no member's own checkpoint"
            raise MemberError("engine", f"{message}; valid: {', '.join(GUIDE_FORMATS)}", option="load_format")
        for name, (valid, why) in UNGUIDED_OPTIONS.items():
            if options.get(name, valid) not in (valid, None):
                message = f"{name}={options[name]!r} cannot be honoured beside guides: {why}; valid: {valid!r}"
                raise MemberError("engine", message, option=name)
        if speculative := options.get("speculative_config"):
            method = speculative.get("method") or "draft_model"
            if method not in LOCK_STEP_DRAFTS or head is not None:
                raise refuse_speculation(
                    f"method {method!r}" if head is None else f"draft {draft_of(options)} ({head})"
                )
            check_runner(base, options)
    except MemberError as obstacle:
        if "GuideGraphs" in str(options.get("worker_cls")):
            message = f"{options['worker_cls']} captures graphs for guides, and cannot run here: {obstacle.problem}"
            raise MemberError("engine", message, option="worker_cls") from None
        return obstacle
    return None


def describe_obstacle(obstacle: MemberError, base: ModelConfig, options: Mapping[str, Any]) -> str:
    """In words for clients, who are shown no path of this machine."""
    text = obstacle.problem
    for place in (base.model, draft_of(options)):
        text = text.replace(place, Path(place).name) if place else text
    return text


def check_runner(base: ModelConfig, options: Mapping[str, Any]) -> None:
    """That the rows of mixtures reach the workers: vLLM's V1 runner takes no logits processor beside speculation."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    args = AsyncEngineArgs(model=base.model, **deepcopy(dict(options)))  # vLLM writes into what it is given
    if not engine_config(BASE, args).use_v2_model_runner:
        message = (
            "speculative_config cannot be honoured beside guides on vLLM's V1 runner, which this engine has: it takes "
        )
        raise MemberError(
            "engine", f"{message}no custom logits processor then; valid: none", option="speculative_config"
        )


def check_options(options: Mapping[str, Any]) -> None:
    for name, (valid, why) in UNSUPPORTED_OPTIONS.items():
        if options.get(name, valid) not in (valid, None):
            message = f"{name}={options[name]!r} cannot be honoured: {why}; valid: {valid!r}"
            raise MemberError("engine", message, option=name)
    if callable(options.get("hf_overrides")):
        raise MemberError("engine", "hf_overrides must be a mapping", option="hf_overrides")
    if (most := options.get("max_logprobs", 20)) != -1 and most < 2:
        message = f"max_logprobs={most} is too few: a divergence is read from 2"
        raise MemberError("engine", message, option="max_logprobs")
    if (draft := draft_of(options)) and draft not in LOCK_STEP_DRAFTS:
        check_files("engine", draft)


def draft_of(options: Mapping[str, Any]) -> str | None:
    """The model that `speculative_config` names."""
    draft: str | None = (options.get("speculative_config") or {}).get("model")
    return draft


def refuse_speculation(what: str) -> MemberError:
    valid = ", ".join(sorted(LOCK_STEP_DRAFTS))
    message = f"speculative {what} reads the base's hidden states, beside which are the guides'; valid beside guides: "
    return MemberError("engine", message + valid, option="speculative_config")


def find_head(base: ModelConfig, speculative: Mapping[str, Any]) -> str | None:
    """What shows that a draft under the method `draft_model` is no language model of its own; None where nothing does.

    Its config and weights decide: vLLM goes by its name. Raises MemberError for a draft that cannot be read.
    """
    from vllm.model_executor.models.registry import _SPECULATIVE_DECODING_MODELS
    from vllm.transformers_utils.config import get_config

    if not names_draft(speculative):
        return None
    model: str = speculative["model"]
    try:
        config = get_config(model, base.trust_remote_code, revision=speculative.get("revision"))
        names = lora.read_shapes(model) or {}
    except (OSError, ValueError, KeyError) as error:
        raise MemberError("engine", one_line(f"draft {model}: {error}"), option="speculative_config") from None
    kinds = {*(getattr(config, "architectures", None) or ()), config.model_type}
    known = _SPECULATIVE_DECODING_MODELS.keys() | {"eagle", "medusa", "mlp_speculator", "speculators"}
    marks = [name for name in ("draft_vocab_size", "dflash_config", "eagle_config") if getattr(config, name, None)]
    heads = [name for name in names if name.split(".")[0] in ("fc", "midlayer")]
    signs = sorted(kinds & known) or marks or heads
    return signs[0] if signs else None


def names_draft(speculative: Mapping[str, Any]) -> bool:
    """Whether it names a model that drafts by itself."""
    model, method = speculative.get("model"), speculative.get("method") or "draft_model"
    return method == "draft_model" and bool(model) and model not in LOCK_STEP_DRAFTS


def check_draft_name(model: str) -> None:
    """That vLLM takes a language model for one: whatever its method is said to be, vLLM goes by its name."""
    for mark in ("eagle-", "eagle3", "dflash", "dspark"):
        if mark in model.lower():
            message = (
                f"vLLM takes draft {model} for another method because of {mark!r} in its name: give it another name"
            )
            raise MemberError("engine", message, option="speculative_config")


def check_caches(options: Mapping[str, Any]) -> None:
    """That what keeps keys and values outside the engine keeps those of different guides apart."""
    if options.get("kv_offloading_size") and options.get("kv_offloading_backend", "native") != "native":
        message = (
            f"kv_offloading_backend={options['kv_offloading_backend']!r} may serve a guided request blocks that its "
        )
        raise MemberError("engine", f"{message}guide never wrote; valid: 'native'", option="kv_offloading_backend")
    transfer = options.get("kv_transfer_config") or {}
    read = transfer.get if isinstance(transfer, Mapping) else partial(getattr, transfer)
    connectors = [(read("kv_connector", None), read("kv_connector_module_path", None))]
    for inner in (read("kv_connector_extra_config", None) or {}).get("connectors", ()):
        connectors.append((inner.get("kv_connector"), inner.get("kv_connector_module_path")))
    if len(connectors) > 1 and connectors[0] == ("MultiConnector", None):
        connectors.pop(0)
    for name, module in connectors:
        if name is not None and (module is not None or name not in SALTED_CONNECTORS):
            raise MemberError(
                "engine",
                f"KV connector {name!r} does not know blocks by salted hashes, so it may serve a guided request blocks "
                f"that its guide never wrote; valid beside guides: {', '.join(sorted(SALTED_CONNECTORS))}",
                option="kv_transfer_config",
            )


def check_files(member: str, model: str, *, config_elsewhere: bool = False) -> None:
    """That a path leads to a checkpoint; what is no path is left to Hugging Face."""
    path = Path(model)
    if model.endswith(".gguf"):
        raise MemberError(member, f"{model} is a GGUF file, which is not served; valid: {CHECKPOINT}")
    if path.is_file():
        raise MemberError(member, f"{model} is a file; valid: {CHECKPOINT}")
    if not path.is_dir():
        if path.is_absolute():
            raise MemberError(member, f"there is no {model}; valid: {CHECKPOINT}")
        return
    try:
        files = {file.name for file in path.iterdir()}
    except OSError as error:
        raise MemberError(member, f"{model} cannot be read: {error.strerror}") from None
    if config_elsewhere or files & {"config.json", "params.json"}:
        return
    if not files:
        problem = "is empty"
    elif lora.CONFIG in files:
        problem = f"is an adapter ({lora.CONFIG}), which a guide or a reward can be, or an entry of engine.lora_modules"
    elif any(name.endswith(".gguf") for name in files):
        problem = "holds a GGUF file, which is not served"
    else:
        below = sorted(child for child in path.iterdir() if (child / "config.json").is_file())
        problem = "has no config.json" + (f"; {below[0]} has one" if below else "")
    raise MemberError(member, f"{model} {problem}; valid: {CHECKPOINT}")


def check_split(member: str, config: ModelConfig, ranks: int) -> None:
    """That tensor parallelism can share the member out: whole heads, and the inner layers evenly."""
    if ranks == 1:
        return
    heads = config.model_arch_config.total_num_attention_heads
    pairs = 1 if config.use_mla else config.get_total_num_kv_heads()
    inner = getattr(config.hf_text_config, "intermediate_size", None) or 0
    for what, size, fits in (
        ("attention heads", heads, heads % ranks == 0),
        ("key-value heads", pairs, pairs % ranks == 0 or ranks % pairs == 0),
        ("units in its inner layers (intermediate_size)", inner, inner % ranks == 0),
    ):
        if not fits:
            least = ", ".join(str(n) for n in range(1, ranks) if heads % n == inner % n == 0)
            raise MemberError(
                member,
                f"{config.model} has {size} {what}, which do not go into tensor_parallel_size={ranks}; valid: {least}",
                option="tensor_parallel_size" if member == BASE else "",
            )


def one_line(text: str, most: int = 600) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[:most] + "…"


def model_config(member: str, build: Callable[[], ModelConfig], model: str | None = None) -> ModelConfig:
    """vLLM's config of one member; what it objects to, under the member's name. `model`: as a person wrote it."""
    try:
        config = build()
    except (ValidationError, OSError, ValueError, KeyError) as error:
        reason = explain_refusal(error)
        hub = "" if model is None or Path(model).is_dir() else f"there is no folder {model!r}, and on Hugging Face: "
        raise MemberError(member, hub + reason) from error
    if Path(config.model).is_dir():
        check_weights(member, Path(config.model))
    return config


def check_weights(member: str, folder: Path) -> None:
    """That a folder holds weights, and the files that its index names, if it has one, as what they are named."""
    if not any(any(folder.glob(f"*.{kind}")) for kind in ("safetensors", "bin", "pt")):
        raise MemberError(member, f"no weights in {folder}; valid: safetensors, or PyTorch's bin")
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MemberError(member, f"{index} cannot be read: {error!r}") from None
    for file in files:
        if not file.is_file():
            raise MemberError(member, f"{folder} has no {file.name}, which {index.name} names; valid: all of its files")
        try:
            lora.read_file_shapes(file)
        except lora.AdapterError as error:
            with file.open("rb") as opened:
                pointer = opened.read(40).startswith(b"version https://git-lfs")
            hint = "; it is a pointer of Git LFS's, whose file `git lfs pull` fetches" if pointer else ""
            raise MemberError(member, f"{error}{hint}") from None


def check_merged_format(member: str, form: str, *, option: str) -> None:
    """That an adapter can be merged into weights that are loaded in this format."""
    if form not in lora.BASE_FORMATS:
        problem = f"an adapter cannot be merged into weights of load_format={form!r}"
        raise MemberError(member, f"{problem}; valid: {', '.join(lora.BASE_FORMATS)}", option=option)


def engine_config(member: str, args: AsyncEngineArgs, **how: Any) -> VllmConfig:
    """vLLM's config of an engine; what it objects to, as a MemberError."""
    try:
        return args.create_engine_config(**how)
    except (ValidationError, OSError, ValueError, KeyError, NotImplementedError) as error:
        title = error.title if isinstance(error, ValidationError) else ""
        option = {"SpeculativeConfig": "speculative_config"}.get(title, "")
        if member == BASE:
            raise MemberError("engine", explain_refusal(error), option=option) from error
        raise MemberError(member, explain_refusal(error), option="engine") from error


def explain_refusal(error: Exception) -> str:
    """What vLLM objects to, without the parts that are pydantic's, and without the hundreds of architectures."""
    message = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return one_line(message.removeprefix("Value error, ").split(" Supported architectures:")[0])


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


def check_generates(member: str, config: ModelConfig) -> None:
    """Only what draws one token after another can be searched, scored and mixed."""
    refused_kinds = {
        "an encoder-decoder": config.is_encoder_decoder,
        "a diffusion model": config.is_diffusion,
        "a pooling model": config.runner_type != "generate",
    }
    for kind, is_it in refused_kinds.items():
        if is_it:
            raise MemberError(member, f"{config.model} is {kind} ({config.architecture}); valid: a causal model")


def check_kind(member: str, config: ModelConfig) -> None:
    """Only decoders over text tokens with a plain KV cache run in lock-step."""
    check_generates(member, config)
    kinds = {
        "a multimodal model": (config.is_multimodal_model, "what is no text reaches one member alone"),
        "a hybrid or state-space model": (
            config.is_hybrid or config.is_attention_free or config.has_inner_state,
            "members share block tables of keys and values, and it keeps a recurrent state",
        ),
    }
    valid = "; valid beside guides" if member == BASE else "; valid"
    for kind, (is_it, why) in kinds.items():
        if is_it:
            message = f"{config.model} is {kind} ({config.architecture}): {why}{valid}: a causal text model"
            raise MemberError(member, message)
    model_class, _ = config.registry.resolve_model_cls(config.architectures, config)
    if hasattr(model_class, "get_model_state_cls"):  # the composite brings its own, which would take its place
        raise MemberError(
            member,
            f"{config.model} ({config.architecture}) brings a model state of its own, whose place the one that mixes "
            f"would take{valid}: a model without one",
        )


def check_length(guide: Guide, config: ModelConfig, base: ModelConfig, max_model_len: int | None) -> None:
    if config.max_model_len < base.max_model_len:
        whose = "max_model_len asks for" if (max_model_len or 0) > 0 else "the base serves"
        raise MemberError(
            guide.name,
            f"{guide.model} has {config.max_model_len} positions and {whose} {base.max_model_len}; "
            f"valid: engine.max_model_len of at most {config.max_model_len}",
        )


def load_tokenizer(member: str, place: str, revision: str | None, trust_remote_code: bool) -> Any:
    """As `transformers` loads it, once for all members; raises MemberError."""
    try:
        return read_tokenizer(place, revision, trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise MemberError(
            member,
            f"no tokenizer in {place} to compare with the base's; say where it is in the option `tokenizer`",
            option="tokenizer",
        ) from error


@cache
def read_tokenizer(place: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, revision=revision)


def vocabulary(member: str, tokenizer: str, *, trust_remote_code: bool, revision: str | None) -> dict[int, str]:
    """id -> token."""
    loaded = load_tokenizer(member, tokenizer, revision, trust_remote_code)
    return {index: token for token, index in loaded.get_vocab().items()}


def load_base_tokenizer(spec: EngineSpec) -> Any:
    config = spec.config.model_config
    return load_tokenizer(BASE, config.tokenizer, config.tokenizer_revision, config.trust_remote_code)


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
