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
    find_unreadable,
    parse_messages,
    parse_tools,
    split_conversation,
)

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": "hi"}], [{"role": "user", "content": "hi"}]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"text": "b"}]}],
            [{"role": "user", "content": "a\nb"}],
        ),
        (
            [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
            [{"role": "assistant", "content": "no"}],
        ),
        (
            [{"role": "user", "content": [{"type": "tool_reference", "name": "look"}, "at it"]}],
            [{"role": "user", "content": "look\nat it"}],
        ),
        ([{"role": "system", "content": "be"}], [{"role": "system", "content": "be"}]),
        ([{"role": "developer", "content": "be"}], [{"role": "system", "content": "be"}]),
        (
            [{"role": "narrator", "content": "so", "name": "n", "mood": "grim"}],
            [{"role": "narrator", "content": "so", "name": "n"}],
        ),
        (
            [{"role": "user", "content": ""}, {"role": "user", "content": "hi"}],
            [{"role": "user", "content": ""}, {"role": "user", "content": "hi"}],
        ),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": []}, 7],
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}],
        ),
        (
            [
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "seen"}]},
            ],
            [
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "1", "content": "seen"},
            ],
        ),
        (
            [{"role": "assistant", "content": "well", "tool_calls": [call({"at": "it"}), 7, {"function": 7}]}],
            [{"role": "assistant", "content": "well", "tool_calls": [CALL]}],
        ),
        (
            [{"role": "assistant", "tool_calls": [call(None), call(""), call("{")]}],
            [{"role": "assistant", "content": "", "tool_calls": [call("{}"), call("{}"), call("{")]}],
        ),
        ([{"role": "user", "content": "hi", "tool_calls": [CALL]}], [{"role": "user", "content": "hi"}]),
        ([{"role": "assistant", "reasoning": "hm"}, {"role": "assistant", "reasoning": "hm", "content": "so"}],
         [{"role": "assistant", "content": "so"}]),
        ([{"role": 7, "content": "hi"}, {"role": None}], []),
        ("none", []),
        (None, []),
    ],
)  # fmt: skip
def test_messages_are_as_a_chat_request_has_them(messages: Any, expected: list[dict[str, Any]]) -> None:
    assert parse_messages({"messages": messages}) == tuple(expected)


@pytest.mark.parametrize(("tools", "expected"), [([TOOL, 7], (TOOL,)), (None, ()), ("look", ())])
def test_tools_are_too(tools: Any, expected: tuple[dict[str, Any], ...]) -> None:
    assert parse_tools({"tools": tools}) == expected


IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x"}}
TEXT = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("path", "document", "expected"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [TEXT, IMAGE]}]}, [("messages.0.content.1", "image_url")]),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": [IMAGE, TEXT, IMAGE]}]},
            [("messages.1.content.0", "image_url"), ("messages.1.content.2", "image_url")],
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"image_url": "x"}, {**TEXT, "uuid": "1", "video_url": "y"}]}]},
            [("messages.0.content.0", "image_url"), ("messages.0.content.1", "text")],
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": kind} for kind in ("input_audio", "file", "smell")]}]},
            [(f"messages.0.content.{i}", kind) for i, kind in enumerate(("input_audio", "file", "smell"))],
        ),
        (
            MESSAGES,
            {
                "system": [{"type": "image", "source": {}}],
                "messages": [
                    {"role": "user", "content": [TEXT, {"type": "image", "source": {}}]},
                    {"role": "user", "content": [{"type": "tool_result", "content": [TEXT, {"type": "image"}]}]},
                ],
            },
            [("system.0", "image"), ("messages.0.content.1", "image"), ("messages.1.content.0.content.1", "image")],
        ),
        (
            RESPONSES,
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image"}]},
                    {"type": "function_call_output", "output": [{"type": "input_file"}]},
                ]
            },
            [("input.0.content.1", "input_image"), ("input.1.output.0", "input_file")],
        ),
        (
            MESSAGES,
            {"messages": [{"role": "assistant", "content": [{"type": kind} for kind in ("thinking", "tool_use")]}]},
            [],
        ),
        (CHAT, {"messages": [{"role": "user", "content": ["a", 7, TEXT, {"type": 7}]}, 7], "input": [IMAGE]}, []),
        (RESPONSES, {"input": "a"}, []),
        (COMPLETIONS, {"messages": [{"role": "user", "content": [IMAGE]}]}, []),
    ],
)
def test_what_is_no_text_is_found(path: str, document: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert list(find_unreadable(path, document)) == expected


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
    assert split_conversation(path, document, {"messages": [HI, BEGUN]}) == ((HI,), "Well, ")


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (CHAT, {"messages": [HI, BEGUN]}),
        (CHAT, {"messages": [HI, BEGUN], "continue_final_message": False, "add_generation_prompt": True}),
        (RESPONSES, {"input": [HI, {**BEGUN, "status": "completed"}]}),
    ],
)
def test_a_message_that_has_ended_is(path: str, document: dict) -> None:
    assert split_conversation(path, document, {"messages": [HI, BEGUN]}) == ((HI, BEGUN), "")


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
        (
            RESPONSES,
            {"input": [{**BEGUN, "status": "incomplete"}], "messages": [{**BEGUN, "tool_calls": [CALL]}]},
            "input",
        ),
        (RESPONSES, {"input": "more", "previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
def test_what_no_reward_can_read_is_refused_by_name(path: str, document: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError, match=f"^{param} cannot be combined with rewards: ") as caught:
        split_conversation(path, document, document)
    assert (caught.value.param, caught.value.status) == (param, 400)
