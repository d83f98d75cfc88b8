"""What rewards read of a request's conversation, by the path that it came on."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.server.errors import ApiError
from trimtab.server.request.messages import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    parse_messages,
    split_conversation,
)

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
AS_TEXT = '{"name": "look", "arguments": {"at": "it"}}'


@pytest.mark.parametrize(
    ("path", "document", "expected"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "hi"}]}, [("user", "hi")]),
        (
            CHAT,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"text": "b"}]}
                ]
            },
            [("user", "a\nb")],
        ),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]},
            [("assistant", "no")],
        ),
        (CHAT, {"messages": [{"role": "system", "content": "be"}]}, [("system", "be")]),
        (CHAT, {"messages": [{"role": "developer", "content": "be"}]}, [("system", "be")]),
        (CHAT, {"messages": [{"role": "narrator", "content": "so", "name": "n"}]}, [("narrator", "so")]),
        (
            CHAT,
            {"messages": [{"role": "user", "content": ""}, {"role": "user", "content": "hi"}]},
            [("user", ""), ("user", "hi")],
        ),
        (
            CHAT,
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": None, "tool_calls": []},
                    7,
                ]
            },
            [("user", "q"), ("assistant", "")],
        ),
        (
            CHAT,
            {
                "messages": [
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "1", "content": "seen"},
                ]
            },
            [("assistant", AS_TEXT), ("tool", "seen")],
        ),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": "well", "tool_calls": [CALL, 7, {"function": 7}]}]},
            [("assistant", f"well\n{AS_TEXT}")],
        ),
        (CHAT, {"messages": [{"role": 7, "content": "hi"}, {"role": None}]}, []),
        (CHAT, {"messages": "none"}, []),
        (CHAT, {"system": "ignored", "instructions": "ignored", "input": "ignored", "messages": []}, []),
        (
            MESSAGES,
            {"system": [{"type": "text", "text": "be"}], "messages": [{"role": "user", "content": "hi"}]},
            [("system", "be"), ("user", "hi")],
        ),
        (
            MESSAGES,
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "hm"},
                            {"type": "tool_use", "name": "look", "input": {"at": "it"}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "seen"}]},
                            {"type": "text", "text": "go on"},
                        ],
                    },
                ]
            },
            [("assistant", AS_TEXT), ("tool", "seen"), ("user", "go on")],
        ),
        (RESPONSES, {"instructions": "be", "input": "hi"}, [("system", "be"), ("user", "hi")]),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}, [("user", "hi")]),
        (
            RESPONSES,
            {
                "input": [
                    {"type": "function_call", "name": "look", "arguments": '{"at": "it"}', "call_id": "1"},
                    {"type": "function_call_output", "call_id": "1", "output": "seen"},
                    {"type": "reasoning", "summary": []},
                ]
            },
            [("assistant", AS_TEXT), ("tool", "seen")],
        ),
        (RESPONSES, {"messages": [{"role": "user", "content": "ignored"}], "input": "hi"}, [("user", "hi")]),
        (COMPLETIONS, {"prompt": "bare", "messages": [{"role": "user", "content": "ignored"}]}, []),
    ],
)
def test_every_kind_of_request_has_its_messages(path: str, document: dict, expected: list[tuple[str, str]]) -> None:
    assert [(m["role"], m["content"]) for m in parse_messages(path, document)] == expected


HI = {"role": "user", "content": "hi"}
BEGUN = {"role": "assistant", "content": "Well, "}


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (CHAT, {"messages": [HI, BEGUN], "continue_final_message": True, "add_generation_prompt": False}),
        (CHAT, {"messages": [HI, BEGUN], "continue_final_message": "true", "add_generation_prompt": 0}),
        (RESPONSES, {"input": [HI, {**BEGUN, "type": "message", "status": "incomplete"}]}),
        (RESPONSES, {"input": [HI, {**BEGUN, "status": "in_progress"}]}),
    ],
)
def test_the_beginning_of_an_answer_is_no_part_of_the_conversation(path: str, document: dict) -> None:
    assert split_conversation(path, document) == ((HI,), "Well, ")


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (CHAT, {"messages": [HI, BEGUN]}),
        (CHAT, {"messages": [HI, BEGUN], "continue_final_message": False, "add_generation_prompt": True}),
        (RESPONSES, {"input": [HI, {**BEGUN, "status": "completed"}]}),
    ],
)
def test_a_message_that_has_ended_is(path: str, document: dict) -> None:
    assert split_conversation(path, document) == ((HI, BEGUN), "")


@pytest.mark.parametrize(
    ("path", "document", "param"),
    [
        (CHAT, {"messages": [HI], "continue_final_message": True}, "continue_final_message"),
        (CHAT, {"messages": [], "continue_final_message": True}, "continue_final_message"),
        (
            CHAT,
            {"messages": [HI, {**BEGUN, "tool_calls": [CALL]}], "continue_final_message": True},
            "continue_final_message",
        ),
        (CHAT, {"messages": [HI], "add_generation_prompt": False}, "add_generation_prompt"),
        (MESSAGES, {"messages": [HI, BEGUN]}, "messages"),
        (RESPONSES, {"input": [HI, {"type": "reasoning", "status": "incomplete", "summary": []}]}, "input"),
        (RESPONSES, {"input": "more", "previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
def test_what_no_reward_can_read_is_refused_by_name(path: str, document: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError, match=f"^{param} cannot be combined with rewards: ") as caught:
        split_conversation(path, document)
    assert (caught.value.param, caught.value.status) == (param, 400)
