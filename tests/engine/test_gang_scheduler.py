"""The scheduler alone, against a worker that is made up: small caches, small budgets, aborts, both policies, both
schedulers, and asynchronous steps two deep.

In every step all of a gang sample or none of it. In the end everybody was answered in full, and the cache is empty.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine import family
from trimtab.engine.gangs import KEY, Follower, GangSpec, pack, unpack_membership

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

    from trimtab.engine.gang_scheduler import GangScheduler

pytestmark = pytest.mark.engine
BLOCK, EOS = 16, 4
ROUNDS = 120


@dataclass
class Worker:
    """Knows what vLLM's runner knows: of each request how long it is, and what of it is computed."""

    token: Callable[[str, str, int], int]
    """(leader, request, its length) -> what is drawn"""
    size: Counter[str] = field(default_factory=Counter)
    """leader -> how many its gang has"""
    length: dict[str, int] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)

    def run(self, output: SchedulerOutput) -> ModelRunnerOutput:
        from vllm.v1.outputs import ModelRunnerOutput

        for name in output.finished_req_ids:
            self.length.pop(name, None)
        computed = {}
        for new in output.scheduled_new_reqs:
            packed = (new.sampling_params.extra_args or {}).get(KEY)
            self.leader[new.req_id] = unpack_membership(packed).leader if packed else new.req_id
            self.length[new.req_id] = len(new.prompt_token_ids)
            computed[new.req_id] = new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        counts = output.num_scheduled_tokens
        assert computed.keys() == counts.keys()
        assert all(computed[name] + n <= self.length[name] for name, n in counts.items()), "more than there is"
        sampling = {name for name, n in counts.items() if computed[name] + n == self.length[name]}
        for leader, n in Counter(self.leader[name] for name in sampling).items():
            assert n == self.size[leader], f"split: {n} of {self.size[leader]}"
        tokens = []
        for name in counts:
            tokens.append([self.token(self.leader[name], name, self.length[name])] if name in sampling else [])
            self.length[name] += name in sampling
        places = {name: i for i, name in enumerate(counts)}
        return ModelRunnerOutput(req_ids=list(counts), req_id_to_index=places, sampled_token_ids=tokens)


