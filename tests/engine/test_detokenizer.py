"""What clients, rewards and votes read of an answer's tokens is what plain vLLM's client reads of them."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason, detokenizer
from vllm.v1.engine.output_processor import OutputProcessor

from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import Chunk, Engine, Reward, Sampling, Tokens, Work
from trimtab.decoders.shared.candidates import stop_position
from trimtab.engine.aligned_client import AlignedClient, with_texts
from trimtab.engine.detokenizer import Detokenizer, decode_answer, encode_answer
from trimtab.runtime.strategy_run import StrategyRun, current_run

DEMO = Path(__file__).resolve().parent.parent.parent / "demo" / "base"
TEXT = "The quick brown fox jumps over the lazy dog. Ein großer Bär, naïve café, 你好世界, 🦊🎉 and <b>tags</b>! "
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>", "<|tool|>"]


def byte_level() -> Any:
    """The demo's."""
    return AutoTokenizer.from_pretrained(DEMO)


def sentencepiece() -> Any:
    """As Llama 2's: a space before the first word, bytes for what the vocabulary lacks, and an added word."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    alphabet = [chr(i) for i in range(33, 127)]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*SPECIAL, *bytes_], initial_alphabet=alphabet, limit_alphabet=100
    )
    raw.train_from_iterator([TEXT.encode("ascii", "ignore").decode()] * 4, trainer)
    raw.add_tokens(["<tool_call>"])
    # Bytes are no special tokens, though the trainer has to be handed them as such.
    kept = Tokenizer(models.BPE(*vocabulary(raw), byte_fallback=True, unk_token="<unk>"))
    kept.normalizer, kept.decoder = raw.normalizer, raw.decoder
    kept.add_special_tokens(SPECIAL)
    kept.add_tokens(["<tool_call>"])
    return PreTrainedTokenizerFast(tokenizer_object=kept, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def vocabulary(raw: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(raw.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


class Words(PreTrainedTokenizer):  # type: ignore[misc]
    """A tokenizer in Python, for which vLLM has another detokeniser."""

    vocab_files_names: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, **more: Any) -> None:
        words = ["<unk>", "<s>", "</s>", "<|end|>", *dict.fromkeys(TEXT), *"bytes"]
        self.ids = {word: i for i, word in enumerate(dict.fromkeys(words))}
        super().__init__(unk_token="<unk>", bos_token="<s>", eos_token="</s>", extra_special_tokens=["<|end|>"], **more)

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids) | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.ids)[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level, "sentencepiece": sentencepiece, "python": Words,
}  # fmt: skip


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def specials(tokenizer: Any) -> list[int]:
    """Two special tokens that do not end an answer by themselves."""
    return [token for token in tokenizer.all_special_ids if token != tokenizer.eos_token_id][:2]


def plain_vllm(tokenizer: Any, params: SamplingParams, prompt: Tokens, tokens: Tokens, finish: str) -> str:
    """The text that vLLM's output processor gives its client for tokens that an engine draws one by one."""
    processor = OutputProcessor(tokenizer, log_stats=False)
    params = params.clone()
    params.output_kind = RequestOutputKind.DELTA
    request = EngineCoreRequest("0", list(prompt), None, params, None, 0.0, None, None, None, external_req_id="0")
    processor.add_request(request, None)
    ends, text = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}, ""
    for i, token in enumerate(tokens):
        output = EngineCoreOutput("0", [token], finish_reason=ends[finish] if i == len(tokens) - 1 else None)
        for given in processor.process_outputs([output]).request_outputs:
            text += given.outputs[0].text
            if given.finished:
                return text
    return text


@dataclass(frozen=True)
class Scripted:
    """A strategy whose answers are written, in chunks of these lengths."""

    answers: Sequence[Tokens]
    finish: str
    lengths: Sequence[int]

    async def __call__(
        self, prompt: Tokens, sampling: Sampling, engine: Engine, reward: Reward, *, n: int, include: frozenset[str]
    ) -> AsyncGenerator[Chunk, None]:
        for i, tokens in enumerate(self.answers):
            at = 0
            for length in self.lengths:
                if at < len(tokens):
                    piece, at = tuple(tokens[at : at + length]), at + length
                    yield Chunk(index=i, tokens=piece, finish=self.finish if at >= len(tokens) else None)

    def work(self, max_tokens: int, *, n: int, include: frozenset[str]) -> Work:
        return Work(candidates=n, sampled=max_tokens)


