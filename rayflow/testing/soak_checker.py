"""What must be true of a soak: of what the programs wrote into their books, and of what is in the store in the end.

Nothing here asks the system that is checked what it believes to have done: the books say what was promised to whom, and the store
is read as anybody can read it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayflow.checkpoint.reading import identity_of, read_state
from rayflow.checkpoint.store import Store
from rayflow.checkpoint.tables import read_histories
from rayflow.core import codec
from rayflow.core.records import Completed, Record, decode_record
from rayflow.testing.linearizability import Observed, violations
from rayflow.testing.soak_books import Line, Request
from rayflow.testing.soak_workload import LOST, SHAPES, page_tags, till_tags

LOST_EFFECT = "an acknowledged effect is lost"
DOUBLED = "an effect counts twice"
UNDONE = "what was refused counts"
FOREIGN = "something is there that nobody asked for"
HISTORY = "a history is not linearizable"
ORDER = "what one sender sent is out of order"
UNENDED = "an execution does not end"
OUTCOME = "an outcome is wrong"
GONE = "an acknowledged execution is gone"
UNFORGOTTEN = "what was forgotten is there"
ATTEMPT = "a step began again that must not"
OPEN = "something is left over in the end"
DAMAGE = "the store cannot be read"

_ENDS = {"": "completed", "ExecutionFailed": "failed", "ExecutionCancelled": "cancelled", "ExecutionNotFound": "gone"}
_REFUSED = ("OperationFailed", "Overloaded", "InvalidInput", "EntityUnreadable")
_PLACED = ("note", "burst", "grow", "pass_on", "signal", "tell")
"""What takes its place on a page before it is answered."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong, and with what."""

    kind: str
    what: str


@dataclass(slots=True)
class Final:
    """What is in the store in the end. Pages, tills and stories by key, executions by id with how they stand."""

    pages: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    tills: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    stories: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    tallies: dict[str, int] = field(default_factory=dict[str, int])
    executions: dict[str, str] = field(default_factory=dict[str, str])
    done: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """Which attempt's result is on record, by execution and operation."""
    left: list[str] = field(default_factory=list[str])
    """Locks, reminders, dead letters and the like that are still there."""


def read_final(store: Store) -> Final:
    """Read all of a store."""
    final = Final()
    for number in range(identity_of(store).shards):
        state = read_state(store, number)
        for execution, records in (*state.live.items(), *state.unfiled.items()):
            final.executions[execution] = "running"
            _note_done(final, execution, map(decode_record, records))
        final.executions |= {execution: str(summary.status) for execution, summary in state.ended.items()}
        for address, row in state.entities.rows.items():
            kind, _, key = address.partition("/")
            if row.holder or row.queue:
                final.left.append(f"{address} is locked by {row.holder or 'nobody'}, {len(row.queue)} messages wait")
            final.left += [f"{address}: {name!r} is still to come" for name in row.timers]
            if kind == "Story":
                final.stories[key] = [codec.decode(event) for event in row.events]
            elif row.state is not None:
                value = codec.decode_fields(row.state)
                if kind == "Page":
                    final.pages[key] = value["tags"]
                elif kind == "Till":
                    final.tills[key] = value
                elif kind == "Tally":
                    final.tallies[key] = value
        final.left += [f"{one.entity}: {one.operation} is a dead letter ({one.reason})" for one in state.entities.dead.values()]
    for found in store.list("history/"):
        for execution, records in read_histories(store.get(found.key), found.key).items():
            _note_done(final, execution, map(decode_record, records))
    return final


def _note_done(final: Final, execution: str, records: Iterable[Record]) -> None:
    for record in records:
        if isinstance(record, Completed):
            final.done[execution, record.operation] = record.attempt


def check(requests: Sequence[Request], attempts: Sequence[tuple[str, str, int]], final: Final) -> list[Violation]:
    """All that is wrong."""
    found = [*_tallies(requests, final)]
    found += _executions(requests, final)
    found += _pages(requests, final)
    found += _attempts(attempts, final)
    found += [Violation(OPEN, one) for one in final.left]
    return found


# -- counters ----------------------------------------------------------------------------------------------------------------


