"""What a guide's card says of steering, against all answers of two tokens."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine import family
from trimtab.training.steer import Law, Steering, conclude, draw_answers, render_table

PROMPTS = ([104, 105, 32, 33, 40], [98, 99, 100])
DRAWS = 3000
END = family.VOCABULARY.index("</s>")


@pytest.mark.parametrize(
    "law",
    [Law(exponent=0.7), Law(exponent=1.5, difference=True), Law(temperature=0.5), Law()],
    ids=lambda law: law.name,
)
def test_answers_and_their_kl_are_those_of_all_answers_of_two_tokens(tmp_path: Path, law: Law) -> None:
    """By probabilities of whole rows, neither padded nor cached; the guide knows fewer tokens than the base."""
    base, guide = (
        AutoModelForCausalLM.from_pretrained(make(tmp_path / make.__name__), dtype=torch.float64).eval()
        for make in (family.base, family.qwen)
    )
    drawn = draw_answers(base, guide, PROMPTS * DRAWS, law, ends={END}, most=2, seed=1)
    for place, prompt in enumerate(PROMPTS):
        answers = drawn[place :: len(PROMPTS)]
        with torch.inference_mode():
            rows = torch.cat([torch.tensor([prompt] * family.PADDED), torch.arange(family.PADDED)[:, None]], 1)
            p = base(rows, use_cache=False).logits[:, -2:].softmax(-1)
            g = torch.zeros_like(p)
            g[..., : guide.vocab_size] = guide(rows.clamp(max=guide.vocab_size - 1)).logits[:, -2:].softmax(-1)
        weights = p ** (1 / law.temperature - law.exponent * law.difference) * g**law.exponent
        q = weights / weights.sum(-1, keepdim=True)
        kl = torch.where(q > 0, q * (q / p).log(), 0.0).sum(-1)
        first = q[0, 0]
        after = kl[:, 1] * (torch.arange(family.PADDED) != END)
        for tokens, spent in answers:
            assert spent == pytest.approx(float(kl[0, 0] + after[tokens[0]]), abs=1e-6)
            assert len(tokens) == (1 if tokens[0] == END else 2)
        deviation = float((first * (kl[0, 0] + after - kl[0, 0] - first @ after) ** 2).sum().sqrt())
        mean = math.fsum(spent for _, spent in answers) / DRAWS
        assert abs(mean - float(kl[0, 0] + first @ after)) <= 5 * deviation / math.sqrt(DRAWS) + 1e-6
        pairs = torch.where((torch.arange(family.PADDED) == END)[:, None], 0.0, first[:, None] * q[:, 1])
        likely = [[int(i) // family.PADDED, int(i) % family.PADDED] for i in pairs.flatten().topk(40).indices]
        for tokens, chance in [([END], first[END]), *((pair, pairs[tuple(pair)]) for pair in likely)]:
            count = sum(drawn_tokens == tokens for drawn_tokens, _ in answers)
            assert abs(count - DRAWS * chance) <= 5 * math.sqrt(DRAWS * chance * (1 - chance)) + 1


def test_a_guide_that_has_learnt_nothing_is_a_colder_base(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(family.base(tmp_path), dtype=torch.float64).eval()
    laws = (Law(exponent=1.0), Law(temperature=0.5))
    one, other = (draw_answers(model, model, PROMPTS, law, ends={END}, most=6, seed=2) for law in laws)
    assert [tokens for tokens, _ in one] == [tokens for tokens, _ in other]
    assert [spent for _, spent in one] == pytest.approx([spent for _, spent in other])


def rows_of(gains: dict[Law, float]) -> list[Steering]:
    """Twenty prompts of unlike rewards, to which a law's answers have so much more."""
    return [
        Steering(
            law=law,
            kls=[5.0 * law.exponent + 4.0 * (1 / law.temperature - 1)] * 20,
            rewards=[i + more + 0.1 * math.sin(7 * i + law.exponent + law.temperature) for i in range(20)],
            words=[30] * 20,
        )
        for law, more in gains.items()
    ]


@pytest.mark.parametrize(
    ("guided", "cold", "verdict"),
    [
        (1.0, 0.0, "the guide steers, and more than a colder base does"),
        (1.0, 1.0, "it is not shown that the guide does more than a colder base"),
        (0.0, 0.0, "it is not shown that the guide raises the reward"),
        (-1.0, 0.0, "it is not shown that the guide raises the reward"),
    ],
)
def test_the_card_says_what_the_table_shows(guided: float, cold: float, verdict: str) -> None:
    weak, strong = Law(exponent=0.5), Law(exponent=1.0)
    rows = rows_of({Law(): 0.0, weak: guided / 2, strong: guided, Law(temperature=0.5): cold})
    told = conclude(rows)
    assert told.startswith(f"On 20 prompts {verdict}: at exponent ")
    assert "the base at temperature 0.5 is" in told
    assert len(render_table(rows)) == 6
    assert "| the base at temperature 0.5 | 4 |" in render_table(rows)[-1]
