"""The `trimtab` command."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import uvloop

from trimtab.engine.fork_server import running_fork_server
from trimtab.server.config import HASHED, Config, ConfigError, load, locate
from trimtab.server.http.auth import digest, new_key
from trimtab.server.json_log import configure_logging, without_secrets

if TYPE_CHECKING:
    from trimtab.server.scoring import Scoring

DEMO = Path(__file__).resolve().parent.parent / "demo" / "config.yaml"

log = logging.getLogger("trimtab")


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["load"]:  # clients: they have their own options, and need no model library
        from trimtab.bench.load.cli import main as load_main

        return load_main(argv[1:])
    if argv[:1] == ["eval"]:
        from trimtab.bench.eval.cli import main as eval_main

        return eval_main(argv[1:])
    if argv[:1] == ["train"]:
        from trimtab.training.cli import main as train_main

        sys.exit(train_main(argv[1:]))
    parser = argparse.ArgumentParser(prog="trimtab", description="Test-time alignment inference server.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    serve = commands.add_parser("serve", help="serve a frozen model and its guides over the OpenAI API")
    serve.add_argument("config", nargs="?", type=Path, default=DEMO, help="YAML file; by default the embedded demo")
    serve.add_argument("--host", help="address to listen on")
    serve.add_argument("--port", type=int, help="port to listen on")
    serve.add_argument(
        "--engine",
        choices=("vllm", "toy"),
        default="vllm",
        help="toy: a made-up model in place of every one, up in seconds, for client authors and CI",
    )
    measure = commands.add_parser("calibrate", help="measure what makes equal weights pull equally, into the file")
    measure.add_argument("config", type=Path, help="YAML file; its objectives get mean, spread and gain")
    measure.add_argument("--prompts", type=Path, required=True, help="one prompt a line, or JSON with messages")
    measure.add_argument("--answers", type=int, default=4, help="answers of the base to each")
    measure.add_argument("--max-tokens", type=int, default=256, help="longest answer")
    measure.add_argument("--dry-run", action="store_true", help="print the figures and leave the file alone")
    verify = commands.add_parser("check", help="say what would stop a server from starting, without an engine")
    verify.add_argument("config", type=Path, help="YAML file")
    for parser_of_config in (serve, verify):
        parser_of_config.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest="overrides",
            help="put a value over the file's, such as engine.max_model_len=512; may be repeated",
        )
    commands.add_parser("key", help="make a new API key, and the digest that the server keeps of it")
    commands.add_parser("load", help="send requests to a running server and measure how they fare", add_help=False)
    commands.add_parser("train", help="make a guide, a reward model or the like from preferences", add_help=False)
    commands.add_parser("eval", help="compare settings on a running server by rewards of their answers", add_help=False)
    args = parser.parse_args(argv)
    if args.command == "key":
        key = new_key()
        return print(f"key: {key}\nfor api_keys or a line of api_keys_file: {HASHED}{digest(key)}")  # noqa: T201
    from trimtab.server.request.plan import (
        check_config,  # it takes seconds, and neither help nor a wrong option needs it
    )

    configure_logging("text")
    try:
        if args.command == "calibrate":
            config = load(args.config, check=check_config)
            with running_fork_server():
                return uvloop.run(run_calibration(config, args))
        if args.command == "check":
            return run_check(load(args.config, args.overrides, check_config))
        address = {"host": args.host, "port": args.port}
        overrides = [*args.overrides, *(f"{key}={value}" for key, value in address.items() if value is not None)]
        load_config = partial(load, args.config, overrides, check_config)
        config = load_config()
        configure_logging(config.log_format)
        toy = args.engine == "toy"
        with bind(config) as sock, nullcontext() if toy else running_fork_server():
            uvloop.run(run(config, sock, load_config, toy=toy))
    except ConfigError as error:
        sys.exit(f"trimtab: {locate(error, args.config)}")
    except OSError as error:
        sys.exit(f"trimtab: {error}")


def run_check(config: Config) -> None:
    """Prints what was checked; raises ConfigError for what is wrong."""
    logging.disable(logging.WARNING)  # what vLLM says of its own while it looks
    from trimtab.server.engines import check_start

    for line in check_start(config):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write("nothing is wrong as far as files show it\n")


def bind(config: Config) -> socket.socket:
    """The port taken, so that one in use is known before a model loads; nobody is let in yet."""
    sock = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {config.host} port {config.port}: {error.strerror}") from None
    return sock


async def run(config: Config, sock: socket.socket, load_config: Callable[[], Config], *, toy: bool = False) -> None:
    """Serve until told to stop; `load_config` gives the configuration as its file has it later."""
    restore_handlers = exit_on_signal()
    # vLLM is imported no earlier than it is needed: it takes seconds, and a bad config should not.
    from trimtab.engine.errors import MemberError
    from trimtab.server.engines import running_models, toy_models
    from trimtab.server.http.app import build
    from trimtab.server.http.vllm_app import arguments
    from trimtab.server.lifecycle import EngineDied, serve
    from trimtab.server.request.tracing import export
    from trimtab.server.state import ServerState

    args = arguments(config)
    configure_logging(config.log_format)  # vLLM's import may have changed loggers, and so may its app's, below
    log.info("%s", json.dumps(without_secrets(config), ensure_ascii=False))
    try:
        async with AsyncExitStack() as stack:
            models = toy_models if toy else running_models
            client, scoring = await stack.enter_async_context(models(config, args))
            if config.otlp_endpoint is not None:
                stack.callback(export(config.otlp_endpoint).shutdown)
            state = ServerState(client=client, scoring=scoring, load_config=load_config)
            app = await build(state, args)
            configure_logging(config.log_format)
            probe = asyncio.create_task(warn_of_indifferent(scoring))
            stack.callback(probe.cancel)
            restore_handlers()
            await serve(app, state, sock)
    except MemberError as error:
        raise ConfigError(str(error)) from None
    except EngineDied as error:
        sys.exit(f"trimtab: {error}")


async def warn_of_indifferent(scoring: Scoring) -> None:
    """Into the log; a server is up without it, so it is nothing to wait for."""
    from trimtab.server.calibrate import find_indifferent

    try:
        for line in await find_indifferent(scoring):
            log.warning(line)
    except Exception:
        log.exception("whether judges and preference prompts make a difference could not be read")


async def run_calibration(config: Config, args: argparse.Namespace) -> None:
    """Calibrate: print the table, and write the file unless told not to."""
    exit_on_signal()
    from trimtab.engine.errors import MemberError
    from trimtab.server.calibrate import calibrate, read_prompts, report, write_calibrations
    from trimtab.server.engines import running_models
    from trimtab.server.http.vllm_app import RequestReader, arguments, openai_app

    prompts = read_prompts(args.prompts)
    try:
        server_args = arguments(config)
        async with running_models(config, server_args) as (client, scoring):
            reader = RequestReader(app=await openai_app(client, server_args))
            scoring.attach(reader.render, reader.split_written({}), reader.read_chat)
            calibrations = await calibrate(scoring, prompts, answers=args.answers, max_tokens=args.max_tokens)
    except MemberError as error:
        raise ConfigError(str(error)) from None
    sys.stdout.write(report(calibrations) + "\n")
    if not args.dry_run:
        args.config.write_text(write_calibrations(args.config.read_text(), calibrations))


def exit_on_signal() -> Callable[[], None]:
    """Until the HTTP server has handlers of its own, SIGTERM and SIGINT end this process and what it has started.

    A thread does it, because vLLM blocks the main one while it starts: no handler would run there before it is up.
    Returns what gives signals back to the event loop, whose own handlers end a server that is up.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    wakeup_fd = sender.detach()

    def watch() -> None:
        [number] = receiver.recv(1)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        os._exit(128 + number)

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is a configuration to reload
    signal.signal(signal.SIGTERM, lambda *_: None)  # not the default, which would leave the others behind
    before = signal.set_wakeup_fd(wakeup_fd)
    threading.Thread(target=watch, daemon=True).start()

    def restore_handlers() -> None:
        signal.set_wakeup_fd(before)

    return restore_handlers


if __name__ == "__main__":
    main()
