"""States of layers that do not learn: the same with and without them, and never where they would not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.engine import family
from trimtab.training.lower import LowerStates, UnfitLayers, keep_lower_states

ROWS = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7], [12, 13, 14, 15]]


def pad_rows(rows: list[list[int]], *, left: bool = False) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    gaps = [longest - len(row) for row in rows]
    pairs = [(gap, 0) if left else (0, gap) for gap in gaps]
    ids = [[256] * a + row + [256] * b for row, (a, b) in zip(rows, pairs, strict=True)]
    mask = [[0] * a + [1] * len(row) + [0] * b for row, (a, b) in zip(rows, pairs, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def gpt2(path: Path, dropout: float = 0.0) -> Path:
    sizes = {"vocab_size": 264, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**sizes, **drops)).save_pretrained(path)
    return path


def load(path: Path) -> tuple[nn.Module, list[nn.Module]]:
    """(decoder, all its layers but the last)"""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).train()
    decoder = model.get_decoder()
    return decoder, list(decoder.layers if hasattr(decoder, "layers") else decoder.h)[:-1]


def keep(decoder: nn.Module, lower: list[nn.Module], **more: Any) -> LowerStates:
    return keep_lower_states(decoder, lower, **{"limit": 2**20, "vocabulary": 259, "adapted": True, **more})


@pytest.mark.parametrize("make", [family.base, family.qwen, family.windowed, family.jamba, family.granite, gpt2])
def test_rows_are_run_once_through_the_lower_layers(make: Any, tmp_path: Path) -> None:
    """In whatever company and padding they come again."""
    decoder, lower = load(make(tmp_path))
    batches = [pad_rows(ROWS), pad_rows(ROWS[1:]), pad_rows([[1, 2], ROWS[0]]), pad_rows(ROWS, left=True)]
    plain = [decoder(**batch, use_cache=False)[0] for batch in batches]
    names = list(decoder.state_dict())
    states = keep(decoder, lower)
    calls: list[int] = []
    for layer in lower:
        inner = next(module for name, module in layer.named_children() if "norm" in name or name == "ln_1")
        inner.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    runs = [0, 0, 0, 0]
    for i in (0, 1, 2, 0, 2, 3, 3):
        before = len(calls)
        made = decoder(**batches[i], use_cache=False)[0]
        shown = batches[i]["attention_mask"].bool()
        assert torch.allclose(made[shown], plain[i][shown], atol=1e-5)
        runs[i] += len(calls) > before
    assert runs == [1, 0, 1, 2]  # the second batch's rows are in the first, and padding on the left is not kept
    assert states.rows == 4
    assert states.bytes == (7 + 3 + 4 + 2) * plain[0].shape[-1] * 4
    assert list(decoder.state_dict()) == names
    states.release()
    assert all("forward" not in vars(layer) for layer in lower)
    assert torch.equal(decoder(**batches[0], use_cache=False)[0], plain[0])


def test_what_does_not_fit_into_the_limit_is_computed_anew(tmp_path: Path) -> None:
    decoder, lower = load(family.base(tmp_path))
    states = keep(decoder, lower, limit=7 * 64 * 4)
    plain = [decoder(**pad_rows(ROWS), use_cache=False)[0] for _ in range(2)]
    assert (states.rows, states.bytes) == (1, 7 * 64 * 4)
    assert torch.equal(*plain)


class SharingLayer(nn.Module):
    """Leaves something behind that the next one reads, as layers with shared keys and values do."""

    def __init__(self, before: SharingLayer | None) -> None:
        super().__init__()
        self.linear, self.before = nn.Linear(8, 8), [before]

    def forward(self, hidden: torch.Tensor, tuples: bool = False) -> Any:
        self.left = self.linear(hidden) + (0 if self.before[0] is None else self.before[0].left.detach())
        return (self.left,) if tuples else self.left


class OtherDecoder(nn.Module):
    def __init__(self, *, tuples: bool) -> None:
        super().__init__()
        self.embedding, first = nn.Embedding(20, 8), SharingLayer(None)
        self.layers, self.tuples = nn.ModuleList([first, SharingLayer(first)]), tuples

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: bool = False) -> Any:
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, tuples=self.tuples)
            hidden = hidden[0] if self.tuples else hidden
        return (hidden,)


@pytest.mark.parametrize(
    ("tuples", "why"), [(True, "more than one tensor"), (False, "something else|size|shape")], ids=["tuples", "shared"]
)
def test_layers_that_hand_on_more_than_states_are_refused(tuples: bool, why: str) -> None:
    decoder = OtherDecoder(tuples=tuples)
    with pytest.raises(UnfitLayers, match=why):
        keep(decoder, [decoder.layers[0]], vocabulary=20)
    assert "forward" not in vars(decoder.layers[0])


def test_layers_that_drop_out_or_learn_are_refused(tmp_path: Path) -> None:
    decoder, lower = load(gpt2(tmp_path / "drops", dropout=0.1))
    with pytest.raises(UnfitLayers, match="something else"):
        keep(decoder, lower)
    decoder, lower = load(family.base(tmp_path / "base"))
    with pytest.raises(UnfitLayers, match="learns"):
        keep(decoder, lower, adapted=False)
    assert decoder.training
