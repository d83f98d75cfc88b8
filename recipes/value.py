"""How well the demo family's value head foretells what reward model `a` will say of an answer, from its beginning.

`make models` trains it by `trimtab train value` from reward model `a`'s own weights, on the base's own answers, so that
V estimates E_π[r(x, y) | y_≤t]. V is read at the last token of the open turn, t = 0 being the turn just opened.
Shapes: B answers, T positions, K objectives.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

from trimtab.recipes.base import ASSISTANT, END, assistant_mask
from trimtab.recipes.rewards import OBJECTIVES, Drawn, judge, read

PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of an answer's length, where held-out correlations are told."""


def value_positions(tokenizer: PreTrainedTokenizerFast, drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
    """ids [B, T], and [B, T] where V is read: at the token that opens the turn and at each of the answer's."""
    ids = read(tokenizer, drawn)
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    answer_mask = torch.tensor([assistant_mask(row, assistant, end) for row in ids.tolist()])
    last_turn = (ids == assistant).cumsum(1) == (ids == assistant).sum(1, keepdim=True)
    return ids, last_turn & ((answer_mask & (ids != end)) | (ids == assistant)) & (ids != tokenizer.pad_token_id)


def predict_values(model: LlamaForSequenceClassification, ids: Tensor) -> Tensor:
    """[B, T, K] V at every token."""
    with torch.autocast("cpu", torch.bfloat16):
        values: Tensor = model.score(model.model(input_ids=ids).last_hidden_state)
    return values.float()


@torch.inference_mode()
def heldout_correlations(
    model: LlamaForSequenceClassification,
    teacher: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    drawn: Sequence[Drawn],
) -> dict[str, dict[float, float]]:
    """objective -> share of the answer read -> correlation of V with r over all answers.

    At 0 it is what the question alone foretells; the rest is what the beginning adds.
    """
    rows: dict[float, list[Tensor]] = {part: [] for part in PARTS}
    rewards: list[Tensor] = []
    for one in drawn:
        ids, at_BT = value_positions(tokenizer, [one])
        rewards.append(judge(teacher, ids))
        values = predict_values(model, ids)
        for row, at in zip(values, at_BT, strict=True):
            places = at.nonzero()[:, 0]
            for part in PARTS:
                rows[part].append(row[places[round(part * (len(places) - 1))]])
    r_BK = torch.cat(rewards)
    correlations: dict[str, dict[float, float]] = {o: {} for o in OBJECTIVES}
    for part, values_B in rows.items():
        v_BK = torch.stack(values_B)
        for k, objective in enumerate(OBJECTIVES):
            correlations[objective][part] = torch.corrcoef(torch.stack([v_BK[:, k], r_BK[:, k]]))[0, 1].item()
    return correlations
