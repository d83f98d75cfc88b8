"""The toy server with one of everything that a request can name, limits small enough to be met."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from tests.server import toy_server
from tests.server.search.conftest import Letters
from tests.server.search.conftest import config as search_config  # noqa: F401
from trimtab.rewards.validated import ValidatedScorer
from trimtab.runtime.toy_engine import ToyEngine
from trimtab.server.config import Config

FAULTS = ("nan", "shape", "dead")


@pytest.fixture(scope="module")
def config(search_config: Config) -> Config:  # noqa: F811
    document = search_config.model_dump(mode="json", exclude_unset=True)
    document["rewards"] |= {"verify": {"kind": "verifier"}, "distinct": {"kind": "repetition"}}
    return Config.model_validate(document)


@pytest.fixture(scope="module")
def toy(config: Config) -> ToyEngine:
    return toy_server.toy_engine(Path(config.base))


@pytest.fixture(scope="module")
async def app(config: Config, toy: ToyEngine) -> FastAPI:
    scorers = {fault: ValidatedScorer(scorer=Letters(fault), name=fault, timeout=0.2) for fault in FAULTS}
    letters = ValidatedScorer(scorer=Letters(), name="letters", timeout=60)
    return await toy_server.serve(config, toy, scorers={"letters": letters, **scorers})


@pytest.fixture(scope="module")
async def raw(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://toy", timeout=60) as client:
        yield client
