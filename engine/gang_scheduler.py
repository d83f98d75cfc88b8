"""vLLM's scheduler, with gangs (engine.gangs): their members sample in the same steps or not at all.

    prefilling   Every member is `held`: within `schedule()` it seems a token shorter than it is, so vLLM computes all
                 but its last token (in chunks, from the prefix cache, preempted and resumed, as it likes) and then
                 passes over it: it has no new tokens.
    decoding     From when all members lack just that token. They come first in `running`, where the budget of a step
                 covers them (max_num_batched_tokens >= max_num_seqs is vLLM's own rule), and the blocks that they need
                 are made free before vLLM looks, at the cost of the last in line: a whole gang, or one request.

Named as `scheduler_cls`, vLLM's own way to bring a scheduler; one that is not vLLM's `AsyncScheduler` turns async
scheduling off, so there are two. What is overridden and read is no public interface:
tests/engine/test_gang_scheduler.py runs it against random requests; run it first on another vLLM.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from trimtab.engine import gangs
from trimtab.engine.gangs import KEY, GangSpec, Membership

FIRST = -(2**62)
"""The priority of what decodes in a gang: vLLM's own loop must not choose it to make room for another request."""


class Member(Request):  # type: ignore[misc]
    """A request of a gang. vLLM reads how long it is from these two properties alone."""

    gang: Gang
    own_priority: int
    held = False

    @property
    def num_tokens(self) -> int:
        return len(self._all_token_ids) - self.held

    @property
    def num_tokens_with_spec(self) -> int:
        return self.num_tokens

    @property
    def lacks_one(self) -> bool:
        """Whether all but its last token is computed."""
        return bool(self.status == RequestStatus.RUNNING and self.num_computed_tokens == len(self._all_token_ids) - 1)


@dataclass(eq=False)
class Gang:
    """The members of one gang."""

    members: list[Member]
    """Leader first."""
    admitted: bool = False
    """Whether they may wait in vLLM's queue; until then they are only known."""
    decoding: bool = False

    @property
    def leader(self) -> Member:
        return self.members[0]

    def decode(self, decoding: bool) -> None:
        self.decoding = decoding
        for member in self.members:
            member.priority = FIRST if decoding else member.own_priority


