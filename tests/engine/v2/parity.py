"""Model Runner V2 against the plain recompute; run as a program, with the members' directories as JSON."""

import asyncio
import json
import sys

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from tests.engine.conftest import GUIDES, OPTIONS, Reference, load
from tests.engine.test_guides_in_use import interleaved
from tests.engine.test_parity import Case, answer, cases, check
from trimtab.decoders.protocols import BASE, Sampling
from trimtab.engine.members import engine_args
from trimtab.engine.vllm_engine import VLLMEngine


async def main(members: dict[str, str]) -> dict[str, float]:
    arguments = engine_args(members[BASE], {guide: members[guide] for guide in GUIDES}, **OPTIONS)
    arguments = AsyncEngineArgs(**arguments)
    assert arguments.create_engine_config().use_v2_model_runner
    reference = Reference(load(members))
    llm = AsyncLLM.from_engine_args(arguments)
    engine = VLLMEngine(client=llm)
    try:
        batch = [Case(case.prompt[:70], case.mixture) for case in cases()[:12]]
        worst = {}
        for kind, sampling in (("greedy", {"temperature": 0.0}), ("seeded", {"seed": 3})):
            told = await asyncio.gather(*(answer(engine, case, new=6, **sampling) for case in batch))
            worst[kind] = max(
                check(reference, case, *t[0], greedy=kind == "greedy") for case, t in zip(batch, told, strict=True)
            )
        alone = await answer(engine, batch[3], new=6, seed=3)
        assert alone[0][0] == told[3][0][0], "company changed a sample"
        worst["score"] = worst["divergence"] = 0.0
        for case in (batch[0], batch[3], batch[11]):
            completion = list(range(90, 98))
            expected = reference.logprobs(case.prompt + completion, case.mixture)[len(case.prompt) - 1 : -1]
            found = await engine.score(case.prompt, completion, guides=case.mixture)
            gaps = [abs(f - float(row[t])) for f, row, t in zip(found, expected, completion, strict=True)]
            worst["score"] = max(worst["score"], *gaps)
            expected = reference.divergence(case.prompt + completion, case.mixture)[len(case.prompt) - 1 : -1]
            found = await engine.divergence(case.prompt, completion, guides=case.mixture)
            worst["divergence"] = max(
                worst["divergence"], *(abs(f - e) for f, e in zip(found, expected.tolist(), strict=True))
            )
        plain = SamplingParams(max_tokens=4, temperature=0.0, logprobs=5, output_kind=RequestOutputKind.FINAL_ONLY)
        outputs = [output async for output in llm.generate({"prompt_token_ids": [1, 2, 3]}, plain, "plain")]
        done = outputs[-1].outputs[0]
        worst["recycled"] = check(
            reference, Case([1, 2, 3], {BASE: 1.0}), list(done.token_ids), done.logprobs, greedy=True
        )
        worst["interleaved"], hits = await interleaved(engine, asyncio.gather, reference, seed=7, rounds=4)
        assert hits > 0
        closed = engine.generate([1, 2, 3], Sampling(max_tokens=50), n=2, guides={BASE: 1.0, "llama": 1.0})
        await anext(closed)
        await closed.aclose()
        assert llm.get_num_unfinished_requests() == 0
        return worst
    finally:
        llm.shutdown()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