def client_of(tokenizer: Any, engine: Any = None) -> AlignedClient:
    renderer = SimpleNamespace(tokenizer=tokenizer, get_eos_token_id=lambda: tokenizer.eos_token_id)
    processor = SimpleNamespace(generation_config_fields={"eos_token_id": [tokenizer.eos_token_id]})
    return AlignedClient(SimpleNamespace(renderer=renderer, input_processor=processor), lambda _: engine)


async def served(client: AlignedClient, run: StrategyRun, params: SamplingParams, prompt: Tokens) -> list[Any]:
    """The outputs that vLLM's app gets."""
    before = current_run.set(run)
    try:
        outputs = client.generate({"type": "token", "prompt_token_ids": list(prompt)}, params, "id")
        return [output async for output in outputs]
    finally:
        current_run.reset(before)


def ended(params: SamplingParams, eos: int) -> SamplingParams:
    """As vLLM's engine client fills them in."""
    params = params.clone()
    params.update_from_generation_config({}, eos)
    return params


CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "special tokens": {"skip_special_tokens": False},
    "special tokens without spaces": {"skip_special_tokens": False, "spaces_between_special_tokens": False},
    "a stop string": {"stop": ["fox", "lazy"]},
    "a stop string of several tokens, shown": {"stop": ["n fox j"], "include_stop_str_in_output": True},
    "the end, shown": {"skip_special_tokens": False, "include_stop_str_in_output": True},
    "no end": {"ignore_eos": True, "skip_special_tokens": False},
    "a stop string that may not come yet": {"stop": ["quick", "dog"], "min_tokens": 30},
    "half of a stop string at the end": {"stop": ["! and then something else"]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("end", ["eos", "stop token", "length"])
async def test_all_read_what_plain_vllm_s_client_reads(tokenizer: Any, case: str, end: str) -> None:
    """Streamed and not, in whatever chunks: the client, and through the run rewards, votes and candidates."""
    rng = random.Random(f"{case}{end}")
    first, stop_token = specials(tokenizer)
    closing = {"eos": [tokenizer.eos_token_id], "stop token": [stop_token], "length": []}[end]
    more = {"stop_token_ids": [stop_token]} if end == "stop token" else {}
    prompt = [first, *tokenizer.encode("user: tell me", add_special_tokens=False)]
    body = tokenizer.encode(TEXT, add_special_tokens=False)
    drawn = [rng.randrange(len(tokenizer)) for _ in range(60)]
    drawn = [token for token in drawn if token not in (tokenizer.eos_token_id, stop_token)]
    for tokens in (body[:-1], drawn):
        ends = end == "stop token" or (end == "eos" and not CASES[case].get("ignore_eos"))
        answer, finish = [*tokens, *closing], "stop" if ends else "length"
        for kind in (RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY):
            params = SamplingParams(max_tokens=500, output_kind=kind, **CASES[case], **more)
            expected = plain_vllm(tokenizer, ended(params, tokenizer.eos_token_id), prompt, answer, finish)
            for lengths in ([500], [1] * 500, [rng.randrange(1, 9) for _ in range(500)]):
                run = StrategyRun(strategy=Scripted([answer], finish, lengths))
                outputs = await served(client_of(tokenizer), run, params, prompt)
                assert "".join(output.outputs[0].text for output in outputs) == expected
                assert [t for output in outputs for t in output.outputs[0].token_ids] == answer
                assert outputs[-1].finished
                assert outputs[-1].outputs[0].finish_reason == finish
                assert run.text(prompt, answer) == expected
                assert run.instrument(SimpleNamespace(), prompt).text(answer) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 2, 4096])
def test_the_end_of_a_prompt_is_enough_to_go_by(tokenizer: Any, tokens: int) -> None:
    """Special tokens alone, or bytes of a character that is not whole, say too little."""
    before = [specials(tokenizer)[0]] * tokens
    fox = tokenizer.encode("🦊", add_special_tokens=False)
    answer = [*tokenizer.encode("then a fox", add_special_tokens=False), tokenizer.eos_token_id]
    for prompt in (
        before,
        [*tokenizer.encode("go on:", add_special_tokens=False), *before],
        [*before, *fox],
        [*before, *fox[:-1]],
    ):
        for skip in (True, False):
            params = ended(SamplingParams(skip_special_tokens=skip), tokenizer.eos_token_id)
            expected = plain_vllm(tokenizer, params, prompt, answer, "stop")
            assert Detokenizer(tokenizer, params).text(prompt, answer) == expected


def test_the_first_space_stays() -> None:
    tokenizer = sentencepiece()
    prompt = tokenizer.encode("user: go on")
    answer = tokenizer.encode("The fox", add_special_tokens=False)
    params = SamplingParams()
    assert Detokenizer(tokenizer, params).text(prompt, answer) == " The fox"
    assert decode_answer(tokenizer, answer, [2]) == " The fox"


