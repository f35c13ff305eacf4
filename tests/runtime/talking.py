"""Programs whose steps print and whose workflows log, and the workflows that they run.

Usage: talking.py dying STORE FOLDER | joining STORE ADDRESS. Its own words go to stdout.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import rayflow
from tests.runtime.flows import note


@rayflow.step(num_cpus=0.1)
def prints(name: str) -> str:
    print(f"{name}: printed")
    print(f"{name}: to stderr", file=sys.stderr)
    logging.getLogger("of.mine").warning("%s: logged", name)
    thread = threading.Thread(target=print, args=(f"{name}: from a thread",))
    thread.start()
    thread.join()
    print(f"{name}: begun", end="")
    return name


@rayflow.step(inline=True)
def prints_inline(name: str) -> str:
    print(f"{name}: inline")
    return name


@rayflow.step(inline=True)
async def prints_on_the_loop(name: str) -> str:
    print(f"{name}: on the loop")
    return name


@rayflow.step(num_cpus=0.1, retry=rayflow.Retry(max_attempts=2, initial_s=0.01))
def dies(folder: str, times: int) -> str:
    note(folder, "dies")
    attempt = len(Path(folder, "dies").read_text().splitlines())
    print(f"attempt {attempt}", flush=True)
    if attempt <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@rayflow.workflow
async def talking(ctx: rayflow.Context, name: str) -> str:
    ctx.logger.info("%s: begins", name)
    await ctx.step(prints, name)
    await ctx.step(prints_on_the_loop, name)
    await ctx.step(prints_inline, name)
    ctx.logger.warning("%s: ends", name)
    return name


@rayflow.workflow
async def dying(ctx: rayflow.Context, folder: str, times: int) -> str:
    return await ctx.step(dies, folder, times)


def expected(execution: str, name: str) -> set[str]:
    """The lines of ``talking``."""
    return {
        f"({execution}) {name}: begins",
        f"({execution} prints#1) {name}: printed",
        f"({execution} prints#1) {name}: to stderr",
        f"({execution} prints#1) {name}: logged",
        f"({execution} prints#1) {name}: from a thread",
        f"({execution} prints#1) {name}: begun",
        f"({execution} prints_on_the_loop#1) {name}: on the loop",
        f"({execution} prints_inline#1) {name}: inline",
        f"({execution}) WARNING: {name}: ends",
    }


def main(mode: str, store: str, *arguments: str) -> None:
    if mode == "dying":
        with rayflow.connect(store, num_cpus=1) as client:
            print(client.start(talking, "hello", id="talk").result())
            [folder] = arguments
            print(client.start(dying, folder, 1, id="once").result())
            try:
                client.start(dying, folder, 9, id="twice").result()
            except rayflow.ExecutionFailed as error:
                print(error)
    else:
        with rayflow.connect(store, address=arguments[0]) as client:
            print(client.start(talking, "joined", id="second").result())


if __name__ == "__main__":
    from tests.runtime import talking as this

    this.main(*sys.argv[1:])
