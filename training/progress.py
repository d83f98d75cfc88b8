"""What a person reads while a model is trained: a bar, and a line at each measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from transformers.trainer_callback import ProgressCallback

ACCURACY = ("eval_rewards/accuracies", "eval_accuracy")
"""What TRL's trainers call it, of guides and of reward models."""


class ProgressLines(ProgressCallback):  # type: ignore[misc]
    """Hugging Face's bar; of what trainers log, the losses, the accuracy and the time that is left."""

    def __init__(self) -> None:
        super().__init__()
        self._loss: float | None = None
        self._began = 0.0
        self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._began, self._first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._loss = float(logs["loss"])
        if "eval_loss" in logs and self.training_bar is not None:
            done = max(1, state.global_step - self._first)
            seconds = (time.monotonic() - self._began) / done * (state.max_steps - state.global_step)
            self.training_bar.write(describe_step(state.global_step, state.max_steps, self._loss, logs, seconds))


def describe_step(step: int, steps: int, loss: float | None, logs: Mapping[str, Any], seconds: float) -> str:
    """One line of what was measured on held-out rows after a step."""
    parts = [] if loss is None else [f"loss {loss:.4f}"]
    parts.append(f"held-out loss {float(logs['eval_loss']):.4f}")
    parts += [f"accuracy {float(logs[name]):.3f}" for name in ACCURACY if name in logs]
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{rest} s"
    return f"step {step} of {steps}: {', '.join(parts)}, {left} left"
