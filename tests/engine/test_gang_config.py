"""What an engine's config must be for rows to be decoded together, and what is said where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs

from tests.engine import family
from tests.engine.conftest import OPTIONS
from trimtab.decoders.protocols import BASE
from trimtab.engine.errors import MemberError
from trimtab.engine.gang_config import number_adapters, schedule_gangs
from trimtab.engine.launch import EngineSpec
from trimtab.engine.members import engine_args
from trimtab.engine.plugin import FIELD


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.base(tmp_path_factory.mktemp("gang_config") / "base")


def make_config(path: Path, rows: dict[str, str] | None = None, **options: Any) -> VllmConfig:
    arguments = engine_args(str(path), {}, rows=rows, **{**OPTIONS, **options})
    return EngineSpec(name=BASE, args=AsyncEngineArgs(**arguments)).config


@pytest.mark.parametrize("asynchronous", [False, True])
def test_gangs_are_scheduled_wherever_they_can_be(base: Path, asynchronous: bool) -> None:
    config = make_config(base)
    config.scheduler_config.async_scheduling = asynchronous  # which vLLM never is on CPU
    schedule_gangs(config, needed=[])
    kind = "AsyncGangScheduler" if asynchronous else "GangScheduler"
    assert config.scheduler_config.get_scheduler_cls().__name__ == kind
    assert "row_obstacle" not in getattr(config.model_config.hf_config, FIELD)


NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"speculative_config": NGRAM}, "speculative_config: the rows of an answer would accept different drafts"),
        ({"scheduler_cls": "people.own.Scheduler"}, "scheduler_cls='people.own.Scheduler' schedules requests"),
        ({"worker_cls": "people.own.Worker"}, "worker_cls='people.own.Worker' samples by itself"),
    ],
)
def test_what_cannot_be_combined(base: Path, options: dict[str, Any], reason: str) -> None:
    """Refused where a guide needs it, and else kept for whoever asks."""
    config = make_config(base, **options)
    scheduler = config.scheduler_config.scheduler_cls
    with pytest.raises(MemberError, match=r"^warm: is a row of the batch, and rows cannot be decoded .*: ") as refused:
        schedule_gangs(config, needed=["warm"])
    assert reason in refused.value.problem
    schedule_gangs(config, needed=[])
    assert getattr(config.model_config.hf_config, FIELD)["row_obstacle"].startswith(reason)
    assert config.scheduler_config.scheduler_cls == scheduler


def test_a_base_that_keeps_more_than_keys_and_values(tmp_path: Path) -> None:
    config = make_config(family.mamba2(tmp_path / "base"), block_size=None)
    with pytest.raises(MemberError, match="the base is no plain decoder with attention in every layer"):
        schedule_gangs(config, needed=["warm"])


def test_adapters_as_guides(base: Path, tmp_path: Path) -> None:
    """A slot for each, one more on CPU, and as large a rank as they need; what vLLM cannot load is refused by name."""
    small, large = family.adapter(tmp_path / "small", base), family.adapter(tmp_path / "large", base, r=20)
    config = make_config(base, {"small": str(small), "large": str(large)})
    assert config.lora_config is not None
    assert (config.lora_config.max_loras, config.lora_config.max_lora_rank) == (3, 32)
    numbers = [number for _, number, _ in number_adapters({"small": "a", "large": "b"}).values()]
    assert len(set(numbers)) == 2
    assert min(numbers) > 1000, "vLLM counts those of requests from 1"
    head = family.adapter(tmp_path / "head", base, target_modules=["lm_head"])
    for place, message in ((head, "an adapter of lm_head scores wrongly"), (tmp_path / "nowhere", "no adapter in")):
        with pytest.raises(MemberError, match=f"^one: {message}"):
            make_config(base, {"one": str(place)})
    with pytest.raises(MemberError, match=r"^small: an adapter needs enable_lora: true"):
        make_config(base, {"small": str(small)}, enable_lora=False)
