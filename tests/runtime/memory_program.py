"""A program with a Ray of its own, and a step that takes more memory than that Ray allows. See ``test_memory``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import rayflow
from tests.runtime import flows
from tests.runtime.conftest import actor_pid, attempts, eventually

MARGIN_BYTES = 3 * 2**30
"""What may be used from here on before Ray ends a process: by its own processes, and whatever else goes on on this machine."""
LARGEST_BYTES = 5 * 2**30
PIECE_BYTES = 100 * 2**20


@rayflow.step(num_cpus=0.1, retry=rayflow.Retry(max_attempts=2, initial_s=0.01))
def hungry(folder: str) -> None:
    """Takes memory until its process is ended; by itself it ends with an error, as Ray should have done it."""
    flows.note(folder, "hungry")
    held = [b"x" * PIECE_BYTES for _ in range(LARGEST_BYTES // PIECE_BYTES)]
    time.sleep(5)
    raise AssertionError(f"nobody minded {len(held)} pieces")


@rayflow.workflow
async def eating(ctx: rayflow.Context, folder: str) -> None:
    await ctx.step(hungry, folder)


def limit_memory() -> bool:
    """Have the next Ray of this process end processes early; False where there is too little memory to tell anything."""
    from ray._private.utils import get_system_memory, get_used_memory

    total, used = get_system_memory(), get_used_memory()
    if total - used < 2 * LARGEST_BYTES:
        return False
    threshold = f"{(used + MARGIN_BYTES) / total:.4f}"
    os.environ.update(RAY_memory_usage_threshold=threshold, RAY_memory_monitor_refresh_ms="50")
    return True


def main(folder: str) -> None:
    if not limit_memory():
        print("too little memory")
        return
    with rayflow.connect(Path(folder, "store"), num_cpus=2) as client:
        other = client.start(flows.holding, folder, ["a"], id="other")
        eventually(lambda: len(flows.marks(folder, "a")) == 1, "the other step runs")
        before = [actor_pid(client, "host"), actor_pid(client, "dispatcher")]
        try:
            client.start(eating, folder, id="eating").result(60)
        except rayflow.ExecutionFailed as error:
            print("failed:", error)
        print("supervisors are the same:", before == [actor_pid(client, "host"), actor_pid(client, "dispatcher")])
        Path(folder, "a.go").touch()
        print("other:", other.result(30), "after", len(flows.marks(folder, "a")), "attempt")
        seen = attempts(client, "eating")
        print("attempts:", len(flows.marks(folder, "hungry")), seen.begun, [str(one.cause) for one in seen.failed])


if __name__ == "__main__":
    main(*sys.argv[1:])
