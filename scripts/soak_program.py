"""One program of a soak: does all that a program can do with a store, from a seed, and keeps book of it until it is killed.

Its next life asks again for what was under way under a name (messages with ids, starts of executions); what has no name is left
in doubt, as it is for everybody. With ``--settle`` it asks for whatever is open in all books, waits until everything has ended, and
ends itself.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import ray

import rayflow
from rayflow.errors import ExecutionFailed, OperationFailed, RayflowError, RayUnavailable
from rayflow.testing.soak_books import Book, Request, read_book, read_books
from rayflow.testing.soak_workload import SHAPES, WINDOW_S, Page, Places, Story, Tally, after

GENERATION_S = 5.0
"""After so many seconds programs turn to other entities: those before fall asleep."""

SAFE_S = WINDOW_S * 0.6
"""For so long a message is sent again under its id; later nobody can tell whether it counts as a new one."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a program is told. ``epoch_s``: when the soak began. ``longest_s``: of any wait."""

    folder: Path
    store: Path
    name: str
    address: str
    seed: int
    epoch_s: float
    longest_s: float
    large: int
    threads: int
    pause_s: float
    settle_s: float


class Program:
    """A life of a program."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.path = settings.folder / f"book-{settings.name}"
        self.book = Book(self.path)
        self.started: deque[str] = deque(maxlen=200)
        self.client = rayflow.connect(settings.store, address=settings.address or "local", num_cpus=None if settings.address else 2)
        self.lost = threading.Event()

    # -- what is asked -------------------------------------------------------------------------------------------------------

    def ask(self, do: Callable[[], Any], asks: str, *args: Any) -> Any:
        """Note it, do it, note the answer. A Ray that is gone leaves it open."""
        return self.do(self.book.ask(asks, *args), do)

    def do(self, number: int, do: Callable[[], Any]) -> Any:
        """The same for what is noted already."""
        try:
            value = do()
        except RayUnavailable:
            self.lost.set()
            raise
        except (ExecutionFailed, OperationFailed) as error:
            self.book.answer(number, str(error.error_type), type(error).__name__)
        except (RayflowError, TimeoutError) as error:
            self.book.answer(number, str(error)[:200], type(error).__name__)
        else:
            self.book.answer(number, value)
            return value

    def increment(self, key: str, id: str) -> None:
        self.ask(lambda: self.client.entity(Tally, key).options(message_id=id).increment().result(), "increment", key, id)

    def start(self, id: str, shape: str, args: list[Any]) -> None:
        def start() -> None:
            self.client.start(SHAPES[shape].workflow, *args, id=id)

        self.ask(start, "start", id, shape, args)

    def result(self, id: str, timeout_s: float) -> None:
        self.ask(lambda: self.client.get(id).result(timeout_s), "result", id)

    def again(self, requests: list[Request]) -> None:
        """Ask for what is open and has a name."""
        now_s = time.monotonic()
        answered = {request.args[1] for request in requests if request.asks == "increment" and request.answers}
        begun = {request.args[0] for request in requests if request.asks == "start" and request.answers}
        first_s: dict[str, float] = {}
        todo: list[Callable[[], None]] = []
        for request in requests:
            args = request.args
            if request.asks == "increment" and args[1] not in answered:
                if now_s - first_s.setdefault(args[1], request.asked_s) < SAFE_S:
                    todo.append(lambda args=args: self.increment(args[0], args[1]))
                answered.add(args[1])
            elif request.asks == "start" and args[0] not in begun:
                todo.append(lambda args=args: self.start(args[0], args[1], args[2]))
                begun.add(args[0])
        with ThreadPoolExecutor(32) as pool:
            for one in [pool.submit(one) for one in todo]:
                one.result()

    # -- at random -----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until it is killed, or Ray is gone."""
        self.again(read_book(self.path))
        life = self.book.fresh()
        for index in range(self.settings.threads):
            dice = Random(f"{self.settings.seed} {self.settings.name} {life} {index}")
            threading.Thread(target=self._guarded, args=(dice,), daemon=True).start()
        self.lost.wait()

    def _guarded(self, dice: Random) -> None:
        try:
            while True:
                self.act(dice)
                time.sleep(dice.uniform(0, 2) * self.settings.pause_s)
        finally:
            self.lost.set()

    def places(self) -> Places:
        generation = int((time.monotonic() - self.settings.epoch_s) / GENERATION_S)
        return Places(
            str(self.settings.folder),
            [f"page-{generation}-{index}" for index in range(4)],
            [f"till-{generation}-{index}" for index in range(3)],
            self.settings.longest_s,
            self.settings.large,
        )

    def tag(self) -> str:
        """A name that nothing else has in the whole soak."""
        return f"{self.settings.name}.{self.book.fresh()}"

    def act(self, dice: Random) -> None:
        """One thing that programs do."""
        chosen = dice.choices(
            (self._tally, self._page, self._story, self._start, self._result, self._end), weights=(6, 8, 2, 6, 3, 1)
        )[0]
        chosen(dice, self.places())

    def _tally(self, dice: Random, at: Places) -> None:
        key = at.pages[dice.randrange(2)].replace("page", "tally")
        if dice.random() < 0.3:
            self.ask(lambda: self.client.entity(Tally, key).get().result(), "get", key)
            return
        self.increment(key, self.tag())

    def _page(self, dice: Random, at: Places) -> None:
        key, other = dice.sample(at.pages, 2)
        page, tag = self.client.entity(Page, key), self.tag()
        how = dice.choice(("note", "note", "burst", "burst", "refuse", "pass_on", "later", "remind", "grow", "signal"))
        later_s = round(min(dice.choice((0.0, 0.01, 0.5, 3.0, self.settings.longest_s)), self.settings.longest_s), 3)
        if how == "note":
            self.ask(lambda: page.note(tag).result(), "note", key, tag)
        elif how == "signal":
            self.ask(lambda: page.signal.note(tag).result(), "signal", key, tag)
        elif how == "burst":
            tags = [f"{tag}.{index}" for index in range(dice.randint(2, 12))]

            def burst() -> list[int]:
                calls = [page.note(one) for one in tags]
                return [call.result() for call in calls]

            self.ask(burst, "burst", key, tags)
        elif how == "refuse":
            self.ask(lambda: page.refuse(tag).result(), "refuse", key, tag)
        elif how == "pass_on":
            self.ask(lambda: page.pass_on(tag, other).result(), "pass_on", key, tag, other)
        elif how == "later":
            self.ask(lambda: page.options(at=after(later_s)).signal.note(tag).result(), "later", key, tag, later_s)
        elif how == "remind":
            self.ask(lambda: page.note_later(tag, later_s).result(), "remind", key, tag, later_s)
        else:
            size = dice.choice((0, 0, dice.randint(1, self.settings.large)))
            self.ask(lambda: page.grow(tag, size).result(), "grow", key, tag, size)

    def _story(self, dice: Random, at: Places) -> None:
        key, tag = dice.choice(at.pages), self.tag()
        self.ask(lambda: self.client.entity(Story, key).tell(tag).result(), "tell", key, tag)

    def _start(self, dice: Random, at: Places) -> None:
        shape = dice.choice(list(SHAPES))
        id = self.tag()
        self.start(id, shape, SHAPES[shape].draw(dice, id, at))
        self.started.append(id)

    def _result(self, dice: Random, at: Places) -> None:
        if self.started:
            self.result(dice.choice(self.started), dice.choice((0.01, 1.0, 5.0)))

    def _end(self, dice: Random, at: Places) -> None:
        if self.started:
            id = dice.choice(self.started)
            execution = self.client.get(id)
            if dice.random() < 0.6:
                self.ask(execution.cancel, "cancel", id)
            else:
                self.ask(execution.forget, "forget", id)

    # -- in the end ----------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Ask for all that is open anywhere, wait for all that was started, and for what is to come later."""
        requests = read_books(self.settings.folder)
        self.again(requests)
        until_s = time.monotonic() + self.settings.settle_s
        ids = list(dict.fromkeys(request.args[0] for request in requests if request.asks == "start"))
        asked = [(self.book.ask("result", id), self.client.get(id)) for id in ids]
        for number, execution in asked:
            self.do(number, lambda one=execution: one.result(max(until_s - time.monotonic(), 0.1)))
        later = [one.asked_s + one.args[2] for one in requests if one.asks in ("later", "remind")]
        last_s = max((one for one in later if one < until_s), default=0.0)
        time.sleep(max(last_s + 3.0 - time.monotonic(), 0.0))
        for key in sorted({one.args[0] for one in requests if one.asks == "increment"}):
            self.ask(lambda key=key: self.client.entity(Tally, key).get().result(), "get", key)
        self.client.close()


def main() -> int:
    """Run a program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--address", default="", help="of a Ray; default: one of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epoch-s", type=float, required=True)
    parser.add_argument("--longest-s", type=float, default=20.0)
    parser.add_argument("--large", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--pause-s", type=float, default=0.05)
    parser.add_argument("--settle-s", type=float, default=0.0, help="settle, and take no longer than that")
    parser.add_argument("--ray-only", action="store_true", help="start a Ray for others, and print its address")
    options = vars(parser.parse_args())
    if options.pop("ray_only"):
        _ray_only(options["folder"])
    settings = Settings(**options)
    program = Program(settings)
    if settings.settle_s:
        program.settle()
    else:
        program.run()
    return 0


def _ray_only(folder: Path) -> None:
    """As ``ray start`` would: nobody's own, so that another may work on the same store."""
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        _temp_dir=str(folder / "ray"),
    )
    print(cast("str", ray.get_runtime_context().gcs_address), flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    raise SystemExit(main())
