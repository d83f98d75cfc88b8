"""The model that vLLM runs: a frozen base and K guides, one schedule, one paged KV cache, one sampler.

Members share block tables, prefix-cache hits and chunks. A step runs the base and the guides that its requests ask for
(engine.table). `forward` returns the members' hidden states side by side, and with them the slot of each token's
request in the weight table; `compute_logits` mixes (engine.mixture). Mixing there, not in a logits processor, puts it
before the grammar's mask, the returned log-probabilities, biases, penalties and every sampling parameter, and makes
prompt log-probabilities the mixture's.

Shapes: T tokens of a step, N rows whose logits are wanted, H_i member i's hidden size, V the base's vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig, replace
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models.utils import WeightsMapper

from trimtab.engine.adapter_loader import AdapterLoader
from trimtab.engine.lora import Adapter
from trimtab.engine.members import Guide, guide_model_config
from trimtab.engine.mixture import (
    ENTROPY,
    KL,
    NEG_INF,
    SCALAR,
    divergence,
    encode_scalar_as_logits,
    entropy,
    implausible,
    mix,
)
from trimtab.engine.plugin import FIELD
from trimtab.engine.table import BASE_ALONE, WeightTable


class Composite(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config
        members = getattr(config.hf_config, FIELD)
        base_config = vllm_config.with_hf_config(config.hf_config, architectures=members["architectures"])
        self.base = initialize_model(vllm_config=base_config, prefix=prefix)
        self.guides: Any = nn.ModuleList()
        self.options = [Guide(**options) for options in members["guides"]]
        self.configs = [guide_config(vllm_config, guide) for guide in self.options]
        for place, guide in enumerate(self.configs):
            name = f"guide{place}"  # never a number between dots: vLLM would read it as a layer's index
            if guide.quant_config is not None:  # its lists of layers to spare name them without our prefix
                guide.quant_config.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix={"": f"{name}."}))
            with set_model_tag(name):
                self.guides.append(initialize_model(vllm_config=guide, prefix=name))
        self.table = WeightTable.of(vllm_config)
        self.slots: Tensor | None = None
        """[max T] int32, Model Runner V2's. None: the V1 runner, which tells rows by the attention metadata."""
        self.vocabularies = [c.model_config.get_vocab_size() for c in self.configs]
        tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.known = [
            torch.zeros(tokens, dtype=torch.int32) if size < config.get_vocab_size() else None
            for size in self.vocabularies
        ]
        """[max T] ids as a guide of a shorter vocabulary reads them, where a captured piecewise graph finds them."""
        slot_columns = 4 // torch.empty((), dtype=config.dtype).element_size()  # one int32 in the hidden states' dtype
        hidden = [c.model_config.get_hidden_size() for c in (vllm_config, *self.configs)]
        self.widths = [*hidden, slot_columns]
        if vllm_config.lora_config is not None:
            self._take_adapters(config.hf_config)
        # Experts spread over ranks of data parallelism wait for each other, so that all ranks run the same layers.
        experts = any(c.model_config.is_moe for c in (base_config, *self.configs))
        self.table.always_all = experts and vllm_config.parallel_config.data_parallel_size > 1

    def _take_adapters(self, hf_config: Any) -> None:
        """What vLLM reads of a model whose layers get LoRA adapters: they are the base's. It wraps the guides' layers
        too, for which no adapter has weights."""
        self.supports_lora = True
        self.config = hf_config
        self.packed_modules_mapping = getattr(self.base, "packed_modules_mapping", {})
        self.embedding_modules: dict[str, str] = {}
        self.lora_skip_prefixes = getattr(self.base, "lora_skip_prefixes", [])
        self.is_3d_moe_weight = getattr(self.base, "is_3d_moe_weight", False)
        self.is_non_gated_moe = getattr(self.base, "is_non_gated_moe", False)
        self.lora_manager = None
        ours = WeightsMapper(orig_to_new_prefix={"": "base."})
        theirs = getattr(self.base, "hf_to_vllm_mapper", None)
        self.hf_to_vllm_mapper = ours if theirs is None else theirs | ours

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embedded: Tensor = self.base.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """[T, Σ H_i + slot columns], of which those of a guide that no request here asks for are noise; [T, H] of a
        step that is the base's alone."""
        use = self.table.active
        base: Tensor = self.base(input_ids, positions, None, inputs_embeds)
        if use == BASE_ALONE:
            return base
        # Each member's states are copied before the next member runs. A piecewise CUDA graph's output lies in the pool
        # that all graphs share, and vLLM frees it there once it is captured: the next graphs would write over it.
        joined = base.new_empty((len(base), sum(self.widths)))
        base_part, *parts, slot_part = torch.split(joined, self.widths, dim=-1)
        base_part.copy_(base)
        for place, (guide, part, known) in enumerate(zip(self.guides, parts, self.known, strict=True)):
            if place + 1 not in use.guides:
                continue
            # An id that the guide does not know must still be a row of its embedding; any will do, for no weights
            # were trained on it in either case.
            ids = input_ids
            if known is not None:
                ids = torch.clamp(input_ids, max=self.vocabularies[place] - 1, out=known[: len(input_ids)])
            part.copy_(guide(ids, positions, None, None))
        slots = self.slots_of(len(base), base.device)
        slot_part.copy_(slots.view(torch.uint8).view(-1, 4).view(base.dtype))  # bit-cast: exact in any dtype
        return joined

    def slots_of(self, T: int, device: torch.device) -> Tensor:
        """[T] int32: each token's request's slot in the weight table."""
        if self.slots is not None:
            return self.slots[:T]
        slots = torch.full((T,), self.table.default, dtype=torch.int32, device=device)
        metadata = get_forward_context().attn_metadata if is_forward_context_available() else None
        if metadata:
            layers = metadata.values() if isinstance(metadata, dict) else [metadata]
            starts = next((m.query_start_loc for m in layers if hasattr(m, "query_start_loc")), None)
            if starts is None:
                raise RuntimeError("no attention backend here tells requests apart; valid: Model Runner V2, or another")
            ends = starts[1:]
            token = torch.arange(T, dtype=ends.dtype, device=device)
            # A token past the last request is padding and falls on a slot beyond the batch, which nobody samples.
            slots = torch.searchsorted(ends, token, right=True, out_int32=True).clamp_(max=self.table.default)
        return slots

    def put_in_slot(self, hidden_states: Tensor, slot: int) -> Tensor:
        """[T, Σ H_i + slot columns] as those of a request in this slot of the table: it may have been in another when
        they were computed."""
        slots = torch.full((len(hidden_states),), slot, dtype=torch.int32, device=hidden_states.device)
        bits = slots.view(torch.uint8).view(-1, 4).view(hidden_states.dtype)
        return torch.cat([hidden_states[:, : -self.widths[-1]], bits], -1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[N, V] fp32 logits of each row's mixture; where the row asks for a scalar of it, logits that carry that."""
        if hidden_states.shape[-1] == self.widths[0]:
            alone: Tensor | None = self.base.compute_logits(hidden_states)
            return alone
        *states, slots = torch.split(hidden_states, self.widths, dim=-1)
        slot_N = slots.contiguous().view(torch.int32).view(-1).long()
        slot_N.clamp_(0, self.table.default)  # vLLM warms up on random hidden states
        rows_NW = self.table.rows[slot_N]
        use = self.table.active
        base_NV = self.base.compute_logits(states[0].contiguous())

        def guides() -> Iterator[tuple[int, Tensor]]:
            for column in use.guides:
                # What a guide makes of a request that it has not followed is noise, which 0 times infinity would keep.
                idle_N1 = rows_NW[:, column : column + 1] == 0
                yield column, self.guides[column - 1].compute_logits(states[column].masked_fill(idle_N1, 0))

        if base_NV is None:  # tensor parallelism that gathers on one rank: the others only take part
            for _ in guides():
                pass
            return None
        forbidden = implausible(base_NV, rows_NW) if use.plausibility else None
        logits = list(guides()) if use.scalars else guides()
        scalars = list(self._scalars(base_NV, logits, rows_NW)) if isinstance(logits, list) else []
        mixture_NV = mix(base_NV, logits, rows_NW, rescale=use.rescale)
        if forbidden is not None:
            mixture_NV.masked_fill_(forbidden, NEG_INF)
        for rows, values in scalars:
            mixture_NV[rows] = encode_scalar_as_logits(values, mixture_NV.shape[-1])
        return mixture_NV

    @staticmethod
    def _scalars(base_NV: Tensor, guides: list[tuple[int, Tensor]], rows_NW: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows that ask for a scalar, [N] bool, and theirs; before the mixture is made, in the base's place."""
        for kind, measure in ((KL, divergence), (ENTROPY, entropy)):
            rows = rows_NW[:, SCALAR] == kind
            if rows.any():
                those = [(column, logits[rows]) for column, logits in guides]
                yield rows, measure(base_NV[rows], those, rows_NW[rows])

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """`weights` are the base's; each guide reads its own, or the base's again with its adapter merged in."""
        loaded = {f"base.{name}" for name in self.base.load_weights(weights) or ()}
        for place, (guide, options, config) in enumerate(zip(self.guides, self.options, self.configs, strict=True)):
            form = config.load_config
            if options.adapter is None:
                loader = get_model_loader(form)
            else:
                merged = Adapter.load_options(
                    options.adapter, options.adapter_revision, str(form.load_format), form.model_loader_extra_config
                )
                loader = AdapterLoader(replace(form, **merged))
            loader.load_weights(guide, config.model_config)
            loaded |= {f"guides.{place}.{name}" for name, _ in guide.named_parameters()}
        return loaded

    @classmethod
    def get_model_state_cls(cls) -> type:
        from trimtab.engine.state import CompositeState  # needs Triton, which only Model Runner V2 has for certain

        return CompositeState


def guide_config(vllm_config: VllmConfig, guide: Guide) -> VllmConfig:
    """The engine's config as one guide is built with it, the way vLLM builds a draft model's."""
    base = vllm_config.model_config
    config = guide_model_config(guide, base, base.max_model_len)
    # Attention reads its window from the cache's config, which is the base's: without a copy, a sliding-window guide
    # runs full attention, and a full-attention guide inherits the base's window, both in silence.
    cache = replace(vllm_config.cache_config, sliding_window=config.get_sliding_window())
    return replace(vllm_config, model_config=config, cache_config=cache, quant_config=None, speculative_config=None)