@dataclass
class Round:
    """Random requests for a random scheduler; `play` raises AssertionError for what goes wrong."""

    config: Any
    rng: random.Random
    hasher: Any
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        from trimtab.engine.gang_scheduler import AsyncGangScheduler, GangScheduler

        rng = self.rng
        kind, self.depth = rng.choice([(GangScheduler, 1), (AsyncGangScheduler, 1), (AsyncGangScheduler, 2)])
        self.blocks = rng.choice([14, 18, 24, 32, 60, 200])
        self.scheduler = self.make_scheduler(kind)
        self.worker = Worker(self.draw)
        self.wanted: dict[str, tuple[int, int]] = {}
        """leader -> (max_tokens, the length at which it ends by itself)"""
        self.prompts: dict[str, int] = {}
        """request -> its prompt's length"""
        self.answers: dict[str, list[int]] = {}
        self.arrivals = [one for i in range(rng.randint(6, 24)) if (one := self.make_request(i)) is not None]
        self.leaving = {request.request_id: rng.randint(0, 120) for _, request in self.arrivals if rng.random() < 0.2}
        self.aborted: set[str] = set()

    def make_scheduler(self, kind: type[GangScheduler]) -> GangScheduler:
        import torch
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from trimtab.engine.gang_scheduler import AsyncGangScheduler

        rng, scheduling = self.rng, self.config.scheduler_config
        scheduling.async_scheduling = kind is AsyncGangScheduler
        scheduling.policy, scheduling.max_num_seqs = rng.choice(["fcfs", "priority"]), rng.randint(4, 9)
        scheduling.max_num_batched_tokens = scheduling.max_num_scheduled_tokens = rng.choice([9, 16, 40, 200])
        self.config.cache_config.enable_prefix_caching = rng.random() < 0.7
        self.config.cache_config.num_gpu_blocks = self.blocks
        attention = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        groups = [KVCacheGroupSpec(["layer"], attention)]
        cache = KVCacheConfig(num_blocks=self.blocks, kv_cache_tensors=[], kv_cache_groups=groups)
        manager = StructuredOutputManager(self.config)
        return kind(self.config, cache, manager, block_size=BLOCK, log_stats=True)

    def make_request(self, i: int) -> tuple[int, Any] | None:
        """(when it comes, the request); None where a gang is drawn that never fits."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        rng = self.rng
        size, most = rng.choice([1, 1, 2, 2, 3, 4]), rng.randint(1, 40)
        longest = max(1, min(110, (self.blocks - 1) * BLOCK // size - most - 12 - BLOCK))
        stems = [[10 + (7 * k + j) % 90 for j in range(120)] for k in range(3)]
        prompts = [
            rng.choice(stems)[: rng.randint(1, longest)] + [rng.randint(10, 99) for _ in range(rng.randint(1, 9))]
            for _ in range(size)
        ]
        if sum(-(-(len(prompt) + most) // BLOCK) for prompt in prompts) > self.blocks - 1:
            return None
        followers = [Follower(weight=0.5, prompt=prompt) for prompt in prompts[1:]]
        extra = {KEY: pack(GangSpec(weight=1.0, followers=followers))} if followers else None
        params = SamplingParams(max_tokens=most, extra_args=extra)
        params.update_from_generation_config({}, EOS)
        name = f"r{i}"
        self.wanted[name] = (most, rng.randint(1, 60))
        self.prompts |= {name if j == 0 else f"{name}/{j}": len(prompt) for j, prompt in enumerate(prompts)}
        self.worker.size[name] = size
        more = {"arrival_time": float(i), "priority": rng.randint(0, 3), "block_hasher": self.hasher}
        request = Request(name, prompts[0], params, None, **more)
        return rng.randint(0, rng.choice([3, 60])), request

    def draw(self, leader: str, name: str, length: int) -> int:
        at = length - self.prompts[name]
        return EOS if at + 1 == self.wanted[leader][1] else 100 + at

    def play(self) -> None:
        flight: deque[Any] = deque()
        for step in range(20_000):
            self.let_in(step)
            if self.scheduler.has_requests():
                output = self.scheduler.schedule()
                again = (output.preempted_req_ids or set()) & output.num_scheduled_tokens.keys()
                late = [name for before, _ in flight for name in again & before.num_scheduled_tokens.keys()]
                assert not late, "resumed before its last token came"
                flight.append((output, self.worker.run(output)))
                self.seen["steps"] += 1
            elif step > 130 and not flight:
                break
            while flight and (len(flight) >= self.depth or not self.scheduler.has_requests()):
                self.listen(self.scheduler.update_from_output(*flight.popleft()))
        else:
            raise AssertionError("no progress")
        self.check_end()

    def let_in(self, step: int) -> None:
        from vllm.v1.request import RequestStatus

        for at, request in self.arrivals:
            if at == step:
                self.scheduler.add_request(request)
            elif at < step == self.leaving.get(request.request_id) and request.request_id in self.scheduler.requests:
                self.aborted.add(request.request_id)
                self.scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)

    def listen(self, outputs: dict[int, Any]) -> None:
        for of_client in outputs.values():
            for one in of_client.outputs:
                assert one.request_id in self.wanted, "a follower was answered"
                self.answers.setdefault(one.request_id, []).extend(one.new_token_ids)

    def check_end(self) -> None:
        for name, (most, end) in self.wanted.items():
            if name not in self.aborted:
                expected = [EOS if i + 1 == end else 100 + i for i in range(min(most, end))]
                assert self.answers[name] == expected, name
        scheduler = self.scheduler
        left = [scheduler.requests, scheduler.running, scheduler.gangs, scheduler.followers]
        assert not any(left), left
        assert len(scheduler.waiting) == 0
        assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == self.blocks - 1, "blocks lost"
        preempted = [request for _, request in self.arrivals if request.num_preemptions]
        self.seen["requests"] += len(self.wanted)
        self.seen["gangs"] += sum(size > 1 for size in self.worker.size.values())
        self.seen["aborted"] += len(self.aborted)
        self.seen["preempted gangs"] += sum(self.worker.size[request.request_id] > 1 for request in preempted)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    base = family.base(tmp_path_factory.mktemp("gangs") / "base")
    return EngineArgs(
        model=str(base), dtype="float32", max_num_seqs=8, max_num_batched_tokens=2048, block_size=BLOCK
    ).create_engine_config()


@pytest.fixture(scope="module")
def hasher() -> Any:
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    function = get_hash_fn_by_name("sha256")
    init_none_hash(function)
    return get_request_block_hasher(BLOCK, function)


def test_gangs_sample_together_whatever_comes(config: Any, hasher: Any) -> None:
    config.model_config.max_model_len = 1024
    seen: Counter[str] = Counter()
    for seed in range(ROUNDS):
        game = Round(config, random.Random(seed), hasher)
        try:
            game.play()
        except BaseException as error:
            error.add_note(f"seed {seed}: {type(game.scheduler).__name__}, {game.scheduler.policy}, depth {game.depth}")
            raise
        seen += game.seen
    assert min(seen[what] for what in ("gangs", "aborted", "preempted gangs")) > 20, seen


def test_what_has_ended_is_let_go_of(config: Any, hasher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a run of Python's collector, which vLLM's engine hardly lets run."""
    from trimtab.engine import gang_scheduler

    made: list[weakref.ref[Any]] = []
    make_follower = gang_scheduler.make_follower

    def noted(*args: Any) -> Any:
        follower = make_follower(*args)
        made.append(weakref.ref(follower))
        return follower

    monkeypatch.setattr(gang_scheduler, "make_follower", noted)
    config.model_config.max_model_len = 1024
    before = gc.get_threshold()
    gc.set_threshold(0)
    try:
        for seed in range(5):
            Round(config, random.Random(seed), hasher).play()
        alive = [follower for follower in made if follower() is not None]
    finally:
        gc.set_threshold(*before)
    assert len(made) > 20
    assert not alive
