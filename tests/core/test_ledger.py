"""What a dispatcher knows of a shard: late, repeated and overtaken calls neither start nor stop nor drop anything wrong.

Invariants: I2, I13, I14.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from rayflow.core.ledger import NOT_CONNECTED, Connection, Disconnected, Ledger
from rayflow.core.messages import Attempt, StepResult
from rayflow.errors import Fenced

A, B, C = (Attempt("x", f"work#{number}", 1, 7) for number in (1, 2, 3))
FIRST = Connection(3, 1)


def connected(*running: Attempt) -> Ledger:
    """A ledger with these attempts, and nothing finished."""
    ledger = Ledger()
    assert ledger.attach(FIRST, ()) == ([], [])
    assert ledger.submit(FIRST, 1, running, ()) == (list(range(len(running))), [])
    return ledger


def result(attempt: Attempt, value: bytes = b"") -> StepResult:
    return StepResult(attempt.execution, attempt.operation, attempt.attempt, value, run=attempt.run)


def known(ledger: Ledger) -> tuple[object, ...]:
    """All that can be told from outside."""
    return (list(ledger.running), ledger.news(0), dict(ledger.finished), ledger.connection, ledger.calls)


def test_attaching_tells_what_is_lost_and_stops_and_drops_what_is_not_expected() -> None:
    ledger = connected(A, B, C)
    ledger.finish(result(B))
    ledger.finish(result(C))
    unknown = Attempt("y", "work#1", 1, 7)
    assert ledger.attach(Connection(4, 1), [unknown, C]) == ([unknown], [A])
    assert (list(ledger.running), ledger.news(0)) == ([], [(2, result(C))])


def test_what_an_attach_has_called_lost_can_not_be_started_by_a_call_that_comes_late() -> None:
    ledger = connected()
    late = FIRST
    lost, _ = ledger.attach(Connection(3, 2), [A])
    assert lost == [A]
    before = known(ledger)
    with pytest.raises(Disconnected):
        ledger.submit(late, 2, [A], [])
    assert known(ledger) == before


def test_older_owners_are_fenced_and_older_tries_of_the_same_refused() -> None:
    ledger = connected(A)
    ledger.attach(Connection(4, 2), [A])
    before = known(ledger)
    with pytest.raises(Fenced, match="epoch 3 is over, epoch 4 has attached"):
        ledger.attach(Connection(3, 9), [])
    for again in (Connection(4, 1), Connection(4, 2)):
        with pytest.raises(Disconnected, match="a later connection is there"):
            ledger.attach(again, [])
    assert known(ledger) == before


@pytest.mark.parametrize("connection", [NOT_CONNECTED, Connection(3, 2), Connection(4, 1)])
def test_calls_of_a_connection_that_is_not_known_change_nothing(connection: Connection) -> None:
    ledger = connected(A)
    ledger.finish(result(A))
    before = known(ledger)
    with pytest.raises(Disconnected):
        ledger.submit(connection, 2, [B], [A])
    with pytest.raises(Disconnected):
        ledger.recorded(connection, 1, 1)
    assert known(ledger) == before


def test_a_call_is_carried_out_once_and_counts_within_its_connection() -> None:
    ledger = connected(A)
    assert ledger.submit(FIRST, 2, [], [A]) == ([], [A])
    assert ledger.submit(FIRST, 1, [A], []) == ([], []), "it was carried out before"
    assert ledger.submit(FIRST, 2, [B], []) == ([], [])
    assert list(ledger.running) == []
    second = Connection(3, 2)
    ledger.attach(second, [])
    assert ledger.submit(second, 1, [B], []) == ([0], [])


@pytest.mark.parametrize("ended", [False, True])
def test_an_attempt_is_started_once_whether_it_runs_or_has_ended(ended: bool) -> None:
    ledger = connected(A)
    if ended:
        ledger.finish(result(A))
    assert ledger.submit(FIRST, 2, [A, B, B], []) == ([1], [])


def test_stopping_ends_what_runs_drops_what_has_ended_and_never_begins_what_starts_in_the_same_call() -> None:
    ledger = connected(A, B)
    ledger.finish(result(B))
    assert ledger.submit(FIRST, 2, [C], [A, B, C, A]) == ([], [A])
    assert (list(ledger.running), ledger.news(0)) == ([], [])
    assert not ledger.finish(result(A)), "nobody waits for it"
    assert ledger.news(0) == []


def test_results_are_held_until_they_are_on_record_and_told_again_until_they_are_seen() -> None:
    ledger = connected(A, B, C)
    assert all(ledger.finish(result(one)) for one in (B, A))
    told = [(1, result(B)), (2, result(A))]
    assert (ledger.news(0), ledger.news(1), ledger.news(2)) == (told, told[1:], [])
    ledger.recorded(FIRST, 0, 2)
    assert ledger.news(0) == told, "to have seen a result is not to have it on record"
    ledger.recorded(FIRST, 1, 2)
    assert ledger.news(0) == told[1:]
    ledger.attach(Connection(4, 1), [A, C])
    assert ledger.news(0) == told[1:], "the next owner gets it once more"
    ledger.finish(result(C))
    assert ledger.news(2) == [(3, result(C))], "numbers go on"


def test_a_run_that_was_forgotten_and_the_next_of_the_same_id_have_nothing_to_do_with_each_other() -> None:
    old, new = A, A._replace(run=8)
    ledger = connected(old)
    assert ledger.submit(FIRST, 2, [new], [old]) == ([0], [old])
    assert not ledger.finish(result(old, b"old"))
    assert ledger.news(0) == []
    assert ledger.finish(result(new, b"new"))
    assert ledger.news(0) == [(1, result(new, b"new"))]
    assert ledger.submit(FIRST, 3, [], [old]) == ([], [])
    assert ledger.news(0) == [(1, result(new, b"new"))]


def test_the_order_of_what_is_stopped_is_that_of_the_starts() -> None:
    attempts = [Attempt("x", f"work#{number}", 1, 7) for number in range(50)]

    def expecting(kept: Iterable[Attempt]) -> list[Attempt]:
        return connected(*attempts).attach(Connection(4, 1), kept)[1]

    assert expecting(attempts[::2]) == attempts[1::2]
