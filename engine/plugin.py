"""What every vLLM process must know: our architecture, the hooks of the base's own, and where grammars begin.

vLLM calls `register` in each of its processes through the entry point group `vllm.general_plugins`, so the package has
to be installed, not just importable. Nothing heavy may be imported here: this also runs where no model is ever built.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

ARCHITECTURE = "TrimtabForCausalLM"
"""What the base's config is told to be, so that vLLM builds the composite."""

FIELD = "trimtab"
"""Where the base's config carries the members: {"architectures": the base's own, "guides": [options]}.

Where there is an "obstacle" too, the engine runs vLLM's own model, and this is why it is not the composite."""


class BaseHooks:
    """vLLM adjusts some configs by architecture; ours hides the base's, so its own hooks are called here."""

    @classmethod
    def _base_hooks(cls, model_config: ModelConfig) -> list[type]:
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP

        architectures = getattr(model_config.hf_config, FIELD)["architectures"]
        return [MODELS_CONFIG_MAP[name] for name in architectures if name in MODELS_CONFIG_MAP]

    @classmethod
    def verify_and_update_config(cls, vllm_config: VllmConfig) -> None:
        for hooks in cls._base_hooks(vllm_config.model_config):
            hooks.verify_and_update_config(vllm_config)  # type: ignore[attr-defined]

    @classmethod
    def verify_and_update_model_config(cls, model_config: ModelConfig) -> None:
        for hooks in cls._base_hooks(model_config):
            hooks.verify_and_update_model_config(model_config)  # type: ignore[attr-defined]


def register() -> None:
    from vllm import ModelRegistry
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.platforms import current_platform
    from vllm.renderers.base import BaseRenderer
    from vllm.v1.structured_output import StructuredOutputManager

    from trimtab.engine.structured_outputs import create_grammar

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "trimtab.engine.composite:Composite")
    MODELS_CONFIG_MAP[ARCHITECTURE] = BaseHooks
    StructuredOutputManager._create_grammar = create_grammar
    BaseRenderer.validate_token_ids = validate_token_ids
    if current_platform.is_cpu():
        shm_broadcast.sched_yield = nap


def validate_token_ids(renderer: Any, token_ids: Sequence[int], *, parameter: str | None = None) -> None:
    """In place of vLLM's check of every prompt, which lets in whatever the tokenizer knows: a token beyond the model's
    vocabulary ends the engine. Multimodal models have such tokens in the places of what is no text.

    Raises VLLMValidationError.
    """
    from vllm.exceptions import VLLMValidationError

    tokenizer, config = renderer.tokenizer, renderer.model_config
    if not token_ids or tokenizer is None:
        return
    size = config.get_vocab_size()
    limit = max(tokenizer.max_token_id + 1, size) if config.is_multimodal_model else size
    worst = min(token_ids) if min(token_ids) < 0 else max(token_ids)
    if 0 <= worst < limit:
        return
    token = tokenizer.convert_ids_to_tokens(worst) if 0 <= worst <= tokenizer.max_token_id else None
    known = "" if token is None else f": it is {token!r} to the tokenizer, and the model knows {size} tokens"
    raise VLLMValidationError(f"Token id {worst} is out of vocabulary{known}", parameter=parameter)


def nap() -> None:
    """What a process does between two looks for a message of another one's, in place of yielding its core.

    vLLM's processes look for a second before they wait to be woken. On few cores those that look are in the way of
    those that compute: two per engine, and the engine's worker is bound to one core. A nap costs a message some 70 us.
    """
    time.sleep(20e-6)
