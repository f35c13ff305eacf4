from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from rayflow.checkpoint.log import Recovered, Tail, View, append, read, recover, slot_key, write_snapshot
from rayflow.checkpoint.requests import Create, Delete, Get, GetMany, List, run
from rayflow.checkpoint.segment import Kind, Segment, decode, encode
from rayflow.checkpoint.store import ObjectInfo
from rayflow.errors import AlreadyExists, Damaged, Fenced, InvalidInput, NotFound, StoreUnavailable

LOG = "shards/03/"


class DictStore:
    """Objects in a dict, a count of the calls, and errors planned for the next calls of a method.

    A planned error is raised before the call has an effect (``fail``) or after it (``lose``).
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, list[Exception | None]] = {}
        self.lose: dict[str, list[Exception | None]] = {}

    def _raise(self, plan: dict[str, list[Exception | None]], method: str) -> None:
        if (planned := plan.get(method)) and (error := planned.pop(0)):
            raise error

    def create(self, key: str, data: bytes) -> None:
        self.calls["create"] += 1
        self._raise(self.fail, "create")
        if key in self.objects:
            raise AlreadyExists(key)
        self.objects[key] = data
        self._raise(self.lose, "create")

    def get(self, key: str) -> bytes:
        self.calls["get"] += 1
        self._raise(self.fail, "get")
        if key not in self.objects:
            raise NotFound(key)
        return self.objects[key]

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        self.calls["list"] += 1
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > start_after:
                yield ObjectInfo(key, len(self.objects[key]))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.calls["delete"] += 1
            self._raise(self.fail, "delete")
            self.objects.pop(key, None)


def own(store: DictStore, incarnation: str) -> Recovered:
    return run(recover(LOG, incarnation), store)


def add(store: DictStore, tail: Tail, *records: bytes) -> Tail:
    return run(append(tail, records), store)


def snapshot(store: DictStore, tail: Tail, body: bytes) -> Tail:
    return tail.after_snapshot(run(write_snapshot(tail, body), store))


def content(view: View) -> list[bytes]:
    return [view.snapshot or b"", *(record for segment in view.segments for record in segment.records)]


def names(store: DictStore) -> list[str]:
    return [key.removeprefix(LOG) for key in sorted(store.objects)]


def a_log_with_everything() -> DictStore:
    """Slots 0 claim, 1 truncated, 2 records (of the snapshot), 3 claim, 4 and 5 records."""
    store = DictStore()
    tail = add(store, add(store, own(store, "a").tail, b"1"), b"2")
    snapshot(store, tail, b"state")
    add(store, add(store, own(store, "b").tail, b"4"), b"5")
    return store


def test_a_log_holds_what_its_owners_appended_in_order() -> None:
    store = DictStore()
    assert run(read(LOG), store) == View(None, None, ())
    first = own(store, "a")
    assert (first.view, first.tail.epoch, first.tail.next_number) == (View(None, None, ()), 1, 1)
    tail = add(store, add(store, first.tail, b"x", b"y"))
    assert tail.replay_bytes == sum(map(len, store.objects.values()))

    second = own(store, "b")
    assert content(second.view) == [b"", b"x", b"y"]
    assert [segment.number for segment in second.view.segments] == [1, 2]
    assert (second.tail.epoch, second.tail.next_number, second.tail.claims) == (2, 4, (0, 3))
    add(store, second.tail, b"z")
    assert content(run(read(LOG), store)) == [b"", b"x", b"y", b"z"]
    assert store.calls["delete"] == 0


def test_the_old_owner_is_fenced_by_its_own_next_write() -> None:
    store = DictStore()
    old = own(store, "a").tail
    own(store, "b")
    with pytest.raises(Fenced, match="000000000001 holds CLAIM of epoch 2 of b, not the records of epoch 1 of a"):
        add(store, old, b"x")
    with pytest.raises(Fenced):
        add(store, old)
    assert content(run(read(LOG), store)) == [b""]


def test_an_owner_is_fenced_by_a_slot_it_cannot_read_too() -> None:
    store = DictStore()
    tail = own(store, "a").tail
    store.objects[slot_key(LOG, 1)] = b"of a later format, or damaged"
    with pytest.raises(Fenced, match="holds something unreadable"):
        add(store, tail, b"x")


@pytest.mark.parametrize("error", [StoreUnavailable("timed out"), AlreadyExists("the store's client tried twice")])
def test_a_lost_acknowledgement_is_settled_by_reading_the_slot_back(error: Exception) -> None:
    store = DictStore()
    store.lose["create"] = [error, error]
    tail = add(store, own(store, "a").tail, b"x")
    assert tail.next_number == 2
    assert content(run(read(LOG), store)) == [b"", b"x"]


@pytest.mark.parametrize("late", [False, True], ids=["never arrived", "arrived after the answer"])
def test_an_append_that_may_not_have_happened_can_be_repeated(late: bool) -> None:
    store = DictStore()
    tail = own(store, "a").tail
    store.fail["create"] = [StoreUnavailable("timed out")]
    with pytest.raises(StoreUnavailable, match="timed out"):
        add(store, tail, b"x")
    if late:
        data = encode(Segment(Kind.RECORDS, 1, 1, "a", tail.checksum, (b"x",)))
        store.objects[slot_key(LOG, 1)] = data
    add(store, tail, b"x")
    assert content(run(read(LOG), store)) == [b"", b"x"]


def test_an_append_that_can_not_be_read_back_can_be_repeated() -> None:
    store = DictStore()
    tail = own(store, "a").tail
    store.lose["create"] = [StoreUnavailable("timed out")]
    store.fail["get"] = [StoreUnavailable("timed out again")]
    with pytest.raises(StoreUnavailable, match="timed out again"):
        add(store, tail, b"x")
    add(store, tail, b"x")
    assert content(run(read(LOG), store)) == [b"", b"x"]


def test_a_write_that_a_successor_has_replayed_and_truncated_fences_its_writer() -> None:
    store = DictStore()
    tail = own(store, "a").tail
    appending = append(tail, [b"x"])
    request = next(appending)
    assert isinstance(request, Create)
    store.objects[request.key] = request.data
    successor = own(store, "b")
    snapshot(store, successor.tail, b"x")
    assert request.key not in store.objects
    assert appending.throw(AlreadyExists(request.key)) == Get(request.key)
    with pytest.raises(Fenced, match="replayed and truncated by a new owner"):
        appending.throw(NotFound(request.key))


def test_who_loses_the_race_for_a_slot_replays_it_and_claims_the_next() -> None:
    store = DictStore()
    tail = own(store, "a").tail
    claiming = recover(LOG, "b")
    request = next(claiming)
    while not isinstance(request, Create):
        reply = store.get(request.key) if isinstance(request, Get) else ()
        if isinstance(request, List):
            reply = tuple(store.list(request.prefix, request.start_after))
        elif not isinstance(request, Get):
            reply = tuple(store.objects.get(key) for key in request.keys)
        request = claiming.send(reply)
    add(store, tail, b"x")
    assert claiming.throw(AlreadyExists(request.key)) == Get(slot_key(LOG, 1))
    request = claiming.send(store.objects[slot_key(LOG, 1)])
    assert isinstance(request, Create)
    assert request.key == slot_key(LOG, 2)
    store.create(request.key, request.data)
    assert claiming.send(None) == List(LOG + "snapshots/")
    with pytest.raises(StopIteration) as stop:
        claiming.send(())
    assert content(stop.value.value.view) == [b"", b"x"]
    with pytest.raises(Fenced):
        add(store, add(store, tail, b"x"), b"y")


def test_a_reader_is_not_fooled_by_a_claim_that_came_late_into_a_truncated_slot() -> None:
    store = DictStore()
    tail = own(store, "a").tail
    late_claim = encode(Segment(Kind.CLAIM, 1, 2, "late", tail.checksum))
    tail = add(store, tail, b"1")
    reading = read(LOG)
    request = next(reading)
    while isinstance(request, List):  # the reader has seen that slots 0 and 1 are there, and stalls before it reads them
        request = reading.send(tuple(store.list(request.prefix, request.start_after)))
    assert request == GetMany((slot_key(LOG, 0), slot_key(LOG, 1)))
    snapshot(store, add(store, tail, b"2"), b"state")
    store.create(slot_key(LOG, 1), late_claim)
    request = reading.send(tuple(store.get(key) for key in request.keys))
    assert request == List(LOG + "snapshots/")
    request = reading.send(tuple(store.list(request.prefix)))
    assert request == List(LOG + "snapshots/"), "it starts over"


def test_a_snapshot_replaces_everything_before_its_slot_but_claims() -> None:
    store = DictStore()
    tail = add(store, add(store, own(store, "a").tail, b"1"), b"2")
    tail = add(store, add(store, own(store, "b").tail, b"4"), b"5")
    tail = snapshot(store, tail, b"state")
    digest = hashlib.blake2b(b"state", digest_size=16).hexdigest()
    assert names(store) == [
        "log/000000000000",
        "log/000000000003",
        "log/000000000005",
        f"snapshots/000000000005-000000000000-b-{digest}.parquet",
    ]
    assert (tail.replay_bytes, tail.snapshot_number, tail.claims) == (0, 5, ())
    tail = add(store, tail, b"6")
    assert tail.replay_bytes == len(store.objects[slot_key(LOG, 6)])
    view = run(read(LOG), store)
    assert (content(view), view.snapshot_number) == ([b"state", b"6"], 5)

    tail = snapshot(store, tail, b"later state")
    assert [name[:16] for name in names(store)] == [
        "log/000000000000",
        "log/000000000003",
        "log/000000000006",
        "snapshots/000000",
    ]
    assert content(own(store, "c").view) == [b"later state"]


def test_appends_go_on_while_a_snapshot_is_written() -> None:
    store = DictStore()
    at = add(store, add(store, own(store, "a").tail, b"1"), b"2")
    writing = write_snapshot(at, b"state")
    request = next(writing)
    tail = at
    while True:
        tail = add(store, tail, b"later")
        try:
            match request:
                case Create(key, data):
                    request = writing.send(store.create(key, data))
                case List(prefix, start_after):
                    request = writing.send(tuple(store.list(prefix, start_after)))
                case Delete(keys):
                    request = writing.send(store.delete(keys))
        except StopIteration as stop:
            tail = tail.after_snapshot(stop.value)
            break
    recovered = own(store, "b")
    assert content(recovered.view) == [b"state", b"later", b"later", b"later"]
    claim = len(store.objects[slot_key(LOG, tail.next_number)])
    assert recovered.tail.replay_bytes == tail.replay_bytes + claim
    assert tail.snapshot_number == recovered.tail.snapshot_number == 2


def test_a_truncation_that_was_interrupted_anywhere_is_finished_by_the_next_snapshot_of_anybody() -> None:
    for owners in ("same", "next"):
        for deletions in range(8):
            store = DictStore()
            tail = snapshot(store, add(store, own(store, "a").tail, b"1"), b"old")
            tail = add(store, add(store, own(store, "b").tail, b"3"), b"4")
            store.fail["delete"] = [None] * deletions + [StoreUnavailable("timed out")]
            try:
                snapshot(store, tail, b"state")
            except StoreUnavailable:
                assert content(run(read(LOG), store)) == [b"state"]
            store.fail.clear()
            if owners == "next":
                tail = own(store, "c").tail
            tail = snapshot(store, add(store, tail, b"6"), b"newest")
            kinds = [decode(data, key).kind for key, data in sorted(store.objects.items()) if "/log/" in key]
            assert kinds == [Kind.CLAIM] * (2 if owners == "same" else 3) + [Kind.RECORDS]
            assert len(names(store)) == len(kinds) + 1
            assert (tail.leftovers, tail.first) == ((), tail.number)


def test_a_snapshot_that_may_not_have_happened_can_be_repeated() -> None:
    store = DictStore()
    tail = add(store, own(store, "a").tail, b"1")
    for plan in (store.fail, store.lose):
        plan["create"] = [StoreUnavailable("timed out")]
        with pytest.raises(StoreUnavailable):
            snapshot(store, tail, b"state")
        assert content(run(read(LOG), store)) in ([b"", b"1"], [b"state"])
    snapshot(store, tail, b"state")
    assert content(run(read(LOG), store)) == [b"state"]


def test_what_a_snapshot_costs_does_not_depend_on_the_age_of_the_log() -> None:
    store = DictStore()
    costs: list[Counter[str]] = []
    for life in range(40):
        tail = own(store, f"i{life}").tail
        for _ in range(3):
            store.calls.clear()
            tail = snapshot(store, add(store, add(store, tail, b"1"), b"2"), b"state")
            costs.append(store.calls.copy())
    assert costs[3:6] == costs[-3:]
    store.calls.clear()
    own(store, "last")
    assert store.calls == {"list": 3, "get": 2, "create": 1}


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_hole_is_reported_and_nothing_is_written_into_it(number: int) -> None:
    store = a_log_with_everything()
    del store.objects[slot_key(LOG, number)]
    before = dict(store.objects)
    for operation in (read(LOG), recover(LOG, "c")):
        with pytest.raises(Damaged, match=f"{slot_key(LOG, number)} is missing, but .*000000000005 is there"):
            run(operation, store)
    assert store.objects == before


def test_the_slot_of_a_snapshot_that_is_missing_is_reported() -> None:
    store = DictStore()
    tail = add(store, own(store, "a").tail, b"1")
    snapshot(store, tail, b"state")
    del store.objects[slot_key(LOG, 1)]
    with pytest.raises(Damaged, match=r"000000000001 is missing, but .*snapshots/000000000001-.* was taken after it"):
        own(store, "b")


def test_a_snapshot_that_was_removed_or_renamed_is_not_taken_for_a_young_log() -> None:
    store = a_log_with_everything()
    (key,) = [key for key in store.objects if "/snapshots/" in key]
    body = store.objects.pop(key)
    for foreign in ({}, {key + ".bak": body}):
        store.objects.update(foreign)
        with pytest.raises(Damaged, match=r"000000000001 is missing, .* or a snapshot that replaces it, was removed"):
            own(store, "c")


def test_no_flipped_byte_of_any_object_is_read_as_other_data() -> None:
    store = a_log_with_everything()
    whole = content(run(read(LOG), store))
    for key, data in list(store.objects.items()):
        for at in range(len(data)):
            store.objects[key] = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
            if key == slot_key(LOG, 0):  # replaced by the snapshot, never read again
                assert content(run(read(LOG), store)) == whole
            else:
                with pytest.raises(Damaged, match=key):
                    run(read(LOG), store)
        store.objects[key] = data


def test_segments_that_were_swapped_or_come_from_elsewhere_are_reported() -> None:
    store = a_log_with_everything()
    four, five = slot_key(LOG, 4), slot_key(LOG, 5)
    good = dict(store.objects)
    store.objects[four], store.objects[five] = good[five], good[four]
    with pytest.raises(Damaged, match=f"{four} holds slot 5: objects were swapped"):
        own(store, "c")

    segment = decode(good[four], four)
    for alien, complaint in (
        (Segment(Kind.RECORDS, 4, segment.epoch, "b", bytes(16), (b"4",)), "one of the two was replaced"),
        (Segment(Kind.RECORDS, 4, segment.epoch, "x", segment.predecessor, (b"4",)), "by x, which cannot follow .* b"),
        (Segment(Kind.RECORDS, 4, 1, "b", segment.predecessor, (b"4",)), "RECORDS of epoch 1 .* cannot follow epoch 2"),
        (Segment(Kind.CLAIM, 4, 9, "x", segment.predecessor), "CLAIM of epoch 9 .* cannot follow epoch 2"),
    ):
        store.objects = {**good, four: encode(alien)}
        with pytest.raises(Damaged, match=f"{four} .*{complaint}"):
            own(store, "c")

    store.objects = {**good, slot_key(LOG, 2): encode(Segment(Kind.RECORDS, 2, 1, "x", bytes(16)))}
    with pytest.raises(Damaged, match=r"000000000002 was written by x, but .*snapshots/.* by another"):
        own(store, "c")


def test_what_cannot_be_told_from_a_claim_is_never_deleted() -> None:
    store = a_log_with_everything()
    damaged = slot_key(LOG, 0)
    store.objects[damaged] = store.objects[damaged][:-1]
    snapshot(store, own(store, "c").tail, b"state")
    assert damaged in store.objects


def test_names_that_would_not_work_are_refused() -> None:
    store = DictStore()
    for operation in (recover("shards/03", "a"), read("shards/03"), recover(LOG, "a-b"), recover(LOG, "")):
        with pytest.raises(InvalidInput):
            run(operation, store)
    assert not store.calls
