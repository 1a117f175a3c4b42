"""``python -m components.deployment watch``: the reconciler as a command."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
from pathlib import Path

from foundry.errors import UserError, run_command

PROGRAM = "python -m components.deployment watch"
SECRET = "FOUNDRY_WEBHOOK_SECRET"
"""Environment variable: the secret that MLflow signs its webhooks with."""
HELP = """\
commands:
  watch     Follow the champions of the registry until stopped (python -m components.deployment watch --help).

without a command, the step:
"""


def run_watch(argv: list[str] | None = None) -> int:
    """Run the command (default: the process's arguments, without ``watch``); returns the exit status."""
    return run_command(_main, argv)


def _main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.every <= 0:
        raise UserError(f"--every {arguments.every:g}: give a number of seconds above 0")
    from components.common.params import load_params
    from components.deployment.reconciler import Reconciler
    from components.deployment.webhook import WebhookReceiver

    params = load_params(arguments.params, arguments.overrides)
    reconciler = Reconciler(params.deployment, params.registration.prefix)
    if arguments.once:
        problems = reconciler.run_once()
        if problems:
            raise UserError(" // ".join(problems))
        return 0
    wake, stop = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        stop.set()
        wake.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with contextlib.ExitStack() as stack:
        if arguments.webhook_port is not None:
            secret = os.environ.get(SECRET, "")
            receiver = WebhookReceiver(arguments.webhook_host, arguments.webhook_port, secret, wake.set)
            stack.enter_context(receiver)
            print(f"deployment: webhooks on {arguments.webhook_host}:{receiver.port}", flush=True)
        print(
            f"deployment: following the champions of '{reconciler.prefix}-*', every {arguments.every:g} s", flush=True
        )
        reconciler.watch(arguments.every, wake, stop)
    print("deployment: stopped; the server goes on", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Make the server serve the champions of the registry, now and whenever they change.",
    )
    parser.add_argument("--params", type=Path, metavar="FILE", help="settings (default: params.yaml here)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="change a setting of that file"
    )
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="between looks (default: 10)")
    parser.add_argument(
        "--webhook-port", type=int, metavar="PORT", help=f"also listen for MLflow's webhooks, signed with ${SECRET}"
    )
    parser.add_argument(
        "--webhook-host", default="127.0.0.1", metavar="HOST", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument("--once", action="store_true", help="look once, act, and end (status 2 where something failed)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
