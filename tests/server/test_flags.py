"""What vLLM advises as a flag is a key of the configuration, and one that is accepted."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from vllm.utils.argparse_utils import FlexibleArgumentParser

from tests.server import toy_server
from trimtab.engine.flags import NOT_TAKEN, OUTSIDE_ENGINE, name_keys
from trimtab.engine.vllm_moves import make_arg_parser
from trimtab.server.config import Config, ConfigError
from trimtab.server.errors import parse_error
from trimtab.server.http.vllm_app import ENGINE, FRONTEND, arguments

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = sorted(
    option.removeprefix("--")
    for action in make_arg_parser(FlexibleArgumentParser())._actions
    for option in action.option_strings
    if option.startswith("--")
)


def test_every_flag_of_vllm_s_is_a_key_that_is_accepted_or_stays() -> None:
    for flag in FLAGS:
        said = name_keys(f"needs --{flag} to be set")
        if flag.removeprefix("no-") in NOT_TAKEN:
            assert said == f"needs --{flag} to be set"
        elif flag in OUTSIDE_ENGINE:
            assert said.split()[1] in Config.model_fields
        else:
            named = re.fullmatch(r"needs engine\\.(\\w+)(: false)? to be set".replace("\\\\", "\\"), said)
            assert named is not None, said
            assert named[1] in ENGINE | FRONTEND


def test_nothing_but_a_flag_is_taken_for_one() -> None:
    for text in ("a -- b", "x--y", "---", "--Loud", "a-b--c"):
        assert name_keys(text) == text
    assert name_keys("`--chat-template`, (--dtype=x)") == "`engine.chat_template`, (engine.dtype=x)"


def test_an_error_of_vllm_s_app_speaks_of_keys() -> None:
    error = parse_error(
        b'{"error": {"message": "\\"auto\\" tool choice requires --enable-auto-tool-choice and '
        b'--tool-call-parser to be set", "code": 400}}'
    )
    assert error is not None
    assert error.message == (
        '"auto" tool choice requires engine.enable_auto_tool_choice and engine.tool_call_parser to be set'
    )


async def test_a_chat_with_a_model_without_a_template_says_what_to_set(tmp_path: Path) -> None:
    base = toy_server.checkpoint(tmp_path)
    (base / "chat_template.jinja").unlink()
    served = toy_server.site(Config(base=str(base), engine={"max_model_len": 64}), toy_server.toy_engine(base))
    transport = httpx.ASGITransport(await toy_server.app(served))
    async with httpx.AsyncClient(transport=transport, base_url="http://toy") as client:
        asked = {"model": base.name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        refusal = await client.post("/v1/chat/completions", json=asked)
        assert refusal.status_code == 400
        assert "has no chat template" in refusal.json()["error"]["message"]
        assert "engine.chat_template" in refusal.json()["error"]["message"]
        bare = await client.post("/v1/completions", json={"model": base.name, "prompt": "assistant: ", "max_tokens": 3})
        assert bare.status_code == 200, bare.text


@pytest.mark.parametrize(
    ("engine", "key", "message"),
    [
        ({"ssl_keyfile": "x"}, "engine.ssl_keyfile", "unknown key 'ssl_keyfile'"),
        ({"dtype": "float7"}, "engine.dtype", "invalid choice: 'float7'"),
        ({"max_model_len": "long"}, "engine.max_model_len", "long"),
        (
            {"enable_auto_tool_choice": True},
            "engine",
            "engine.enable_auto_tool_choice requires engine.tool_call_parser",
        ),
        ({"enable_auto_tool_choice": True, "tool_call_parser": "none"}, "engine", "none"),
        ({"chat_template": "{% if %}"}, "engine.chat_template", "line 1 of the template: Expected an expression"),
        ({"tool_parser_plugin": "PLUGIN"}, "engine.tool_parser_plugin", "ZeroDivisionError"),
    ],
)
def test_an_argument_that_vllm_refuses_is_named_by_its_key(
    engine: dict[str, object], key: str, message: str, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("1 / 0\n")
    arranged = {name: str(plugin) if value == "PLUGIN" else value for name, value in engine.items()}
    with pytest.raises(ConfigError) as caught:
        arguments(Config.model_validate({"base": str(ROOT / "demo/base"), "engine": arranged}))
    assert caught.value.key == key, str(caught.value)
    assert message in str(caught.value)
    assert "--" not in str(caught.value)
