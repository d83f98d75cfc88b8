"""A base and preferences that are learnt within seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.engine import family
from tests.training.test_rendering import CHATML

SIDES = (("chosen", "abc"), ("rejected", "xyz"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and pairs of which letters of the alphabet's beginning are the better ones."""
    folder = tmp_path_factory.mktemp("training")
    base = family.base(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(base)
    rng = random.Random(0)
    rows = [
        {"prompt": f"q{i}", **{side: "".join(rng.choices(letters, k=rng.randint(2, 8))) for side, letters in SIDES}}
        for i in range(40)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder
