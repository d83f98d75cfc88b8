"""Weights from a prompt: the adapter's arithmetic, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from trimtab.preferences.from_prompt import FILE, load


def adapter(folder: Path, *, objectives: object = ("a", "b"), **tensors: np.ndarray) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"table": np.array([[0, 0], [2, 0], [0, 4]], np.float16), "bias": np.array([0, 1], np.float32), **tensors}
    save_file(whole, folder / FILE, metadata={"objectives": json.dumps(objectives)})
    return str(folder)


def test_weights_are_the_softmax_of_the_mean_row(tmp_path: Path) -> None:
    orchestrator = load(adapter(tmp_path))
    assert orchestrator.objectives == ("a", "b")
    for prompt, logits in (([1, 2], [1, 3]), ([1], [2, 1]), ([0, 1, 1, 1], [1.5, 1]), ([], [0, 1])):
        weights = np.exp(logits) / np.exp(logits).sum()
        assert list(orchestrator(prompt).values()) == pytest.approx(weights)
        assert sum(orchestrator(prompt).values()) == pytest.approx(1)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=FILE):
        load(str(tmp_path / "nowhere"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=FILE):
        load(str(tmp_path / "broken"))
    with pytest.raises(ValueError, match="does not fit 3 objectives"):
        load(adapter(tmp_path / "three", objectives=["a", "b", "c"]))
