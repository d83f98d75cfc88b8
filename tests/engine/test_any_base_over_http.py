"""Requests that name a LoRA adapter, and requests with images, on real models: the whole way from the body."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, Idefics3ForConditionalGeneration

from tests.engine import family
from tests.engine.conftest import OPTIONS
from trimtab.decoders.protocols import BASE
from trimtab.server.config import Config
from trimtab.server.engines import running_models
from trimtab.server.http.app import build
from trimtab.server.http.vllm_app import arguments
from trimtab.server.request.messages import CHAT, COMPLETIONS
from trimtab.server.state import ServerState

pytestmark = pytest.mark.engine

LENGTH = 10
PROMPT = list(range(20, 50))
BEST: dict[str, Any] = {"strategy": "best_of_n", "weights": {"brevity": 1.0}, "params": {"n": 3}}
CHAINS: dict[str, Any] = {"strategy": "qalign", "weights": {"brevity": 1.0}, "params": {"chains": 2, "steps": 3}}
PIECES: dict[str, Any] = {"strategy": "blockwise", "weights": {"brevity": 1.0}, "params": {"n": 2, "block": 3}}
AHEAD: dict[str, Any] = {"strategy": "args", "weights": {"brevity": 1.0}, "params": {"k": 3, "weight": 0.0}}
COMPARED = {"of": "short", "transform": {"centre": {"references": 2}}}
"""With reference answers of the model's own."""


@dataclass(frozen=True)
class Site:
    state: ServerState
    http: httpx.AsyncClient

    async def ask(self, path: str, **body: Any) -> list[int]:
        """The tokens of a greedy answer."""
        body = {"max_tokens": LENGTH, "temperature": 0.0, "ignore_eos": True, "return_token_ids": True, **body}
        answer = await self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        tokens: list[int] = answer.json()["choices"][0]["token_ids"]
        return tokens

    async def refusal(self, path: str, **body: Any) -> Any:
        answer = await self.http.post(path, json={"max_tokens": LENGTH, **body})
        assert answer.status_code in (400, 404), answer.text
        return answer.json()["error"]

    @contextmanager
    def calls(self) -> Iterator[list[tuple[Mapping[str, Any], Any]]]:
        """Prompt and adapter of every call of the engine meanwhile."""
        inner, made = self.state.client.inner, list[tuple[Mapping[str, Any], Any]]()
        generate = inner.generate

        def noted(prompt: Any, *args: Any, **context: Any) -> Any:
            adapter = context.get("lora_request")
            made.append((prompt, adapter and adapter.lora_name))
            return generate(prompt, *args, **context)

        inner.generate = noted
        try:
            yield made
        finally:
            del inner.generate


@asynccontextmanager
async def serving(base: Path, sections: Mapping[str, Any] | None = None, **engine: Any) -> AsyncIterator[Site]:
    config = Config.model_validate(
        {
            "base": str(base),
            "name": "plain",
            "rewards": {"short": {"kind": "length", "unit": "characters", "target": 4}},
            "objectives": {"brevity": {"reward": "short"}},
            "presets": {"best": BEST},
            "engine": {**OPTIONS, **engine},
            **(sections or {}),
        }
    )
    args = arguments(config)
    async with running_models(config, args) as (client, scoring):
        state = ServerState(client=client, scoring=scoring)
        transport = httpx.ASGITransport(await build(state, args))
        async with httpx.AsyncClient(transport=transport, base_url="http://base", timeout=300) as http:
            yield Site(state, http)


# LoRA


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("adapters")
    base = family.base(root / "base")
    return base, family.adapter(root / "one", base)


@pytest.fixture(scope="module")
async def adapted(checkpoints: tuple[Path, Path]) -> AsyncIterator[Site]:
    base, adapter = checkpoints
    async with serving(base, enable_lora=True, lora_modules=[f"one={adapter}"]) as site:
        yield site


@pytest.fixture(scope="module")
def references(checkpoints: tuple[Path, Path]) -> dict[str, Any]:
    """Model id -> it in Hugging Face's code, the adapter merged by peft."""
    base, adapter = checkpoints
    models = {name: AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64) for name in ("plain", "one")}
    models["one"] = PeftModel.from_pretrained(models["one"], adapter).merge_and_unload()
    return models


