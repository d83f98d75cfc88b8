from __future__ import annotations

import pytest

from decoders.best_of_n import BestOfN
from decoders.guided import Guided, contrastive, dera, genarm, mod, proxy_tuning
from decoders.mbr import MinimumBayesRisk
from decoders.plain import Plain
from decoders.protocols import Strategy
from decoders.rejection import RejectionSampling
from decoders.soft_best_of_n import SoftBestOfN
from decoders.speculative_rejection import SpeculativeRejection
from decoders.vote import Vote
from tests.contracts import ENGINE_LAWS, STRATEGY_LAWS, Specimen

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
]


@pytest.mark.parametrize("law", ENGINE_LAWS, ids=lambda law: law.__name__)
async def test_the_toy_engine(specimen: Specimen, law) -> None:
    await law(specimen)


@pytest.mark.parametrize("law", STRATEGY_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
async def test_a_strategy_on_the_toy(specimen: Specimen, strategy: Strategy, law) -> None:
    await law(specimen, strategy)
