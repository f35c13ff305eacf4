"""What a cluster may lose: a worker, a link, its head, all of itself. No finished chunk is encoded again, every count counts once.

Each test prints the seconds it took until what. Invariants: I1, I2, I9, I13, I14, I21.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.hosts import eventually
from tests.cluster.nodes import Cluster
from tests.cluster.under_way import UnderWay

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.crash, pytest.mark.slow]


@pytest.fixture
def under_way(cluster: Cluster) -> Iterator[UnderWay]:
    made = UnderWay(cluster)
    yield made
    made.close()


def test_a_worker_that_is_killed_costs_the_chunk_it_worked_on(cluster: Cluster, under_way: UnderWay) -> None:
    command = under_way.encode()
    counting = under_way.count(cluster.head)
    held = under_way.wait_until_held()
    cluster.kill_ray(held)
    under_way.say(f"{held.name} is killed")
    (other,) = (host for host in cluster.workers if host is not held)
    eventually(lambda: len(other.processes("/root/ffmpeg ")) > 0, "the chunk on the other worker", 30)
    under_way.say(f"{other.name} works on the chunk")
    under_way.wait_for_counts(cluster.head)
    under_way.stop_counting(cluster.head, counting)
    under_way.wait_until_encoded(command)
    assert under_way.attempts()["0003"] == 2
    under_way.assert_exact()