@torch.no_grad()
def greedy(model: Any, prompt: list[int], **inputs: Any) -> list[int]:
    tokens = list(prompt)
    for _ in range(LENGTH):
        tokens.append(int(model(input_ids=torch.tensor([tokens]), **inputs).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


async def test_answers_are_the_adapter_s(adapted: Site, references: dict[str, Any]) -> None:
    expected = {name: greedy(model, PROMPT) for name, model in references.items()}
    assert expected["plain"] != expected["one"]
    for alignment in ({}, BEST, PIECES, AHEAD):
        for name, answer in expected.items():
            more = {} if alignment in ({}, BEST) else {"ignore_eos": False}
            assert await adapted.ask(COMPLETIONS, model=name, prompt=PROMPT, alignment=alignment, **more) == answer


async def test_every_draw_and_score_has_the_adapter(adapted: Site) -> None:
    """Reference answers too, which are the same model's: those of one are not the other's."""
    for alignment in (BEST, CHAINS, PIECES, {**BEST, "weights": {}, "reward": COMPARED}):
        alignment = {key: value for key, value in alignment.items() if value != {}}
        for name, adapter in (("one", "one"), ("plain", None)):
            with adapted.calls() as made:
                await adapted.ask(
                    COMPLETIONS, model=name, prompt=PROMPT, alignment=alignment, temperature=1.0, seed=1,
                    ignore_eos=False,
                )  # fmt: skip
            assert len(made) > 1
            assert {used for _, used in made} == {adapter}
    with adapted.calls() as again:
        await adapted.ask(COMPLETIONS, model="one", prompt=PROMPT, alignment=alignment, seed=1, ignore_eos=False)
    assert len(again) == BEST["params"]["n"], "its references are remembered"


async def test_scores_are_the_adapter_s(adapted: Site, references: dict[str, Any]) -> None:
    """Several at once, of both."""
    serving_models = adapted.http._transport.app.state.openai_serving_models  # type: ignore[attr-defined]
    adapter = serving_models.lora_requests["one"]
    completions = [[(7 * i + j) % 250 for j in range(9)] for i in range(4)]
    engines = {"plain": adapted.state.client.bind({}), "one": adapted.state.client.bind({"lora_request": adapter})}
    pairs = [(name, completion) for completion in completions for name in engines]
    scores = await asyncio.gather(
        *(engines[name].score(PROMPT, completion, guides={BASE: 1.0}) for name, completion in pairs)
    )
    for (name, completion), score in zip(pairs, scores, strict=True):
        with torch.no_grad():
            logits = references[name](torch.tensor([[*PROMPT, *completion]])).logits[0, len(PROMPT) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(completion)), completion]
        assert score == pytest.approx(expected.tolist(), abs=1e-3)


async def test_an_adapter_is_a_model_id(adapted: Site) -> None:
    listed = (await adapted.http.get("/v1/models")).json()["data"]
    assert [card["id"] for card in listed] == ["plain", "one", "best"]
    assert (await adapted.http.get("/v1/models/one")).json()["parent"] == "plain"
    for body in ({"model": "one"}, {"model": "one", "alignment": BEST}):
        answer = (await adapted.http.post(COMPLETIONS, json={"prompt": PROMPT, "max_tokens": 4, **body})).json()
        assert answer["model"] == "one"
    error = await adapted.refusal(COMPLETIONS, model="two", prompt=PROMPT)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "one" in error["message"]


async def test_mixtures_are_of_the_adapter(adapted: Site, references: dict[str, Any]) -> None:
    """Its distribution to a power, and that distribution's entropy, which `segments` goes by."""
    adapter = adapted.http._transport.app.state.openai_serving_models.lora_requests["one"]  # type: ignore[attr-defined]
    completion = [(7 * j) % 250 for j in range(9)]
    engine = adapted.state.client.bind({"lora_request": adapter})
    score = await engine.score(PROMPT, completion, guides={BASE: 0.5})
    with torch.no_grad():
        logits = references["one"](torch.tensor([[*PROMPT, *completion]])).logits[0, len(PROMPT) - 1 : -1]
    expected = (0.5 * logits).log_softmax(-1)[range(len(completion)), completion]
    assert score == pytest.approx(expected.tolist(), abs=1e-3)
    alignment = {"strategy": "segments", "weights": {"brevity": 1.0}}
    assert await adapted.ask(COMPLETIONS, model="one", prompt=PROMPT, alignment=alignment, ignore_eos=False)


# Images


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.idefics3(tmp_path_factory.mktemp("idefics3") / "base")


@pytest.fixture(scope="module")
async def sighted(seeing: Path) -> AsyncIterator[Site]:
    async with serving(seeing, max_model_len=1024) as site:
        yield site


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (56, 56, 3), dtype=np.uint8))


