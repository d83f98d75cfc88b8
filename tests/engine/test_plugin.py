from __future__ import annotations

import time

import pytest
import zmq
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.platforms import current_platform
from vllm.utils.network_utils import get_open_zmq_ipc_path

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
