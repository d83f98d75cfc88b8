"""The laws of engines, of strategies and of the table's rows, on vLLM."""

from dataclasses import replace

import pytest
from vllm.sampling_params import SamplingParams

from tests.contracts import ENGINE_LAWS, STRATEGY_LAWS, TABLE_LAWS, Specimen, build
from trimtab.decoders import STRATEGIES
from trimtab.decoders.protocols import BASE, Sampling
from trimtab.preferences.preference_direction import DPA, Cone, PreferenceDirection, Template
from trimtab.runtime.contexts import Instruction
from trimtab.runtime.metered import Metered
from trimtab.runtime.usage import Usage

PROMPTS = (list(range(3)), list(range(50, 90)), list(range(20, 170)))


@pytest.fixture(scope="session")
def specimen(vllm_engine, client) -> Specimen:
    async def live() -> int:
        return client.get_num_unfinished_requests()

    async def shortness(prompt, completions):
        return [[-float(len(tokens))] for tokens in completions]

    return Specimen(
        engine=vllm_engine,
        prompts=PROMPTS,
        guides=("llama", "windowed", "lora"),
        reward=shortness,
        live=live,
        sampling=Sampling(max_tokens=12, engine_params=SamplingParams()),
        tolerance=1e-4,
        direction=PreferenceDirection(
            objectives=("helpfulness", "verbosity"),
            v=(0.8, 0.6),
            cone=Cone(axis=(1.0, 0.0), degrees=45),
            template=Template(text=DPA, role="system", slots=("h", "w"), signs=(1.0, 1.0)),
            guides={"helpfulness": {"llama": 1.0}, "verbosity": {"lora": 0.5}},
        ),
        stopping=lambda stop: Sampling(max_tokens=12, stop=(stop,), engine_params=SamplingParams(stop=[stop])),
        ending_at=lambda token: Sampling(
            max_tokens=12, stop_token_ids=(token,), engine_params=SamplingParams(stop_token_ids=[token])
        ),
    )


@pytest.fixture(scope="session")
def requested(specimen: Specimen) -> Specimen:
    """The engine as a request has it, which knows its own messages: here, whatever instructs the model is a prompt."""

    async def render(instruction: Instruction) -> list[int]:
        return PROMPTS[2]

    return replace(specimen, engine=Metered(specimen.engine, Usage(), render))


@pytest.mark.parametrize("law", ENGINE_LAWS, ids=lambda law: law.__name__)
async def test_engine(specimen, law):
    await law(specimen)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("law", STRATEGY_LAWS, ids=lambda law: law.__name__)
async def test_strategy(requested, law, name):
    await law(requested, build(name, requested))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("law", TABLE_LAWS, ids=lambda law: law.__name__)
async def test_a_row_says_what_is_so(requested, law, name):
    await law(requested, name)


def test_the_base_is_a_member(vllm_engine):
    assert BASE not in vllm_engine.guides