def message(*parts: str | Image.Image) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
            continue
        part.save(file := io.BytesIO(), "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": content}]


async def test_images_reach_every_draw(sighted: Site, seeing: Path) -> None:
    """Plain, drawn whole, in pieces and token by token: greedy answers are the model's own for the image."""
    processor = AutoProcessor.from_pretrained(seeing)
    model = Idefics3ForConditionalGeneration.from_pretrained(seeing, dtype=torch.float32).eval()
    answers = []
    for seed in (1, 2):
        with sighted.calls() as made:
            plain = await sighted.ask(CHAT, model="plain", messages=message("What is it?", picture(seed)))
        [(prompt, _)] = made
        inputs = processor(images=picture(seed), text="<image>", return_tensors="pt")
        expected = greedy(model, prompt["prompt_token_ids"], pixel_values=inputs["pixel_values"])
        assert plain == expected
        answers.append(plain)
        for alignment in (BEST, PIECES, AHEAD):
            more = {} if alignment is BEST else {"ignore_eos": False}
            with sighted.calls() as made:
                answer = await sighted.ask(
                    CHAT, model="plain", messages=message("What is it?", picture(seed)), alignment=alignment, **more
                )
            assert answer == expected
            assert len(made) > 1
            assert {tuple(call["mm_hashes"]["image"]) for call, _ in made} == {tuple(prompt["mm_hashes"]["image"])}
    assert answers[0] != answers[1]


async def test_references_are_of_the_image(sighted: Site) -> None:
    alignment = {"strategy": "best_of_n", "params": {"n": 2}, "reward": COMPARED}
    counts = []
    for seed in (1, 2, 1):
        with sighted.calls() as made:
            await sighted.ask(
                CHAT, model="plain", messages=message("?", picture(seed)), alignment=alignment, ignore_eos=False
            )
        assert all("mm_hashes" in prompt for prompt, _ in made)
        counts.append(len(made))
    assert counts[0] == counts[1] > counts[2] == 2


async def test_text_alone_under_every_kind_of_search(sighted: Site, seeing: Path) -> None:
    model = Idefics3ForConditionalGeneration.from_pretrained(seeing, dtype=torch.float32).eval()
    with sighted.calls() as made:
        plain = await sighted.ask(CHAT, model="plain", messages=message("Hello there"))
    assert plain == greedy(model, made[0][0]["prompt_token_ids"])
    for alignment in (BEST, PIECES, AHEAD):
        more = {} if alignment is BEST else {"ignore_eos": False}
        answer = await sighted.ask(
            CHAT, model="plain", messages=message("Hello there"), alignment=alignment, **more
        )  # fmt: skip
        assert answer == plain
    await sighted.ask(
        CHAT, model="plain", messages=message("Hello"), alignment=CHAINS, temperature=1.0, ignore_eos=False
    )


async def test_an_image_cannot_be_put_into_another_prompt(sighted: Site) -> None:
    alignment = {"strategy": "mbr", "params": {"n": 4, "diverse": {"together": 2}}}
    error = await sighted.refusal(CHAT, model="plain", messages=message("?", picture(1)), alignment=alignment)
    assert "all text" in error["message"]
