"""Rows follow their requests through any history of the batch, and none is ever read by the next one in its place."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.interface import MoveDirectionality
from vllm.v1.sample.logits_processor.state import BatchUpdateBuilder

from trimtab.engine.mixture import KL
from trimtab.engine.table import BASE_ALONE, KEY, RowWriter, WeightTable, cache_salt, default_row, guides_of, pack

SLOTS, MEMBERS = 6, 3


def table() -> WeightTable:
    return WeightTable(MEMBERS, SLOTS, torch.device("cpu"), owner=None)


def request(*weights: float) -> SamplingParams:
    return SamplingParams(extra_args={KEY: pack(list(weights))} if weights else None)


def test_a_row_is_what_was_packed():
    t = table()
    t.write(2, SamplingParams(extra_args={KEY: pack([1, 0.5, -2], plausibility=0.1, scalar=KL)}))
    t.publish()
    assert t.rows[2].tolist() == pytest.approx([1, 0.5, -2, np.log(0.1), 1])
    assert (t.active.guides, t.active.rescale, t.active.plausibility, t.active.scalars) == ((1, 2), False, True, True)
    t.clear(2)
    t.write(1, request())
    t.publish()
    assert t.rows[2].tolist() == default_row(MEMBERS)
    assert t.active == BASE_ALONE


def test_while_nobody_is_served_everything_is_in_use():
    t = table()
    assert t.active == t.all_guides
    t.write(1, None)
    t.publish()
    assert t.active == BASE_ALONE
    t.move(1, 0)
    t.swap(0, 3)
    t.publish()
    assert t.active == BASE_ALONE
    t.clear(3)
    t.publish()
    assert t.active == t.all_guides


def test_the_guides_of_a_row_are_those_that_the_worker_sees():
    for weights in ([1.0, 0.5, -2.0], [1.0, 0.0, 1e-3], [1.0, 1e-50, 0.0], [0.5, 1e-45, -1e-60], [1.0, 0.0, 0.0]):
        row, t = pack(weights, plausibility=0.1), table()
        t.write(0, SamplingParams(extra_args={KEY: row}))
        t.publish()
        assert tuple(guide + 1 for guide in guides_of(row)) == t.active.guides


def test_salts_of_different_guides_never_meet():
    clients = (None, "", "a", "a,b", "|", "|a", "a|", "a|b", "a,b|c")
    salts = {
        (client or "", guides): cache_salt(client, guides) for client in clients for guides in ((), ("a",), ("a", "b"))
    }
    assert len(set(salts.values())) == len(salts)
    assert [key for key, salt in salts.items() if salt is None] == [("", ())]


def test_a_plain_request_in_a_used_place_is_plain():
    t = table()
    t.write(0, request(0.0, 3.0, 3.0))
    t.write(0, request())
    assert t.host[0].tolist() == default_row(MEMBERS)


def test_only_bytes_are_a_row():
    for forged in ([1.0, 2.0], "x", 3, {}):
        with pytest.raises(VLLMValidationError, match="reserved"):
            RowWriter.validate_params(SamplingParams(extra_args={KEY: forged}))
    RowWriter.validate_params(SamplingParams(extra_args={KEY: pack([1.0])}))
    RowWriter.validate_params(SamplingParams(extra_args={"other": 1}))
    RowWriter.validate_params(SamplingParams())


@pytest.mark.parametrize("seed", range(20))
def test_v1_histories(seed):
    """Random arrivals, departures, condensing and reordering, in the order in which vLLM's batch does them."""
    draw = random.Random(seed)
    writer = RowWriter.__new__(RowWriter)
    writer.table = table()
    batch: list[SamplingParams | None] = []
    for _ in range(200):
        changes = BatchUpdateBuilder()
        for place in [i for i in range(len(batch)) if draw.random() < 0.3]:
            batch[place] = None
            changes.removed_append(place)
        for _ in range(draw.randrange(SLOTS + 1 - sum(params is not None for params in batch))):
            place = changes.pop_removed()
            params = request(*(round(draw.random(), 3) for _ in range(MEMBERS))) if draw.random() < 0.7 else request()
            if place is None:
                place = len(batch)
                batch.append(None)
            batch[place] = params
            changes.added.append((place, params, [], []))
        while (place := changes.peek_removed()) is not None:  # condense: the last one into the first gap
            last = max((i for i, params in enumerate(batch) if params is not None), default=-1)
            if last < place:
                break
            changes.pop_removed()
            batch[place], batch[last] = batch[last], None
            changes.moved.append((last, place, MoveDirectionality.UNIDIRECTIONAL))
        batch = [params for params in batch if params is not None]
        if len(batch) > 1 and draw.random() < 0.5:
            one, other = draw.sample(range(len(batch)), 2)
            batch[one], batch[other] = batch[other], batch[one]
            changes.moved.append((one, other, MoveDirectionality.SWAP))
        writer.update_state(changes.get_and_reset(len(batch)))
        for place in range(SLOTS + 1):
            params = batch[place] if place < len(batch) else None
            packed = (params.extra_args or {}).get(KEY) if params is not None else None
            expected = default_row(MEMBERS) if packed is None else np.frombuffer(packed, np.float32).tolist()
            assert writer.table.rows[place].tolist() == expected
        assert writer.table.occupied.tolist() == [place < len(batch) for place in range(SLOTS)]


def test_engines_do_not_share_a_table():
    def config() -> SimpleNamespace:
        return SimpleNamespace(
            compilation_config=SimpleNamespace(),
            model_config=SimpleNamespace(hf_config=SimpleNamespace(trimtab={"guides": [{}]})),
            scheduler_config=SimpleNamespace(max_num_seqs=2),
            device_config=SimpleNamespace(device=torch.device("cpu")),
        )

    one, other = config(), config()
    assert WeightTable.of(one) is WeightTable.of(one)
    held = WeightTable.of(one)
    assert WeightTable.of(other) is not held
