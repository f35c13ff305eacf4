"""A program that runs one workflow with nothing running before, and prints when each stage was over (monotonic seconds)."""

from __future__ import annotations

import sys
import time


def main(store: str) -> None:
    """Stages: imports, Ray, store and client, workflow."""
    import bench_flows

    import rayflow
    from rayflow.runtime.cluster import RayOptions, start_or_join

    moments = [time.monotonic()]
    start_or_join(RayOptions(address="local", num_cpus=2), "bench")
    moments.append(time.monotonic())
    client = rayflow.connect(store)
    moments.append(time.monotonic())
    client.start(bench_flows.five_steps, 1).result()
    moments.append(time.monotonic())
    client.close()
    print(*moments)


if __name__ == "__main__":
    main(sys.argv[1])