class GangScheduler(Scheduler):  # type: ignore[misc]
    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        if self.num_spec_tokens:
            raise ValueError("members of a gang would accept different drafts")
        self.gangs: dict[str, Gang] = {}
        """leader's id -> its gang"""
        self.followers: set[str] = set()
        """Ids of requests that no client knows."""

    # Coming in

    def add_request(self, request: Request) -> None:
        packed = (request.sampling_params.extra_args or {}).get(KEY) if request.sampling_params is not None else None
        if not isinstance(packed, bytes) or request.request_id in self.requests:  # others are a client's
            super().add_request(request)
            return
        spec = gangs.unpack_gang(packed)
        members = [request, *(make_follower(request, spec, at) for at in range(len(spec.followers)))]
        if not self.could_run(members):  # the front end refuses it first, and says why
            self.refuse(request)
            return
        request.__class__ = Member  # vLLM has made it, and knows no other class
        # Workers need not have everybody's prompts again.
        membership = make_membership(request, spec, weight=spec.weight, reference=not spec.has_reference)
        request.sampling_params.extra_args = {**request.sampling_params.extra_args, KEY: membership}
        gang = self.gangs[request.request_id] = Gang(members)
        self.followers |= {member.request_id for member in members[1:]}
        for member in members:
            member.gang, member.own_priority = gang, member.priority
            super().add_request(member)

    def could_run(self, members: list[Request]) -> bool:
        """Whether there is room for the gang where it is alone."""
        longest, shortest = (choose(m.num_prompt_tokens for m in members) for choose in (max, min))
        most = members[0].max_tokens
        blocks = sum(cdiv(m.num_prompt_tokens + most, self.block_size) for m in members)
        return (
            not members[0].resumable
            and len(members) <= self.max_num_active_reqs
            and shortest >= 2  # one to compute while it is held, and one to sample from
            and longest + most <= self.max_model_len  # or the longest would end before the others
            and blocks <= self.kv_cache_manager.block_pool.num_gpu_blocks - 1
        )

    def refuse(self, request: Request) -> None:
        """Answers it with the finish reason "error": an exception here would end the engine."""
        request.sampling_params.extra_args.pop(KEY)
        self.grammar_compile_error_reqs.add(request.request_id)
        super().add_request(request)

    def _enqueue_waiting_request(self, request: Request) -> None:
        gang = gang_of(request)
        if gang is None or gang.admitted:
            super()._enqueue_waiting_request(request)

    def admit(self) -> None:
        """All members of a gang or none. Gangs that are admitted need no more slots together than there are, so that
        members that wait for a slot wait for requests that end by themselves."""
        taken = sum(len(one.members) for one in self.gangs.values() if one.admitted)
        parked = [one for one in self.gangs.values() if not one.admitted]
        if self.policy == SchedulingPolicy.PRIORITY:
            parked.sort(key=lambda one: (one.leader.own_priority, one.leader.arrival_time))
        for one in parked:
            taken += len(one.members)
            if taken > self.max_num_active_reqs:
                break
            one.admitted = True
            for member in one.members:
                self._enqueue_waiting_request(member)

    def get_request_counts(self) -> tuple[int, int]:
        running, waiting = super().get_request_counts()
        return running, waiting + sum(len(one.members) for one in self.gangs.values() if not one.admitted)

    # A step

    def schedule(self, *args: Any, **more: Any) -> Any:
        self.admit()
        for one in self.gangs.values():
            if not one.decoding and all(member.lacks_one for member in one.members):
                one.decode(True)
        self.make_room()
        self.running.sort(key=lambda request: not is_decoding(request))
        with self.hold():
            output = super().schedule(*args, **more)
        if not output.total_num_scheduled_tokens:
            self.unlock()
        return output

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Members that do not decode yet seem a token shorter."""
        self._set_held(True)
        try:
            yield
        finally:
            self._set_held(False)

    def _set_held(self, held: bool) -> None:
        for one in self.gangs.values():
            if not one.decoding:
                for member in one.members:
                    member.held = held

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        self._set_held(False)  # what vLLM notes now must know that a prompt is not finished
        for one in self.gangs.values():
            there = sum(member.request_id in scheduler_output.num_scheduled_tokens for member in one.members)
            if one.decoding and there not in (0, len(one.members)):
                raise AssertionError(f"{there} of {len(one.members)} members of {one.leader.request_id} were scheduled")
        super()._update_after_schedule(scheduler_output)

    def make_room(self) -> None:
        """Frees the blocks for every decoding gang's next tokens."""
        while self.count_wanted_blocks() > self.kv_cache_manager.block_pool.get_num_free_blocks():
            last = self.running[-1]
            if self.policy == SchedulingPolicy.PRIORITY:
                last = max(self.running, key=lambda r: (getattr(r, "own_priority", r.priority), r.arrival_time))
            self.preempt(last)

    def preempt(self, request: Request) -> None:
        """The request; of a gang that decodes all of it."""
        gang = gang_of(request)
        preempted = gang.members if gang is not None and gang.decoding else [request]
        for one in reversed([one for one in self.running if one in preempted]):
            self.running.remove(one)
            self._preempt_request(one, time.monotonic())

    def _preempt_request(self, request: Request, *args: Any, **more: Any) -> None:
        if (gang := gang_of(request)) is not None and gang.decoding:
            gang.decode(False)  # all of it is being preempted: by `preempt`, or with the cache's reset
        super()._preempt_request(request, *args, **more)

    def count_wanted_blocks(self) -> int:
        """Blocks that decoding gangs need for this step's tokens and do not have."""
        groups = self.kv_cache_config.kv_cache_groups
        return sum(
            max(0, cdiv(member.num_computed_tokens + 1, group.kv_cache_spec.block_size) - len(blocks))
            for one in self.gangs.values()
            if one.decoding
            for member in one.members
            for group, blocks in zip(groups, self.kv_cache_manager.get_block_ids(member.request_id), strict=True)
        )

    def unlock(self) -> None:
        """Where nothing ran, half-prefilled gangs may hold the blocks that each other's halves wait for: all but the
        one whose turn it is give theirs back."""
        waits = all(
            (gang := gang_of(r)) is not None
            and not all(member.lacks_one for member in gang.members)
            and not r.num_in_flight_tokens
            for r in self.running
        )
        if not self.running or not waits:
            return
        first = self.waiting.peek_request() if self.waiting else self.running[0]
        for request in [r for r in self.running if gang_of(r) is not gang_of(first)]:
            self.preempt(request)

    # Going out

    def update_from_output(self, *args: Any) -> Any:
        outputs = super().update_from_output(*args)
        for of_client in outputs.values():
            of_client.outputs = [one for one in of_client.outputs if one.request_id not in self.followers]
        for leader in [leader for leader in self.gangs if leader not in self.requests]:
            self.disband(leader)
        return outputs

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        ids = [request_ids] if isinstance(request_ids, str) else request_ids
        finished = super().finish_requests(ids, finished_status)
        answered = [request for request in finished if request.request_id not in self.followers]
        for request in answered:
            if request.request_id in self.gangs:
                self.disband(request.request_id)
        return answered

    def disband(self, leader: str) -> None:
        """Ends the followers of a leader that has ended."""
        members = self.gangs.pop(leader).members
        ids = [member.request_id for member in members[1:]]
        super().finish_requests([name for name in ids if name in self.requests], RequestStatus.FINISHED_ABORTED)
        self.followers -= set(ids)
        members.clear()  # they know their gang too, and vLLM collects what is in a circle late or never


def gang_of(request: Any) -> Gang | None:
    """Of any request."""
    return request.gang if isinstance(request, Member) else None


def is_decoding(request: Any) -> bool:
    """Whether it is of a gang that decodes."""
    gang = gang_of(request)
    return gang is not None and gang.decoding


def make_follower(leader: Request, spec: GangSpec, at: int) -> Member:
    """It ends when its leader does, and never on its own account: it draws greedily, and the worker writes the leader's
    token over what it drew."""
    one = spec.followers[at]
    params = SamplingParams(
        temperature=0.0,
        max_tokens=leader.max_tokens,
        ignore_eos=True,
        detokenize=False,
        skip_reading_prefix_cache=leader.skip_reading_prefix_cache,
        extra_args={KEY: make_membership(leader, spec, weight=one.weight, reference=one.reference)},
    )
    return Member(
        f"{leader.request_id}/{at + 1}",
        list(one.prompt),
        params,
        None,
        client_index=leader.client_index,
        arrival_time=leader.arrival_time,
        lora_request=None if one.adapter is None else LoRARequest(*one.adapter),
        cache_salt=spec.salt,
        priority=leader.priority,
        block_hasher=leader._block_hasher,
    )


def make_membership(leader: Request, spec: GangSpec, *, weight: float, reference: bool) -> bytes:
    name = leader.request_id
    return gangs.pack(
        Membership(leader=name, weight=weight, scored=spec.scored, scalar=spec.scalar, reference=reference)
    )


class AsyncGangScheduler(GangScheduler, AsyncScheduler):  # type: ignore[misc]
    """Over vLLM's asynchronous scheduler."""
