"""``python -m rayflow``: what an operator asks of a store.

``list``, ``show``, ``entities`` and ``diagnose`` work on the store alone: they neither need nor load Ray. ``counter`` is a door to
``pipelines.counter``, the smallest application.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rayflow.checkpoint.opening import chosen_store, open_store
from rayflow.checkpoint.reading import read_execution
from rayflow.checkpoint.store import Store
from rayflow.core.records import Status
from rayflow.errors import ExecutionNotFound, InvalidInput, RayflowError
from rayflow.operator.diagnosis import Finding, diagnose
from rayflow.operator.display import print_json, print_table, printable
from rayflow.operator.executions import Selection, show_execution, show_executions
from rayflow.operator.following import follow
from rayflow.operator.watching import watch

_FAILURE = 1
_WRONG_USE = 2
_INTERRUPTED = 130

_EXIT_CODES = """\
exit codes:
  0  done
  1  something failed: the store cannot be reached, part of it is damaged, a check of diagnose failed
  2  wrong use: unknown option, no store there, no execution with that id
  3  show --follow: the execution failed
  4  show --follow: the execution was cancelled, or dropped
130  interrupted (Ctrl-C)
"""
_STORE_HELP = (
    "a folder, or an s3://, gs:// or az:// URL (default: $RAYFLOW_STORE, else $XDG_DATA_HOME/rayflow or ~/.local/share/rayflow)"
)
_WHICH_RAY = """\
It goes to the Ray at --address or $RAY_ADDRESS, else to the one on this machine that works on the store.
Where there is none, one is started for the moment, which also takes up the unfinished executions of the store.
"""
_ADDRESS_HELP = "of a Ray cluster (default: $RAY_ADDRESS)"
_INTERVAL_HELP = "with it: how often the store is looked at (default: every second; a bucket every two)"
_MAX_ID = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line (default: that of the process) and return its exit code. Errors go to stderr, one line each."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] -- so Python says that it was started without one
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- for the rest of the process
    try:
        options = _parser().parse_args(arguments)
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # from argparse, which has printed what there is to say
        return stop.code if isinstance(stop.code, int) else _WRONG_USE
    except (InvalidInput, ExecutionNotFound) as error:
        return _complain(error, _WRONG_USE)
    except RayflowError as error:
        return _complain(error, _FAILURE)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough; the interpreter must not try to flush what is left
        _drop_output()
        return 0
    except OSError as error:  # a full disk: stores have errors of their own
        _drop_output()
        return _complain(error, _FAILURE)


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_WRONG_USE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="python -m rayflow", description="Look after the executions in a store.", epilog=_EXIT_CODES, formatter_class=raw
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, help: str, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=description, epilog=_EXIT_CODES, formatter_class=raw)
        command.add_argument("--store", metavar="STORE", help=_STORE_HELP)
        return command

    listing = add("list", "the executions in a store", "List executions, newest first. Needs no Ray.")
    listing.add_argument(
        "--status", choices=[str(status) for status in Status], metavar="STATUS", help=f"only these: {', '.join(Status)}"
    )
    listing.add_argument("--prefix", default="", help="only those whose id starts with this")
    listing.add_argument("--limit", type=_count, default=50, help="at most so many (default: 50)")
    listing.add_argument("--json", action="store_true", help="one JSON object per execution and line")
    listing.add_argument("--watch", action="store_true", help="look again and again: a table, or lines for what has changed")
    listing.add_argument("--interval", type=_seconds, metavar="SECONDS", help=_INTERVAL_HELP)
    listing.set_defaults(command=_list)

    show = add("show", "one execution", "Show what is on record of one execution. Needs no Ray.")
    show.add_argument("execution", metavar="ID")
    show.add_argument(
        "--steps", action="store_true", help="every step and timer: state, attempts, time, CPU seconds, node, error; tracebacks"
    )
    show.add_argument(
        "--json", action="store_true", help="the execution as a JSON object; with --steps, then one per step and line"
    )
    show.add_argument("--follow", action="store_true", help="then print events as they come, until it ends; waits for its start")
    show.add_argument("--interval", type=_seconds, metavar="SECONDS", help=_INTERVAL_HELP)
    show.set_defaults(command=_show)

    cancel = add(
        "cancel",
        "cancel an execution",
        "Ask an execution to stop; done once the request is on record. One that has ended is left as it is.\n" + _WHICH_RAY,
    )
    cancel.add_argument("execution", metavar="ID")
    cancel.add_argument("--reason", default="cancelled by the operator", help="is kept with the execution")
    cancel.add_argument("--address", help=_ADDRESS_HELP)
    cancel.set_defaults(command=_cancel)

    resume = add(
        "resume",
        "have a suspended execution go on",
        "Try the code of a suspended execution again; done once it goes on. One that is not suspended is left as it is.\n"
        + _WHICH_RAY,
    )
    resume.add_argument("execution", metavar="ID")
    resume.add_argument("--address", help=_ADDRESS_HELP)
    resume.set_defaults(command=_resume)

    entities = add("entities", "the entities in a store", "List entities and their states, by type and key. Needs no Ray.")
    entities.add_argument("type", nargs="?", default="", metavar="TYPE", help="only those of this type")
    entities.add_argument("--prefix", default="", help="only those whose key starts with this")
    entities.add_argument("--limit", type=_count, default=50, help="at most so many (default: 50)")
    entities.add_argument("--json", action="store_true", help="one JSON object per entity and line")
    entities.set_defaults(command=_entities)

    letters = add(
        "dead-letters",
        "messages that no entity could handle",
        "List messages to entities that could not be handled and that nobody waits for, oldest first. That needs no Ray.\n"
        "--replay has one handled again, --discard throws it away.\n" + _WHICH_RAY,
    )
    letters.add_argument("type", nargs="?", default="", metavar="TYPE", help="only those to entities of this type")
    settling = letters.add_mutually_exclusive_group()
    settling.add_argument("--replay", metavar="TYPE/KEY#NUMBER", help="have this one handled again; it is gone if that succeeds")
    settling.add_argument("--discard", metavar="TYPE/KEY#NUMBER", help="throw this one away")
    settling.add_argument("--json", action="store_true", help="one JSON object per dead letter and line")
    letters.add_argument("--address", help=_ADDRESS_HELP)
    letters.set_defaults(command=_dead_letters)

    counter = add(
        "counter",
        "a counter: increment, decrement, get",
        "Send one message to the counter of that name and print its answer, once that is durable: the new value, or for get\n"
        "the value and how often it was changed. The first message makes the counter; a new store is made as well.\n" + _WHICH_RAY,
    )
    counter.add_argument("name", metavar="NAME")
    counter.add_argument("operation", choices=["increment", "decrement", "get"], metavar="increment|decrement|get")
    counter.add_argument("--by", type=_whole, metavar="N", help="by how much it changes (default: 1)")
    counter.add_argument(
        "--message-id", type=_name, metavar="ID", help="names the message: sent again under it, it is answered and not done again"
    )
    counter.add_argument("--address", help=_ADDRESS_HELP)
    counter.set_defaults(command=_counter)

    diagnosis = add(
        "diagnose",
        "check store, libraries, ffmpeg and disks",
        "Check what has to be right before anything can run. Needs no Ray.\n"
        "With --address or $RAY_ADDRESS every node of that cluster is asked as well: versions, ffmpeg, store, clock, disk.\n"
        "Writes a few small objects to the store and removes them; the folder of a new store is created.",
    )
    diagnosis.add_argument("--address", help=_ADDRESS_HELP)
    diagnosis.add_argument("--json", action="store_true", help="one JSON object per check and line")
    diagnosis.set_defaults(command=_diagnose)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 3600")
    return seconds


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _name(text: str) -> str:
    if not text or len(text) > _MAX_ID or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is empty, longer than {_MAX_ID} characters, or cannot be printed")
    return text


def _store(options: argparse.Namespace) -> Store:
    return open_store(chosen_store(options.store))


def _complain(error: Exception, code: int) -> int:
    print(f"rayflow: {printable(str(error))}", file=sys.stderr)
    return code


# -- list and show ------------------------------------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> int:
    store = _store(options)
    selection = Selection(options.limit, None if options.status is None else Status(options.status), options.prefix)
    if options.watch:
        return watch(store, selection, options.interval, json=options.json)
    return 0 if show_executions(store, selection, json=options.json) else _FAILURE


def _show(options: argparse.Namespace) -> int:
    store = _store(options)
    if options.follow:
        return follow(store, options.execution, options.interval, steps=options.steps, json=options.json)
    show_execution(read_execution(store, options.execution), steps=options.steps, json=options.json)
    return 0


# -- cancel and resume -------------------------------------------------------------------------------------------------------


def _cancel(options: argparse.Namespace) -> int:
    store = _store(options)
    info = read_execution(store, options.execution).info
    if info.ended is not None:
        print(f"{info.execution} has ended already: {info.status}")
        return 0
    from rayflow.operator.connecting import connected

    with connected(store, options.address) as client:
        client.get(options.execution).cancel(options.reason)
    print(f"the request to cancel {info.execution} is on record")
    return 0


def _resume(options: argparse.Namespace) -> int:
    store = _store(options)
    info = read_execution(store, options.execution).info
    if info.status is not Status.SUSPENDED:
        print(f"{info.execution} is not suspended: {info.status}")
        return 0
    from rayflow.operator.connecting import connected

    with connected(store, options.address) as client:
        client.get(options.execution).resume()
    print(f"{info.execution} goes on")
    return 0


# -- entities ----------------------------------------------------------------------------------------------------------------


def _entities(options: argparse.Namespace) -> int:
    from rayflow.operator.entities import show_entities

    whole = show_entities(_store(options), options.type, options.prefix, options.limit, json=options.json)
    return 0 if whole else _FAILURE


def _dead_letters(options: argparse.Namespace) -> int:
    from rayflow.operator.entities import settle_dead_letter, show_dead_letters

    name = options.replay or options.discard
    if name is None:
        show_dead_letters(_store(options), options.type, json=options.json)
    else:
        print(settle_dead_letter(_store(options), options.address, name, discard=options.replay is None))
    return 0


# -- counter -----------------------------------------------------------------------------------------------------------------


def _counter(options: argparse.Namespace) -> int:
    from rayflow.operator.counting import count

    print(count(_store(options), options.address, options.name, options.operation, options.by, options.message_id))
    return 0


# -- diagnose ----------------------------------------------------------------------------------------------------------------


def _diagnose(options: argparse.Namespace) -> int:
    store = _store(options)
    address = options.address or os.environ.get("RAY_ADDRESS")
    ok = True
    for finding in diagnose(store):
        ok = _tell(finding, json=options.json) and ok
    if address and address != "local":
        from rayflow.operator.cluster_diagnosis import COLUMNS, findings, row
        from rayflow.operator.nodes import ask_nodes, caller_versions

        reports = ask_nodes(address, store.url)
        if options.json:
            for report in reports:
                print_json(report)
        elif reports:
            print()
            print_table(COLUMNS, [row(report) for report in reports])
            print(flush=True)
        for finding in findings(reports, caller_versions()):
            ok = _tell(finding, json=options.json) and ok
    return 0 if ok else _FAILURE


def _tell(finding: Finding, *, json: bool) -> bool:
    if json:
        print_json(finding)
    else:
        print(f"{'ok    ' if finding.ok else 'FAILED'}  {finding.subject}: {printable(finding.detail)}", flush=True)
    return finding.ok
