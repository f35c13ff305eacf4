"""The checker of soaks: it accepts books and a store that agree, and names what is wrong where they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rayflow.testing import soak_checker as checker
from rayflow.testing.soak_books import Book, read_books
from rayflow.testing.soak_checker import Final, check


class Books:
    """What two programs wrote, one request after the other, unless a test says otherwise; and what is in the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.anna, self.bert = Book(folder / "book-anna"), Book(folder / "book-bert")
        self.attempts = [("x1", "square", 1), ("x1", "square#2", 1), ("x1", "square#2", 2), ("x5", "only_once", 1)]
        self.final = Final(
            pages={"p": ["a1", "b1", "b2", "b3", "g1", "x2.0", "x2.1", "t1", "r1", "s1"], "q": ["t1 passed on", "l1", "x3"]},
            tills={"t": ["x4"]},
            stories={"p": ["e1", "e2"]},
            tallies={"c": 2},
            executions={f"x{number}": "completed" for number in range(1, 7)} | {"x7": "cancelled", "x8": "failed"},
            done={("x1", "square"): 1, ("x1", "square#2"): 2, ("x5", "only_once"): 1},
        )
        self.lost_ask(self.anna, "increment", "c", "m1")  # it counted, but the program was killed, and asks again later
        self.lost_ask(self.anna, "increment", "c", "m2")
        self.ask("increment", "c", "m2", book=self.bert, value=2)  # sent again by whoever settles
        self.ask("get", "c", value=2)
        self.ask("increment", "c", "m1", value=1)
        self.ask("note", "p", "a1", value=1)
        self.ask("burst", "p", ["b1", "b2", "b3"], value=[2, 3, 4])
        self.ask("refuse", "p", "no", value="ValueError", error="OperationFailed")
        self.ask("grow", "p", "g1", 1000, value=5)
        self.ask("later", "q", "l1", 0.5)
        self.ask("remind", "p", "r1", 0.1, value=7)
        self.start("x1", "chain", ["f", [1, 2], 0.1], value=5)
        self.start("x2", "teller", ["p", ["x2.0", "x2.1"]], value=2)
        self.start("x3", "sleeper", ["q", "x3", 1.0], value="x3")
        self.ask("pass_on", "p", "t1", "q", value=8)
        self.ask("signal", "p", "s1")
        self.ask("tell", "p", "e1", value=1)
        self.ask("tell", "p", "e2", value=2)
        self.start("x4", "locker", [["t"], "x4", 0.0], value="x4")
        self.start("x5", "once", ["f"], value="lost")
        self.start("x6", "racing", ["f", 1], value=["timed out", 1, 4, 9, 1])
        self.start("x7", "sleeper", ["q", "x7", 100.0], value="", error="ExecutionCancelled")
        self.ask("cancel", "x7")
        self.start("x8", "failing", ["f", 4], value="ValueError", error="ExecutionFailed")
        self.start("x9", "short", ["v"], value="", error="ExecutionNotFound")
        self.ask("forget", "x9")
        self.lost_ask(self.bert, "note", "p", "maybe")
        self.lost_ask(self.bert, "burst", "p", ["m.0", "m.1", "m.2"])

    def ask(self, asks: str, *args: object, value: object = None, error: str = "", book: Book | None = None) -> None:
        book = book or self.anna
        book.answer(book.ask(asks, *args), value, error)

    def lost_ask(self, book: Book, asks: str, *args: object) -> None:
        """One whose answer nobody got."""
        book.ask(asks, *args)

    def start(self, id: str, shape: str, args: list[object], value: object, error: str = "") -> None:
        self.ask("start", id, shape, args)
        self.ask("result", id, value=value, error=error, book=self.bert)

    def wrong(self) -> set[str]:
        return {one.kind for one in check(read_books(self.folder), self.attempts, self.final)}


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


def test_books_that_agree_with_the_store_are_accepted(books: Books) -> None:
    assert check(read_books(books.folder), books.attempts, books.final) == []
    books.final.pages["p"] += ["maybe", "m.0", "m.1"]
    assert books.wrong() == set(), "what was not answered may be there, and of several things those sent first"


