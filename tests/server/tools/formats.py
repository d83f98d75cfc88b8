"""How the models behind vLLM's tool parsers write a call, after the parsers' own sources."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Call = tuple[str, Mapping[str, Any]]
"""name, arguments"""


def wrapped(call: Call, arguments: str = "arguments") -> str:
    name, values = call
    return json.dumps({"name": name, arguments: values})


def each(before: str, after: str, arguments: str = "arguments") -> Callable[[Sequence[Call]], str]:
    return lambda calls: "".join(before + wrapped(call, arguments) + after for call in calls)


def array(before: str, after: str = "", arguments: str = "arguments") -> Callable[[Sequence[Call]], str]:
    return lambda calls: before + "[" + ", ".join(wrapped(call, arguments) for call in calls) + "]" + after


def words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def tagged(
    before: str,
    opening: str,
    parameter: str,
    closing: str,
    after: str = "",
    first: str = "",
    last: str = "",
    between: str = "",
) -> Callable[[Sequence[Call]], str]:
    """Each call between tags, and each argument; `opening` has {name}, `parameter` {key}, {value} and {kind}."""

    def write(calls: Sequence[Call]) -> str:
        return (
            first
            + "".join(
                before.replace("{name}", name)
                + opening.replace("{name}", name)
                + between.join(
                    parameter.replace("{key}", key)
                    .replace("{value}", words(value))
                    .replace("{string}", json.dumps(isinstance(value, str)))
                    .replace("{type}", "string" if isinstance(value, str) else "number")
                    for key, value in values.items()
                )
                + closing
                + after
                for name, values in calls
            )
            + last
        )

    return write


def python(before: str = "[", after: str = "]", between: str = ", ") -> Callable[[Sequence[Call]], str]:
    def write(calls: Sequence[Call]) -> str:
        written = (f"{name}({', '.join(f'{k}={json.dumps(v)}' for k, v in values.items())})" for name, values in calls)
        return before + between.join(written) + after

    return write


def gemma(calls: Sequence[Call]) -> str:
    def value(v: Any) -> str:
        return f'<|"|>{v}<|"|>' if isinstance(v, str) else json.dumps(v)

    return "".join(
        f"<|tool_call>call:{name}{{{','.join(f'{k}:{value(v)}' for k, v in values.items())}}}<tool_call|>"
        for name, values in calls
    )


def kimi_k2(calls: Sequence[Call]) -> str:
    return "<|tool_calls_section_begin|>" + "".join(
        f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{json.dumps(values)}<|tool_call_end|>"
        for i, (name, values) in enumerate(calls)
    ) + "<|tool_calls_section_end|>"  # fmt: skip


def kimi_k3(calls: Sequence[Call]) -> str:
    def argument(key: str, value: Any) -> str:
        kind = "string" if isinstance(value, str) else "number"
        return f'<|open|>argument key="{key}" type="{kind}"<|sep|>{words(value)}<|close|>argument<|sep|>'

    return "<|open|>tools<|sep|>" + "".join(
        f'<|open|>call tool="{name}" index="{i + 1}"<|sep|>'
        + "".join(argument(key, value) for key, value in values.items())
        + "<|close|>call<|sep|>"
        for i, (name, values) in enumerate(calls)
    ) + "<|close|>tools<|sep|>"  # fmt: skip


def deepseek(before: str, after: str, kind: str = "") -> Callable[[Sequence[Call]], str]:
    return lambda calls: "<｜tool▁calls▁begin｜>" + "\n".join(
        f"<｜tool▁call▁begin｜>{kind}{name}{before}{json.dumps(values)}{after}<｜tool▁call▁end｜>"
        for name, values in calls
    ) + "<｜tool▁calls▁end｜>"  # fmt: skip


def dsml(wrapper: str, space: str = "") -> Callable[[Sequence[Call]], str]:
    mark = f"｜DSML｜{space}"
    return tagged(
        "", f'<{mark}invoke name="{{name}}">\n',
        f'<{mark}parameter name="{{key}}" string="{{string}}">{{value}}</{mark}parameter>\n',
        f"</{mark}invoke>\n", first=f"<{mark}{wrapper}>\n", last=f"</{mark}{wrapper}>",
    )  # fmt: skip


def plamo(calls: Sequence[Call]) -> str:
    def mark(word: str) -> str:
        return f"<|plamo:{word}:plamo|>"

    return mark("begin_tool_requests") + "".join(
        mark("begin_tool_request") + mark("begin_tool_name") + name + mark("end_tool_name")
        + mark("begin_tool_arguments") + "<|plamo:constrain|>json<|plamo:msg|>" + json.dumps(values)
        + mark("end_tool_arguments") + mark("end_tool_request")
        for name, values in calls
    ) + mark("end_tool_requests")  # fmt: skip


xml = tagged("<tool_call>\n", "<function={name}>\n", "<parameter={key}>\n{value}\n</parameter>\n", "</function>\n",
             "</tool_call>")  # fmt: skip
keyed = tagged("<tool_call>", "{name}\n", "<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n", "</tool_call>")
hermes = each("<tool_call>\n", "\n</tool_call>\n")
invoke = '<invoke name="{name}">\n'
hy_arg = "<arg_key>{key}</arg_key><arg_value>{value}</arg_value>"
ifm_arg = "<ifm|arg_key>{key}</ifm|arg_key><ifm|arg_value>{value}</ifm|arg_value>"
M3 = "]<]minimax[>["

FORMATS: dict[str, Callable[[Sequence[Call]], str]] = {
    "apertus": lambda calls: "<|tools_prefix|>" + json.dumps([dict([call]) for call in calls]) + "<|tools_suffix|>",
    "deepseek_v3": deepseek("\n```json\n", "\n```", "function<｜tool▁sep｜>"),
    "deepseek_v31": deepseek("<｜tool▁sep｜>", ""),
    "deepseek_v32": dsml("function_calls"),
    "deepseek_v4": dsml("tool_calls"),
    "deepseek_v41": dsml("calls", " "),
    "dots": tagged("<dots_function_call>", "<invoke name={name}>", "<parameter name={key}>{value}</parameter>",
                   "</invoke>", "</dots_function_call>"),
    "ernie45": each("<tool_call>\n", "\n</tool_call>\n"),
    "functiongemma": tagged("<start_function_call>", "call:{name}{", "{key}:<escape>{value}<escape>", "}",
                            "<end_function_call>", between=","),
    "gemma4": gemma,
    "gigachat3": each("<|function_call|>", ""),
    "glm45": keyed,
    "glm47": keyed,
    "granite": array("<|tool_call|>"),
    "granite-20b-fc": each("<function_call> ", ""),
    "granite4": each("<tool_call>", "</tool_call>"),
    "hermes": hermes,
    "hf": gemma,
    "hunyuan_a13b": array("<tool_calls>", "</tool_calls>"),
    "hy_v3": tagged("<tool_call>", "{name}<tool_sep>", hy_arg, "</tool_call>", first="<tool_calls>",
                    last="</tool_calls>"),
    "hy_v4": tagged("<tool_call>", "{name}", hy_arg, "</tool_call>", first="<tool_calls>", last="</tool_calls>"),
    "inkling": each("<|message_model|><|content_invoke_tool_json|>", "<|end_message|>", "args"),
    "internlm": each("<|action_start|><|plugin|>", "<|action_end|>", "parameters"),
    "jamba": array("<tool_calls>", "</tool_calls>"),
    "k2_horizon": tagged("<ifm|tool_call>", "{name}", ifm_arg, "</ifm|tool_call>", first="<ifm|tool_calls>",
                         last="</ifm|tool_calls>"),
    "kimi_k2": kimi_k2,
    "kimi_k3": kimi_k3,
    "lfm2": python("<|tool_call_start|>[", "]<|tool_call_end|>"),
    "ling3": keyed,
    "llama3_json": lambda calls: "; ".join(wrapped(call, "parameters") for call in calls),
    "llama4_json": lambda calls: "; ".join(wrapped(call, "parameters") for call in calls),
    "llama4_pythonic": python(),
    "longcat": each("<longcat_tool_call>", "</longcat_tool_call>"),
    "mimo": tagged("<tool_call>\n", "<function={name}>\n", "<parameter={key}>{value}</parameter>\n", "</function>\n",
                   "</tool_call>"),
    "minicpm5": tagged("", '<function name="{name}">', '<param name="{key}">{value}</param>', "</function>"),
    "minimax_m2": tagged("", invoke, '<parameter name="{key}">{value}</parameter>\n', "</invoke>\n",
                         first="<minimax:tool_call>", last="</minimax:tool_call>"),
    "minimax_m3": tagged(M3, invoke, M3 + "<{key}>{value}" + M3 + "</{key}>\n", M3 + "</invoke>\n",
                         first=M3 + "<tool_call>\n", last=M3 + "</tool_call>"),
    "mistral": lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(values)}" for name, values in calls),
    "muse_glimmer": tagged("<|start|>assistant to={name}<|message|><atem:function_calls>",
                           '<atem:invoke name="{name}">', '<atem:parameter name="{key}">{value}</atem:parameter>',
                           "</atem:invoke>", "</atem:function_calls><|eom|>"),
    "olmo3": python("<function_calls>", "</function_calls>", "\n"),
    "phi4_mini_json": array("functools"),
    "plamo3": plamo,
    "poolside_v1": keyed,
    "pythonic": python(),
    "qwen3_coder": xml,
    "qwen3_json": hermes,
    "qwen3_xml": xml,
    "seed_oss": lambda calls: xml(calls).replace("tool_call>", "seed:tool_call>"),
    "step3": tagged("<｜tool_call_begin｜>function<｜tool_sep｜>", '<steptml:invoke name="{name}">',
                    '<steptml:parameter name="{key}">{value}</steptml:parameter>', "</steptml:invoke>",
                    "<｜tool_call_end｜>", first="<｜tool_calls_begin｜>", last="<｜tool_calls_end｜>"),
    "step3p5": xml,
    "xlam": array(""),
}  # fmt: skip
"""parser -> calls as its models write them"""

MARKS = (
    r"<\|?/?[\w:｜▁|]+\|?>|<\|\"\|>|\[TOOL_CALLS\]|\[ARGS\]|<\|[\w:]+\|>|\]<\]minimax\[>\["
)  # fmt: skip
"""What of a format may be a token of its model's own."""

MORE_TOKENS = {
    "minicpm5": ["<function", "<param"],
    "llama3_json": ["<|python_tag|>"],
    "llama4_json": ["<|python_tag|>"],
    "ernie45": ["<think>", "</think>", "<response>", "</response>"],
}

TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "fields": {
        "content": {"close": ["<turn|>"], "content": "text"},
        "tool_calls": {
            "close": "<tool_call|>",
            "content": "json",
            "content_args": {"string_delims": [['<|"|>', '<|"|>']], "unquoted_keys": True},
            "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
            "repeats": True,
            "transform": {"function": {"arguments": "{content}", "name": "{name}"}, "type": "function"},
        },
    },
    "start_anchor": ["assistant: "],
}
"""A `response_template` for the parser "hf"."""
