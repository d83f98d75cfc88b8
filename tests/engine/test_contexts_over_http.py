"""Guides that are prompts and adapters, on a real model, the whole way from the body.

The reference renders conversations with transformers' own chat templates and writes the law down as it stands.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine import family
from tests.engine.test_any_base_over_http import Site, serving
from trimtab.server.request.messages import CHAT, COMPLETIONS, MESSAGES, RESPONSES

pytestmark = pytest.mark.engine

LENGTH = 8
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if tools %}{{ tools | length }}{% endif %}{% if add_generation_prompt %}a:{% endif %}"
)
HI = [{"role": "user", "content": "Hi"}]
SOLD = [{"role": "system", "content": "Sell."}, *HI]
GUIDES: dict[str, Any] = {
    "warm": {"prompt": "Warm.", "against": "Cold."},
    "brief": {"prompt": "Short!", "role": "user"},
    "system": {"against": "", "replace_system": True},
}
Conversation = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reference:
    models: Mapping[str, Any]
    tokenizer: Any

    @torch.inference_mode()
    def logits(self, conversation: Conversation, answer: list[int], model: str = "plain") -> Tensor:
        """[V] of the token behind an answer's beginning."""
        prompt = self.tokenizer.apply_chat_template(
            list(conversation), chat_template=TEMPLATE, add_generation_prompt=True, tokenize=False
        )
        ids = [*self.tokenizer.encode(prompt, add_special_tokens=False), *answer]
        logits: Tensor = self.models[model](torch.tensor([ids])).logits[0, -1].double()
        return logits

    def greedy(self, law: Any, length: int = LENGTH) -> list[int]:
        """`law`: an answer's beginning -> [V]"""
        answer: list[int] = []
        for _ in range(length):
            answer.append(int(law(answer).argmax()))
        return answer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("contexts")
    base = family.base(root / "base")
    return base, family.adapter(root / "adapted", base)


@pytest.fixture(scope="module")
def reference(checkpoints: tuple[Path, Path]) -> Reference:
    base, adapter = checkpoints
    plain, adapted = (AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval() for _ in range(2))
    models = {"plain": plain, "adapted": PeftModel.from_pretrained(adapted, adapter).eval()}
    return Reference(models, AutoTokenizer.from_pretrained(base))


@pytest.fixture(scope="module")
async def site(checkpoints: tuple[Path, Path]) -> AsyncIterator[Site]:
    base, adapter = checkpoints
    sections = {
        "guides": {**GUIDES, "adapted": {"adapter": str(adapter)}},
        "objectives": {"warmth": {"guide": "warm", "gain": 0.5}, "brevity": {"reward": "short"}},
        "presets": {"warmer": {"weights": {"warmth": 2}}},
    }
    async with serving(base, sections, chat_template=TEMPLATE) as site:
        yield site


def under(text: str) -> Conversation:
    return [{"role": "system", "content": text}, *HI]


def warmed(reference: Reference, weight: float) -> list[int]:
    def law(answer: list[int]) -> Tensor:
        plain, warm, cold = (reference.logits(c, answer) for c in (HI, under("Warm."), under("Cold.")))
        return plain + weight * (warm - cold)

    return reference.greedy(law)


async def test_a_weight_moves_the_answer_by_two_prompts(site: Site, reference: Reference) -> None:
    for alignment, weight in (
        ({"guides": {"warm": 1.5}}, 1.5),
        ({"weights": {"warmth": 3}}, 1.5),
        ({"guides": {"warm": 0}}, 0.0),
        ({"prompts": [{"text": "Warm.", "against": "Cold.", "weight": -1}]}, -1.0),
        ({"prompts": [{"text": "Warm."}, {"text": "Cold.", "weight": -1}]}, 1.0),
        ({"strategy": "best_of_n", "reward": "short", "guides": {"warm": 1.5}, "params": {"n": 2}}, 1.5),
        ({"strategy": "blockwise", "reward": "short", "guides": {"warm": 1.5}, "params": {"n": 2, "block": 3}}, 1.5),
    ):
        more = {"ignore_eos": False} if "strategy" in alignment else {}
        answer = await site.ask(CHAT, model="plain", messages=HI, max_tokens=LENGTH, alignment=alignment, **more)
        assert answer == warmed(reference, weight), alignment
    answer = await site.ask(CHAT, model="warmer", messages=HI, max_tokens=LENGTH)
    assert answer == warmed(reference, 1.0)


