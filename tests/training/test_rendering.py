"""Conversations in tokens: where an answer begins and ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.engine import family
from trimtab.rewards.model_input import InputEncoder
from trimtab.rewards.protocols import Question, Response
from trimtab.training.data import DataError, Pair
from trimtab.training.rendering import Renderer, choose_padding
from trimtab.training.rows import make_pair_rows, make_value_rows, make_whole_rows, place_of

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
"""As ChatML: a line's end stands behind the end of a turn, and no model writes it."""
HI = ({"role": "user", "content": "hi"},)


def renderer(folder: Path, written: str | None = CHATML, **more: Any) -> Renderer:
    family.tokenizer(folder, family.VOCABULARY)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = written
    tokenizer.save_pretrained(folder)
    return Renderer.of(str(folder), **more)


def test_the_end_of_turn_is_the_answers_and_what_follows_is_not(tmp_path: Path) -> None:
    made = renderer(tmp_path)
    prompt, answer = made.encode(HI, "yes")
    assert made.tokenizer.decode(prompt) == "<s>user\nhi</s>\n<s>assistant\n"
    assert made.tokenizer.decode(answer) == "yes</s>"
    assert prompt == made.encode_prompt(HI)


def test_an_answer_ends_even_where_the_template_does_not_say_so(tmp_path: Path) -> None:
    turns = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    made = renderer(tmp_path, turns + "{% if add_generation_prompt %}assistant: {% endif %}")
    _, answer = made.encode(HI, "yes")
    assert made.tokenizer.decode(answer) == "yes\n</s>"


def test_a_template_that_renders_the_prompt_otherwise_is_refused(tmp_path: Path) -> None:
    thinking = CHATML.replace("<s>assistant\n{% endif %}", "<s>assistant\n<think>\n{% endif %}")
    with pytest.raises(DataError, match="does not continue the prompt"):
        renderer(tmp_path, thinking).encode(HI, "yes")


def test_a_base_without_a_template_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--chat-template FILE"):
        renderer(tmp_path, None)
    bare = renderer(tmp_path, None, bare=True)
    prompt, answer = bare.encode(HI, "yes")
    assert (bare.tokenizer.decode(prompt), bare.tokenizer.decode(answer)) == ("hi", "yes</s>")
    with pytest.raises(DataError, match="one text"):
        bare.encode([*HI, *HI], "yes")
    (tmp_path / "template.jinja").write_text(CHATML)
    assert renderer(tmp_path, None, template=tmp_path / "template.jinja").encode(HI, "yes")[1] == answer


def test_padding_is_no_end(tmp_path: Path) -> None:
    made = renderer(tmp_path)
    made.tokenizer.pad_token = made.tokenizer.eos_token
    assert choose_padding(made.tokenizer, made.ends) == made.tokenizer.bos_token_id
    with pytest.raises(DataError, match="nothing can pad"):
        choose_padding(made.tokenizer, frozenset(made.tokenizer.all_special_ids))


def pairs(n: int) -> list[Pair]:
    return [
        Pair(prompt=({"role": "user", "content": f"q{i}"},), chosen="a" * (i + 1), rejected="b", line=i)
        for i in range(n)
    ]


def test_rows_are_split_by_prompt_and_too_long_ones_are_counted(tmp_path: Path) -> None:
    made = renderer(tmp_path)
    rows = make_pair_rows([*pairs(200), *pairs(200)], made, max_length=120, heldout=0.25)
    assert rows.dropped == {"longer than 120 tokens": 400 - len(rows.all)}
    assert {str(r["prompt_ids"]) for r in rows.train}.isdisjoint(str(r["prompt_ids"]) for r in rows.heldout)
    assert 0.15 < len(rows.heldout) / len(rows.all) < 0.35
    assert rows.joined == 0
    assert all(0 <= place_of(p.prompt) < 1 for p in pairs(20))


def test_a_reward_model_reads_prompt_and_answer_as_one(tmp_path: Path) -> None:
    rows = make_pair_rows(pairs(30), made := renderer(tmp_path), max_length=120, heldout=0.3)
    for pair, whole in zip(rows.all, make_whole_rows(rows, made).all, strict=True):
        assert whole["chosen_ids"] == [*pair["prompt_ids"], *pair["chosen_ids"], *made.tokenizer.encode("\n")]


TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
TEMPLATES = [
    CHATML,
    CHATML.replace("</s>\n", "</s>"),
    TURNS + "{% if add_generation_prompt %}assistant: {% endif %}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_reward_model_is_trained_on_what_the_server_has_it_read(tmp_path: Path, template: str) -> None:
    """And on what `apply_chat_template` gives anybody else. An answer that was cut is read as a whole turn too."""
    made = renderer(tmp_path, template)
    encoder = InputEncoder(name="r", tokenizer=made.tokenizer, limit=1000)
    question, text = Question(messages=HI, prompt=()), "yes, it is"
    server = encoder.encode_whole(question, Response(text=text, tokens=()))
    whole = [*HI, {"role": "assistant", "content": text}]
    assert server == made.tokenizer.apply_chat_template(whole, return_dict=False)
    [row] = make_whole_rows(
        make_pair_rows([Pair(prompt=HI, chosen=text, rejected="no", line=0)], made, max_length=120, heldout=1.0), made
    ).heldout
    assert row["chosen_ids"] == server
    prompt, answer = made.encode(HI, text)
    cut = [token for token in answer if token not in made.ends]
    if template == TEMPLATES[2]:  # it has no end, and the newline is the answer's
        cut.pop()
    assert [*prompt, *made.close(cut)] == server


def test_a_value_head_reads_beginnings(tmp_path: Path) -> None:
    rows = make_pair_rows(pairs(30), made := renderer(tmp_path), max_length=120, heldout=0.3)
    begun = make_value_rows(rows, made, lambda ids: [float(len(ids))], seed=0, beginnings=3)
    assert len(begun.all) == 6 * len(rows.all)
    wholes = {len(r["prompt_ids"]) + len(r[key]) + 1 for r in rows.all for key in ("chosen_ids", "rejected_ids")}
    for row in begun.all:
        [label] = row["labels"]
        assert label in wholes
        assert len(row["input_ids"]) <= label
    assert begun.all == make_value_rows(rows, made, lambda ids: [float(len(ids))], seed=0, beginnings=3).all
