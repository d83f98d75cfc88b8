"""The vLLM room: one engine that runs a frozen base and its guides in lock-step. Nothing else imports vLLM.

vLLM reports usage statistics unless told not to. Nobody who serves a model here has agreed to that, so it is off
unless the environment already says otherwise; it stands here because it must be said before vLLM is imported.
"""

import os

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