async def test_classifier_free_guidance_over_the_client_s_own_system_prompt(site: Site, reference: Reference) -> None:
    """gamma l(x, s) + (1 - gamma) l(x), gamma = 1 + w"""

    def law(answer: list[int]) -> Tensor:
        return 2.5 * reference.logits(SOLD, answer) - 1.5 * reference.logits(HI, answer)

    body = {"model": "plain", "messages": SOLD, "max_tokens": LENGTH, "alignment": {"guides": {"system": 1.5}}}
    assert await site.ask(CHAT, **body) == reference.greedy(law)


async def test_prompts_adapters_and_the_client_s_together(site: Site, reference: Reference) -> None:
    def law(answer: list[int]) -> Tensor:
        plain, warm, cold = (reference.logits(c, answer) for c in (HI, under("Warm."), under("Cold.")))
        brief = reference.logits([{"role": "user", "content": "Short!\n\nHi"}], answer)
        kind = reference.logits(under("Kind."), answer)
        adapted = reference.logits(HI, answer, "adapted")
        return plain + 0.5 * (warm - cold) + 0.25 * (brief - plain) + 0.75 * adapted + 0.4 * (kind - plain)

    guides = {"warm": 0.5, "brief": 0.25, "adapted": 0.75}
    alignment = {"guides": guides, "prompts": [{"text": "Kind.", "weight": 0.4}]}
    expected = reference.greedy(law)
    body = {"model": "plain", "messages": HI, "max_tokens": LENGTH, "alignment": alignment}
    assert await asyncio.gather(*(site.ask(CHAT, **body) for _ in range(4))) == [expected] * 4
    whole = (await site.http.post(CHAT, json={**body, "temperature": 0, "ignore_eos": True})).json()
    assert whole["alignment"]["guides"] == {"base": 1, **guides, "prompts[0]": 0.4}
    assert whole["alignment"]["sampled_tokens"] == 6 * LENGTH, "six rows"
    assert whole["usage"]["completion_tokens"] == LENGTH
    assert "Kind." not in json.dumps(whole["alignment"])


async def test_the_other_chats(site: Site, reference: Reference) -> None:
    """Their system prompts stand in fields of their own."""
    expected = reference.tokenizer.decode(warmed(reference, 1.5))
    alignment = {"guides": {"warm": 1.5}}
    more = {"model": "plain", "temperature": 0.0, "alignment": alignment}
    response = (await site.http.post(RESPONSES, json={"input": "Hi", "max_output_tokens": LENGTH, **more})).json()
    assert response["output"][0]["content"][0]["text"] == expected
    message = (await site.http.post(MESSAGES, json={"messages": HI, "max_tokens": LENGTH, **more})).json()
    assert message["content"][0]["text"] == expected


async def test_several_answers_log_probs_and_a_stream(site: Site, reference: Reference) -> None:
    body = {"model": "plain", "messages": HI, "max_tokens": LENGTH, "temperature": 0.0, "ignore_eos": True}
    body |= {"alignment": {"guides": {"warm": 1.5}}, "return_token_ids": True}
    several = {"n": 3, "temperature": 1.0, "seed": 3, "logprobs": True}
    answer = (await site.http.post(CHAT, json={**body, **several})).json()
    assert len({tuple(choice["token_ids"]) for choice in answer["choices"]}) == 3
    for choice in answer["choices"]:
        tokens = choice["token_ids"]
        for at, shown in enumerate(choice["logprobs"]["content"]):
            plain, warm, cold = (reference.logits(c, tokens[:at]) for c in (HI, under("Warm."), under("Cold.")))
            logprobs = (plain + 1.5 * (warm - cold)).log_softmax(-1)
            assert shown["logprob"] == pytest.approx(float(logprobs[tokens[at]]), abs=1e-4)
    async with site.http.stream("POST", CHAT, json={**body, "stream": True}) as stream:
        events = [json.loads(line[6:]) async for line in stream.aiter_lines() if line.startswith("data: {")]
    streamed = [token for event in events for choice in event["choices"] for token in choice.get("token_ids") or ()]
    assert streamed == warmed(reference, 1.5)


