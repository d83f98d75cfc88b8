"""The configuration: every refusal names the file, the line and the key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trimtab.server.config import Config, ConfigError, load, locate
from trimtab.server.request.plan import check_config

GOOD = """\
base: models/base
guides:
  kind: models/kind
  brief: {model: org/brief, revision: main}
objectives:
  warmth:
    guide: kind
    gain: 2.0
presets:
  warm:
    weights: {warmth: 1.0}
engine:
  dtype: float32
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "kind"):
        (tmp_path / "models" / name).mkdir(parents=True)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_a_good_file(folder: Path) -> None:
    config = load(written(folder, GOOD), check=check_config)
    assert config.base == str(folder / "models/base")
    assert config.model_name == "base"
    assert config.guides["kind"].model == str(folder / "models/kind")
    assert config.guides["brief"].model == "org/brief"
    assert config.objectives["warmth"].gain == 2.0
    assert config.default_strategy == "plain"


def test_paths_are_relative_to_the_file_not_to_the_caller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder, GOOD)
    monkeypatch.chdir(folder.parent)
    assert load(Path(folder.name) / "config.yaml").base == str(folder / "models/base")


PROMPTS = [
    ("{template: dpaa}", "preference_prompts.p.template: Input should be 'dpa', 'rps' or 'values'"),
    ("{templat: dpa}", "preference_prompts.p.templat: unknown key 'templat'; valid: cone, decimals, reader, role"),
    ("{slots: {h: warmth}}", "preference_prompts.p: give either a template's name or a text of your own"),
    ('{text: "{h}", template: dpa}', "preference_prompts.p: give either a template's name or a text of your own"),
    ('{text: "{h}"}', "preference_prompts.p: slots: name at least one objective"),
    ("{template: values}", "preference_prompts.p: slots: name at least one objective"),
    ('{text: "{h}", slots: {w: warmth}}', "preference_prompts.p: slots.w: the text has no {w}"),
    ("{template: dpa}", "preference_prompts.p: slots.h: unknown objective 'helpfulness'; valid: warmth"),
    ('{text: "{h}", slots: {h: warmth}, reader: kond}', "preference_prompts.p: reader: unknown guide 'kond'; valid: b"),
    ('{text: "{h}", slots: {h: warmth}, cone: {axis: {warmth: 0}}}', "preference_prompts.p: a direction of length 0"),
    ('{text: "{h}", slots: {h: warmth}, cone: {axis: {worth: 1}}}', "preference_prompts.p: cone.axis: unknown object"),
    ('{text: "{h}", slots: {h: warmth}, cone: {axes: {}}}', "preference_prompts.p.cone.axes: unknown key 'axes'"),
    ('{text: "{h}", slots: {h: warmth}, cone: {axis: {warmth: 1}, degrees: 0}}',
     "preference_prompts.p.cone.degrees: Input should be greater than 0"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "message"), PROMPTS)
