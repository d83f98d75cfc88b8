"""The laws of engines and strategies, on vLLM."""

import pytest
from vllm.sampling_params import SamplingParams

from tests.contracts import ENGINE_LAWS, STRATEGY_LAWS, Specimen
from trimtab.decoders.beam import Beam
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.blockwise import Blockwise
from trimtab.decoders.guided import Guided
from trimtab.decoders.particles import Particles
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import BASE, Sampling
from trimtab.decoders.speculative_rejection import SpeculativeRejection
from trimtab.decoders.transfer_q import TransferQ


@pytest.fixture(scope="session")
def specimen(vllm_engine, client) -> Specimen:
    async def live() -> int:
        return client.get_num_unfinished_requests()

    async def shortness(prompt, completions):
        return [[-float(len(tokens))] for tokens in completions]

    return Specimen(
        engine=vllm_engine,
        prompts=(list(range(3)), list(range(50, 90)), list(range(20, 170))),
        guides=("llama", "windowed", "lora"),
        reward=shortness,
        live=live,
        sampling=Sampling(max_tokens=12, engine_params=SamplingParams()),
        tolerance=1e-4,
    )


@pytest.mark.parametrize("law", ENGINE_LAWS, ids=lambda law: law.__name__)
async def test_engine(specimen, law):
    await law(specimen)


STRATEGIES = {
    "plain": Plain(),
    "guided": Guided(guides={"llama": 0.7, "lora": -0.3}),
    "best_of_n": BestOfN(n=4, guides={"llama": 0.5}),
    "speculative_rejection": SpeculativeRejection(n=4, decisions=(3, 6)),
    "transfer_q": TransferQ(k=2, rollouts=2, horizon=3, baseline={"llama": 1.0}, min_p=0.5),
    "blockwise": Blockwise(n=3, block=5),
    "particles": Particles(n=4, block=5, beta=0.5),
    "beam": Beam(n=4, width=2, block=5),
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("law", STRATEGY_LAWS, ids=lambda law: law.__name__)
async def test_strategy(specimen, law, strategy):
    await law(specimen, strategy)


def test_the_base_is_a_member(vllm_engine):
    assert BASE not in vllm_engine.guides