async def test_how_far_it_is_from_the_base(site: Site, reference: Reference) -> None:
    """`trace`: exact, and along the answer."""
    alignment = {"guides": {"warm": 1.5}, "return": ["trace"]}
    body = {"model": "plain", "messages": HI, "max_tokens": LENGTH, "temperature": 0.0, "ignore_eos": True}
    whole = (await site.http.post(CHAT, json={**body, "alignment": alignment})).json()
    [trace] = [choice["trace"] for choice in whole["alignment"]["choices"]]
    answer = warmed(reference, 1.5)
    assert trace["tokens"] == answer
    for at, divergence in enumerate(trace["kl_exact"]):
        plain, warm, cold = (reference.logits(c, answer[:at]) for c in (HI, under("Warm."), under("Cold.")))
        log_p, log_q = (plain + 1.5 * (warm - cold)).log_softmax(-1), plain.log_softmax(-1)
        assert divergence == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), rel=1e-3)


async def test_what_has_no_conversation(site: Site) -> None:
    for alignment in ({"guides": {"warm": 1.0}}, {"prompts": [{"text": "Warm."}]}):
        error = await site.refusal(COMPLETIONS, model="plain", prompt="Hi", alignment=alignment)
        assert "needs a chat request" in error["message"]
    adapted = await site.ask(COMPLETIONS, model="plain", prompt="Hi", alignment={"guides": {"adapted": 1.0}})
    assert len(adapted) > 0, "an adapter needs none"


async def test_nobody_else_is_moved(site: Site, reference: Reference) -> None:
    """Plain requests beside guided ones are the base's, with the adapters' slots in use too."""
    plain = reference.greedy(lambda answer: reference.logits(HI, answer))
    wishes: list[dict[str, Any]] = [{}, {"guides": {"warm": 1.5}}, {}, {"guides": {"adapted": 1.0}}] * 3
    answers = await asyncio.gather(
        *(site.ask(CHAT, model="plain", messages=HI, max_tokens=LENGTH, alignment=wish) for wish in wishes)
    )
    assert [answer for answer, wish in zip(answers, wishes, strict=True) if not wish] == [plain] * 6
    assert answers[1] == warmed(reference, 1.5)


async def test_a_budget_counts_every_row(site: Site) -> None:
    alignment = {"guides": {"warm": 1.5}, "budget": {"max_sampled_tokens": 10}}
    body = {"model": "plain", "messages": HI, "max_tokens": LENGTH, "ignore_eos": True, "alignment": alignment}
    answer = (await site.http.post(CHAT, json=body)).json()
    assert answer["usage"]["completion_tokens"] == 3, "three rows each"
    assert answer["alignment"] | {"outcome": "budget", "sampled_tokens": 9} == answer["alignment"]


async def test_a_prompt_that_leaves_less_room(site: Site) -> None:
    long = "x" * 200
    body = {"model": "plain", "messages": HI, "max_tokens": 100, "ignore_eos": True}
    answer = (await site.http.post(CHAT, json={**body, "alignment": {"prompts": [{"text": long}]}})).json()
    room = family.POSITIONS - len(f"s:{long}\nu:Hi\na:")
    assert answer["usage"]["completion_tokens"] == room
    assert answer["alignment"]["warnings"] == [
        f"an answer has at most {room} tokens here: the longest of its 2 prompts has {family.POSITIONS - room}"
    ]
    error = await site.refusal(
        CHAT, model="plain", messages=HI, alignment={"prompts": [{"text": "x" * family.POSITIONS}]}
    )
    assert f"valid: below {family.POSITIONS}" in error["message"] or "maximum" in error["message"]