@pytest.mark.parametrize("text", ["The fox", " The fox", "  two", "\nline", "你好", "", "dog."])
def test_a_text_is_encoded_as_within_an_answer(tokenizer: Any, text: str) -> None:
    if text == "\nline" and isinstance(tokenizer, Words):
        pytest.skip("its vocabulary has no line's end")
    assert decode_answer(tokenizer, encode_answer(tokenizer, text), [tokenizer.eos_token_id]) == text


@dataclass
class Counted:
    """Tokens that vLLM's detokenisers decode."""

    tokens: int = 0


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    for kind in (detokenizer.FastIncrementalDetokenizer, detokenizer.SlowIncrementalDetokenizer):
        real = kind.decode_next

        def count(self: Any, token: int, real: Any = real) -> str:
            counted.tokens += 1
            return real(self, token)  # type: ignore[no-any-return]

        monkeypatch.setattr(kind, "decode_next", count)
    return counted


async def test_a_token_is_decoded_once(tokenizer: Any, decoded: Counted) -> None:
    """However many chunks an answer comes in, and however many of its beginnings are read."""
    prompt = tokenizer.encode("user: tell me", add_special_tokens=False)
    body = tokenizer.encode(TEXT, add_special_tokens=False)
    answer = (body * 20)[:400]
    params = SamplingParams(max_tokens=500, output_kind=RequestOutputKind.DELTA)
    run = StrategyRun(strategy=Scripted([answer], "length", [1] * 500))
    await served(client_of(tokenizer), run, params, prompt)
    assert decoded.tokens == len(answer)
    for count in range(1, len(answer) + 1):
        run.text(prompt, answer[:count])
    assert decoded.tokens == 2 * len(answer)
    decoded.tokens = 0
    for token in sorted(set(body) - {answer[300]}):  # K ways to go on from one beginning, as a search reads them
        run.text(prompt, [*answer[:300], token])
    assert decoded.tokens == len(set(body)) - 1
    engine = run.instrument(SimpleNamespace(), prompt)  # type: ignore[arg-type]
    decoded.tokens = 0
    for count in range(1, 300):
        assert stop_position(answer[:count], count - 1, ["never"], engine) is None
    assert decoded.tokens <= 300


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.engine.detokenizer.MAX_REMEMBERED", 100)
    tokenizer = byte_level()
    reader = Detokenizer(tokenizer, SamplingParams())
    body = tokenizer.encode(TEXT, add_special_tokens=False)
    for start in range(20):
        assert reader.text(body, body[start : start + 15]) == tokenizer.decode(body[start : start + 15]).rstrip(
            "\ufffd"
        )
    assert sum(len(answer) for _, _, answer in reader._remembered) <= 100


async def test_a_place_to_stop_is_seen_behind_what_the_client_reads() -> None:
    """A vote reads up to the stop string; what looks for where it begins reads on."""
    tokenizer = byte_level()
    prompt, body = tokenizer.encode("user: "), tokenizer.encode(TEXT, add_special_tokens=False)
    params = SamplingParams(stop=["brown fox"], max_tokens=500)
    run = StrategyRun(strategy=Scripted([body], "stop", [500]))
    [output] = await served(client_of(tokenizer), run, params, prompt)
    engine = run.instrument(SimpleNamespace(), prompt)  # type: ignore[arg-type]
    end = stop_position(body, 0, ["brown fox"], engine)
    assert end is not None
    assert engine.text(body) == engine.text(body[:end]) == output.outputs[0].text == "The quick "
    assert "brown fox" in tokenizer.decode(body[:end])
    assert "brown fox" not in tokenizer.decode(body[: end - 1])
    assert output.outputs[0].stop_reason == "brown fox"


async def test_candidates_are_shown_as_the_client_would_read_them() -> None:
    tokenizer = sentencepiece()
    prompt, body = tokenizer.encode("user: "), tokenizer.encode(TEXT, add_special_tokens=False)

    @dataclass(frozen=True)
    class Shown(Scripted):
        async def __call__(self, *args: Any, **more: Any) -> AsyncGenerator[Chunk, None]:
            async for chunk in super().__call__(*args, **more):
                report = {"candidates": [{"index": 0, "tokens": tuple(body), "value": None}]}
                yield replace(chunk, report=report if chunk.finish else {})  # type: ignore[arg-type]

    run = StrategyRun(strategy=Shown([body], "stop", [7] * 100))
    [output] = await served(client_of(tokenizer), run, SamplingParams(stop=["lazy"], max_tokens=500), prompt)
    assert run.reports[0]["candidates"][0]["text"] == output.outputs[0].text == " The quick brown fox jumps over the "


