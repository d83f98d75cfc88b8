from __future__ import annotations

import time
from pathlib import Path

import pytest
import zmq
from transformers import LlamaConfig
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.renderers.registry import renderer_from_config
from vllm.utils.network_utils import get_open_zmq_ipc_path

from tests.engine import family
from trimtab.engine.plugin import register


@pytest.mark.skipif(not current_platform.is_cpu(), reason="where processes share cores with the model")
def test_a_process_that_waits_for_a_message_leaves_its_core_to_others() -> None:
    register()
    with zmq.Context() as context:
        reader = SpinCondition(is_reader=True, context=context, notify_address=get_open_zmq_ipc_path())
        try:
            used, began = time.thread_time(), time.monotonic()
            while time.monotonic() < began + 0.4:  # within its second of looking
                reader.wait()
            assert time.thread_time() - used < 0.2
        finally:
            for socket in (reader.local_notify_socket, reader.read_cancel_socket, reader.write_cancel_socket):
                socket.close(linger=0)


@pytest.mark.parametrize(
    ("rows", "token", "known"), [(256, 257, "'<s>'"), (256, 300, None), (264, 263, ""), (264, -1, None)]
)
def test_a_token_that_the_model_has_not_is_no_prompt(tmp_path: Path, rows: int, token: int, known: str | None) -> None:
    """A tokenizer of 259 tokens with a model of fewer, into which vLLM would let them, and of more, which pad it."""
    LlamaConfig(**family.sizes(64, 1, 2, vocab_size=rows), architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    family.tokenizer(tmp_path, family.VOCABULARY)
    register()
    renderer = renderer_from_config(AsyncEngineArgs(model=str(tmp_path)).create_engine_config())
    renderer.validate_token_ids([0, rows - 1])
    if known == "":
        renderer.validate_token_ids([0, token])
        return
    why = f": it is {known} to the tokenizer, and the model knows {rows} tokens" if known else ""
    with pytest.raises(VLLMValidationError, match=rf"^Token id {token} is out of vocabulary{why}(\n|$| \()"):
        renderer.validate_token_ids([0, token, 1])
