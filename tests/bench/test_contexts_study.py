"""The study of prompts as guides: its figures, and all of it on a toy that has what real/contexts.yaml has."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.server.conftest import serve, until_up
from trimtab.bench.quality import contexts
from trimtab.bench.quality.arms import BASE
from trimtab.server.config import Config
from trimtab.server.request.plan import check_config, plan

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "demo"


def test_the_configuration_serves_every_setting() -> None:
    data = yaml.safe_load((ROOT / "real" / "contexts.yaml").read_text())
    config = Config.model_validate({**data, "base": str(DEMO / "base")})
    check_config(config)
    for arm in contexts.list_arms(quick=False)[1:]:
        assert plan(arm.alignment, config).guides == {BASE: 1.0, **arm.alignment["guides"]}
    assert set(config.guides) - {"system"} == {g for of in contexts.ATTRIBUTES for g in of.families.values()}
    for attribute in contexts.ATTRIBUTES:
        contrast, alone = (config.contexts[attribute.families[family]] for family in ("contrast", "alone"))
        assert alone.prompt == contrast.prompt, "else w = 1 is another system prompt"
        assert alone.against is None


def test_a_curve_is_read_at_the_system_prompt_s_divergence() -> None:
    """A family whose value is twice its KL, against a prompt that gets 1 for 3 nats: 5 more."""
    rng = np.random.default_rng(0)
    means = {"a": 1.0, "b": 2.0, "c": 4.0, "system": 3.0}
    costs = {name: rng.gamma(4.0, mean / 4, 4000) for name, mean in means.items()}
    costs[BASE] = np.zeros(4000)
    values = {name: 2 * cost for name, cost in costs.items()} | {"system": rng.normal(1, 1, 4000)}
    apart = contexts.at_equal_kl(["a", "b", "c"], "system", values, costs)
    assert apart["difference"] == pytest.approx(2 * costs["system"].mean() - values["system"].mean(), abs=1e-6)
    spread = (2 * costs["system"] - values["system"]).std() / np.sqrt(4000)
    assert apart["high"] is not None
    assert apart["low"] is not None
    assert apart["high"] - apart["low"] == pytest.approx(2 * 1.96 * spread, rel=0.1)
    assert contexts.at_equal_kl(["a", "b"], "system", values, costs)["difference"] is None, "it does not reach so far"


def test_what_is_measured() -> None:
    measured = contexts.measures()
    assert measured["warmth"]("I love you, dear friend!") > 0.5 > measured["warmth"]("I hate this.")
    assert measured["brevity"]("one two three") == -3
    assert measured["simplicity"]("The cat sat.") > measured["simplicity"]("Incomprehensible prolegomena predominate.")


@pytest.mark.slow
def test_the_whole_study_on_a_toy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = yaml.safe_load((ROOT / "real" / "contexts.yaml").read_text())
    data |= {"base": str(DEMO / "base"), "engine": {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 64}}
    data["guides"]["trained"] = str(DEMO / "guides/brevity")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "prompts.txt").write_text("\n".join((DEMO / "prompts.txt").read_text().splitlines()[:4]))
    args = argparse.Namespace(
        quick=False, out=tmp_path / "out", data=[tmp_path / "prompts.txt"], png=tmp_path / "a.png"
    )
    for up in until_up(serve(tmp_path / "config.yaml", tmp_path / "log", "--engine", "toy", key="")):
        figures = asyncio.run(contexts.study(up.url, 4, args))
    assert [*figures["attributes"]] == ["warmth", "brevity", "simplicity"]
    brevity = figures["attributes"]["brevity"]
    assert len(brevity["settings"]) == 1 + 4 + 3 + 3
    assert brevity["settings"][BASE]["kl"]["mean"] == 0
    divergences = [brevity["settings"][f"brevity_alone_{w}"]["kl"]["mean"] for w in (1, 2, 4)]
    assert 0 < divergences[0] < divergences[2]
    assert [past["setting"] for past in brevity["past_the_prompt"]] == ["brevity_alone_2", "brevity_alone_4"]
    assert args.png.exists()
    assert "at its KL" in capsys.readouterr().out
