"""The whole HTTP surface on the toy engine: vLLM's app, renderer and tokenizer, and no engine process behind them.

The toy's three tokens are real ids of the tokenizer, and a response begins after the last token of the chat template's
generation prompt, so every answer and its exact probability can be listed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from fastapi import FastAPI
from transformers import AutoTokenizer, LlamaConfig
from vllm.engine.arg_utils import AsyncEngineArgs

from tests.engine import family
from trimtab.decoders.plain import Plain
from trimtab.decoders.protocols import Engine
from trimtab.engine.aligned_client import AlignedClient
from trimtab.engine.toy_client import TokenizedToy, ToyClient, ToyPooler
from trimtab.rewards.protocols import Scorer
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
    return TokenizedToy(model, start=start, tokenizer=tokenizer)


def site(
    config: Config,
    engine: Engine,
    scorers: Mapping[str, Scorer] | None = None,
    load_config: Callable[[], Config] | None = None,
    poolers: Mapping[str, ToyPooler] | None = None,
) -> ServerState:
    """What a server serves; `scorers` stand in for the config's rewards of their names."""
    frontend = ToyClient(AsyncEngineArgs.from_cli_args(arguments(config)), engine, Plain())
    host = BaseHost(engine=engine, tokenizer=frontend.renderer.tokenizer)
    configured = scoring.build_scorers(config, host, poolers or {})
    served = scoring.Scoring(config=config, scorers={**configured, **(scorers or {})}, host=host, poolers=poolers or {})
    return ServerState(client=AlignedClient(frontend, lambda _: engine), scoring=served, load_config=load_config)


async def app(served: ServerState) -> FastAPI:
    """The app, to be called through an ASGI transport."""
    return await build(served, arguments(served.config))


async def serve(
    config: Config,
    engine: Engine,
    scorers: Mapping[str, Scorer] | None = None,
    poolers: Mapping[str, ToyPooler] | None = None,
) -> FastAPI:
    """`app` of `site`."""
    return await app(site(config, engine, scorers, poolers=poolers))
