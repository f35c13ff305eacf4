"""The ground that simulated systems stand on."""

from __future__ import annotations

import pytest

from rayflow.core.ledger import Disconnected
from rayflow.testing.simulation_world import Answer, Group, Process, Signal, World


def calm(seed: int = 1) -> World:
    world = World(seed)
    world.disturbed = False
    return world


def never() -> bool:
    return False


def test_a_frozen_group_goes_on_with_all_that_gathered() -> None:
    world, group, other = calm(), Group("frozen"), Group("other")
    seen: list[tuple[str, float]] = []

    def ticking(name: str) -> Process[None]:
        for _ in range(3):
            seen.append((name, world.now_ms))
            yield 10

    world.spawn(group, ticking("frozen"))
    world.spawn(other, ticking("other"))
    world.after(5, other, lambda: setattr(group, "frozen", True))
    world.after(100, other, lambda: world.thaw(group))
    world.run(1000, never)
    assert [at for name, at in seen if name == "other"] == [0, 10, 20]
    assert [at for name, at in seen if name == "frozen" and at < 100] == [0]
    assert sum(name == "frozen" for name, _ in seen) == 3


def test_a_signal_set_before_it_is_waited_for_is_not_lost() -> None:
    world, group = calm(), Group("a")
    signal = Signal(world)
    woken: list[float] = []

    def waiting() -> Process[None]:
        for _ in range(2):
            yield signal
            woken.append(world.now_ms)

    signal.set()
    world.spawn(group, waiting())
    world.after(7, group, signal.set)
    world.run(1000, never)
    assert woken == [0, 7]


@pytest.mark.parametrize("dies", [True, False])
def test_a_caller_learns_what_became_of_its_call(dies: bool) -> None:
    world, caller, callee = calm(), Group("caller"), Group("callee")
    heard: list[str] = []
    waiting: list[Answer[str]] = []

    def calling() -> Process[None]:
        try:
            heard.append((yield from world.call(caller, callee, waiting.append).wait()))
        except Disconnected as error:
            heard.append(str(error))

    world.spawn(caller, calling())
    world.after(50, caller, lambda: world.kill(callee) if dies else waiting[0].resolve("yes"))
    world.run(1000, never)
    assert heard == (["callee is gone"] if dies else ["yes"])


def test_a_loop_in_which_no_time_passes_is_cut_off() -> None:
    world, group = calm(), Group("a")

    def spinning() -> Process[None]:
        while True:
            yield 0

    world.spawn(group, spinning())
    world.run(1000, never)
    assert world.now_ms == 0
