"""Every field of vLLM's requests is classified, for requests that a strategy answers, in request_fields.json:

- honoured: it means what it means to vLLM (that may be vLLM's own refusal, as for `suffix` without a model for it);
- neutral: it touches neither the distribution nor the answer (labels, routing, and what only images or beams read);
- refused: no strategy could honour it, so the pair is a 400 that names it.

A new vLLM with a new field turns this red until somebody has thought about it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vllm.sampling_params import RepetitionDetectionParams, SamplingParams

from trimtab.engine.aligned_client import as_sampling
from trimtab.server.http.middleware import PLAIN_ONLY
from trimtab.server.http.vllm_app import request_fields

CLASSES = json.loads((Path(__file__).parent / "request_fields.json").read_text())


@pytest.mark.parametrize("path", CLASSES)
def test_every_field_has_one_class(path: str) -> None:
    classes = CLASSES[path]
    assert classes.keys() == {"honoured", "neutral", "refused"}
    named = [name for names in classes.values() for name in names]
    assert len(named) == len(set(named)), "a field in two classes"
    known = request_fields()[path]
    assert set(named) - known == set(), "vLLM has them no more"
    assert known - set(named) == set(), "new in vLLM: does a strategy honour them?"


def test_every_path_is_there() -> None:
    assert CLASSES.keys() == request_fields().keys()


def test_what_is_refused_is_refused() -> None:
    assert {name for classes in CLASSES.values() for name in classes["refused"]} == set(PLAIN_ONLY)


CHANGES = {
    "min_p": 0.1, "presence_penalty": 1.0, "frequency_penalty": 1.0, "repetition_penalty": 1.1, "logit_bias": {1: 1.0},
    "allowed_token_ids": [1], "bad_words": ["x"], "min_tokens": 1, "ignore_eos": True, "thinking_token_budget": 5,
    "structured_outputs": object(), "watermarking": True,
}  # fmt: skip
"""What changes the distribution behind the strategy's back."""

SEEN = {"temperature", "top_k", "top_p", "seed", "max_tokens"}
"""What a strategy sees for itself."""

ELSEWHERE = {
    "n", "stop", "stop_token_ids", "logprobs", "prompt_logprobs", "prompt_logprob_token_ids", "prompt_logprob_start",
    "logprob_token_ids", "flat_logprobs", "detokenize", "skip_special_tokens", "spaces_between_special_tokens",
    "include_stop_str_in_output", "output_kind", "stream_interval", "skip_clone", "output_text_buffer_length",
    "extra_args", "skip_reading_prefix_cache", "repetition_detection", "routed_experts_prompt_start",
    "trace_decode_token_ids",
}  # fmt: skip
"""What ends, shows or schedules an answer, and does not weigh its tokens."""


def test_every_sampling_parameter_is_known_to_weigh_tokens_or_not() -> None:
    known = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    assert known == CHANGES.keys() | SEEN | ELSEWHERE


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_distribution_makes_it_inexact(name: str) -> None:
    """Else a trace would give an importance weight that is wrong."""
    params = SamplingParams()
    assert not as_sampling(params).constrained
    setattr(params, name, CHANGES[name])
    assert as_sampling(params).constrained


RESTARTS = {
    "presence_penalty": 1.0, "frequency_penalty": 1.0, "bad_words": ["x"], "watermarking": True,
    "repetition_detection": RepetitionDetectionParams(max_pattern_size=2, min_count=2),
}  # fmt: skip
"""What vLLM reckons with the tokens that a request has drawn, and not with those that its prompt brings."""


def test_what_starts_anew_behind_a_beginning_is_named() -> None:
    """Of the rest vLLM looks at one token, at the whole context, or at what the engine hands on: tests/engine."""
    for name, value in (CHANGES | RESTARTS).items():
        params = SamplingParams()
        setattr(params, name, value)
        assert as_sampling(params).restarts == ((name,) if name in RESTARTS else ()), name
    assert as_sampling(SamplingParams(min_tokens=2, stop=["x"])).restarts == ("min_tokens",)
    assert as_sampling(SamplingParams(thinking_token_budget=0)).constrained
