"""The composite's own steps, with members that are a matrix each."""

import pytest
import torch
from torch import Tensor, nn
from vllm.sampling_params import SamplingParams

from trimtab.engine.composite import Composite
from trimtab.engine.mixture import ENTROPY, KL, NEG_INF, decode_scalar
from trimtab.engine.table import KEY, WeightTable, pack

V, SLOTS = 20, 4
HIDDEN = (6, 4)


class Member(nn.Module):
    def __init__(self, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.head = nn.Linear(hidden, V, bias=False, dtype=dtype)
        self.asked = 0

    def compute_logits(self, states: Tensor) -> Tensor:
        self.asked += 1
        return self.head(states)


def composite(dtype: torch.dtype) -> Composite:
    torch.manual_seed(0)
    made = Composite.__new__(Composite)
    nn.Module.__init__(made)
    made.base = Member(HIDDEN[0], dtype)
    made.guides = nn.ModuleList([Member(HIDDEN[1], dtype)])
    made.table = WeightTable(2, SLOTS, torch.device("cpu"), owner=None)
    made.widths = [*HIDDEN, 4 // dtype.itemsize]
    return made


def states(dtype: torch.dtype, slots: list[int]) -> Tensor:
    bits = torch.tensor(slots, dtype=torch.int32).view(torch.uint8).view(-1, 4).view(dtype)
    return torch.cat([torch.randn(len(slots), sum(HIDDEN)).to(dtype), bits], dim=-1)


def write(made: Composite, slot: int, weights: list[float], **more) -> None:
    made.table.write(slot, SamplingParams(extra_args={KEY: pack(weights, **more)}))
    made.table.publish()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_each_row_is_mixed_by_its_own_slot(dtype):
    made = composite(dtype)
    write(made, 3, [0.5, -2.0])
    write(made, 1, [1.0, 1.0])
    hidden = states(dtype, [1, 3, 0, 1, SLOTS])
    base = made.base.head(hidden[:, :6]).float()
    guide = made.guides[0].head(hidden[:, 6:10]).float()
    weights = torch.tensor([[1.0, 1], [0.5, -2], [1, 0], [1, 1], [1, 0]])
    torch.testing.assert_close(made.compute_logits(hidden), weights[:, :1] * base + weights[:, 1:] * guide)


@torch.no_grad()
def test_random_hidden_states_are_some_row():
    """vLLM warms samplers up on noise, whose last columns are no slot."""
    made = composite(torch.float32)
    assert made.compute_logits(torch.rand(64, sum(made.widths)) * 2 - 1).isfinite().all()


@torch.no_grad()
def test_nothing_is_computed_that_no_row_asks_for():
    made = composite(torch.float32)
    made.table.write(0, None)
    made.table.publish()
    hidden = states(torch.float32, [0, SLOTS])
    torch.testing.assert_close(made.compute_logits(hidden), made.base.head(hidden[:, :6]))
    assert made.guides[0].asked == 0
    write(made, 2, [1.0, 0.5])
    made.compute_logits(hidden)
    assert made.guides[0].asked == 1
    made.table.clear(2)
    made.table.publish()
    made.compute_logits(hidden)
    assert made.guides[0].asked == 1


@torch.no_grad()
@pytest.mark.parametrize("noise", [float("nan"), float("inf"), -3e38])
def test_what_a_guide_makes_of_others_requests_is_nothing(noise):
    """It has not seen their beginnings, so its keys there are whatever lay in the cache."""
    made = composite(torch.float32)
    write(made, 1, [1.0, 0.7])
    write(made, 2, [1.0, 0.0])
    hidden = states(torch.float32, [1, 2])
    expected = made.compute_logits(hidden)
    hidden[1, 6:10] = noise
    torch.testing.assert_close(made.compute_logits(hidden), expected)


@torch.no_grad()
def test_a_reading_is_of_its_row_alone():
    made = composite(torch.float32)
    write(made, 1, [1.0, 0.7], scalar=KL)
    write(made, 2, [1.0, 0.7])
    write(made, 3, [1.0, 0.7], scalar=ENTROPY)
    hidden = states(torch.float32, [1, 2, 0, 3])
    hidden[1, :10] = hidden[3, :10] = hidden[0, :10]
    z = made.compute_logits(hidden)
    p, q = z[1].double().log_softmax(-1), made.base.head(hidden[1, :6]).double().log_softmax(-1)
    told = z[0].log_softmax(-1)
    assert decode_scalar(float(told[0]), float(told[1])) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-5)
    spread = z[3].log_softmax(-1)
    assert decode_scalar(float(spread[0]), float(spread[1])) == pytest.approx(-float(p.exp() @ p), rel=1e-5)
    assert (z[0, 2:] == NEG_INF).all()
    assert (z[3, 2:] == NEG_INF).all()
    assert z[1:3].isfinite().all()


@torch.no_grad()
def test_a_rank_that_gathers_nothing_still_takes_part():
    made = composite(torch.float32)
    write(made, 1, [1.0, 0.7])
    for member in (made.base, made.guides[0]):
        member.compute_logits = lambda states, member=member: setattr(member, "asked", member.asked + 1)
    assert made.compute_logits(states(torch.float32, [1])) is None
    assert (made.base.asked, made.guides[0].asked) == (1, 1)


class Stack(nn.Module):
    """A member whose hidden states are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(HIDDEN[0], V, bias=False)

    def forward(self, input_ids: Tensor, positions: Tensor, _: object, inputs_embeds: Tensor) -> Tensor:
        return inputs_embeds

    def compute_logits(self, states: Tensor) -> Tensor:
        return self.head(states)


class Counted(Stack):
    """A guide whose hidden states are its ids, many times over."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.ran = nn.Linear(HIDDEN[1], V, bias=False), 0

    def forward(self, input_ids: Tensor, positions: Tensor, _: object, inputs_embeds: None) -> Tensor:
        self.ran += 1
        return input_ids.float()[:, None].expand(-1, HIDDEN[1])


def stacked(guides: int) -> Composite:
    """Its three tokens are of the requests in slots 2, 0 and 2."""
    made = composite(torch.float32)
    made.base, made.guides = Stack(), nn.ModuleList([Counted() for _ in range(guides)])
    made.slots = torch.tensor([2, 0, 2], dtype=torch.int32)
    made.known, made.vocabularies = [None] * guides, [V] * guides
    made.table = WeightTable(1 + guides, SLOTS, torch.device("cpu"), owner=None)
    made.widths = [HIDDEN[0], *[HIDDEN[1]] * guides, 1]
    return made


def step(made: Composite, inputs: Tensor, ids: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Logits, and which guides ran."""
    before = [guide.ran for guide in made.guides]
    logits = made.compute_logits(made.forward(ids, ids, inputs_embeds=inputs))
    return logits, tuple(i for i, guide in enumerate(made.guides) if guide.ran > before[i])


@torch.no_grad()
def test_a_step_that_asks_for_the_base_alone_is_the_base_s():
    made = stacked(guides=0)
    inputs, ids = torch.randn(3, HIDDEN[0]), torch.zeros(3, dtype=torch.long)
    base = made.base.head(inputs)
    write(made, 0, [1.0])
    assert made.forward(ids, ids, inputs_embeds=inputs) is inputs
    torch.testing.assert_close(step(made, inputs, ids)[0], base)
    write(made, 2, [0.5])
    assert made.forward(ids, ids, inputs_embeds=inputs).shape == (3, HIDDEN[0] + 1)
    torch.testing.assert_close(step(made, inputs, ids)[0], base * torch.tensor([[0.5], [1.0], [0.5]]))
    made.table.clear(2)
    made.table.publish()
    assert made.forward(ids, ids, inputs_embeds=inputs) is inputs


@torch.no_grad()
def test_a_guide_runs_in_steps_of_requests_that_ask_for_it():
    made = stacked(guides=2)
    inputs, ids = torch.randn(3, HIDDEN[0]), torch.tensor([3, 4, 5])
    base = made.base.head(inputs)
    one, other = (guide.head(ids.float()[:, None].expand(-1, HIDDEN[1])) for guide in made.guides)
    assert step(made, inputs, ids)[1] == (0, 1), "while nobody is served, whoever measures must see them all"
    write(made, 0, [1.0, 0.0, 0.0])
    logits, ran = step(made, inputs, ids)
    assert ran == ()
    torch.testing.assert_close(logits, base)
    write(made, 2, [1.0, 0.0, 0.5])
    logits, ran = step(made, inputs, ids)
    assert ran == (1,)
    torch.testing.assert_close(logits, base + torch.tensor([[0.5], [0], [0.5]]) * other)
    write(made, 0, [1.0, -1.0, 0.0])
    logits, ran = step(made, inputs, ids)
    assert ran == (0, 1)
    torch.testing.assert_close(
        logits, base + torch.tensor([[0.5], [0], [0.5]]) * other - torch.tensor([[0.0], [1], [0]]) * one
    )
    made.table.always_all = True
    write(made, 2, [1.0, 0.0, 0.0])
    write(made, 0, [1.0, 0.0, 0.0])
    logits, ran = step(made, inputs, ids)
    assert ran == (0, 1), "experts on other ranks wait for each other"
    torch.testing.assert_close(logits, base)


@torch.no_grad()
def test_logits_of_a_graph_that_ran_more_than_was_asked_for():
    """A captured CUDA graph runs every guide, whoever is served."""
    made = stacked(guides=2)
    inputs, ids = torch.randn(3, HIDDEN[0]), torch.tensor([3, 4, 5])
    hidden = made.forward(ids, ids, inputs_embeds=inputs)
    write(made, 0, [1.0, 0.0, 0.0])
    torch.testing.assert_close(made.compute_logits(hidden), made.base.head(inputs))
    write(made, 2, [1.0, 0.0, 0.5])
    states_of_guide = ids.float()[:, None].expand(-1, HIDDEN[1])
    expected = made.base.head(inputs) + torch.tensor([[0.5], [0], [0.5]]) * made.guides[1].head(states_of_guide)
    torch.testing.assert_close(made.compute_logits(hidden), expected)
