"""What a cluster may lose: a worker, a link, its head, all of itself. No finished chunk is encoded again, every count counts once.

Each test prints the seconds it took until what. Invariants: I1, I2, I9, I13, I14, I21.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.hosts import eventually
from tests.cluster.nodes import Cluster, copy_project
from tests.cluster.under_way import UnderWay

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.crash, pytest.mark.slow]


@pytest.fixture
def under_way(cluster: Cluster) -> Iterator[UnderWay]:
    made = UnderWay(cluster)
    yield made
    made.close()


@pytest.mark.long
def test_a_worker_that_is_killed_costs_the_chunk_it_worked_on(cluster: Cluster, under_way: UnderWay) -> None:
    command = under_way.encode()
    counting = under_way.count(cluster.head)
    held = under_way.wait_until_held()
    cluster.kill_ray(held)
    under_way.say(f"{held.name} is killed")
    (other,) = (host for host in cluster.workers if host is not held)
    eventually(lambda: len(other.processes("/root/ffmpeg ")) > 0, "the chunk on the other worker", 90)
    under_way.say(f"{other.name} works on the chunk")
    under_way.wait_for_counts(cluster.head)
    under_way.stop_counting(cluster.head, counting)
    under_way.wait_until_encoded(command)
    under_way.assert_no_chunk_again_but("0003")
    under_way.assert_exact()


def test_the_owner_behind_a_cut_link_is_replaced_and_harmless_when_it_is_back(cluster: Cluster, under_way: UnderWay) -> None:
    command = under_way.encode()
    held = under_way.wait_until_held()
    counting = under_way.count(cluster.head, node=held.name)
    under_way.wait_for_counts(cluster.head)
    assert held.processes("ray::ShardHost")
    held.cut()
    under_way.say(f"{held.name}, with the counter's shard and the last chunk, is cut off")
    under_way.wait_for_counts(cluster.head)
    (other,) = (host for host in cluster.workers if host is not held)
    eventually(lambda: len(other.processes("/root/ffmpeg ")) > 0, "the chunk on the other worker", 90)
    under_way.say(f"{other.name} works on the chunk")
    assert held.processes("ray::ShardHost") and held.processes("/root/ffmpeg ")
    held.restore()
    under_way.say("the link is back")
    under_way.wait_for_counts(cluster.head)
    under_way.wait_until_encoded(command)
    under_way.stop_counting(cluster.head, counting)
    under_way.assert_no_chunk_again_but("0003")
    under_way.assert_exact()
    eventually(lambda: not held.processes("ray::ShardHost"), "the end of the old owner", 90)


@pytest.mark.long
def test_an_owner_that_goes_on_writing_is_fenced_by_its_successor(cluster: Cluster, under_way: UnderWay) -> None:
    one = cluster.workers[0]
    copy_project(one)
    under_way.count(one, node="one")
    under_way.wait_for_counts(one)
    counting = under_way.count(cluster.head)
    under_way.wait_for_counts(cluster.head)
    assert one.processes("ray::ShardHost")
    for host in (cluster.head, cluster.workers[1]):
        one.shun(host)
    under_way.say("one reaches the bucket and nobody else")
    before = under_way.acknowledged(one)
    under_way.wait_for_counts(one)
    under_way.wait_for_counts(cluster.head, timeout_s=90)
    under_way.say(f"{under_way.acknowledged(one) - before} increments by the old owner meanwhile")
    one.restore()
    under_way.say("one is back")
    under_way.wait_for_counts(cluster.head)
    cluster.kill_ray(one)
    cluster.repair()
    again = under_way.count(one)
    under_way.wait_for_counts(one)
    under_way.stop_counting(one, again)
    under_way.stop_counting(cluster.head, counting)
    under_way.assert_exact()


@pytest.mark.long
def test_a_head_that_kept_its_storage_comes_back_to_its_workers(cluster: Cluster, under_way: UnderWay) -> None:
    under_way.encode()
    under_way.wait_until_held()
    under_way.count(cluster.head)
    under_way.wait_for_counts(cluster.head)
    raylets = [host.processes("raylet/raylet") for host in cluster.workers]
    cluster.kill_ray(cluster.head)
    under_way.say("the head is killed")
    cluster.start_head()
    under_way.say("the head is back")
    _go_on(cluster, under_way)
    assert [host.processes("raylet/raylet") for host in cluster.workers] == raylets


@pytest.mark.long
def test_a_head_without_storage_leaves_a_new_cluster_that_goes_on(cluster: Cluster, under_way: UnderWay) -> None:
    under_way.encode()
    under_way.wait_until_held()
    under_way.count(cluster.head)
    under_way.wait_for_counts(cluster.head)
    cluster.kill_ray(cluster.head)
    under_way.say("the head is killed")
    cluster.forget_storage()
    cluster.start_head()
    under_way.say("a new head is there, which knows of nobody")
    for worker in cluster.workers:  # as `ray up`, Kubernetes and systemd do with nodes that do not belong to the head
        cluster.kill_ray(worker)
    cluster.repair()
    _go_on(cluster, under_way)


@pytest.mark.long
def test_another_cluster_goes_on_from_the_same_bucket(cluster: Cluster, under_way: UnderWay) -> None:
    under_way.encode()
    under_way.wait_until_held()
    under_way.count(cluster.head)
    under_way.wait_for_counts(cluster.head)
    cluster.kill()
    cluster.forget_storage()
    under_way.say("the cluster is gone")
    cluster.start_head()
    cluster.repair()
    under_way.say("there is another cluster")
    _go_on(cluster, under_way)


def _go_on(cluster: Cluster, under_way: UnderWay) -> None:
    """The programs that were connected ended with their node; the same commands go on."""
    under_way.kill_programs()
    counting = under_way.count(cluster.head)
    under_way.wait_for_counts(cluster.head)
    command = under_way.encode_on()
    under_way.wait_until_encoded(command)
    under_way.stop_counting(cluster.head, counting)
    under_way.assert_exact()
