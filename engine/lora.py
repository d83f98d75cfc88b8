"""PEFT LoRA adapters: those of guides and rewards, merged while the weights stream in, and those of requests.

A guide's or reward's weights are W = W_base + s·B·A. A request's adapter is vLLM's own affair: here is what we ask.

s = lora_alpha / r, or lora_alpha / √r with rsLoRA. Merging before vLLM stacks q, k and v (or gate and up) means that
fused layers need no thought, and nothing is written to disk. Source: peft's `LoraConfig` and `LoraLayer`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from trimtab.engine.errors import MemberError

if TYPE_CHECKING:
    from vllm.config.lora import LoRAConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

LOAD_FORMAT = "trimtab_adapter"
"""vLLM's name for a checkpoint that is loaded with an adapter merged in (engine.adapter_loader)."""

BASE_FORMATS = ("auto", "fastsafetensors", "hf", "instanttensor", "npcache", "pt", "safetensors")
"""vLLM's load formats that yield a checkpoint's weights one by one under the names that PEFT knows, so that an adapter
can be merged into them."""

HEADS = ("score", "classifier")
"""What `transformers` and PEFT call the layer of a reward model that scores; a base has none."""

SUPPORTED = {
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",  # each A's own shape says it
    "use_rslora",
}
TRAINING_ONLY = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
NEUTRAL: dict[str, tuple[Any, ...]] = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal")}
"""Values of fields that otherwise change the base's own weights or biases."""


MERGE = "merge it into its base (peft's merge_and_unload), save that with its tokenizer, and serve it as a checkpoint"
"""What to do with an adapter that is more than A and B."""


class AdapterError(ValueError):
    """An adapter that cannot be merged into this base."""


def find_file(model: str, name: str, revision: str | None = None) -> Path | None:
    """A checkpoint's file, from a directory or the hub; None if it has none such."""
    if Path(model).is_dir():
        return Path(model, name) if Path(model, name).is_file() else None
    try:
        file = cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError:  # no such repository; whoever builds the model's config says so better
        return None
    return Path(file) if file is not None else None


def is_adapter(model: str, revision: str | None = None) -> bool:
    return find_file(model, CONFIG, revision) is not None


def read_shapes(model: str) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of a checkpoint's weights; None where it is not a local directory of safetensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(model).glob("*.safetensors")):
        shapes |= read_file_shapes(file)
    return shapes or None


