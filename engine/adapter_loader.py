"""A checkpoint with an adapter merged in, as a load format of vLLM's: a guide or a reward that is an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from trimtab.engine.lora import LOAD_FORMAT, Adapter


@register_model_loader(LOAD_FORMAT)
class AdapterLoader(DefaultModelLoader):  # type: ignore[misc]
    """What it merges is in `model_loader_extra_config` (`engine.lora.Adapter.load_options`)."""

    def __init__(self, load_config: LoadConfig) -> None:
        extra: dict[str, Any] = load_config.model_loader_extra_config
        self.adapter = Adapter.read(extra["adapter"], extra["revision"], replaces=True)
        # Where a checkpoint has its weights twice, vLLM's "auto" takes Mistral's files, whose names PEFT does not know.
        form = "hf" if extra["load_format"] == "auto" else extra["load_format"]
        super().__init__(replace(load_config, load_format=form, model_loader_extra_config=extra["options"]))

    def get_all_weights(self, model_config: ModelConfig, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        return self.adapter.merge(super().get_all_weights(model_config, model))


class LoadsAdapters:
    """What a worker is named as its extension, so that it imports this file before it loads a model."""
