"""Which tests are quick: `make quick` runs those marked neither `engine` (they start one of vLLM's) nor `slow`.

Fixtures that hold an engine mark the tests that use them; a test that starts one by itself is marked by hand, and fails
where that was forgotten.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import skip_waits

if TYPE_CHECKING:
    from tests.server.conftest import Running

FIXTURES = {"server": {"server", "looking"}, "engine": {"vllm_engine", "plain_vllm", "pooler", "thinker"}}
"""folder -> its fixtures that hold an engine"""

marked = False
"""Whether the test that runs is."""


def require_mark(what: str) -> None:
    if not marked:
        pytest.fail(f"{what} starts in a test without @pytest.mark.engine", pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    """vLLM's engines are processes that multiprocessing starts, with another start method or not."""
    start = BaseProcess.start

    def checked(self: Any) -> None:
        if "EngineCore" in self.name:
            require_mark(self.name)
        start(self)

    BaseProcess.start = checked  # type: ignore[method-assign]


def pytest_itemcollected(item: pytest.Item) -> None:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    if folder in ("recipes", "browser") or "served_toy" in getattr(item, "fixturenames", ()):  # train, start a server
        item.add_marker("slow")
    if FIXTURES.get(folder, set()) & set(getattr(item, "fixturenames", ())):
        item.add_marker("engine")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global marked
    marked = item.get_closest_marker("engine") is not None


@pytest.fixture
async def no_waits() -> AsyncIterator[None]:
    async with skip_waits():
        yield


@pytest.fixture(scope="session")
def served_toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The demo's configuration on a toy engine, open to all; SIGTERM ends it well."""
    from tests.server.conftest import DEMO, serve, until_up

    running = serve(DEMO, tmp_path_factory.mktemp("toy") / "log", "--engine", "toy", key="")
    for up in until_up(running):
        yield up
        up.process.terminate()
        assert up.wait(60) == 0, up.told()[-2000:]