def test_a_preference_prompt_that_says_no_direction_is_refused(folder: Path, prompt: str, message: str) -> None:
    path = written(folder, GOOD.replace("engine:", f"preference_prompts:\n  p: {prompt}\nengine:", 1))
    with pytest.raises(ConfigError) as caught:
        load(path, check=check_config)
    assert str(caught.value).startswith(f"{path}:13: {message}")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (
            "base: models/base",
            "bose: models/base",
            1,
            "bose: unknown key 'bose'; valid: admin_keys, allowed_origins, api_keys, api_keys_file",
        ),
        (
            "gain: 2.0",
            "gane: 2.0",
            8,
            "objectives.warmth.gane: unknown key 'gane'; valid: about, gain, guide, mean, reward, spread. Did you",
        ),
        ("revision: main", "revison: main", 4, "guides.brief.revison: unknown key 'revison'; valid: adapter, "),
        ("guide: kind", "guide: kond", 7, "objectives.warmth.guide: unknown guide 'kond'; valid: brief, kind. Did you"),
        ("kind: models/kind", "base: models/kind", 3, "guides.base: 'base' is the frozen model's own name"),
        ("kind: models/kind", "kind: ./no/where", 3, "guides.kind.model: there is no "),
        ("base: models/base", "base: /no/where", 1, "base: there is no /no/where"),
        ("gain: 2.0", "gain: .nan", 8, "objectives.warmth.gain: Input should be a finite number"),
        ("gain: 2.0", "gain: much", 8, "objectives.warmth.gain: Input should be a valid number"),
        ("  warm:\n", "  base:\n", 10, "presets.base: this is the base model's own id"),
        ("{warmth: 1.0}", "{warmt: 1.0}", 10, "presets.warm: unknown objective 'warmt'; valid: warmth. Did you mean"),
        ("{warmth: 1.0}", "{warmth: 1000}", 10, "presets.warm: alignment.weights.warmth must be a number in [-100, 10"),
        ("engine:", "default_strategy: guide\nengine:", 12, "default_strategy: unknown strategy 'guide'; valid: "),
        ("engine:", "default_strategy: guided\nengine:", 12, "default_strategy: strategy 'guided' needs alignment.gu"),
        ("engine:", "port: 70000\nengine:", 12, "port: Input should be less than or equal to 65535"),
        ("engine:", "max_weight: 0\nengine:", 12, "max_weight: Input should be greater than 0"),
        ("engine:", 'api_keys: [""]\nengine:', 12, "api_keys.0: String should have at least 1 character"),
        ("engine:", "name: 'a b'\nengine:", 12, "name: String should match pattern"),
        ("engine:", "auto_weights: models/base\nengine:", 12, "auto_weights: "),
    ],
)
def test_a_refusal_names_line_and_key(folder: Path, old: str, new: str, line: int, message: str) -> None:
    assert old in GOOD
    path = written(folder, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load(path, check=check_config)
    assert str(caught.value).startswith(f"{path}:{line}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected keys and values at the top"),
        ("- base", "expected keys and values at the top"),
        ("base: [", "while parsing a flow node"),
        ("guides: {}", ":1: base: Field required"),
    ],
)
def test_what_is_no_config(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        load(written(folder, text))
    assert message in str(caught.value)


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load(folder / "nothing.yaml")


def test_overrides_go_over_the_file(folder: Path) -> None:
    overrides = ["port=8123", "engine.max_model_len=512", "engine.compilation.level=0", "guides.kind=models/base"]
    config = load(written(folder, GOOD), overrides)
    assert config.port == 8123
    assert config.engine == {"dtype": "float32", "max_model_len": 512, "compilation": {"level": 0}}
    assert config.guides["kind"].model == str(folder / "models/base")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("port", "--set port: expected KEY=VALUE"),
        ("=8", "--set =8: expected KEY=VALUE"),
        ("base.x=1", "--set base.x=1: base holds a value, not keys"),
        ("engine={", "--set engine={: while parsing"),
        ("pert=8", "pert: unknown key 'pert'"),
        ("port=eighty", "port: Input should be a valid integer"),
    ],
)
def test_a_bad_override_is_named(folder: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(folder, GOOD), [override])
    assert message in str(caught.value)


def test_a_key_in_the_environment_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate({"base": "b", "api_keys": ["one"]})
    monkeypatch.delenv("TRIMTAB_API_KEY", raising=False)
    assert config.keys == ("one",)
    monkeypatch.setenv("TRIMTAB_API_KEY", "two")
    assert config.keys == ("one", "two")


def test_a_bad_key_is_refused_without_being_shown(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(folder, GOOD.replace("engine:", "api_keys: [{s3cret: 1}]\nengine:")))
    assert "api_keys" in str(caught.value)
    assert "s3cret" not in str(caught.value)