WRONG: list[tuple[str, Callable[[Books], object], str]] = [
    ("a note that was answered", lambda books: books.final.pages["p"].remove("s1"), checker.LOST_EFFECT),
    ("one for later", lambda books: books.final.pages["q"].remove("l1"), checker.LOST_EFFECT),
    ("a reminder", lambda books: books.final.pages["p"].remove("r1"), checker.LOST_EFFECT),
    ("what an entity sent on", lambda books: books.final.pages["q"].remove("t1 passed on"), checker.LOST_EFFECT),
    ("what a workflow sent", lambda books: books.final.pages["p"].remove("x2.1"), checker.LOST_EFFECT),
    ("what was written under a lock", lambda books: books.final.tills["t"].clear(), checker.LOST_EFFECT),
    ("an event", lambda books: books.final.stories["p"].remove("e2"), checker.LOST_EFFECT),
    ("an increment", lambda books: books.final.tallies.update(c=1), checker.LOST_EFFECT),
    ("an increment twice", lambda books: books.final.tallies.update(c=3), checker.DOUBLED),
    ("an answer twice", lambda books: books.ask("increment", "c", "m1", value=3), checker.DOUBLED),
    ("a note twice", lambda books: books.final.pages["p"].append("a1"), checker.DOUBLED),
    ("an event twice", lambda books: books.final.stories["p"].append("e1"), checker.DOUBLED),
    ("a reminder twice", lambda books: books.final.pages["p"].append("r1"), checker.DOUBLED),
    ("what was refused", lambda books: books.final.pages["p"].append("no"), checker.UNDONE),
    ("a stranger", lambda books: books.final.pages["p"].append("who"), checker.FOREIGN),
    ("an execution of nobody", lambda books: books.final.executions.update(who="completed"), checker.FOREIGN),
    ("a stale read", lambda books: books.ask("get", "c", value=1), checker.HISTORY),
    ("a wrong place", lambda books: books.ask("note", "q", "x3", value=1), checker.HISTORY),
    ("events out of time", lambda books: books.final.stories["p"].reverse(), checker.HISTORY),
    ("a burst out of order", lambda books: books.final.pages["p"].__setitem__(slice(1, 3), ["b2", "b1"]), checker.ORDER),
    ("a burst with a hole", lambda books: books.final.pages["p"].append("m.1"), checker.ORDER),
    ("a workflow's out of order", lambda books: books.final.pages["p"].__setitem__(slice(5, 7), ["x2.1", "x2.0"]), checker.ORDER),
    ("one that runs", lambda books: books.final.executions.update(x3="running"), checker.UNENDED),
    ("one that is suspended", lambda books: books.ask("result", "x3", error="NonDeterminismError"), checker.UNENDED),
    ("one without outcome", lambda books: books.ask("start", "x1b", "short", ["v"]), checker.GONE),
    ("one that is gone", lambda books: books.final.executions.pop("x3"), checker.GONE),
    ("another result", lambda books: books.ask("result", "x1", value=6), checker.OUTCOME),
    ("another end", lambda books: books.ask("result", "x2", error="ExecutionCancelled"), checker.OUTCOME),
    ("another end in the store", lambda books: books.final.executions.update(x1="failed"), checker.OUTCOME),
    ("one that was forgotten", lambda books: books.final.executions.update(x9="completed"), checker.UNFORGOTTEN),
    ("an attempt twice", lambda books: books.attempts.append(("x1", "square", 1)), checker.ATTEMPT),
    ("one after the last", lambda books: books.attempts.append(("x1", "square", 2)), checker.ATTEMPT),
    ("one that is once only", lambda books: books.attempts.append(("x5", "only_once", 2)), checker.ATTEMPT),
    ("a lock that stays", lambda books: books.final.left.append("Till/t is locked"), checker.OPEN),
]


@pytest.mark.parametrize(("spoil", "kind"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG])
def test_what_is_wrong_is_named(books: Books, spoil: Callable[[Books], object], kind: str) -> None:
    spoil(books)
    assert kind in books.wrong()


def test_an_execution_that_nobody_learned_of_has_not_ended(books: Books) -> None:
    books.ask("start", "x10", "short", ["v"])
    books.final.executions["x10"] = "completed"
    assert books.wrong() == {checker.UNENDED}


def test_a_book_is_read_up_to_where_its_program_was_killed(tmp_path: Path) -> None:
    book = Book(tmp_path / "book-anna")
    book.answer(book.ask("note", "p", "t"), 1)
    with (tmp_path / "book-anna").open("ab") as file:
        file.write(b'{"number":7,"at_s":1.0,"as')
    assert [(one.asks, one.acknowledged) for one in read_books(tmp_path)] == [("note", True)]
