from __future__ import annotations

import pytest

from tests.contracts import ENGINE_LAWS, STRATEGY_LAWS, TABLE_LAWS, Specimen, build
from tests.decoders.conftest import WISH
from trimtab.decoders import STRATEGIES as TABLE
from trimtab.decoders.args import Args
from trimtab.decoders.beam import Beam
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.blockwise import Blockwise
from trimtab.decoders.dpa import Directional
from trimtab.decoders.guided import Guided, contrastive, dera, genarm, mod, proxy_tuning
from trimtab.decoders.mbr import MinimumBayesRisk
from trimtab.decoders.particles import Particles
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import Strategy
from trimtab.decoders.rejection import RejectionSampling
from trimtab.decoders.rps import Rps
from trimtab.decoders.soft_best_of_n import SoftBestOfN
from trimtab.decoders.speculative_rejection import SpeculativeRejection
from trimtab.decoders.transfer_q import TransferQ
from trimtab.decoders.vote import Vote

STRATEGIES: list[Strategy] = [
    Plain(),
    Guided(guides={"arm": 0.7}),
    genarm(guides={"arm": 0.5}, alpha=2.0),
    dera(aligned="arm", **{"lambda_": 0.3}),
    mod(guides={"arm": 0.6, "base": 0.4}),
    proxy_tuning(expert="arm", antiexpert="base", alpha=0.5),
    contrastive(amateur="arm", alpha=0.3),
    BestOfN(n=5),
    BestOfN(n=4, guides={"arm": 1.0}),
    SoftBestOfN(lambda_=0.5, n=5),
    RejectionSampling(beta=0.5, n=5),
    Vote(n=5),
    Vote(n=5, extractor="text", weighting="softmax", guides={"arm": 1.0}),
    MinimumBayesRisk(n=5),
    MinimumBayesRisk(n=5, utility="token_f1", weighting="softmax", guides={"arm": 1.0}),
    SpeculativeRejection(n=5, decisions=(1, 2)),
    SpeculativeRejection(n=5, alpha=0.3, decisions=(1,), guides={"arm": 1.0}),
    Args(k=2, weight=0.5),
    TransferQ(k=2, rollouts=2, baseline={"arm": 1.0}, guides={"arm": 0.5}),
    TransferQ(k=3, value="soft", rollouts=3, horizon=None, min_p=0.3),
    TransferQ(k=3, rollout_temperature=0.0, block=2),
    Blockwise(n=3, block=2),
    Blockwise(n=3, block=1, beta=0.5, guides={"arm": 1.0}),
    Particles(n=4, block=1, beta=0.5),
    Particles(n=4, block=2, variant="pf_reference", answer="max_reward", guides={"arm": 1.0}, target="base"),
    Beam(n=4, width=2, block=1),
    Beam(n=4, width=2, block=2, variant="dvts", guides={"arm": 1.0}),
    Directional(direction=WISH),
    Rps(direction=WISH, k=3, m=2),
    Rps(direction=WISH, k=3, over="both", selection="soft"),
]


@pytest.mark.parametrize("law", ENGINE_LAWS, ids=lambda law: law.__name__)
async def test_the_toy_engine(specimen: Specimen, law) -> None:
    await law(specimen)


@pytest.mark.parametrize("law", STRATEGY_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
async def test_a_strategy_on_the_toy(specimen: Specimen, strategy: Strategy, law) -> None:
    await law(specimen, strategy)


@pytest.mark.parametrize("law", TABLE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", TABLE)
async def test_a_row_says_what_is_so(specimen: Specimen, name: str, law) -> None:
    await law(specimen, name)


@pytest.mark.parametrize("law", STRATEGY_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", TABLE)
async def test_every_strategy_s_example(specimen: Specimen, name: str, law) -> None:
    await law(specimen, build(name, specimen))
