"""The whole HTTP surface on the toy engine: vLLM's app, renderer and tokenizer, and no engine process behind them.

The toy's three tokens are real ids of the tokenizer, and a response begins after the last token of the chat template's
generation prompt, so every answer and its exact probability can be listed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from transformers import AutoTokenizer, LlamaConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.outputs import RequestOutput
from vllm.renderers.registry import renderer_from_config
from vllm.v1.engine.input_processor import InputProcessor

from tests.engine import family
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import Engine, Tokens
from trimtab.engine.aligned_client import AlignedClient
from trimtab.rewards.protocols import Scorer
from trimtab.runtime.strategy_run import StrategyRun, current_run
from trimtab.runtime.toy_engine import ToyEngine, ToyModel
from trimtab.server import scoring
from trimtab.server.config import Config
from trimtab.server.http.app import build
from trimtab.server.http.vllm_app import arguments
from trimtab.server.scoring import BaseHost
from trimtab.server.state import ServerState

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TOY = Path(__file__).parent.parent / "toy_model.json"


def checkpoint(folder: Path) -> Path:
    """What a front end reads of a model: config, tokenizer and chat template, no weights."""
    sizes = {**family.sizes(64, 1, 1), "max_position_embeddings": 1024}
    LlamaConfig(**sizes, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    family.tokenizer(folder, family.VOCABULARY)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


class Lettered(ToyEngine):
    """A toy whose text is the tokenizer's."""

    def __init__(self, model: ToyModel, *, start: int, tokenizer: Any) -> None:
        super().__init__(model, start=start)
        self.tokenizer = tokenizer

    def text(self, completion: Tokens) -> str:
        text: str = self.tokenizer.decode(list(completion), skip_special_tokens=True)
        return text

    def tokens(self, text: str) -> Tokens:
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tokens


def toy_engine(folder: Path, letters: str = "ab") -> ToyEngine:
    """The toy of tests/toy_model.json, its tokens 0 and 1 being two letters."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocab = (*tokenizer.convert_tokens_to_ids(list(letters)), tokenizer.eos_token_id)
    data = json.loads(TOY.read_text())
    tables = {
        member: {tuple(vocab[int(t)] for t in prefix): np.array(p) for prefix, p in data[member].items()}
        for member in ("base", "arm")
    }
    [*_, start] = tokenizer.encode("assistant: ")
    model = ToyModel(tables=tables, vocab=vocab, max_tokens=data["max_tokens"])
    return Lettered(model, start=start, tokenizer=tokenizer)


class Frontend:
    """An engine client with a toy for its engine: what vLLM's app asks of one, and plain generation."""

    is_running = True
    errored = False

    def __init__(self, args: AsyncEngineArgs, engine: Engine) -> None:
        self.engine = engine
        self.vllm_config = args.create_engine_config()
        self.model_config = self.vllm_config.model_config
        self.renderer = renderer_from_config(self.vllm_config)
        self.input_processor = InputProcessor(self.vllm_config, self.renderer)

    def generate(self, *args: Any, **context: Any) -> AsyncGenerator[RequestOutput, None]:
        before = current_run.set(StrategyRun(strategy=Plain()))
        try:
            return AlignedClient(self, lambda _: self.engine).generate(*args, **context)
        finally:
            current_run.reset(before)

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def is_tracing_enabled(self) -> bool:
        return False

    async def check_health(self) -> None:
        pass

    def check_admission(self, *_: object, **__: object) -> None:
        pass


def site(
    config: Config,
    engine: Engine,
    scorers: Mapping[str, Scorer] | None = None,
    load_config: Callable[[], Config] | None = None,
) -> ServerState:
    """What a server serves; `scorers` stand in for the config's rewards of their names."""
    frontend = Frontend(AsyncEngineArgs.from_cli_args(arguments(config)), engine)
    host = BaseHost(engine=engine, tokenizer=frontend.renderer.tokenizer)
    configured = scoring.build_scorers(config, host, {})
    served = scoring.Scoring(config=config, scorers={**configured, **(scorers or {})}, host=host)
    return ServerState(client=AlignedClient(frontend, lambda _: engine), scoring=served, load_config=load_config)


async def app(served: ServerState) -> FastAPI:
    """The app, to be called through an ASGI transport."""
    return await build(served, arguments(served.config))


async def serve(config: Config, engine: Engine, scorers: Mapping[str, Scorer] | None = None) -> FastAPI:
    """`app` of `site`."""
    return await app(site(config, engine, scorers))
