"""The rules of the log, checked on random runs of the real protocol: nothing acknowledged is lost, doubled or made up.

Three owners and a reader share one log on a hostile store (see ``rayflow.testing.log_simulation``). They are
interleaved at every request, stall for long, crash, take over from each other, retry, and snapshot and truncate while
they append. What the log really holds is known from the slots that came into being beyond the newest snapshot; every
view of it must be a prefix of that, and hold at least what was there when its reader began.

Each rule is also shown to be needed: with it off, the same runs do harm.

``RAYFLOW_SEEDS`` sets the number of runs, by default 1,200.

Invariants: I1, I2, I3, I4, I5, I6.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from itertools import count
from random import Random
from typing import TypeVar

import pytest

from rayflow.checkpoint import log
from rayflow.checkpoint.log import Recovered, Snapshot, Tail, View
from rayflow.checkpoint.requests import Create, Get
from rayflow.checkpoint.segment import Kind, decode
from rayflow.errors import AlreadyExists, Damaged, Fenced, NotFound, StoreUnavailable
from rayflow.testing.log_simulation import NO_FAULTS, Faults, SimulatedStore, Steps, steps

T = TypeVar("T")

SEEDS = int(os.environ.get("RAYFLOW_SEEDS", "1200"))
SEEDS_PER_VARIANT = 100
PREFIX = "shards/03/"
SLOTS = PREFIX + "log/"
SNAPSHOTS = PREFIX + "snapshots/"
WEATHER = (NO_FAULTS, Faults(), Faults(late=0.2, twice=0.2), Faults(lost_ack=0, refused=0, late=0, twice=0.3))
"""What the runs go through in turn: too many faults in all of them, and hardly any truncation would get far."""


def snapshot_body(durable: tuple[bytes, ...], in_flight: tuple[bytes, ...]) -> bytes:
    """The state that an owner puts into a snapshot while ``in_flight`` is being appended: without it."""
    return b" ".join(durable)


def events_in(view: View) -> tuple[bytes, ...]:
    events = tuple((view.snapshot or b"").split())
    return events + tuple(event for segment in view.segments for event in segment.records)


class World:
    """One run: the store, what the log really holds, and what was found to be wrong."""

    def __init__(self, seed: int, faults: Faults, patience: float) -> None:
        self.random = Random(seed)
        self.store = SimulatedStore(self.random, faults, self._created)
        self.patience = patience
        self.truth: list[bytes] = []
        self.acknowledged: list[bytes] = []
        self.violations: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self.newest_snapshot = -1
        self.epoch = 0
        self.incarnation = ""
        self.owners: dict[int, str] = {}
        self.snapshots: list[Background] = []
        self._names = 0

    def name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}{self._names}"

    def _created(self, key: str, data: bytes) -> None:
        if key.startswith(SNAPSHOTS):
            self.newest_snapshot = max(self.newest_snapshot, int(key.removeprefix(SNAPSHOTS)[:12]))
            return
        slot = decode(data, key)
        if slot.number <= self.newest_snapshot:
            return  # a late or repeated write into a slot that was truncated: nobody may read it
        if slot.kind is Kind.CLAIM:
            if slot.epoch <= self.epoch:
                self.violations["epoch did not rise"] += 1
            self.epoch, self.incarnation = slot.epoch, slot.incarnation
        elif (slot.epoch, slot.incarnation) != (self.epoch, self.incarnation):
            self.violations["two writers in one epoch"] += 1
        self.truth.extend(slot.records)

    def check(self, view: View, known: int, who: str) -> None:
        """Judge what was read by somebody who began when the log held ``known`` events."""
        events = list(events_in(view))
        if len(set(events)) < len(events):
            self.violations[f"{who}: doubled"] += 1
        elif set(events) - set(self.truth):
            self.violations[f"{who}: made up"] += 1
        elif events != self.truth[: len(events)] or len(events) < known:
            self.violations[f"{who}: lost"] += 1


def attempt(operation: Steps[T], world: World, what: str) -> Steps[T | None]:
    """The result of ``operation``, or None when the store was unavailable."""
    try:
        return (yield from operation)
    except StoreUnavailable:
        world.happened[f"{what} unavailable"] += 1
        return None


class Background:
    """A snapshot that is written while its owner goes on appending; it may outlive it."""

    def __init__(self, work: Steps[Snapshot | None]) -> None:
        self.work = work
        self.done = False
        self.result: Snapshot | None = None

    def advance(self) -> None:
        if self.done:
            return
        try:
            next(self.work)
        except StopIteration as stop:
            self.done, self.result = True, stop.value


def owner(world: World) -> Steps[None]:
    """One life of a process: take over, append, snapshot, until fenced or tired."""
    random, store = world.random, world.store
    incarnation = world.name("i")
    recovered: Recovered | None = None
    while recovered is None:
        known = len(world.truth)
        recovered = yield from attempt(steps(log.recover(PREFIX, incarnation), store), world, "recover")
        if recovered is None and random.random() >= world.patience:
            return
        if recovered is not None:
            world.check(recovered.view, known, "owner")
    tail = recovered.tail
    if world.owners.setdefault(tail.epoch, incarnation) != incarnation:
        world.violations["two owners of one epoch"] += 1
    world.happened["recovered"] += 1
    events = events_in(recovered.view)
    snapshot: Background | None = None
    for _ in range(random.randint(1, 6)):
        records = tuple(world.name("e").encode() for _ in range(random.choice((0, 1, 1, 2))))
        if snapshot is None and random.random() < 0.4:
            snapshot = Background(write_snapshot(world, tail, snapshot_body(events, records)))
            world.snapshots.append(snapshot)
        appended: Tail | None = None
        while appended is None:
            appending = attempt(steps(log.append(tail, records), store), world, "append")
            try:
                appended = yield from (appending if snapshot is None else beside(appending, snapshot, random))
            except Fenced:
                world.happened["fenced"] += 1
                return
            if appended is None and random.random() >= world.patience:
                return
        tail, events = appended, events + records
        world.acknowledged.extend(records)
        if snapshot is not None and random.random() < 0.6:
            while not snapshot.done:
                snapshot.advance()
                yield
        if snapshot is not None and snapshot.done:
            if snapshot.result is not None:
                tail = tail.after_snapshot(snapshot.result)
                world.happened["snapshot"] += 1
            snapshot = None


def write_snapshot(world: World, at: Tail, body: bytes) -> Steps[Snapshot | None]:
    return (yield from attempt(steps(log.write_snapshot(at, body), world.store), world, "snapshot"))


def beside(work: Steps[T], background: Background, random: Random) -> Steps[T]:
    """``work``, while ``background`` goes on too."""
    while True:
        if not background.done and random.random() < 0.4:
            background.advance()
        else:
            try:
                next(work)
            except StopIteration as stop:
                return stop.value
        yield


def reader(world: World) -> Steps[None]:
    known = len(world.truth)
    view = yield from attempt(steps(log.read(PREFIX), world.store), world, "read")
    if view is not None:
        world.check(view, known, "reader")
        world.happened["read"] += 1


def finish(work: Generator[None, None, T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


def live(seed: int, faults: Faults | None = None, patience: float = 0.8) -> World:
    """One random run, up to the moment when all processes have died."""
    world = World(seed, faults or WEATHER[seed % len(WEATHER)], patience)
    random = world.random
    births = {"A": owner, "B": owner, "C": owner, "R": reader}
    lives = {name: birth(world) for name, birth in births.items()}
    names = "AABBCCR"
    for _ in range(random.randint(30, 120)):
        name = random.choice(names)  # one runs for a while, the others stand still
        for _ in range(random.choice((1, 2, 5, 15, 40))):
            try:
                next(lives[name])
            except StopIteration:
                lives[name] = births[name](world)
            except (Damaged, NotFound):
                world.violations["damage reported"] += 1
                lives[name] = births[name](world)
            if random.random() < 0.02:
                world.happened["crash"] += 1
                lives[name].close()
                lives[name] = births[name](world)
                break
            if random.random() < 0.05:
                world.store.land_one()
            if world.snapshots and random.random() < 0.05:
                orphan = random.choice(world.snapshots)
                for _ in range(random.randint(1, 10)):
                    orphan.advance()
    for work in (*lives.values(), *(snapshot.work for snapshot in world.snapshots)):
        work.close()
    return world


def judge(world: World) -> Counter[str]:
    """What was found to be wrong, once everything that was on its way has arrived and a fresh reader has looked."""
    world.store.land_all()
    world.store.faults = NO_FAULTS
    try:
        view = finish(steps(log.read(PREFIX), world.store))
    except (Damaged, NotFound):
        world.violations["damage reported"] += 1
    else:
        world.check(view, len(world.truth), "last reader")
        if lost := set(world.acknowledged) - set(events_in(view)):
            world.violations["acknowledged events lost"] += len(lost)
    return world.violations


@pytest.mark.timeout(120 + SEEDS // 10)
def test_no_run_loses_doubles_or_invents_an_event() -> None:
    happened: Counter[str] = Counter()
    for seed in range(SEEDS):
        world = live(seed)
        assert not judge(world), f"seed {seed}"
        happened += world.happened
    rare = {what for what in ("recovered", "fenced", "snapshot", "read", "crash") if happened[what] < SEEDS}
    assert not rare, f"the runs hardly test anything: {happened}"


def plain_owner(world: World) -> Steps[None]:
    """A life without faults: take over, then twice two appends and a snapshot."""
    known = len(world.truth)
    recovered = yield from steps(log.recover(PREFIX, world.name("i")), world.store)
    world.check(recovered.view, known, "owner")
    tail, events = recovered.tail, events_in(recovered.view)
    for _ in range(2):
        for _ in range(2):
            event = world.name("e").encode()
            try:
                tail = yield from steps(log.append(tail, [event]), world.store)
            except Fenced:
                return
            events += (event,)
            world.acknowledged.append(event)
        body = snapshot_body(events, ())
        tail = tail.after_snapshot((yield from steps(log.write_snapshot(tail, body), world.store)))


def advance(work: Steps[None], steps_left: int) -> bool:
    """Go on by so many steps; whether there was that much left to do."""
    for _ in range(steps_left):
        try:
            next(work)
        except StopIteration:
            return False
    return True


def test_owners_may_stall_at_any_two_points_and_come_back_in_any_order() -> None:
    """One stalls, its successor stalls, a third lives on; then both zombies go on."""
    runs = 0
    for order in ((0, 1), (1, 0)):
        for first_stall in count(1):
            for second_stall in count(1):
                world = World(first_stall, NO_FAULTS, patience=0)
                owners = [plain_owner(world) for _ in range(3)]
                on_time = [advance(owners[0], first_stall), advance(owners[1], second_stall)]
                finish(owners[2])
                for zombie in order:
                    finish(owners[zombie])
                assert not judge(world), f"stalls after {first_stall} and {second_stall} steps, back in order {order}"
                runs += 1
                if not on_time[1]:
                    break
            if not on_time[0]:
                break
    assert runs > 1000


@pytest.mark.timeout(120 + SEEDS // 10)
def test_interrupted_truncations_are_finished_by_the_next_owner() -> None:
    """Whatever crashed on the way, one snapshot later only claims, one snapshot and what follows it are left."""
    for seed in range(SEEDS // 5):
        world = live(seed, Faults(late=0, twice=0), patience=0)  # a write that comes late may stay, where nobody reads
        world.store.faults = NO_FAULTS
        recovered = finish(steps(log.recover(PREFIX, "last"), world.store))
        finish(steps(log.write_snapshot(recovered.tail, b" ".join(events_in(recovered.view))), world.store))
        segments = [
            key for key, data in world.store.objects.items() if key.startswith(SLOTS) and decode(data, key).kind is not Kind.CLAIM
        ]
        snapshots = [key for key in world.store.objects if key.startswith(SNAPSHOTS)]
        assert (segments, len(snapshots)) == ([], 1), f"seed {seed}"
        world.check(finish(steps(log.read(PREFIX), world.store)), len(world.truth), "last reader")
        assert not world.violations, f"seed {seed}"


def claims_are_deleted_with_the_rest(patch: pytest.MonkeyPatch) -> None:
    def all_slots(at: Tail) -> list[int]:
        return list(range(at.snapshot_number or 0, at.number))

    def is_no_claim(data: bytes, key: str) -> bool:
        return False

    patch.setattr(log, "_replaced_segments", all_slots)
    patch.setattr(log, "_may_be_claim", is_no_claim)


def nobody_looks_again_after_a_claim(patch: pytest.MonkeyPatch) -> None:
    look = log._is_still_newest

    def look_only_when_something_is_wrong(prefix: str, start: log.SnapshotName | None) -> log.Operation[bool]:
        return True if sys.exception() is None else (yield from look(prefix, start))

    patch.setattr(log, "_is_still_newest", look_only_when_something_is_wrong)


def a_gap_is_taken_for_damage_at_once(patch: pytest.MonkeyPatch) -> None:
    look = log._is_still_newest

    def look_only_when_all_is_well(prefix: str, start: log.SnapshotName | None) -> log.Operation[bool]:
        return True if sys.exception() is not None else (yield from look(prefix, start))

    patch.setattr(log, "_is_still_newest", look_only_when_all_is_well)


def already_exists_is_taken_for_success(patch: pytest.MonkeyPatch) -> None:
    def own(found: bytes, written: bytes) -> bool:
        return True

    patch.setattr(log, "_is_own", own)


def snapshots_hold_what_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    def everything(durable: tuple[bytes, ...], in_flight: tuple[bytes, ...]) -> bytes:
        return b" ".join(durable + in_flight)

    patch.setitem(globals(), "snapshot_body", everything)


def an_append_that_may_not_have_happened_counts(patch: pytest.MonkeyPatch) -> None:
    def create(key: str, data: bytes) -> log.Operation[bytes]:
        try:
            yield Create(key, data)
        except AlreadyExists:
            return (yield Get(key))
        except StoreUnavailable:
            pass
        return data

    patch.setattr(log, "_create", create)


def what_is_read_ends_before_its_last_segment(patch: pytest.MonkeyPatch) -> None:
    view = log._Replay.view

    def shorter(replay: log._Replay) -> View:
        whole = view(replay)
        return replace(whole, segments=whole.segments[:-1])

    patch.setattr(log._Replay, "view", shorter)


def segments_are_read_in_any_order(patch: pytest.MonkeyPatch) -> None:
    view = log._Replay.view

    def backwards(replay: log._Replay) -> View:
        whole = view(replay)
        return replace(whole, segments=whole.segments[::-1])

    patch.setattr(log._Replay, "view", backwards)


def the_last_event_of_a_snapshot_is_read_twice(patch: pytest.MonkeyPatch) -> None:
    view = log._Replay.view

    def longer(replay: log._Replay) -> View:
        whole = view(replay)
        events = (whole.snapshot or b"").split()
        return replace(whole, snapshot=b" ".join(events + events[-1:]))

    patch.setattr(log._Replay, "view", longer)


VARIANTS: tuple[tuple[str, Callable[[pytest.MonkeyPatch], None], str], ...] = (
    ("I1", an_append_that_may_not_have_happened_counts, "acknowledged events lost"),
    ("I1", what_is_read_ends_before_its_last_segment, "owner: lost"),
    ("I1", segments_are_read_in_any_order, "owner: lost"),
    ("I1", the_last_event_of_a_snapshot_is_read_twice, "owner: doubled"),
    ("I3", claims_are_deleted_with_the_rest, "acknowledged events lost"),
    ("I4", nobody_looks_again_after_a_claim, "acknowledged events lost"),
    ("I4", a_gap_is_taken_for_damage_at_once, "damage reported"),
    ("I5", already_exists_is_taken_for_success, "acknowledged events lost"),
    ("I6", snapshots_hold_what_is_in_flight, "last reader: doubled"),
    ("I6", snapshots_hold_what_is_in_flight, "owner: made up"),
)
"""The invariant that breaks, the rule that is off, and the harm that this does."""


@pytest.mark.parametrize(("invariant", "turn_off", "harm"), VARIANTS)
def test_without_a_rule_the_same_runs_do_harm(
    invariant: str, turn_off: Callable[[pytest.MonkeyPatch], None], harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_off(monkeypatch)
    harmed = sum(harm in judge(live(seed)) for seed in range(SEEDS_PER_VARIANT))
    assert harmed >= 2, f"{harm} in {harmed} of {SEEDS_PER_VARIANT} runs"
