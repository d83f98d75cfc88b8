"""Put first on PYTHONPATH: vLLM's Model Runner V2 on a machine without a GPU, through Triton's interpreter. Slow.

V2 is what every GPU user runs. It asks Triton for an active driver, and there is none for CPU, so one is made up here;
interpreted kernels never compile.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

import triton.backends


class Driver:
    @staticmethod
    def is_active() -> bool:
        return True


triton.backends.backends["cpu"] = triton.backends.Backend(compiler=object, driver=Driver)