REWARDS = """\
base: models/base
rewards:
  rm: {kind: classifier, model: models/kind}
  short: {kind: length, target: 20}
objectives:
  brevity: {reward: short, spread: 2.0}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("kind: length", "kind: lenght", 4, "rewards.short.kind: unknown kind of reward 'lenght'; valid: avoids, bleu"),
        ("target: 20", "taget: 20", 4, "rewards.short.taget: unknown key 'taget'; valid: base, engine, kind, max, min"),
        ("target: 20", "target: long", 4, "rewards.short: target: "),
        ("target: 20", "target: 20, model: models/kind", 4, "rewards.short.model: kind 'length' is no model"),
        (", model: models/kind", "", 3, "rewards.rm.model: kind 'classifier' is a model: say which"),
        ("model: models/kind", "model: ./nowhere", 3, "rewards.rm.model: there is no "),
        ("spread: 2.0", "spread: 0", 6, "objectives.brevity.spread: Input should be greater than 0"),
        ("reward: short", "reward: shirt", 6, "objectives.brevity.reward: unknown reward 'shirt'; valid: rm, short"),
        ("reward: short", "reward: {of: short, combine: most}", 6, "objectives.brevity.reward.combine: unknown comb"),
    ],
)
def test_a_reward_that_cannot_be_is_refused(folder: Path, old: str, new: str, line: int, message: str) -> None:
    assert old in REWARDS
    path = written(folder, REWARDS.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load(path, check=check_config)
    assert str(caught.value).startswith(f"{path}:{line}: {message}"), str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("base: a/b\nport: 1\nport: 2\n", 3, "port: stands twice, in line 2 too"),
        ("base: a/b\nengine:\n  dtype: x\n  dtype: y\n", 4, "engine.dtype: stands twice, in line 3 too"),
        ("base: a/b\nguides: {x: a/b, x: a/c}\n", 2, "guides.x: stands twice, in line 2 too"),
        (
            "base: a/b\nrewards:\n  a: {kind: length, engine: &e {x: 1, x: 2}}\n  b: {<<: *e}\n",
            3,
            "rewards.a.engine.x: stands twice",
        ),
        ("base: a/b\nengine: {<<: {a: 1}, <<: {b: 2}}\n", 2, "engine.<<: stands twice"),
        ("base: a/b\npresets:\n  p:\n  - {a: 1, a: 2}\n", 4, "presets.p.0.a: stands twice"),
        ("base: a/b\nname: 2026-01-01\n", 2, "name: a date: put it in quotes"),
        ("base: a/b\nname: !!binary aGk=\n", 2, "name: a YAML binary; valid: text, numbers"),
        ("base: a/b\nname: !!python/object:os.x {}\n", 2, "name: a YAML python/object:os.x; valid: text"),
        ("base: a/b\nmax_weight: .inf\n", 2, "max_weight: Input should be a finite number"),
        ("base: a/b\nengine: {x: [.nan]}\n", 2, "engine.x.0: Input should be a finite number"),
        ("base: a/b\nengine: {x: 1e400}\n", 2, "engine.x: Input should be a finite number"),
        ("base: a/b\nengine: {x: 1" + "0" * 5000 + "}\n", 2, "engine.x: "),
        ("base: a/b\nengine: {x: !!bool maybe}\n", 2, "engine.x: 'maybe' is no bool"),
        ("base: a/b\nguides: {1: a/b}\n", 2, "guides: a key must be text, and '1' is none"),
        ("base: a/b\nguides: {no: a/b}\n", 2, "guides: a key must be text, and 'no' is none"),
        ("base: a/b\nguides: {? [a] : a/b}\n", 2, "guides: a key must be text, and a list"),
        ("base: a/b\nengine: &a {x: *a}\n", 2, "engine.x: an anchor that holds itself"),
        ("base: a/b\nengine: {x: " + "[" * 80 + "]" * 80 + "}\n", 2, "engine.x.0.0: is nested deeper than 64"),
        ("base: a/b\nengine: {x: " + "[" * 5000 + "]" * 5000 + "}\n", 1, "is nested too deeply"),
        ("base: a/b\n\tport: 1\n", 2, "while scanning"),
        ("base: a/b\nname: \x01\n", 2, "character #x0001 is not valid in YAML"),
        ("base: a/b\nname: *none\n", 2, "found undefined alias 'none'"),
        ("base: ''\n", 1, "base: is empty; valid: a checkpoint's folder"),
        ("base: ~nobody-of-this-name/x\n", 1, "base: "),
        ('base: "a\\0b"\n', 1, "base: holds a character that no path has"),
        ("base: " + "x" * 5000 + "\n", 1, "base: "),
        ("base: config.yaml\n", 1, "base: {folder}/config.yaml is a file; valid: a checkpoint's folder"),
        ("base: x/y.gguf\n", 1, "base: {folder}/x/y.gguf is a GGUF file"),
        ("base: a/b\nlimits: {max_schema: 1}\n", 2, "limits.max_schema: unknown key 'max_schema'; valid: drain_s"),
        ("base: a/b\ntimeouts: {engine: 1}\n", 2, "timeouts.engine: unknown key 'engine'; valid: "),
    ],
)  # fmt: skip
def test_yaml_that_plain_data_cannot_be(folder: Path, text: str, line: int, message: str) -> None:
    path = written(folder, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    said = str(caught.value)
    assert said.startswith(f"{path}:{line}: {message.replace('{folder}', str(folder))}"), said
    assert "\n" not in said


def test_an_anchor_that_unfolds_into_millions(folder: Path) -> None:
    bomb = "base: a/b\nengine:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    with pytest.raises(ConfigError, match=r"engine\.a4: unfolds into more than 100000 values"):
        load(written(folder, bomb))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"base: a/b\nname: caf\xe9\n", ":2: byte 0xe9 is not UTF-8; valid: a text in UTF-8"),
        ("base: a/b\n".encode("utf-16"), ":1: byte 0xff is not UTF-8"),
        (b"#" * (2**20 + 1), ": is longer than 1048576 bytes"),
        (b"base: a/b\n---\nbase: c/d\n", ":2: expected a single document"),
    ],
)
def test_a_file_that_is_no_text(folder: Path, content: bytes, message: str) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}{message}"), str(caught.value)


def test_a_path_that_leads_to_no_file(folder: Path) -> None:
    loop = folder / "loop.yaml"
    loop.symlink_to(loop)
    for path, message in ((loop, "symbolic links"), (folder, "Is a directory")):
        with pytest.raises(ConfigError, match=message) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_byte_order_mark_is_no_part_of_the_text(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfbase: a/b\n")
    assert load(path).base == "a/b"


def test_numbers_as_yaml_1_2_has_them(folder: Path) -> None:
    config = load(written(folder, "base: a/b\npresets: {p: {weights: {x: 1e-3}}}\n"), ["engine.x=2E2"])
    assert config.presets["p"]["weights"]["x"] == 0.001
    assert config.engine["x"] == 200.0


def test_an_override_leaves_what_an_anchor_has_elsewhere(folder: Path) -> None:
    text = "base: a/b\nrewards:\n  a: {kind: x, engine: &e {dtype: float32}}\n  b: {kind: x, engine: *e}\n"
    config = load(written(folder, text), ["rewards.a.engine.dtype=float16"])
    assert [config.rewards[name].engine["dtype"] for name in "ab"] == ["float16", "float32"]


PATHS = {
    "chat_template": "t.jinja",
    "tool_parser_plugin": "p.py",
    "reasoning_parser_plugin": "p.py",
    "tokenizer": "models/base",
    "hf_config_path": "models/base",
    "generation_config": "models/base",
    "speculative_config.model": "models/base",
}


@pytest.mark.parametrize(("key", "path"), PATHS.items())
def test_a_path_of_the_engine_is_from_the_file(
    folder: Path, key: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("t.jinja", "p.py"):
        (folder / name).write_text("")
    monkeypatch.chdir("/")
    value: object = load(written(folder, "base: a/b\nengine: {}\n"), [f"engine.{key}={path}"]).engine
    for part in key.split("."):
        assert isinstance(value, dict)
        value = value[part]
    assert value == str(folder / path)


def test_adapters_that_requests_may_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    engine = "engine:\n  lora_modules: ['one=models/kind', {name: two, path: org/two, base_model_name: base}]\n"
    config = load(written(folder, f"base: models/base\n{engine}  default_mm_loras: {{image: org/image}}\n"))
    assert config.adapters == {"image": "org/image", "one": str(folder / "models/kind"), "two": "org/two"}
    assert config.engine["lora_modules"][1] == {"name": "two", "path": "org/two", "base_model_name": "base"}
    for text, message in (
        ("engine: {lora_modules: [one]}", "engine.lora_modules: 'one' is no adapter; valid: NAME=PATH, or"),
        ("engine: {lora_modules: [{name: one}]}", "engine.lora_modules: {'name': 'one'} is no adapter"),
        ("engine: {lora_modules: [one=./nowhere]}", f"engine.lora_modules: one: there is no {folder / 'nowhere'}"),
        ("engine: {lora_modules: [base=a/b]}", "engine.lora_modules: base is the id of another model already"),
        ("engine: {lora_modules: [p=a/b]}\npresets: {p: {}}", "engine.lora_modules: p is the id of another"),
        ("engine: {lora_modules: [one=a/b, one=c/d]}", "engine.lora_modules: one is the id of another"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            load(written(folder, f"base: models/base\n{text}\n"))


@pytest.mark.parametrize("where", ["", "rewards.r."])
@pytest.mark.parametrize("key", [key for key in PATHS if "." not in key])
def test_a_path_of_the_engine_that_is_not_there(folder: Path, key: str, where: str) -> None:
    text = f"base: a/b\nrewards:\n  r:\n    kind: x\n    engine:\n      {key}: ./no/where\n"
    if not where:
        text = f"base: a/b\n\n\n\nengine:\n  {key}: ./no/where\n"
    with pytest.raises(ConfigError) as caught:
        load(written(folder, text))
    said = f"{folder}/config.yaml:6: {where}engine.{key}: there is no {folder}/no/where"
    assert str(caught.value) == said


def test_a_template_in_the_file_is_itself(folder: Path) -> None:
    text = "base: a/b\nengine: {chat_template: '{{ messages }}'}\n"
    assert load(written(folder, text)).engine["chat_template"] == "{{ messages }}"


def test_a_guide_s_tokenizer_and_overrides(folder: Path) -> None:
    text = "base: a/b\nguides: {g: {model: a/c, tokenizer: models/base, hf_overrides: {rope_theta: 1}}}\n"
    guide = load(written(folder, text)).guides["g"]
    assert guide.tokenizer == str(folder / "models/base")
    assert guide.hf_overrides == {"rope_theta": 1}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", "cannot be read: No such file or directory"),
        ("folder", "cannot be read: Is a directory"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("latin", "is not UTF-8"),
    ],
)
def test_a_key_file_that_cannot_be_read(folder: Path, kind: str, message: str) -> None:
    keys = folder / "keys"
    if kind == "folder":
        keys.mkdir()
    elif kind == "loop":
        keys.symlink_to(keys)
    elif kind == "latin":
        keys.write_bytes(b"key  # caf\xe9\n")
    path = written(folder, "base: models/base\napi_keys_file: keys\n")
    with pytest.raises(ConfigError) as caught:
        load(path, check=check_config)
    assert str(caught.value) == f"{path}:2: api_keys_file: {message}"


def test_what_is_wrong_later_has_its_line_too(folder: Path) -> None:
    path = written(folder, GOOD)
    error = locate(ConfigError("another\ntokenizer", key="guides.brief.model"), path)
    assert str(error) == f"{path}:4: guides.brief.model: another tokenizer"
    assert str(locate(ConfigError("no key"), path)) == "no key"
