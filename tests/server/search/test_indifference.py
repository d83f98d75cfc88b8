"""Judges and preference prompts that make no difference on this model are named when a server starts."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.server import toy_server
from trimtab.decoders.protocols import Mixture, Tokens
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.calibrate import find_indifferent
from trimtab.server.config import Config
from trimtab.server.http.app import build
from trimtab.server.http.vllm_app import arguments


@dataclass
class Attentive:
    """The toy, whose log-probs are a function of all that it reads."""

    engine: ToyEngine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def score(self, prompt: Tokens, completion: Tokens, *, guides: Mixture) -> list[float]:
        return [-(zlib.crc32(repr([*prompt, t, *guides]).encode()) % 1000) / 100 for t in completion]


@pytest.mark.parametrize("attentive", [False, True])
async def test_what_a_model_does_not_tell_apart_is_named(
    tmp_path_factory: pytest.TempPathFactory, attentive: bool
) -> None:
    """The toy reads no prompt, so neither makes a difference on it."""
    folder = toy_server.checkpoint(tmp_path_factory.mktemp("toy"))
    config = Config.model_validate(
        {
            "base": str(folder),
            "name": "toy",
            "guides": {"arm": str(folder)},
            "rewards": {
                "judge": {"kind": "judge", "principles": {"kind": "It is kind.", "brief": "It is brief."}},
                "remote": {
                    "kind": "judge", "principles": {"kind": "It is kind."},
                    "endpoint": "http://127.0.0.1:9/v1", "endpoint_model": "m",
                },
                "short": {"kind": "length", "target": 1},
            },
            "objectives": {"kind": {"reward": "judge.kind"}, "brevity": {"reward": "short"}},
            "preference_prompts": {
                "system": {"template": "dpa", "slots": {"h": "kind", "w": "-brevity"}},
                "user": {"template": "rps", "slots": {"h": "kind", "w": "brevity"}, "reader": "arm"},
                "one": {"text": "Be kind: {h}", "slots": {"h": "kind"}},
            },
            "engine": {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True},
        }
    )  # fmt: skip
    engine: Any = toy_server.toy_engine(Path(folder))
    state = toy_server.site(config, Attentive(engine) if attentive else engine)  # type: ignore[arg-type]
    await build(state, arguments(config))
    names = [line.partition(" makes no difference on this model")[0] for line in await find_indifferent(state.scoring)]
    expected = [
        "rewards.judge.kind",
        "rewards.judge.brief",
        *(f"preference_prompts.{p}" for p in ("system", "user", "one")),
    ]
    assert names == ([] if attentive else expected)
