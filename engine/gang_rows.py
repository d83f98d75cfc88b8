"""The workers' side of gangs (engine.gangs) on vLLM's V1 runner: rows become one distribution, and all get its token.

Logits are mixed between the model and what masks and samples them, so that log-probabilities, penalties, biases,
grammars and seeds are the mixture's. The token is copied where all later readers read it, asynchronous ones too. Both
are operations on rows of tensors that are there anyway, without synchronisation, and outside of any CUDA graph.

A completion is scored in one pass (`GangSpec.scored`): its tokens lie at other positions of each member's prompt, so
members keep their hidden states there, and the last step, which all take together, makes one distribution of them.

Shapes: N rows of a step, M members of G gangs among them, V the vocabulary, T tokens of a completion that is scored, H
the width of hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from trimtab.engine import table
from trimtab.engine.gangs import KEY, Membership, unpack_membership
from trimtab.engine.mixture import DISTRIBUTION, KL, NEG_INF, divergence, encode_scalar_as_logits, entropy


@dataclass(frozen=True)
class GangRows:
    """Which rows of a step's batch are of which gang, leaders among them."""

    row_M: Tensor
    leader_M: Tensor
    """Each member's leader's row."""
    gang_M: Tensor
    weight_M1: Tensor
    leader_G: Tensor
    scalars: Sequence[tuple[int, int, float]]
    """Of gangs that ask for a number of their distribution: the leader's row, the reference's, and which number."""

    @classmethod
    def of(cls, batch: Mapping[str, Membership | None], device: torch.device) -> GangRows | None:
        """Of a batch's requests, by row; None where no gang samples. A member whose leader is not in the batch is being
        prefilled: what is drawn for it is thrown away."""
        row_of = {name: row for row, name in enumerate(batch)}
        members = [(row, one) for row, one in enumerate(batch.values()) if one is not None and one.leader in row_of]
        if not members:
            return None
        rows, leaders = [row for row, _ in members], [row_of[one.leader] for _, one in members]
        weights = [one.weight for _, one in members]
        gangs = {leader: i for i, leader in enumerate(dict.fromkeys(leaders))}
        measured = [(row, one) for row, one in members if one.reference and one.scalar != DISTRIBUTION]
        scalars = [(row_of[one.leader], row, one.scalar) for row, one in measured]

        def whole(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        return cls(
            row_M=whole(rows),
            leader_M=whole(leaders),
            gang_M=whole([gangs[leader] for leader in leaders]),
            weight_M1=torch.tensor(weights, dtype=torch.float32, device=device).unsqueeze(-1),
            leader_G=whole(list(gangs)),
            scalars=scalars,
        )

    def mix(self, logits_NV: Tensor) -> Tensor:
        """[N, V] in fp32: each leader's row becomes Σ_i w_i l_i, or the number of it that is asked for."""
        logits_NV = logits_NV.float()
        references = [logits_NV[reference].clone() for _, reference, _ in self.scalars]
        z_GV = logits_NV.new_zeros(len(self.leader_G), logits_NV.shape[-1])
        z_GV.index_add_(0, self.gang_M, logits_NV[self.row_M] * self.weight_M1)
        logits_NV.index_copy_(0, self.leader_G, z_GV)
        for (leader, _, kind), reference in zip(self.scalars, references, strict=True):
            logits_NV[leader] = measure(kind, logits_NV[leader, None], reference[None])[0]
        return logits_NV

    def copy_tokens(self, sampled_N1: Tensor) -> None:
        """Every member's token becomes its leader's."""
        sampled_N1[self.row_M] = sampled_N1[self.leader_M]


def measure(kind: float, z_TV: Tensor, base_TV: Tensor) -> Tensor:
    """[T, V] logits that carry a number of softmax(z) each: its divergence from the base's distribution, or its entropy
    over what it does not forbid."""
    rows = z_TV.new_tensor([[0.0, 1.0, NEG_INF, kind]]).expand(len(z_TV), -1)
    number = divergence(base_TV, [(1, z_TV)], rows) if kind == KL else entropy(z_TV, [], rows[:, 1:])
    return encode_scalar_as_logits(number, z_TV.shape[-1])


class GangRunner(GPUModelRunner):  # type: ignore[misc]
    execute_model_state: Any
    """vLLM's, between a step's two halves."""
    batch: list[str] | None = None
    """Requests of the last step, by row."""
    rows: GangRows | None = None
    states: dict[str, Tensor] | None = None
    """request -> [T - 1, H] of the positions before a completion's tokens, but for the last, which is sampled"""

    def execute_model(self, *args: Any, **more: Any) -> Any:
        output = super().execute_model(*args, **more)
        state = self.execute_model_state
        if state is not None and state.logits is not None:
            if self.batch != self.input_batch.req_ids:
                self.batch = self.input_batch.req_ids.copy()
                memberships = {name: self.membership_of(name) for name in self.batch}
                self.rows = GangRows.of(memberships, state.logits.device)
            if self.rows is not None:
                self.execute_model_state = state._replace(logits=self.rows.mix(state.logits))
        return output

    def _sample(self, *args: Any) -> Any:
        output = super()._sample(*args)
        if self.rows is not None:
            self.rows.copy_tokens(output.sampled_token_ids)
        return output

    def _get_prompt_logprobs_dict(self, hidden_states: Tensor, num_scheduled_tokens: Mapping[str, int]) -> Any:
        scored = super()._get_prompt_logprobs_dict(hidden_states, num_scheduled_tokens)
        self.keep_states(hidden_states, num_scheduled_tokens)
        for name, logprobs in scored.items():
            if name in (self.states or {}):
                self.score(name, logprobs)
        return scored

    def keep_states(self, hidden_states: Tensor, num_scheduled_tokens: Mapping[str, int]) -> None:
        """[tokens of the step, H]; what is computed again after a preemption takes the place of what was there."""
        states = {name: those for name, those in (self.states or {}).items() if name in self.requests}
        for name, n in num_scheduled_tokens.items():
            membership, request = self.membership_of(name), self.requests[name]
            if membership is None or membership.scored < 2:
                continue
            end, computed = request.num_prompt_tokens - 1, request.num_computed_tokens
            begin = end - (membership.scored - 1)
            first, last = max(begin, computed), min(end, computed + n)
            if first < last:
                row = int(self.query_start_loc.np[self.input_batch.req_id_to_index[name]]) - computed
                new = hidden_states[row + first : row + last, : self.width_of(name)]
                if name not in states:
                    states[name] = new.new_empty(end - begin, new.shape[-1])
                states[name][first - begin : last - begin] = new
        self.states = states

    def width_of(self, name: str) -> int | None:
        """How much of a request's hidden states counts; None: all. Beside the base's stand its guides' and the slot of
        its row, and in a step of the base alone nothing stands there."""
        packed = self.requests[name].sampling_params.extra_args.get(table.KEY)
        widths = getattr(self.model, "widths", None)
        return None if widths is None or not table.is_default(packed) else widths[0]

    def score(self, leader: str, logprobs: Any) -> None:
        """Writes the log-probabilities of a completion's tokens, less the last, into those of the leader's prompt."""
        batch = {name: self.membership_of(name) for name in self.batch or ()}
        members = {name: one for name, one in batch.items() if one is not None and one.leader == leader}
        logits = {name: self.logits_of(name) for name in members}
        z_TV = torch.stack([members[name].weight * one for name, one in logits.items()]).sum(0)
        if (kind := members[leader].scalar) != DISTRIBUTION:
            [reference] = [logits[name] for name, one in members.items() if one.reference]
            z_TV = measure(kind, z_TV, reference)
        request = self.requests[leader]
        at = slice(request.num_prompt_tokens - 1 - len(z_TV), request.num_prompt_tokens - 1)
        tokens = torch.tensor(request.prompt_token_ids[at.start + 1 : at.stop + 1], device=z_TV.device)
        scores = self.sampler.compute_logprobs(z_TV)
        gathered = self.sampler.gather_logprobs(scores, logprobs.logprobs.shape[-1] - 1, tokens)
        logprobs.logprob_token_ids[at] = gathered.logprob_token_ids.cpu()
        logprobs.logprobs[at] = gathered.logprobs.cpu()
        logprobs.selected_token_ranks[at] = gathered.selected_token_ranks.cpu()

    def logits_of(self, name: str) -> Tensor:
        """[T - 1, V] in fp32"""
        states = (self.states or {}).pop(name)
        if states.shape[-1] != getattr(self.model, "widths", [states.shape[-1]])[0]:
            states = self.model.put_in_slot(states, self.input_batch.req_id_to_index[name])
        logits: Tensor = self.model.compute_logits(states)
        return logits.float()

    def membership_of(self, name: str) -> Membership | None:
        packed = (self.requests[name].sampling_params.extra_args or {}).get(KEY)
        return None if packed is None else unpack_membership(packed)
