"""What has moved between vLLM 0.32 and 0.33, from wherever it is; `tests/vllm_uses.py` lists what else differs."""

from __future__ import annotations

try:
    from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
except ImportError:  # 0.32
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args

__all__ = ["make_arg_parser", "validate_parsed_serve_args"]
