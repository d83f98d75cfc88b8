"""`trimtab check` finds what would stop a server, without an engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig

from tests.engine import family
from tests.server.conftest import DEMO, ROOT
from trimtab.server.config import ConfigError, load, locate
from trimtab.server.engines import check_start
from trimtab.server.request.plan import check_config

pytestmark = pytest.mark.slow  # each reads the demo's models' files


@pytest.fixture
def demo(tmp_path: Path) -> dict[str, object]:
    """The demo's configuration as plain data, its paths made absolute."""
    config = load(DEMO)
    data: dict[str, object] = yaml.safe_load(DEMO.read_text())
    data |= {"base": config.base, "auto_weights": config.auto_weights}
    data["guides"] = {name: guide.model for name, guide in config.guides.items()}
    for name, reward in config.rewards.items():
        if reward.model is not None:
            data["rewards"][name]["model"] = reward.model  # type: ignore[index]
    return data


def problem(data: object, folder: Path) -> str:
    """What is wrong, after the file's name."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError) as caught:
        list(check_start(load(path, check=check_config)))
    return str(locate(caught.value, path)).removeprefix(f"{path}:").partition(": ")[2]


def test_the_demo_has_nothing_wrong() -> None:
    lines = list(check_start(load(DEMO, check=check_config)))
    assert f"base {ROOT}/demo/base (LlamaForCausalLM, 1024 positions, torch.float32)" in lines
    assert any(line.startswith(f"reward rm-a {ROOT}/demo/rewards/a (LlamaForSequence") for line in lines)
    assert len([line for line in lines if line.startswith("guide ")]) == 4


def test_a_guide_of_another_vocabulary(demo: dict[str, object], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "demo/guides/warmth", tmp_path / "other")
    raw = json.loads((tmp_path / "other/tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    first, second = list(vocabulary)[70:72]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(raw))
    demo["guides"]["warmth"] = str(tmp_path / "other")  # type: ignore[index]
    assert problem(demo, tmp_path).startswith("guides.warmth: another tokenizer than the base's: 2 of ")


def test_a_reward_without_files(demo: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    demo["rewards"]["rm-b"]["model"] = str(tmp_path / "empty")  # type: ignore[index]
    assert problem(demo, tmp_path).startswith(f"rewards.rm-b.model: {tmp_path}/empty is empty; valid: a folder with")


def test_a_reward_that_has_no_head(demo: dict[str, object], tmp_path: Path) -> None:
    demo["rewards"]["rm-b"]["model"] = str(ROOT / "demo/base")  # type: ignore[index]
    assert "which has no scoring head" in problem(demo, tmp_path)


def test_a_base_without_a_chat_template(demo: dict[str, object], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "demo/base", tmp_path / "base")
    (tmp_path / "base/chat_template.jinja").unlink()
    path = tmp_path / "config.yaml"
    path.write_text("base: base\n")
    hint = "base has no chat template: chats are refused until engine.chat_template sets one"
    assert hint in list(check_start(load(path)))
    path.write_text("base: base\nengine: {chat_template: '{{ messages }}'}\n")
    assert hint not in list(check_start(load(path)))


def test_a_tokenizer_that_knows_more_than_its_model(tmp_path: Path) -> None:
    small: dict[str, object] = {"vocab_size": 256, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    family.checkpoint(tmp_path / "base", LlamaConfig(**family.sizes(64, 1, 2, **small)), seed=1)
    path = tmp_path / "config.yaml"
    path.write_text("base: base\nengine: {dtype: float32}\n")
    hint = "base has 256 tokens and its tokenizer 3 more, from '<pad>' on: prompts that hold one are refused"
    assert hint in list(check_start(load(path)))
    family.base(tmp_path / "base")
    assert not any("its tokenizer" in line for line in check_start(load(path)))


def test_a_reward_that_reads_less_than_the_base_writes(tmp_path: Path) -> None:
    base, scorer = family.base(tmp_path / "base"), tmp_path / "scorer"
    family.scorer(scorer, ("only",), seed=3, max_position_embeddings=100)
    reward: dict[str, object] = {"kind": "classifier", "model": str(scorer), "format": "{prompt}{response}"}
    path = tmp_path / "config.yaml"

    def hints(**more: object) -> list[str]:
        path.write_text(yaml.safe_dump({"base": str(base), "rewards": {"r": {**reward, **more}, "s": reward}}))
        return [line for line in check_start(load(path, check=check_config)) if "tokens and the base" in line]

    hint = "reads 100 tokens and the base serves 256: longer conversations are refused until truncate: left drops their"
    assert [line.partition(" oldest")[0] for line in hints()] == [f"reward r {hint}", f"reward s {hint}"]
    assert [line.partition(" oldest")[0] for line in hints(truncate="left")] == [f"reward s {hint}"]
    reward["engine"] = {"max_model_len": 64}
    assert "reads 64 tokens" in hints()[0]


def test_the_page_on_own_models_says_what_is_said(tmp_path: Path) -> None:
    """Of each of its rows that a file shows, the part of the message that is the same for all models."""
    base = family.base(tmp_path / "base")
    short = family.checkpoint(tmp_path / "short", LlamaConfig(**family.sizes(64, 1, 2, max_position_embeddings=128)), 1)
    guide, scorer = family.adapter(tmp_path / "guide", base), family.scorer(tmp_path / "scorer", ("only",), seed=3)
    dora, head = (
        family.adapter(tmp_path / "dora", base, use_dora=True),
        family.reward_adapter(tmp_path / "head", base, 1),
    )
    other = Path(shutil.copytree(base, tmp_path / "other"))
    family.tokenizer(other, [*family.VOCABULARY[1::-1], *family.VOCABULARY[2:]])
    rows: list[tuple[str, str, str]] = [
        ("guides", str(other), "another tokenizer than the base's: 2 of 259 ids mean another token"),
        (
            "guides",
            str(short),
            "has 128 positions and max_model_len asks for 256; valid: engine.max_model_len of at most",
        ),
        ("guides", str(dora), "has use_dora=True, which a merge of A and B does not honour; merge it into its base"),
        ("guides", str(head), "is an adapter of a reward model's (task_type SEQ_CLS); valid: a language model's"),
        ("guides", "model.gguf", "is a GGUF file, which is not served"),
        ("rewards", str(guide), "is LlamaForCausalLM, which has no scoring head"),
        ("rewards", str(scorer), "the reward model has no chat template: say in `format` how it reads a chat"),
        ("dummy", str(guide), "an adapter cannot be merged into weights of load_format="),
        ("tensorizer", str(short), "cannot be honoured beside guides: it reads no member's own checkpoint"),
    ]
    page = (ROOT / "docs" / "own_models.md").read_text()
    for section, model, said in rows:
        reward = {"kind": "classifier", "model": model}
        member = {"rewards": {"r": reward}} if section == "rewards" else {"guides": {"g": model}}
        form = section if section in ("dummy", "tensorizer") else "auto"
        engine = {"dtype": "float32", "max_model_len": 256, "load_format": form}
        assert said in problem({"base": str(base), "engine": engine, **member}, tmp_path)
        assert said in page


def test_a_reward_that_is_an_adapter(demo: dict[str, object], tmp_path: Path) -> None:
    base = family.base(tmp_path / "base")
    adapter = family.reward_adapter(tmp_path / "adapter", base, 1)
    demo["rewards"]["rm-b"] = {"kind": "classifier", "model": str(adapter), "format": "{prompt}{response}"}  # type: ignore[index]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(demo))
    line = next(line for line in check_start(load(path, check=check_config)) if line.startswith("reward rm-b"))
    assert line.startswith(f"reward rm-b {adapter} on {base} (LlamaForCausalLM")
    demo["rewards"]["rm-b"]["base"] = str(family.llama(tmp_path / "other"))  # type: ignore[index]
    assert problem(demo, tmp_path).startswith("rewards.rm-b.model: a LoRA of another base")
    demo["rewards"]["rm-b"]["model"] = str(base)  # type: ignore[index]
    assert "rewards.rm-b.base: " in problem(demo, tmp_path)
    demo["rewards"]["rm-b"] = {"kind": "length", "max": 9, "base": str(base)}  # type: ignore[index]
    assert problem(demo, tmp_path).startswith("rewards.rm-b.base: is what `model` is an adapter of")


def test_a_reward_with_an_argument_that_is_none(demo: dict[str, object], tmp_path: Path) -> None:
    demo["rewards"]["rm-b"]["engine"] = {"max_len": 3}  # type: ignore[index]
    said = problem(demo, tmp_path)
    assert said.startswith("rewards.rm-b.engine: ")
    assert "'max_len'" in said


def test_an_objective_of_a_score_that_its_reward_does_not_give(demo: dict[str, object], tmp_path: Path) -> None:
    demo["objectives"]["warmth"]["reward"] = "rm-a.kindness"  # type: ignore[index]
    assert problem(demo, tmp_path).startswith("objectives.warmth.reward: unknown score of reward 'rm-a' 'kindness'")


def test_an_engine_option_and_a_plugin(demo: dict[str, object], tmp_path: Path) -> None:
    demo["engine"] = {"pipeline_parallel_size": 2}
    assert problem(demo, tmp_path).startswith("engine.pipeline_parallel_size: pipeline_parallel_size=2 cannot be")


@pytest.mark.parametrize("advice", ["guides.warmth.tokenizer", "rewards.rm-a.engine.tokenizer", "engine.tokenizer"])
def test_where_a_tokenizer_is_advised_it_is_accepted(demo: dict[str, object], tmp_path: Path, advice: str) -> None:
    """A model without its tokenizer: the message names a key, and with that key nothing is wrong."""
    section, name, *_ = advice.split(".")
    source = {"guides": "guides/warmth", "rewards": "rewards/a", "engine": "base"}[section]
    bare = tmp_path / "bare"
    shutil.copytree(ROOT / "demo" / source, bare)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    demo["rewards"].pop("rm-b")  # type: ignore[attr-defined]
    if section == "guides":
        demo["guides"][name] = {"model": str(bare)}  # type: ignore[index]
    elif section == "rewards":
        demo["rewards"][name] = {"kind": "classifier", "model": str(bare), "engine": {"max_model_len": 1024}}  # type: ignore[index]
    else:
        demo["base"] = str(bare)
    said = problem(demo, tmp_path)
    assert said.startswith(f"{advice}: ") or section == "engine", said
    target = demo
    for part in advice.split(".")[:-1]:
        target = target[part]  # type: ignore[assignment]
    target["tokenizer"] = str(ROOT / "demo" / source)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(demo))
    list(check_start(load(path, check=check_config)))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "trimtab.server.cli", "check", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_command(tmp_path: Path) -> None:
    good = run(str(DEMO), "--set", "port=8123")
    assert good.returncode == 0, good.stderr
    assert good.stdout.splitlines()[-1] == "nothing is wrong as far as files show it"
    bad = run(str(DEMO), "--set", "guides.warmth=demo/rewards/none")
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[-1].startswith(f"trimtab: {DEMO}:")
    assert "Traceback" not in bad.stderr
    (tmp_path / "twice.yaml").write_text("base: x\nbase: y\n")
    twice = run(str(tmp_path / "twice.yaml"))
    assert twice.returncode == 1
    assert twice.stderr == f"trimtab: {tmp_path}/twice.yaml:2: base: stands twice, in line 1 too; valid: once\n"