def read_file_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in one file; raises AdapterError for one that is no safetensors."""
    try:
        with safe_open(path, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from None


def read_modules(model: str, path: Path, *, replaces: bool) -> tuple[set[str], dict[str, tuple[int, ...]]]:
    """The modules for which the adapter's weights have A and B, and the shapes of weights that it has whole.

    Raises AdapterError where they hold anything else, and, unless the adapter `replaces` weights, for whole ones.
    """
    modules: dict[str, set[str]] = {}
    whole: dict[str, tuple[int, ...]] = {}
    for name, shape in read_file_shapes(path).items():
        if match := re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name):
            modules.setdefault(match[1], set()).add(match[2])
        elif replaces and (match := re.fullmatch(r"base_model\.model\.((?!.*(lora_|base_layer|trainable)).+)", name)):
            whole[match[1]] = shape
        else:
            more = ", and whole weights" if replaces else ""
            raise AdapterError(f"{model} holds {name}; valid: only A and B of linear layers{more}; {MERGE}")
    for module, halves in modules.items():
        if halves != {"A", "B"}:
            raise AdapterError(f"{model} has only one of A and B for {module}")
    if not modules:
        raise AdapterError(f"{path} holds no weights, so it would change nothing")
    return set(modules), whole


@dataclass(frozen=True)
class Adapter:
    path: Path
    config: Mapping[str, Any]
    modules: frozenset[str]
    """The base's modules that it changes, by their names in the base's checkpoint."""
    whole: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of weights that take the base's place or that the base has not, such as a head, by their names there."""

    @classmethod
    def read(cls, model: str, revision: str | None = None, *, replaces: bool = False) -> Adapter:
        """Raises AdapterError for whatever a merge of A and B would not honour.

        `replaces`: whether it may bring whole weights too, as PEFT saves a reward model's head (`modules_to_save`) and
        the embedding of a vocabulary that has grown.
        """
        config_file, path = find_file(model, CONFIG, revision), find_file(model, WEIGHTS, revision)
        if config_file is None or path is None:
            old = config_file is not None and Path(model, "adapter_model.bin").is_file()
            hint = "; load adapter_model.bin with peft, and save_pretrained writes it" if old else ""
            raise AdapterError(f"{model} has no {WEIGHTS if config_file else CONFIG}{hint}")
        try:
            config = json.loads(config_file.read_text())
        except (ValueError, OSError) as error:
            raise AdapterError(f"{config_file} cannot be read: {error}") from None
        if config.get("task_type") == "SEQ_CLS" and not replaces:
            raise AdapterError(
                f"{model} is an adapter of a reward model's (task_type SEQ_CLS); valid: a language model's"
            )
        if config.get("peft_type") != "LORA":
            raise AdapterError(f"{model} is a {config.get('peft_type')} adapter; valid: LORA; {MERGE}")
        for key, value in config.items():
            neutral = value in NEUTRAL[key] if key in NEUTRAL else not value
            if not neutral and key not in SUPPORTED | TRAINING_ONLY and not (replaces and key == "modules_to_save"):
                raise AdapterError(f"{model} has {key}={value!r}, which a merge of A and B does not honour; {MERGE}")
        if not isinstance(config.get("lora_alpha"), int | float):
            raise AdapterError(f"{config_file} says no lora_alpha, by which A and B are scaled")
        modules, whole = read_modules(model, path, replaces=replaces)
        return cls(path, config, frozenset(modules), whole)

    @property
    def labels(self) -> int | None:
        """How many scores its head gives; None: it brings no head."""
        heads = [shape for name, shape in self.whole.items() if name.split(".")[0] in HEADS and len(shape) == 2]
        return heads[-1][0] if heads else None

    def check(self, base: Mapping[str, tuple[int, ...]] | None) -> None:
        """That every module it changes is in the base, in its shape. Without the base's shapes, loading checks."""
        if base is None:
            return
        with safe_open(self.path, framework="pt") as weights:
            for module in sorted(self.modules):
                A, B = (weights.get_slice(self._key(module, half)).get_shape() for half in "AB")
                needed = (A[1], B[0]) if self.config.get("fan_in_fan_out") else (B[0], A[1])
                shape = base.get(f"{module}.weight")
                if shape != needed:
                    has = f"has it as {list(shape)}" if shape else "has no such weight"
                    raise AdapterError(f"a LoRA of another base: it changes {module} of {list(needed)}; the base {has}")
        for name, whole in self.whole.items():
            shape = base.get(name)
            if name.split(".")[0] not in HEADS and (shape is None or shape[1:] != whole[1:]):
                has = f"has it as {list(shape)}" if shape else "has no such weight"
                raise AdapterError(f"an adapter of another base: it brings {name} of {list(whole)}; the base {has}")

    @staticmethod
    def load_options(model: str, revision: str | None, form: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """vLLM's arguments for a base that is loaded, in one of `BASE_FORMATS` and with that format's own `options`,
        with this adapter merged in."""
        extra = {"adapter": model, "revision": revision, "load_format": form, "options": dict(options)}
        return {"load_format": LOAD_FORMAT, "model_loader_extra_config": extra}

    def merge(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The base's weights with this adapter in them; those that it changes in fp32, whatever dtype they had."""
        left = set(self.modules)
        with safe_open(self.path, framework="pt") as halves:
            for name in self.whole:
                yield name, halves.get_tensor(f"base_model.model.{name}")
            for name, weight in weights:
                if name in self.whole:
                    continue
                module = name.removesuffix(".weight")
                if name.endswith(".weight") and module in left:
                    left.remove(module)
                    A, B = (halves.get_tensor(self._key(module, half)).float() for half in "AB")
                    delta = self._scale(module, rank=len(A)) * (B @ A)
                    delta = delta.T if self.config.get("fan_in_fan_out") else delta
                    if delta.shape != weight.shape:
                        raise AdapterError(f"a LoRA of another base: {module} is {list(weight.shape)} there")
                    weight = weight.float() + delta.to(weight.device)
                yield name, weight
        if left:
            raise AdapterError(f"a LoRA of another base, which has no {sorted(left)[0]}")

    def _scale(self, module: str, rank: int) -> float:
        alpha = self.config["lora_alpha"]
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    @staticmethod
    def _key(module: str, half: str) -> str:
        return f"base_model.model.{module}.lora_{half}.weight"


def request_options(
    adapters: Mapping[str, str], guides: Mapping[str, str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """vLLM's options beside `options` for adapters that requests may name, and for `guides` that are rows of a batch:
    all may be in one step. Raises MemberError for one that is unfit.

    On CPU (`PunicaWrapperCPU`, vLLM 0.32) no layers but the adapters' own are wrapped, for a wrapped head multiplies
    every row by as many adapters as there are requests, which ends the engine when two are scored at once. And there is
    a slot more than adapters, for requests without one get the last slot's weights beside others.
    """
    from vllm.config.lora import LoRAConfig
    from vllm.platforms import current_platform

    if not options.get("enable_lora", bool(guides)):
        if adapters:
            raise MemberError("engine", "needs enable_lora: true", option="lora_modules")
        if guides:
            raise MemberError(next(iter(guides)), "an adapter needs enable_lora: true", option="adapter")
        return {}
    if not adapters and not guides:
        raise MemberError("engine", "no request could name an adapter; valid: with lora_modules", option="enable_lora")
    targets: set[str] = set(options.get("lora_target_modules") or ())
    rank = options.get("max_lora_rank") or max([LoRAConfig.max_lora_rank, *map(read_rank, guides.values())])
    for name, place in {**adapters, **guides}.items():
        try:
            targets |= check_unmerged(place, LoRAConfig(max_lora_rank=rank))
        except (OSError, ValueError, TypeError) as error:
            if name in guides:
                raise MemberError(name, str(error), option="adapter") from None
            raise MemberError("engine", f"{name}: {error}", option="lora_modules") from None
    made: dict[str, Any] = {"enable_lora": True, "max_lora_rank": rank} if guides else {}
    if guides or current_platform.is_cpu():
        spare = 1 if current_platform.is_cpu() else 0
        made["max_loras"] = max(len(adapters) + len(guides) + spare, options.get("max_loras") or 0)
    if current_platform.is_cpu():
        made["lora_target_modules"] = sorted(targets) or None
    return made


def check_unmerged(place: str, config: LoRAConfig) -> set[str]:
    """The last names of the modules that an adapter changes, for vLLM to apply beside the base; raises ValueError for
    one that vLLM cannot."""
    from vllm.lora.peft_helper import PEFTHelper

    file = find_file(place, CONFIG)
    if file is None:
        raise ValueError(f"no adapter in {place}; valid: a folder with {CONFIG}, or a Hugging Face id")
    try:
        helper = PEFTHelper.from_local_dir(str(file.parent), None)
        helper.validate_legal(config)
        listed = helper.target_modules
        targets = read_targets(file.parent) or set([] if isinstance(listed, str) else listed)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from None
    if "lm_head" in targets:
        message = "an adapter of lm_head scores wrongly: vLLM applies it to the rows that it samples, not to a prompt's"
        raise ValueError(f"{message}; valid: adapters of the layers below")
    return targets


def read_rank(place: str) -> int:
    """The smallest that vLLM may be set to for an adapter; 0 where it cannot be read."""
    from vllm.config.lora import MaxLoRARanks

    try:
        file = find_file(place, CONFIG)
        rank = int(json.loads(file.read_text())["r"]) if file else 0
    except (OSError, ValueError, TypeError, KeyError):
        return 0
    return min((valid for valid in get_args(MaxLoRARanks) if valid >= rank), default=rank)


def read_targets(folder: Path) -> set[str]:
    """The last names of the modules that an adapter has weights for."""
    shapes = read_shapes(str(folder)) or {}
    matches = (re.search(r"([^.]+)\.(?:base_layer\.)?lora_(?:embedding_)?[AB]\b", name) for name in shapes)
    return {match[1] for match in matches if match}
