"""What is printed is said line by line, by whom it was, within bounds; what is lost is counted."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading

from rayflow.runtime import output
from rayflow.runtime.output import Heard, Mouth, Spoken, Tee, Who, decode_heard, decode_lines, encode_line

_A, _B = Who("order", "charge#1"), Who("order", "ship#1")


def test_lines_are_said_as_a_terminal_shows_them_by_whom_they_were_and_stand_in_the_log_as_they_came() -> None:
    mouth, log, who = Mouth(lambda lines: None, 60, 60), io.StringIO(), [_A]
    tee = Tee(log, lambda: who[0] if who else None, mouth)
    with contextlib.redirect_stdout(tee):  # pyright: ignore[reportArgumentType]
        print("one", "two")
        print("begun, ", end="")
        who[0] = _B
        print(" 10 %\r 20 %\r100 %\r")
        who[0] = _A
        print("ended")
        print("never ended", end="", flush=True)
        tee.end(_A)
        who.clear()
        print("nobody's")
    assert [str(line) for line in decode_lines(mouth.rest())] == [
        "(order charge#1) one two",
        "(order ship#1) 100 %",
        "(order charge#1) begun, ended",
        "(order charge#1) never ended",
    ]
    assert log.getvalue() == "one two\nbegun,  10 %\r 20 %\r100 %\r\nended\nnever endednobody's\n"


def test_too_much_is_dropped_and_counted_and_what_is_too_long_is_cut() -> None:
    mouth = Mouth(lambda lines: None, 60, 60)
    mouth.say(_A, "x" * 10_000)
    for number in range(output._MOST_LINES + 9):
        mouth.say(_A, f"{number}")
    lines = decode_lines(mouth.rest())
    assert len(lines) == output._MOST_LINES + 1 and len(lines[0].text) < 2100
    assert lines[-1].text == "... 10 more lines: see the log of its process"


def test_what_gathers_while_lines_are_sent_is_sent_next_and_a_fault_of_the_sender_is_none_of_the_speakers() -> None:
    sent: list[list[str]] = []
    sending, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def send(data: bytes) -> None:
        sent.append([line.text for line in decode_lines(data)])
        sending.release()
        go_on.acquire()
        raise OSError("the dispatcher is gone")

    mouth = Mouth(send, 0, 0)
    mouth.say(_A, "1")
    sending.acquire()
    mouth.say(_A, "2")
    mouth.say(_A, "3")
    go_on.release()
    sending.acquire()
    mouth.say(_A, "4")
    go_on.release()
    sending.acquire()
    go_on.release()
    assert mouth.rest() == b"" and sent == [["1"], ["2", "3"], ["4"]]


def test_listeners_get_what_came_since_of_late_and_learn_how_much_they_missed() -> None:
    async def run() -> None:
        spoken = Spoken()
        spoken.add(_line("before"))
        late = await _heard(spoken, "", -1)
        assert (late.number, late.lists) == (1, [])
        early = await _heard(spoken, "", 0)
        assert _texts(early) == ["before"]
        waiting = asyncio.create_task(_heard(spoken, late.incarnation, late.number, wait=True))
        await asyncio.sleep(0)
        spoken.add(_line("news"))
        assert _texts(await waiting) == ["news"]
        for number in range(3):
            spoken.add(_line(f"{number}" * (output._SPOKEN_BYTES // 2 - 100)))
        flooded = await _heard(spoken, late.incarnation, 2)
        assert (len(flooded.lists), flooded.missed, flooded.number) == (2, 1, 5)
        follower = Spoken()
        follower.add(_line("of another dispatcher"))
        assert _texts(await _heard(follower, late.incarnation, 5)) == ["of another dispatcher"]

    asyncio.run(run())


async def _heard(spoken: Spoken, incarnation: str, seen: int, wait: bool = False) -> Heard:
    return decode_heard(await spoken.heard(incarnation, seen, wait))


def _line(text: str) -> bytes:
    return encode_line(_A, text)


def _texts(heard: Heard) -> list[str]:
    return [line.text for lines in heard.lists for line in decode_lines(lines)]
