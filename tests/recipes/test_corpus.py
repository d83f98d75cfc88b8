import itertools
import random
import re
from pathlib import Path

import pytest

from trimtab.recipes import corpus

DEMO = Path(__file__).parents[2] / "demo"
SAMPLE = 2500


@pytest.fixture(scope="module")
def conversations() -> list[corpus.Dialogue]:
    return list(itertools.islice(corpus.train_conversations(7), SAMPLE))


def questions_of(conversations: list[corpus.Dialogue]) -> list[str]:
    return [m["content"] for c in conversations for m in c.messages if m["role"] == "user"]


def test_a_seed_gives_the_same_data() -> None:
    first, again, other = (list(itertools.islice(corpus.train_conversations(s), 50)) for s in (3, 3, 4))
    assert first == again
    assert first != other
    assert corpus.heldout_prompts(60, 1) == corpus.heldout_prompts(60, 1)
    assert corpus.heldout_prompts(60, 1) != corpus.heldout_prompts(60, 2)


def test_conversations_alternate_and_say_something(conversations: list[corpus.Dialogue]) -> None:
    for c in conversations:
        roles = [m["role"] for m in c.messages]
        assert roles[roles[0] == "system" :] in (["user", "assistant"], ["user", "assistant"] * 2)
        for m in c.messages:
            assert m["content"].strip() == m["content"] != ""
            assert not re.search(r"[\[\]{}|]|  |\.\.|\ba [aeiou]\w* stain", m["content"]), m["content"]


def test_every_question_names_its_topic() -> None:
    rng = random.Random(0)
    for topics in corpus.topics().values():
        for topic in topics:
            for template in topic.questions:
                question = corpus.say(rng, template, **topic.slots)
                assert corpus.topic_of(question) is topic, question


def test_heldout_topics_and_phrasings_are_not_in_training(conversations: list[corpus.Dialogue]) -> None:
    questions = set(questions_of(conversations))
    for question in questions:
        topic = corpus.topic_of(question)
        assert topic is None or not (topic.composed and corpus.is_heldout(topic.key)), question
    for prompt in corpus.heldout_prompts(500, 0):
        assert prompt.text not in questions
        topic = corpus.topic_of(prompt.text)
        if topic is not None and topic.composed:
            assert corpus.is_heldout(topic.key)


def test_heldout_prompts_take_domains_in_turn() -> None:
    prompts = corpus.heldout_prompts(18, 0)
    assert [p.domain for p in prompts] == [*corpus.DOMAINS, *corpus.DOMAINS]
    assert {p.domain for p in corpus.heldout_prompts(5, 0, domains=("food",))} == {"food"}
    assert all((p.answer is not None) == (p.domain == "arithmetic") for p in prompts)


def test_levels_are_drawn_independently(conversations: list[corpus.Dialogue]) -> None:
    levels = [
        (c.behaviour.helpfulness, c.behaviour.verbosity, c.behaviour.warmth, c.behaviour.caution)
        for c in conversations
        if c.theta is None
    ]
    for a, b in itertools.combinations(range(4), 2):
        assert abs(correlation([x[a] for x in levels], [x[b] for x in levels])) < 0.08


def correlation(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return cov / (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)) ** 0.5


def test_shares_of_system_messages(conversations: list[corpus.Dialogue]) -> None:
    directed = sum(c.theta is not None for c in conversations) / SAMPLE
    system = sum(c.messages[0]["role"] == "system" for c in conversations) / SAMPLE
    assert abs(directed - corpus.DPA_SHARE) < 0.04
    assert abs(system - corpus.DPA_SHARE - corpus.GENERIC_SHARE) < 0.04
    by_domain = {d: sum(c.domain == d for c in conversations) / SAMPLE for d in corpus.DOMAINS}
    assert all(abs(by_domain[d] - share) < 0.04 for d, share in corpus.SHARES.items())


def test_the_direction_is_dpas_message_and_shapes_the_answer(conversations: list[corpus.Dialogue]) -> None:
    assert corpus.dpa_system(-15.0) == (
        "You are a helpful, respectful, and honest assistant who always responds to the user in a harmless way. "
        "Your response should maximize weighted rating = helpfulness*97 + verbosity*-26"
    )
    assert corpus.dpa_system(45.0).endswith("helpfulness*71 + verbosity*71")
    directed = [c for c in conversations if c.theta is not None]
    assert all(c.messages[0]["content"] == corpus.dpa_system(c.theta) for c in directed if c.theta is not None)
    assert correlation([c.theta or 0.0 for c in directed], [c.behaviour.verbosity for c in directed]) > 0.8
    assert correlation([-abs(c.theta or 0.0) for c in directed], [c.behaviour.helpfulness for c in directed]) > 0.15


def test_good_answers_to_sums_are_right_by_evaluation() -> None:
    rng = random.Random(1)
    for _ in range(1000):
        problem = corpus.draw_sum(rng, rng.choice(("train", "heldout")))
        assert corpus.solve(problem.question) == problem.answer, problem.question
        assert problem.answer >= 0
        text = corpus.answer(rng, problem, corpus.Behaviour(2, rng.randrange(4), 1, 1))
        assert text.splitlines()[-1] == f"Answer: {problem.answer}"
        equations = re.findall(r"(\d+ [-+*/] \d+) = (\d+)", text)
        assert equations
        for left, right in equations:
            a, operator, b = left.split()
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}.get(operator)
            assert value == int(right) if value is not None else int(a) == int(b) * int(right), text


def test_the_demo_family_is_small_and_shares_one_tokenizer() -> None:
    pytest.importorskip("transformers")
    base = DEMO / "base"
    if not base.is_dir():
        pytest.skip("the demo models are not built")
    from trimtab.recipes.base import TOKENIZER_FILES

    weights = sorted(DEMO.rglob("*.safetensors"))
    assert sum(w.stat().st_size for w in weights) < 30 * 2**20
    whole = (base, DEMO / "guides" / "directional")  # the base's own size
    assert all(w.stat().st_size < (8.5e6 if w.parent in whole else 2.1e6) for w in weights)
    members = [m.parent for m in DEMO.rglob("model.safetensors")]  # an adapter has its base's tokenizer
    for file in TOKENIZER_FILES:
        assert {(m / file).read_bytes() for m in members} == {(base / file).read_bytes()}


def test_the_template_is_what_training_rendered() -> None:
    transformers = pytest.importorskip("transformers")
    if not (DEMO / "base").is_dir():
        pytest.skip("the demo models are not built")
    from trimtab.recipes.base import ASSISTANT, END, assistant_mask, render

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(DEMO / "base")
    for c in itertools.islice(corpus.train_conversations(9), 50):
        messages = list(c.messages)
        assert tokenizer.apply_chat_template(messages, tokenize=False) == render(c.messages)
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert prompt == render(c.messages[:-1]) + ASSISTANT
        ids = tokenizer(render(c.messages), add_special_tokens=False)["input_ids"]
        mask = assistant_mask(ids, *tokenizer.convert_tokens_to_ids([ASSISTANT, END]))
        spoken = [m["content"] + END for m in messages if m["role"] == "assistant"]
        assert tokenizer.decode([i for i, s in zip(ids, mask, strict=True) if s]) == "".join(spoken)
    digits = tokenizer.convert_ids_to_tokens(tokenizer("12 + 305 = 317", add_special_tokens=False)["input_ids"])
    assert [d for d in digits if d.isdigit()] == list("12305317")