def _tallies(requests: Sequence[Request], final: Final) -> Iterator[Violation]:
    seen: dict[str, list[Observed]] = defaultdict(list)
    asked: dict[str, dict[str, float]] = defaultdict(dict)
    """When each message was sent first, be it by who got no answer."""
    for request in requests:
        if request.asks == "increment":
            key, message = request.args
            asked[key][message] = min(request.asked_s, asked[key].get(message, request.asked_s))
    for request in requests:
        if request.asks in ("increment", "get"):
            key, *messages = request.args
            began_s = asked[key][messages[0]] if messages else request.asked_s
            answers = [line for line in request.answers if not line.error]
            seen[key] += [Observed(messages[0] if messages else None, line.value, began_s, line.at_s) for line in answers]
    for key, observed in seen.items():
        answered = {one.message for one in observed} - {None}
        value = final.tallies.get(key, 0)
        if not len(answered) <= value <= len(asked[key]):
            kind = LOST_EFFECT if value < len(answered) else DOUBLED
            yield Violation(kind, f"Tally/{key} is {value}: {len(answered)} increments were answered, {len(asked[key])} asked for")
        if answered == asked[key].keys():  # else some may have counted, nobody knows when
            for what in violations(observed):
                yield Violation(DOUBLED if "twice" in what else HISTORY, f"Tally/{key}: {what}")


# -- tags --------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Expected:
    """Tags that one request leaves in one place, in this order. ``sure``: all of them must be there; else as many as there are."""

    place: str
    tags: list[str]
    sure: bool
    barred: bool = False
    """None of them may be there."""
    asked_s: float = 0.0
    answered_s: float | None = None
    """Unless it is None: from when on the tags have their places, and which they said to have got."""
    said: list[int] | None = None


def _pages(requests: Sequence[Request], final: Final) -> Iterator[Violation]:
    there = {
        f"{kind}/{key}": tags
        for kind, places in (("Page", final.pages), ("Till", final.tills), ("Story", final.stories))
        for key, tags in places.items()
    }
    expected = [*_asked(requests), *_of_executions(requests, final)]
    of_place: dict[str, list[_Expected]] = defaultdict(list)
    for one in expected:
        of_place[one.place].append(one)
    for place in sorted({*there, *of_place}):
        yield from _place(place, there.get(place, []), of_place[place])


def _asked(requests: Sequence[Request]) -> Iterator[_Expected]:
    for request in requests:
        asks, args = request.asks, request.args
        if asks not in (*_PLACED, "refuse", "later", "remind"):
            continue
        place = f"{'Story' if asks == 'tell' else 'Page'}/{args[0]}"
        line = request.answered
        refused = asks == "refuse" or (line is not None and line.error in _REFUSED)
        tags = list(args[1]) if asks == "burst" else [args[1]]
        one = _Expected(place, tags, request.acknowledged and not refused, refused, request.asked_s)
        if asks in _PLACED and line is not None and not line.error:
            one.answered_s, one.said = line.at_s, _said(asks, line)
        yield one
        if asks == "pass_on":
            yield _Expected(f"Page/{args[2]}", [f"{args[1]} passed on"], one.sure, refused)


def _said(asks: str, line: Line) -> list[int] | None:
    if asks == "signal":
        return None
    return line.value if asks == "burst" else [line.value]


def _of_executions(requests: Sequence[Request], final: Final) -> Iterator[_Expected]:
    ids: set[str] = set()
    for request in requests:
        if request.asks == "start" and request.args[0] not in ids:
            id, shape, args = request.args
            ids.add(id)
            completed = final.executions.get(id) == "completed"
            of_page: dict[str, list[str]] = defaultdict(list)
            for page, tag in page_tags(shape, args):
                of_page[f"Page/{page}"].append(tag)
            for till, tag in till_tags(shape, args):
                of_page[f"Till/{till}"].append(tag)
            yield from (_Expected(place, tags, completed) for place, tags in of_page.items())


def _place(place: str, there: list[str], expected: list[_Expected]) -> Iterator[Violation]:
    counts = Counter(there)
    at = {tag: index for index, tag in reversed(list(enumerate(there)))}
    for tag, count in counts.items():
        if count > 1:
            yield Violation(DOUBLED, f"{place} has {tag} {count} times")
    for tag in set(counts) - {tag for one in expected for tag in one.tags}:
        yield Violation(FOREIGN, f"{place} has {tag}")
    for one in expected:
        missing = [tag for tag in one.tags if tag not in at]
        if one.barred and len(missing) < len(one.tags):
            yield Violation(UNDONE, f"{place} has {', '.join(tag for tag in one.tags if tag in at)}")
        elif one.sure and missing:
            yield Violation(LOST_EFFECT, f"{place} lacks {', '.join(missing)}")
        present = [tag for tag in one.tags if tag in at]
        if present != one.tags[: len(present)] and not one.barred:
            yield Violation(ORDER, f"{place} has {', '.join(present)}, but not all that was sent before")
        places = [at[tag] for tag in present]
        if places != sorted(places):
            yield Violation(ORDER, f"{place} has {', '.join(present)} in another order: {places}")
        if one.said is not None and not missing and one.said != [index + 1 for index in places]:
            yield Violation(HISTORY, f"{place} has {', '.join(one.tags)} at {places}, but the answers were {one.said}")
    yield from _real_time(place, at, expected)


