"""The configuration: every refusal names the file, the line and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.server.config import Config, ConfigError, load
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
            "bose: unknown key 'bose'; valid: admin_keys, api_keys, api_keys_file",
        ),
        (
            "gain: 2.0",
            "gane: 2.0",
            8,
            "objectives.warmth.gane: unknown key 'gane'; valid: about, gain, guide, mean, reward, spread. Did you",
        ),
        ("revision: main", "revison: main", 4, "guides.brief.revison: unknown key 'revison'; valid: model, quanti"),
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
        ("target: 20", "taget: 20", 4, "rewards.short.taget: unknown key 'taget'; valid: engine, kind, max, min, mod"),
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
