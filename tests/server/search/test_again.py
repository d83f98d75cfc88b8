"""An answer can be made again from its own response: what ran is told whole, defaults included."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.search.conftest import HI
from trimtab.decoders import STRATEGIES, example_request
from trimtab.server.request.messages import CHAT

BOTH = {"a": 1.0, "brevity": 0.5}
ASKED: dict[str, dict[str, Any]] = {
    "args": {"weights": BOTH, "params": {"k": 3}},
    "beam": {"weights": BOTH, "params": {"n": 4, "width": 2, "block": 2, "prefix_reward": "short"}},
    "best_of_n": {"weights": BOTH, "guides": {"arm": 0.5}},
    "blockwise": {"weights": BOTH, "params": {"block": 2}},
    "contrastive": {"params": {"amateur": "arm"}},
    "dera": {"params": {"aligned": "arm", "lambda": 0.5}},
    "directional": {"weights": {"angle": 30.0}},
    "genarm": {"weights": {"brevity": 0.5}, "params": {"alpha": 2.0}},
    "guided": {"weights": {"brevity": 0.8}},
    "mbr": {"weights": BOTH, "params": {"n": 4, "weighting": "softmax", "diverse": {"groups": 2, "penalty": 1.0}}},
    "mod": {"guides": {"arm": 1.0}},
    "particles": {"weights": BOTH, "params": {"n": 4, "block": 2}},
    "plain": {},
    "proxy_tuning": {"params": {"expert": "arm", "antiexpert": "base"}},
    "qalign": {"weights": BOTH, "params": {"chains": 2, "steps": 3, "until": {"r_hat": 1.1}}},
    "rejection": {
        "reward": {"of": "short", "transform": {"standardise": {"mean": 3.0, "std": 2.0}}},
        "params": {"n": 8},
    },
    "rps": {"weights": BOTH, "params": {"theta_max": 20.0, "selection": "soft", "lambda": 0.3}},
    "soft_best_of_n": {"weights": BOTH, "params": {"n": 4, "lambda": 0.5}},
    "speculative_rejection": {"weights": BOTH, "params": {"n": 4, "decisions": [1, 3]}},
    "transfer_q": {"weights": BOTH, "params": {"k": 3, "rollouts": 2, "baseline": {"arm": 1.0}}},
    "vote": {"weights": BOTH, "params": {"n": 4, "extractor": {"regex": "(a+)"}, "weighting": "softmax"}},
}


"""In place of the example of its row, where another request says more."""


def asked(name: str) -> dict[str, Any]:
    if name in ASKED:
        return {"strategy": name, **ASKED[name]}
    return example_request(name, ["arm"]) | ({"reward": "short"} if "reward" in STRATEGIES[name].takes else {})


@pytest.mark.parametrize("name", STRATEGIES)
async def test_a_response_holds_what_its_answer_is_made_of(raw: httpx.AsyncClient, name: str) -> None:
    async def answer(alignment: dict[str, Any]) -> Any:
        body = {"messages": HI, "n": 2, "max_tokens": 5, "seed": 7, "return_token_ids": True, "alignment": alignment}
        response = await raw.post(CHAT, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    first = await answer(asked(name))
    told = first["alignment"]
    again = {key: told[key] for key in ("strategy", "params", "weights", "reward") if key in told}
    again |= {key: asked(name)[key] for key in ("guides",) if key in asked(name)}
    second = await answer(again)
    assert second["choices"] == first["choices"]
    assert all(choice["token_ids"] for choice in second["choices"])
    assert second["alignment"].get("params") == told.get("params")


async def test_what_is_told_of_parameters_bears_their_public_names(raw: httpx.AsyncClient) -> None:
    alignment = {"strategy": "soft_best_of_n", "weights": {"a": 1.0}, "params": {"lambda": 0.5}}
    body = {"messages": HI, "max_tokens": 5, "alignment": alignment}
    told = (await raw.post(CHAT, json=body)).json()["alignment"]
    assert told["params"] == {"lambda": 0.5, "n": 16}


async def test_a_degraded_answer_has_no_parameters(raw: httpx.AsyncClient) -> None:
    alignment = {"strategy": "best_of_n", "reward": "nan.a", "on_error": "degrade"}
    told = (await raw.post(CHAT, json={"messages": HI, "max_tokens": 5, "alignment": alignment})).json()["alignment"]
    assert told["strategy"] == "plain"
    assert "params" not in told