def _real_time(place: str, at: dict[str, int], expected: list[_Expected]) -> Iterator[Violation]:
    """What was answered before something else was asked stands before it."""
    placed = sorted((at[one.tags[-1]], one) for one in expected if one.answered_s is not None and one.tags[-1] in at)
    latest: _Expected | None = None
    for _, one in placed:
        assert one.answered_s is not None
        if latest is not None and one.answered_s < latest.asked_s:
            yield Violation(HISTORY, f"{place} has {latest.tags[-1]} before {one.tags[-1]}, which was there before it was sent")
        if latest is None or one.asked_s > latest.asked_s:
            latest = one


# -- executions --------------------------------------------------------------------------------------------------------------


def _executions(requests: Sequence[Request], final: Final) -> Iterator[Violation]:
    by_id: dict[str, list[Request]] = defaultdict(list)
    for request in requests:
        if request.asks in ("start", "result", "cancel", "forget"):
            by_id[request.args[0]].append(request)
    for id, about in by_id.items():
        starts = [one for one in about if one.asks == "start"]
        if starts:
            yield from _execution(id, starts, about, final.executions.get(id))
    for id in final.executions:
        if not any(one.asks == "start" for one in by_id.get(id, ())):
            yield Violation(FOREIGN, f"execution {id}")


def _execution(id: str, starts: list[Request], about: list[Request], status: str | None) -> Iterator[Violation]:
    _, shape, args = starts[0].args
    name = f"execution {id} ({shape})"
    forgets = [one for one in about if one.asks == "forget"]
    cancelled = any(one.asks == "cancel" for one in about)
    acknowledged = any(one.acknowledged for one in starts)
    outcomes = {_outcome(line) for one in about if one.asks == "result" for line in one.answers} - {None}
    known = {one for one in outcomes if one is not None and one[0] in _ENDS.values()}
    stuck = {one for one in outcomes if one is not None and one not in known}
    if stuck:
        yield Violation(UNENDED, f"{name}: {', '.join(sorted(one[1] for one in stuck))}")
    if status in ("running", "suspended"):
        yield Violation(UNENDED, f"{name} is still {status}")
    if acknowledged and not forgets:
        if ("gone", "") in known or status is None:
            yield Violation(GONE, name)
        elif not known:
            yield Violation(UNENDED, f"{name}: nobody learned what it came to")
        elif len(known) > 1:
            yield Violation(OUTCOME, f"{name} came to {' and to '.join(sorted(map(str, known)))}")
        elif status not in {one[0] for one in known}:
            yield Violation(OUTCOME, f"{name} came to {known}, and is {status} in the store")
    if any(one.acknowledged for one in forgets) and status is not None:
        yield Violation(UNFORGOTTEN, name)
    for kind, value in known:
        if kind == "cancelled" and not (cancelled or forgets):
            yield Violation(OUTCOME, f"{name} was cancelled, which nobody asked for")
        elif kind in ("completed", "failed") and (kind, value) not in _comes_to(shape, args):
            yield Violation(OUTCOME, f"{name} {kind} with {value}")


def _outcome(line: Line) -> tuple[str, str] | None:
    kind = _ENDS.get(line.error)
    if kind == "completed":
        return kind, repr(line.value)
    if kind == "failed":
        return kind, str(line.value)
    if kind is not None:
        return kind, ""
    if line.error in ("NonDeterminismError", "ProcessCrashed"):
        return "suspended", f"{line.error}: {line.value}"
    return None


def _comes_to(shape: str, args: Sequence[Any]) -> set[tuple[str, str]]:
    value = SHAPES[shape].comes_to(args)
    if value is None:
        return {("failed", "ValueError")}
    may_be_lost = {("completed", repr(LOST))} if shape == "once" else set[tuple[str, str]]()
    return {("completed", repr(value)), *may_be_lost}


# -- steps -------------------------------------------------------------------------------------------------------------------


def _attempts(attempts: Sequence[tuple[str, str, int]], final: Final) -> Iterator[Violation]:
    """Inline steps begin again with their process; others begin each attempt once, and none after the one that counts."""
    for (execution, operation, attempt), count in Counter(attempts).items():
        if "inline" in operation:
            continue
        where = f"execution {execution}, {operation}, attempt {attempt}"
        if count > 1:
            yield Violation(ATTEMPT, f"{where}: began {count} times")
        done = final.done.get((execution, operation))
        if done is not None and attempt > done:
            yield Violation(ATTEMPT, f"{where}: attempt {done} was on record")
        if operation.startswith("only_once") and attempt > 1:
            yield Violation(ATTEMPT, f"{where}: it was to be tried once")
