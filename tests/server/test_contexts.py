"""Guides that are prompts: the configuration's and a request's own, what they cost, and what the model reads."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from trimtab.decoders.guided import Guided
from trimtab.decoders.protocols import BASE, Tokens
from trimtab.runtime.contexts import Context, Instruction, RequestContexts
from trimtab.runtime.usage import Usage
from trimtab.server.config import Config, ConfigError
from trimtab.server.errors import ApiError
from trimtab.server.request import cost
from trimtab.server.request.cost import Extent
from trimtab.server.request.messages import CHAT, COMPLETIONS, MESSAGES, RESPONSES, instruct
from trimtab.server.request.plan import Plan, check_config, plan

WARM, COLD = Instruction("Be warm."), Instruction("Be cold.")
CONFIG = Config.model_validate(
    {
        "base": "org/base",
        "guides": {
            "helpful": "org/helpful",
            "adapted": {"adapter": "org/adapter"},
            "warm": {"prompt": "Be warm.", "against": "Be cold."},
            "brief": {"prompt": "Be brief.", "role": "user"},
            "free": {"against": "", "replace_system": True},
        },
        "objectives": {"warmth": {"guide": "warm", "gain": 2.0}, "brevity": {"guide": "brief"}},
        "rewards": {"short": {"kind": "length", "target": 20}},
    }
)


def test_guides_of_each_kind() -> None:
    assert list(CONFIG.guide_models) == ["helpful"]
    assert CONFIG.guide_adapters == {"adapted": "org/adapter"}
    assert CONFIG.contexts == {
        "warm": Context(prompt=WARM, against=COLD),
        "brief": Context(prompt=Instruction("Be brief.", "user")),
        "free": Context(against=Instruction("", replaces_system=True)),
    }


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ({}, "needs one of model, adapter, prompt, against"),
        ({"prompt": None}, "needs one of model, adapter, prompt, against"),
        ({"model": "a/b", "prompt": "x"}, "prompt cannot stand beside model"),
        ({"adapter": "a/b", "quantization": "fp8"}, "quantization cannot stand beside adapter"),
        ({"against": "x", "revision": "main"}, "revision cannot stand beside against"),
        ({"prompt": "x", "role": "assistant"}, "Input should be 'system' or 'user'"),
    ],
)
def test_a_guide_is_of_one_kind(guide: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"base": "org/base", "guides": {"one": guide}})


def understood(raw: dict[str, Any], config: Config = CONFIG) -> Plan:
    return plan(raw, config)


def test_weights_reach_prompts_as_they_reach_models() -> None:
    planned = understood({"weights": {"warmth": 0.5, "brevity": 1}, "guides": {"adapted": 0.25}})
    assert isinstance(planned.strategy, Guided)
    assert planned.strategy.mixture == {BASE: 1, "warm": 1.0, "brief": 1.0, "adapted": 0.25}
    assert planned.rows == 5, "the prompt's own, two of warm, one of brief, the adapter's"
    assert planned.instructions == {WARM, COLD, Instruction("Be brief.", "user")}


def test_a_client_s_own_prompts() -> None:
    own = [{"text": "Be kind.", "against": "Be rude.", "weight": 2}, {"against": "Be long."}]
    planned = understood({"prompts": own, "weights": {"warmth": 0}, "guides": {"warm": 1}} | {"weights": {"warmth": 1}})
    assert planned.name == "guided"
    assert planned.guides == {BASE: 1, "warm": 1, "prompts[0]": 2, "prompts[1]": 1}
    assert planned.contexts["prompts[0]"] == Context(prompt=Instruction("Be kind."), against=Instruction("Be rude."))
    assert planned.rows == 6
    assert "Be kind." not in repr(planned.described()), "what a client's prompts say is nobody else's"
    searched = understood({"prompts": own, "strategy": "best_of_n", "reward": "short"})
    assert searched.guides == {BASE: 1, "prompts[0]": 2, "prompts[1]": 1}


@pytest.mark.parametrize(
    ("raw", "param", "code", "message"),
    [
        ({"prompts": []}, "prompts", "invalid_value", "alignment.prompts: list should have at least 1 item"),
        ({"prompts": [{"text": "x"}] * 5}, "prompts", "invalid_value", "alignment.prompts: list should have at most 4"),
        ({"prompts": [{}]}, "prompts.0", "invalid_value", "alignment.prompts.0: needs text or against"),
        ({"prompts": [{"txt": "x"}]}, "prompts.0.txt", "unknown_parameter",
         "unknown key 'txt'; valid: against, replace_system, role, text, weight"),
        ({"prompts": [{"text": "x" * 4097}]}, "prompts.0.text", "invalid_value",
         "alignment.prompts.0.text: string should have at most 4096 characters"),
        ({"prompts": [{"text": "x", "weight": 1000}]}, "prompts.0.weight", "invalid_value",
         "alignment.prompts.0.weight must be a number in [-100, 100]"),
        ({"prompts": [{"text": "x"}], "strategy": "plain"}, "prompts", "unsupported_pair",
         "alignment.prompts cannot be honoured by strategy 'plain'"),
        ({"prompts": [{"text": "x"}], "guides": {BASE: 0}}, "guides", "unsupported_pair",
         "guide 'prompts[0]' is what a prompt moves a model by, and neither the base nor a guide that is one has"),
        ({"guides": {"prompts[0]": 1}}, "guides.prompts[0]", "invalid_value", "unknown guide 'prompts[0]'"),
        ({"strategy": "dera", "params": {"aligned": "warm", "lambda": 1}}, "params.aligned", "unsupported_pair",
         "alignment.params.aligned: strategy 'dera' needs a model, and guide 'warm' is what a prompt"),
        ({"strategy": "best_of_n", "reward": "short", "guides": {"warm": 1},
          "params": {"n": 4, "diverse": {"together": 2}}}, "params", "unsupported_pair",
         "strategy 'best_of_n' puts an instruction into the prompt, whose place guide 'warm' takes"),
    ],
)  # fmt: skip
def test_what_is_refused(raw: dict[str, Any], param: str, code: str, message: str) -> None:
    with pytest.raises(ApiError) as refused:
        understood(raw)
    assert (refused.value.param or "").startswith(f"alignment.{param}")
    assert refused.value.code == code
    assert refused.value.message.startswith(message)


def test_a_server_may_take_no_prompts_of_its_clients() -> None:
    closed = CONFIG.model_copy(update={"client_prompts": False})
    with pytest.raises(ApiError, match="this server takes no prompts of its clients"):
        understood({"prompts": [{"text": "x"}]}, closed)


def test_a_preference_prompt_is_read_by_a_model() -> None:
    reader = {"template": "dpa", "slots": {"h": "warmth"}, "reader": "warm"}
    config = Config.model_validate(CONFIG.model_dump(exclude_unset=True) | {"preference_prompts": {"p": reader}})
    with pytest.raises(ConfigError, match="unknown guide 'warm'; valid: adapted, helpful"):
        check_config(config)


def test_what_rows_cost() -> None:
    """A token counts on every row, and each instruction's prompt is read once."""
    extent = Extent(max_tokens=10, context=1000, prompt_tokens=50)
    alone = cost.work(understood({"guides": {"helpful": 1}}), extent)
    guided = cost.work(understood({"guides": {"helpful": 1, "warm": 1}}), extent)
    assert (alone.sampled, guided.sampled) == (10, 30)
    assert guided.scored - 3 * alone.scored == 2 * (50 + len("Be warm.") + cost.TURN_TOKENS)
    bounded = understood({"guides": {"warm": 1}, "budget": {"max_sampled_tokens": 12}})
    assert cost.work(bounded, extent).sampled == 12


HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("path", "document", "instruction", "expected"),
    [
        (CHAT, {"messages": HI}, WARM, {"messages": [{"role": "system", "content": "Be warm."}, *HI]}),
        (
            CHAT,
            {"messages": [{"role": "system", "content": "You sell shoes."}, *HI]},
            WARM,
            {"messages": [{"role": "system", "content": "Be warm.\n\nYou sell shoes."}, *HI]},
        ),
        (
            CHAT,
            {"messages": [{"role": "developer", "content": "You sell shoes."}, *HI]},
            replace(WARM, replaces_system=True),
            {"messages": [{"role": "system", "content": "Be warm."}, *HI]},
        ),
        (
            CHAT,
            {"messages": [{"role": "system", "content": "You sell shoes."}, *HI]},
            Instruction("", replaces_system=True),
            {"messages": HI},
        ),
        (CHAT, {"messages": HI}, Instruction(""), {"messages": HI}),
        (
            CHAT,
            {"messages": [{"role": "system", "content": "You sell shoes."}, *HI]},
            Instruction("Be warm.", "user", replaces_system=True),
            {"messages": [{"role": "user", "content": "Be warm.\n\nHi"}]},
        ),
        (
            RESPONSES,
            {"input": "Hi", "instructions": "Sell."},
            WARM,
            {"input": "Hi", "instructions": "Be warm.\n\nSell."},
        ),
        (RESPONSES, {"input": "Hi", "instructions": "Sell."}, Instruction("", replaces_system=True), {"input": "Hi"}),
        (
            MESSAGES,
            {"messages": HI, "system": "Sell."},
            replace(WARM, replaces_system=True),
            {"messages": HI, "system": "Be warm."},
        ),
    ],
)
def test_a_conversation_under_an_instruction(
    path: str, document: dict[str, Any], instruction: Instruction, expected: dict[str, Any]
) -> None:
    before = repr(document)
    assert instruct(path, document, instruction) == expected
    assert repr(document) == before


def test_a_bare_prompt_has_no_conversation() -> None:
    with pytest.raises(ValueError, match="needs a chat request"):
        instruct(COMPLETIONS, {"prompt": "x"}, WARM)


async def test_each_prompt_is_rendered_once_and_counted() -> None:
    rendered: list[Instruction] = []

    async def render(instruction: Instruction) -> Tokens:
        rendered.append(instruction)
        await asyncio.sleep(0)
        return [1] * len(instruction.text)

    contexts = RequestContexts(contexts=CONFIG.contexts, render=render, usage=Usage())
    prompts = await asyncio.gather(*(contexts.prompt(one) for one in (WARM, COLD, WARM, COLD)))
    assert prompts == [[1] * 8] * 4
    assert rendered == [WARM, COLD]
    assert contexts.usage.scored == 16


async def test_a_prompt_that_cannot_be_rendered_fails_for_whoever_waits() -> None:
    async def render(instruction: Instruction) -> Tokens:
        await asyncio.sleep(0)
        raise ValueError("no")

    contexts = RequestContexts(contexts=CONFIG.contexts, render=render)
    errors = await asyncio.gather(contexts.prompt(WARM), contexts.prompt(WARM), return_exceptions=True)
    assert [str(error) for error in errors] == ["no", "no"]


def test_rows_of_a_mixture() -> None:
    contexts = RequestContexts(contexts=CONFIG.contexts, adapters=frozenset(["adapted"]))
    assert contexts.count_rows({BASE: 1, "helpful": 2}) == 1
    assert contexts.count_rows({"warm": 0, "adapted": 0}) == 1
    assert contexts.count_rows({"warm": 1, "brief": -1, "adapted": 1}) == 5
