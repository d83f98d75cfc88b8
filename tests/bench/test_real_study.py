"""The study of the real model: its figures, and all of it on a toy that has what real/config.yaml has."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.server.conftest import serve, until_up
from trimtab.bench.quality import arms, real
from trimtab.server.config import Config
from trimtab.server.request.plan import check_config, plan

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "demo"


def test_files_take_turns_and_a_prompt_counts_once(tmp_path: Path) -> None:
    for name, texts in {"a": ["1", "1", "2"], "b": ["3", "2", "4", "5"]}.items():
        pairs = [{"prompt": [{"role": "user", "content": t}], "chosen": "x", "rejected": "y"} for t in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert arms.write_prompts(tmp_path / "all", files, 99) == ["a", "b", "a", "b", "b"]
    lines = [json.loads(line)["messages"][0]["content"] for line in (tmp_path / "all").read_text().splitlines()]
    assert lines == ["1", "3", "2", "4", "5"]
    assert arms.write_prompts(tmp_path / "all", files, 2) == ["a", "b"]


def test_every_strength_of_a_family_is_another_and_the_base_is_first() -> None:
    for quick in (False, True):
        arms = real.list_arms(quick=quick)
        assert arms[0].name == real.BASE
        assert len({arm.name for arm in arms}) == len({(arm.family, arm.strength) for arm in arms}) == len(arms)
    assert Counter(arm.family for arm in real.list_arms(quick=False)) == {
        **{"base": 1, "temperature": 2, "helpful": 3, "harmless": 3, "brief": 3},
        **{"best of n": 3, "qalign": 1, "args": 1, "votes": 1},
    }


def test_the_real_configuration_serves_every_setting_and_none_goes_by_the_judge() -> None:
    """The models are others: the real ones' base is fetched."""
    data = yaml.safe_load((ROOT / "real" / "config.yaml").read_text())
    data["base"] = str(DEMO / "base")
    data["guides"] = {name: {"model": str(DEMO / "guides/brevity")} for name in data["guides"]}
    for reward in data["rewards"].values():
        if "model" in reward:
            reward.update(model=str(DEMO / "rewards/a"), base=None)
    config = Config.model_validate(data)
    check_config(config)
    assert {real.PREFERRED, real.JUDGE} < config.rewards.keys()
    for arm in real.list_arms(quick=False):
        made = plan(arm.alignment, config)
        used = {leaf.reward for spec in (made.objective, *made.others.values()) if spec for leaf in spec.leaves}
        assert used <= {real.PREFERRED, "foretold"}, arm.name


def summarised(scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What `trimtab eval` has of those answers: reward -> setting -> scores, nan where there is none."""
    names = list(scores[real.PREFERRED])
    setting = {"words": 9.0, "visible_tokens": 9.0, "sampled_tokens": 9.0, "scored_tokens": 0.0, "kl": {}}
    return {
        "settings": dict.fromkeys(names, setting),
        "rewards": {reward: {name: {"mean": 0.0, "half_ci95": 0.0} for name in names} for reward in scores},
        "failures": [],
        "answers": [
            {
                **{"setting": name, "prompt": at, "sample": 0, "latency": float(at)},
                "rewards": {r: float(of[name][at]) for r, of in scores.items() if not np.isnan(of[name][at])},
            }
            for name in names
            for at in range(len(scores[real.PREFERRED][name]))
        ],
    }


def test_rises_are_paired_and_in_spreads_of_the_base() -> None:
    """Against a bootstrap over prompts."""
    rng = np.random.default_rng(0)
    arms = [arm for arm in real.list_arms(quick=False) if arm.family in ("base", "best of n")]
    scores = {r: {arm.name: rng.normal(arm.strength, 3, 20) for arm in arms} for r in (real.PREFERRED, real.JUDGE)}
    scores[real.JUDGE]["best_of_16"][4] = np.nan
    figures = real.work_out(summarised(scores), arms, ["a", "b"] * 10)
    rows = figures["settings"]
    assert "step" not in rows["best_of_4"]
    for reward, of in scores.items():
        unit = of["base"].std(ddof=1)
        for name, key, other in (("best_of_64", "rise", "base"), ("best_of_16", "step", "best_of_4")):
            apart = of[name] - of[other]
            apart = apart[~np.isnan(apart)] / unit
            assert rows[name][key][reward]["mean"] == pytest.approx(apart.mean())
            low, high = np.quantile(rng.choice(apart, (20000, len(apart))).mean(1), (0.025, 0.975))
            assert 2 * rows[name][key][reward]["half_ci95"] == pytest.approx(high - low, rel=0.15)
        apart = (of["best_of_64"] - of["base"])[1::2]
        by_source = rows["best_of_64"]["by_source"]["b"][reward]
        assert (by_source["difference"], by_source["pairs"]) == (pytest.approx(apart.mean()), 10)
    assert rows["base"]["seconds"] == np.mean(np.arange(real.SINGLE)), "of the prompts that were answered singly"
    assert real.expect_seconds(figures, 10) == pytest.approx(10 * len(arms) * 3.5)


@pytest.mark.slow
def test_the_whole_study_on_a_toy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shorter = {"kind": "length", "unit": "characters", "max": 1}
    config = {
        "base": str(DEMO / "base"),
        "name": "toy",
        "guides": {guide: str(DEMO / "guides/brevity") for guide in real.GUIDES},
        "rewards": {"preferred": shorter, "judge": {"kind": "repetition"}, "foretold": shorter},
        "objectives": {"preference": {"reward": "preferred", "spread": 0.1}, "promise": {"reward": "foretold"}},
        "engine": {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 64},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "prompts.txt").write_text("\n".join((DEMO / "prompts.txt").read_text().splitlines()[:6]))
    args = argparse.Namespace(quick=True, out=tmp_path / "out", data=[tmp_path / "prompts.txt"], png=tmp_path / "a.png")
    answers = args.out / "answers.jsonl"
    for up in until_up(serve(tmp_path / "config.yaml", tmp_path / "log", "--engine", "toy", key="")):
        asyncio.run(real.study(up.url, 2, args))
        first = answers.read_text().splitlines()
        figures = asyncio.run(real.study(up.url, 6, args))
        whole = argparse.Namespace(
            **{**vars(args), "quick": False, "out": tmp_path / "whole", "png": tmp_path / "b.png"}
        )
        most = asyncio.run(real.study(up.url, 1, whole))
    arms = real.list_arms(quick=True)
    rows = figures["settings"]
    assert [*rows] == [arm.name for arm in arms]
    assert answers.read_text().splitlines()[: len(first)] == first
    assert len(answers.read_text().splitlines()) == 6 * len(arms), "answers that were there were asked for again"
    assert not most["failures"], "a setting of the whole study is more than the limits of a server allow"
    assert [*most["settings"]] == [arm.name for arm in real.list_arms(quick=False)]
    assert rows["best_of_4"]["rise"]["preferred"]["mean"] > 0
    assert rows["best_of_4"]["kl"]["kl_bound"]["mean"] == pytest.approx(np.log(4) - 3 / 4)
    assert all(rows[name]["kl"]["kl_exact"]["mean"] > 0 for name in ("temperature_0.5", "helpful_1", "brief_1"))
    assert json.loads((args.out / "study.json").read_text())["figures"]["settings"].keys() == rows.keys()
    assert args.png.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "minutes for the other prompts, a request at a time" in printed
    assert printed.count("rise over the base") == 5, "figures after each stage: 1 and 2 prompts, 1 and 6, and 1"