async def test_a_stream_comes_token_by_token_with_its_logprobs() -> None:
    """An answer of the engine's own that is whole: each output has one token, and of its log-probs that token's."""
    tokenizer = byte_level()
    prompt, body = tokenizer.encode("user: "), tokenizer.encode(TEXT, add_special_tokens=False)
    logprobs = [{token: Logprob(-float(i))} for i, token in enumerate(body)]
    engine_output = RequestOutput(
        "x", None, prompt, None, [CompletionOutput(0, "?", body, -1.0, logprobs, finish_reason="length")], True
    )

    @dataclass(frozen=True)
    class Whole(Scripted):
        async def __call__(self, *args: Any, n: int, **more: Any) -> AsyncGenerator[Chunk, None]:
            for i in range(n):
                yield Chunk(index=i, tokens=tuple(body), finish="length", engine_output=engine_output)

    run = StrategyRun(strategy=Whole([], "", []))
    params = SamplingParams(n=2, logprobs=0, max_tokens=500, output_kind=RequestOutputKind.DELTA)
    outputs = await served(client_of(tokenizer), run, params, prompt)
    pieces = [output.outputs[0] for output in outputs]
    assert [(p.index, p.token_ids, p.logprobs) for p in pieces] == [
        (i, [token], [logprobs[t]]) for i in range(2) for t, token in enumerate(body)
    ]
    assert [p.finish_reason for p in pieces].count("length") == 2
    assert [output.finished for output in outputs] == [False] * (2 * len(body) - 1) + [True]
    params = SamplingParams(logprobs=0, max_tokens=500, output_kind=RequestOutputKind.FINAL_ONLY)
    [whole] = await served(client_of(tokenizer), StrategyRun(strategy=Whole([], "", [])), params, prompt)
    assert whole.outputs[0].logprobs == logprobs
    assert whole.outputs[0].text == "".join(p.text for p in pieces if p.index == 0) == tokenizer.decode(body)
    assert engine_output.outputs[0].text == "?", "what the engine gave is others' too"


async def test_plain_sampling_is_read_the_same_way() -> None:
    """A request that a budget bounds is answered by the strategy `plain`."""
    tokenizer = byte_level()
    body = tokenizer.encode(TEXT, add_special_tokens=False)

    async def generate(*_: Any, **__: Any) -> AsyncGenerator[Chunk, None]:
        yield Chunk(index=0, tokens=tuple(body[:9]))
        yield Chunk(index=0, tokens=tuple(body[9:]), finish="length")

    run = StrategyRun(strategy=Plain())
    params = SamplingParams(max_tokens=500, output_kind=RequestOutputKind.DELTA)
    outputs = await served(client_of(tokenizer, SimpleNamespace(generate=generate)), run, params, [1])
    assert "".join(output.outputs[0].text for output in outputs) == TEXT
    assert {len(output.outputs[0].token_ids) for output in outputs} == {1}


def test_a_traces_texts_are_the_answer_piece_by_piece(tokenizer: Any) -> None:
    """A character of several tokens comes with its last one."""
    prompt = tokenizer.encode("go on:", add_special_tokens=False)
    answer = [*tokenizer.encode("then a fox 🦊 ran", add_special_tokens=False), tokenizer.eos_token_id]
    read = Detokenizer(tokenizer, ended(SamplingParams(), tokenizer.eos_token_id))
    chunk = Chunk(
        index=0, tokens=(), finish="stop", report={"trace": {"tokens": answer, "kl_exact": [0.0] * len(answer)}}
    )
    trace = with_texts(chunk, lambda: read.begin(prompt)).report["trace"]
    assert len(trace["texts"]) == len(answer)
    assert "".join(trace["texts"]) == read.text(prompt, answer)
    assert trace["texts"][-1] == ""


def test_a_decisions_texts_stand_each_for_itself(tokenizer: Any) -> None:
    prompt = tokenizer.encode("go on:", add_special_tokens=False)
    options = [*tokenizer.encode("fox", add_special_tokens=False)[:2], tokenizer.eos_token_id]
    read = Detokenizer(tokenizer, ended(SamplingParams(), tokenizer.eos_token_id))
    chunk = Chunk(index=0, tokens=(), finish="stop", report={"trace": [{"tokens": options}, {"tokens": options[::-1]}]})
    first, second = with_texts(chunk, lambda: read.begin(prompt)).report["trace"]
    assert first["texts"] == [read.text(prompt, [token]) for token in options]
    assert second["texts"] == first["texts"][::-1]
