import math

import pytest

from tests.rewards.pooler import FakePooler, demo_tokenizer, question, response
from trimtab.rewards.process import Process
from trimtab.rewards.protocols import RewardError

QUESTION = question("What is 2 + 2?")
ANSWER = "Add them.\n\nTwo and two.\n\nFour"


class Scaled(FakePooler):
    """Scores that a sigmoid can tell apart, of both signs."""

    async def score_tokens(self, inputs):
        scores = await super().score_tokens(inputs)
        return [[[math.sin(x) * 3 for x in row] for row in rows] for rows in scores]


def process(labels=("LABEL_0",), limit=4096, **options):
    return Process(name="p", pooler=Scaled(tokenizer=demo_tokenizer(), labels=labels, max_tokens=limit), **options)


async def rows_of(reward, tokens):
    """Every token's row, and the place of the response's first, as read by hand."""
    tokenizer = reward.pooler.tokenizer
    before = tokenizer("<|user|>What is 2 + 2?<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
    [rows] = await reward.pooler.score_tokens([[*before, *tokens]])
    return rows, len(before)


def ids(reward, text):
    return reward.pooler.tokenizer(text, add_special_tokens=False)["input_ids"]


EXPECTED = {"min": min, "product": math.prod, "last": lambda v: v[-1], "mean": lambda v: sum(v) / len(v)}


@pytest.mark.parametrize("aggregate", EXPECTED)
async def test_every_token_of_the_response_is_read(aggregate):
    reward = process(aggregate=aggregate, activation="sigmoid")
    [[score]] = await reward(QUESTION, [response(ANSWER)])
    rows, start = await rows_of(reward, ids(reward, ANSWER))
    values = [1 / (1 + math.exp(-row[0])) for row in rows[start:]]
    assert len(values) == len(ids(reward, ANSWER))
    assert score == pytest.approx(EXPECTED[aggregate](values))


@pytest.mark.parametrize("mark", [None, "<|system|>", " so"])
async def test_steps_are_read_at_their_marks(mark):
    reward = process(aggregate="mean", step="\n\n", mark=mark)
    [[score]] = await reward(QUESTION, [response(ANSWER)])
    steps = [[*ids(reward, piece), *ids(reward, mark or "\n\n")] for piece in ("Add them.", "Two and two.", "Four")]
    rows, start = await rows_of(reward, [token for step in steps for token in step])
    ends = [start + sum(map(len, steps[: i + 1])) - 1 for i in range(3)]
    assert score == pytest.approx(sum(rows[end][0] for end in ends) / 3)
    assert score == (await reward(QUESTION, [response(ANSWER + "\n\n")]))[0][0], "a separator at the end begins no step"


async def test_a_spelt_out_mark_is_no_step():
    reward = process(aggregate="last", step="\n\n", mark="<|system|>")
    await reward(QUESTION, [response("Four<|system|><|end|>")])
    assert reward.pooler.seen[-1].count(1) == 1
    assert reward.pooler.seen[-1][-1] == 1


async def test_several_labels():
    labels = ("bad", "good")
    by_name, by_place = (process(labels, aggregate="last", activation="softmax", label=label) for label in ("good", 1))
    [[score]] = await by_name(QUESTION, [response(ANSWER)])
    rows, _ = await rows_of(by_name, ids(by_name, ANSWER))
    bad, good = rows[-1]
    assert score == pytest.approx(math.exp(good) / (math.exp(bad) + math.exp(good)))
    assert await by_place(QUESTION, [response(ANSWER)]) == [[score]]
    assert by_name.labels == ("score",)


async def test_rows_are_the_responses_own():
    reward = process(aggregate="min")
    texts = ["Four", ANSWER, ""]
    rows = await reward(QUESTION, [response(text) for text in texts])
    assert rows == [(await reward(QUESTION, [response(text)]))[0] for text in texts]


async def test_a_response_without_a_token_is_read_where_it_would_begin():
    reward = process()
    rows, start = await rows_of(reward, [])
    assert await reward(QUESTION, [response("")]) == [[rows[start - 1][0]]]
    stepped = process(step="\n\n")
    rows, start = await rows_of(stepped, ids(stepped, "\n\n"))
    assert await stepped(QUESTION, [response("")]) == [[rows[-1][0]]]


async def test_truncation_keeps_the_response_and_a_token_before_it():
    n_answer = len(ids(process(), ANSWER))
    reward = process(limit=n_answer + 1, truncate="left")
    [[score]] = await reward(QUESTION, [response(ANSWER)])
    assert reward.pooler.seen[0] == [3, *ids(reward, ANSWER)]
    [rows] = await reward.pooler.score_tokens([[3, *ids(reward, ANSWER)]])
    assert score == min(row[0] for row in rows[1:])
    with pytest.raises(ValueError, match="p: the response alone has"):
        await process(limit=n_answer, truncate="left")(QUESTION, [response(ANSWER)])
    with pytest.raises(ValueError, match=f"and the reward model reads {n_answer}"):
        await process(limit=n_answer)(QUESTION, [response(ANSWER)])


async def test_a_large_logit_overflows_nothing():
    class Extreme(FakePooler):
        async def score_tokens(self, inputs):
            return [[[-1e4, 1e4]] * len(tokens) for tokens in inputs]

    pooler = Extreme(tokenizer=demo_tokenizer(), labels=("bad", "good"))
    for activation in ("sigmoid", "softmax"):
        for label, expected in (("bad", 0.0), ("good", 1.0)):
            reward = Process(name="p", pooler=pooler, activation=activation, label=label)
            assert await reward(QUESTION, [response("a")]) == [[expected]]


async def test_a_model_that_scores_some_tokens_only_is_an_error():
    class Some(FakePooler):
        async def score_tokens(self, inputs):
            return [[[0.0]] for _ in inputs]

    with pytest.raises(RewardError, match="p: the model did not score every token"):
        await Process(name="p", pooler=Some(tokenizer=demo_tokenizer()))(QUESTION, [response("a b")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregate": "most"}, "no aggregate 'most'; valid: last, mean, min, product"),
        ({"aggregate": "product"}, "a product needs probabilities"),
        ({"activation": "tanh"}, "no activation 'tanh'; valid"),
        ({"activation": "softmax"}, "a softmax over one label is always 1"),
        ({"labels": ("a", "b")}, "label=None, and the head's labels are a, b"),
        ({"labels": ("a", "b"), "label": "c"}, "label='c'"),
        ({"labels": ("a", "b"), "label": 2}, "label=2"),
        ({"step": ""}, "cannot be empty"),
        ({"mark": "<|end|>"}, "say in `step`"),
        ({"format": "nothing"}, "no format"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=f"p: .*{message}"):
        process(**options)
