"""Several answers in one, on an engine whose texts are given."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest

from tests.decoders.conftest import START, Script, unasked, worth
from trimtab.decoders.best_of_n import BestOfN
from trimtab.decoders.protocols import Chunk, Mixture, Sampling, Tokens
from trimtab.decoders.shared.candidates import draw
from trimtab.decoders.shared.joint_sampling import HEADING_TOKENS, Jointly, split_parts

INSTRUCTED = -7
END = 0


class Author(Script):
    """A `Script` that under an instruction gives others; the end of a whole one is `END`."""

    def __init__(self, texts: Sequence[str], together: Sequence[str], cut: str = "") -> None:
        super().__init__(texts)
        self.together = together
        self.reason = cut
        self.instruction = ""

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset({END})

    async def generate(
        self, prompt: Tokens, sampling: Sampling, *, n: int, guides: Mixture
    ) -> AsyncGenerator[Chunk, None]:
        if INSTRUCTED not in prompt:
            async for chunk in super().generate(prompt, sampling, n=n, guides=guides):
                yield chunk
            return
        self.asked.append(("together", sampling.max_tokens, sampling.seed))
        for i in range(n):
            text = self.together[i]
            tokens = (*map(ord, text), END)[: sampling.max_tokens]
            yield Chunk(index=i, tokens=tokens, finish=self.reason or ("stop" if tokens[-1] == END else "length"))

    def text(self, completion: Tokens) -> str:
        return super().text([token for token in completion if token != END])

    def tokens(self, text: str) -> Tokens:
        return [ord(character) for character in text]

    async def render_with_instruction(self, instruction: str, *, role: str = "system") -> Tokens:
        self.instruction = instruction
        return [INSTRUCTED, START]


def written(*answers: str) -> str:
    return "\n\n".join(f"# Response {i}:\n{answer}" for i, answer in enumerate(answers, 1))


async def pool(engine: Author, n: int, together: int = 2, max_tokens: int = 20) -> list[tuple[str, str, bool]]:
    sampling = Sampling(max_tokens=max_tokens, seed=3)
    found = await draw([START], sampling, engine, None, n=n, guides={"base": 1.0}, diverse=Jointly(together=together))
    assert [c.index for c in found] == list(range(n))
    assert all((c.tokens[-1] == END) == (c.finish == "stop") for c in found if not c.alone)
    return [(engine.text(c.tokens), c.finish, c.alone) for c in found]


def test_parts_stand_under_headings() -> None:
    assert split_parts("Here they are.\n# Response 1\nyes\n\nand more\n**Response 2:**\nno\n") == [
        "yes\n\nand more",
        "no",
    ]
    assert split_parts("My response 2 is this") == []


async def test_parts_are_the_candidates() -> None:
    engine = Author([], [written("ab", "cd"), written("ef", "gh", "more than asked")])
    assert await pool(engine, 3) == [("ab", "stop", False), ("cd", "stop", False), ("ef", "stop", False)]
    assert engine.asked == [("together", 2 * (20 + HEADING_TOKENS), 3)]
    assert "Write 2 different" in engine.instruction


async def test_a_part_is_bounded_and_what_is_cut_says_so() -> None:
    whole = Author([], [written("abcdefg", "ijkl")])
    assert await pool(whole, 2, max_tokens=5) == [("abcde", "length", False), ("ijkl", "stop", False)]
    late = Author([], [written("ab", "cd")], cut="deadline")
    assert await pool(late, 2) == [("ab", "stop", False), ("cd", "deadline", False)]


async def test_what_is_missing_is_drawn_alone_and_said() -> None:
    engine = Author(["x", "y"], ["no headings", written("ab")])
    assert await pool(engine, 3) == [("ab", "stop", False), ("x", "stop", True), ("y", "stop", True)]
    assert engine.live == 0
    search = BestOfN(n=2, diverse=Jointly(together=2))
    reward = worth({"x": 1.0, "ab\0": 0.0})
    author = Author(["x"], [written("ab")])
    [chunk] = [c async for c in search([START], Sampling(max_tokens=9), author, reward, n=1, include=frozenset())]
    assert author.text(chunk.tokens) == "x"
    assert chunk.report["warnings"] == [
        "1 of 2 candidates were drawn by themselves: the base wrote fewer answers in one than it was asked for"
    ]


@pytest.mark.parametrize("sampling", [{"stop": ("x",)}, {"logprobs": True}, {"constrained": True}])
async def test_what_it_would_not_carry_out_is_refused(sampling: dict) -> None:
    search = BestOfN(n=2, diverse=Jointly(together=2))
    with pytest.raises(ValueError, match=r"params\.diverse cannot be combined with"):
        async for _ in search(
            [START], Sampling(max_tokens=9, **sampling), Author([], []), unasked, n=1, include=frozenset()
        ):
            pass
