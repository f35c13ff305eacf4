"""A soak: several programs use one store at once while what runs it is killed and frozen at random; a checker with its own books.

    PYTHONPATH=. python scripts/soak.py --minutes 1 --seed 7

Programs share a Ray, or have one of their own in turn, and Rays die as a whole. Limits are so low that snapshots, filings, memory,
sessions and windows roll over every few seconds. In the end nothing is disturbed any more: what is open is asked for again, all
has to end, and the books are held against what is in the store. Prints what was done and what is wrong; 1 if anything is.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec
import soak_bounds
import soak_trouble
import soak_volume

from rayflow.checkpoint.identity import identify
from rayflow.checkpoint.local import LocalStore
from rayflow.core.limits import VARIABLE
from rayflow.errors import StoreError
from rayflow.testing.soak_books import read_attempts, read_books
from rayflow.testing.soak_checker import DAMAGE, Violation, check, read_final

LIMITS = {
    "snapshot_bytes": 40_000,
    "owner_look_s": 1.0,
    "session_s": 5.0,
    "poll_s": 1.0,
    "client_requests": 500,
    "execution_idle_ms": 500,
    "execution_pressed_ms": 50,
    "executions": 20,
    "entity_idle_ms": 1_000,
    "entity_bytes": 500_000,
    "events_per_state": 7,
    "sender_window_ms": 20_000,
    "letters_at_once": 5,
    "inline_bytes": 4_096,
    "blob_cache_bytes": 100_000,
}
"""So low that in seconds happens what else takes hours."""

HERE = Path(__file__).resolve().parent
START_S = 60.0
SILENT_S = 60.0
"""A program that writes nothing for so long waits for an answer that does not come: a shard that crashed often opens after 30 s."""

SILENT = "a program gets no answer"
UNSETTLED = "the soak does not settle"


@dataclass
class Soak:
    """What goes on. ``programs``: by name, those that run."""

    folder: Path
    seed: int
    minutes: float
    plant: str
    shards: int
    patience_s: float = 120.0
    began_s: float = field(default_factory=time.monotonic)
    programs: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict[str, "subprocess.Popen[bytes]"])
    bounds: soak_bounds.Bounds = field(default_factory=soak_bounds.Bounds)
    done: Counter[str] = field(default_factory=Counter[str])
    found: list[Violation] = field(default_factory=list[Violation])

    def __post_init__(self) -> None:
        self.dice = Random(f"eras of {self.seed}")
        self.token = secrets.token_hex(32)
        self.spawned: list[subprocess.Popen[bytes]] = []
        self.ghosts: list[subprocess.Popen[bytes]] = []
        """A Ray and its programs that are frozen."""
        self.heard: dict[int, tuple[int, float]] = {}
        """How much each program has written, and when it last wrote."""
        self.trouble = soak_trouble.Trouble(Random(self.seed), 3.0, self.folder / "trouble")
        self.longest_s = min(self.minutes * 20, 180.0)
        self.era_s = min(max(self.minutes * 8, 25.0), 120.0)
        self.store = self.folder / "store"
        identify(LocalStore(self.store), self.shards)

    # -- processes -----------------------------------------------------------------------------------------------------------

    def spawn(self, name: str, *arguments: str, **options: object) -> subprocess.Popen[bytes]:
        """A program of the soak; what it prints goes to a file."""
        environment = os.environ | {
            VARIABLE: msgspec.json.encode(LIMITS).decode(),
            "PYTHONPATH": os.pathsep.join([str(HERE / "soak_plants")] * bool(self.plant) + [str(HERE.parent)]),
            "SOAK_PLANT": self.plant,
            "TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",  # one of the soak's own, which its programs share
            "RAY_AUTH_TOKEN": self.token,
        }
        environment.pop("RAY_ADDRESS", None)
        common = ["--folder", str(self.folder), "--store", str(self.store), "--name", name, "--epoch-s", str(self.began_s)]
        common += ["--seed", str(self.seed), "--longest-s", str(self.longest_s)]
        with (self.folder / f"output-{name}").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "soak_program.py"), *common, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if options.get("piped") else output,
                stderr=output,
            )
        self.spawned.append(process)
        return process

    def begin(self, name: str, address: str) -> None:
        """Start a program, or start it again."""
        quiet = name.endswith("quiet")
        pace = ["--threads", "1", "--pause-s", "6"] if quiet else ["--threads", "6", "--pause-s", "0.02"]
        self.programs[name] = self.spawn(name, "--address", address, *pace)

    def at_work_s(self) -> float:
        """Now, once the programs do things: what a Ray takes to start is not part of the time."""
        before, until_s = self._written(), time.monotonic() + START_S
        while self._written() < before + 2_000 and time.monotonic() < until_s:
            time.sleep(0.1)
        return time.monotonic()

    def _written(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("book-*"))

    def look(self, roots: list[int], until_s: float, address: str) -> None:
        """Make trouble, and start again what has ended, until then; or until the Ray that all need is gone."""
        measured_s = 0.0
        while time.monotonic() < until_s:
            time.sleep(0.05)
            self.trouble.look(roots, [one.pid for one in self.programs.values()], self._written())
            for name, program in list(self.programs.items()):
                if program.poll() is not None:
                    self.done["programs begun again"] += 1
                    if program.returncode not in (-signal.SIGKILL, 0):
                        self.done["programs that ended by themselves"] += 1
                    if not address:
                        return
                    self.begin(name, address)
            if time.monotonic() - measured_s > 1.0:
                measured_s = time.monotonic()
                self.listen()
                self.bounds.measure(roots, self.store)

    def listen(self) -> None:
        """Whether all programs write: one that does not is ended, so that the next life goes on."""
        now_s = time.monotonic()
        for name, program in self.programs.items():
            path = self.folder / f"book-{name}"
            size = path.stat().st_size if path.exists() else 0
            if self.heard.get(program.pid, (-1, 0.0))[0] != size:
                self.heard[program.pid] = (size, now_s)
            elif now_s - self.heard[program.pid][1] > SILENT_S:
                self.found.append(Violation(SILENT, f"{name}, for {SILENT_S:.0f} s, until {now_s:.2f}"))
                program.kill()

    # -- eras ----------------------------------------------------------------------------------------------------------------

    def shared(self, lasts_s: float) -> None:
        """Programs on one Ray. In the end it dies; or it is frozen with its programs, and comes back while there is another."""
        ray = self.spawn("ray", "--ray-only", piped=True)
        assert ray.stdout is not None
        address = ray.stdout.readline().decode().strip()
        try:
            for name in ("anna", "bert", "quiet"):
                self.begin(name, address)
            self.look([ray.pid], self.at_work_s() + lasts_s, address)
            self.trouble.end()
            if self.dice.random() < 0.5:
                self.ghosts = [ray, *self.programs.values()]
                soak_trouble.send([one.pid for one in soak_trouble.below([one.pid for one in self.ghosts])], signal.SIGSTOP)
                self.trouble.note("Ray frozen with its programs", ray.pid)
            else:
                victim = self.dice.choice(("program", "raylet", "gcs", "agent"))
                soak_trouble.send([one.pid for one in soak_trouble.below([ray.pid]) if one.role == victim], signal.SIGKILL)
                self.trouble.note(f"Ray's {victim} killed", ray.pid)
                time.sleep(self.dice.uniform(0, 3))
        finally:
            if not self.ghosts:
                self.end([ray, *self.programs.values()])
            self.programs.clear()

    def own(self, lasts_s: float) -> None:
        """A program with a Ray of its own, which dies with it."""
        self.begin("carl", "")
        carl = self.programs["carl"]
        try:
            began_s = self.at_work_s()
            self.look([carl.pid], began_s + min(lasts_s / 3, 15.0), "")
            if self.ghosts:
                soak_trouble.send([one.pid for one in soak_trouble.below([one.pid for one in self.ghosts])], signal.SIGCONT)
                self.trouble.note("Ray back with its programs", self.ghosts[0].pid)
            self.look([carl.pid], began_s + lasts_s, "")
        finally:
            self.end([carl, *self.ghosts])
            self.ghosts = []
            self.programs.clear()

    def end(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Kill them, and all that they have started."""
        self.trouble.end()
        pids = [one.pid for one in soak_trouble.below([one.pid for one in processes])]
        soak_trouble.send(pids, signal.SIGKILL)
        for process in processes:
            process.wait()

    def run(self) -> list[Violation]:
        """All of it."""
        left_s, own = self.minutes * 60, False
        while left_s > 0:
            lasts_s = min(self.era_s * self.dice.uniform(0.6, 1.4), left_s)
            (self.own if own else self.shared)(lasts_s)
            left_s -= max(lasts_s, 1.0)
            own = not own
        self.end(self.ghosts)
        settle_s = self.longest_s + self.patience_s
        settling = self.spawn("settling", "--settle-s", str(settle_s))
        found, deadline_s = self.found, time.monotonic() + settle_s + START_S
        while settling.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.2)
            self.bounds.measure([settling.pid], self.store)
        if settling.poll() is None:
            found.append(Violation(UNSETTLED, f"within {settle_s + START_S:.0f} s: a call gets no answer"))
            settling.kill()
        elif settling.returncode:
            found.append(Violation(UNSETTLED, f"the settling program ended with {settling.returncode}"))
        settling.wait()
        return found + self.judge()

    def judge(self) -> list[Violation]:
        """Hold the books against the store."""
        requests = read_books(self.folder)
        try:
            final = read_final(LocalStore(self.store))
        except StoreError as error:
            return [Violation(DAMAGE, str(error))]
        attempts = read_attempts(self.folder)
        self.done.update({f"asked: {asks}": count for asks, count in Counter(one.asks for one in requests).items()})
        self.done["answered"] = sum(bool(one.answers) for one in requests)
        self.done["executions in the end"] = len(final.executions)
        self.done["attempts"] = len(attempts)
        return check(requests, attempts, final) + self.bounds.check(self.store, requests, int(LIMITS["snapshot_bytes"]))

    def lines(self) -> list[str]:
        """What was done, for people."""
        counts = sorted([*self.done.items(), *self.trouble.done.items()])
        return [*(f"{count:>13,}  {name}" for name, count in counts), *self.bounds.lines()]


def _interrupted(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # so that nothing is left behind


def main() -> int:
    """Run a soak."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="of disturbance; a minute or more follows until all has ended")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--patience", type=float, default=120.0, metavar="SECONDS", help="how long the rest may take in the end")
    parser.add_argument("--plant", default="", help="a fault to plant, see scripts/soak_plants: the soak must find it")
    parser.add_argument("--keep", action="store_true", help="keep the folder with store and books where nothing is wrong, too")
    parser.add_argument("--volume", type=float, metavar="SHARE", help="no trouble but much work, this share of it: see soak_volume")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="run nothing, judge what an earlier soak has left there")
    options = parser.parse_args()
    began_s, folder = time.monotonic(), options.check or Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
    if options.volume:
        found = soak_volume.run(folder, options.volume)
    else:
        soak = Soak(folder, options.seed, options.minutes, options.plant, options.shards, options.patience)
        signal.signal(signal.SIGTERM, _interrupted)
        try:
            found = soak.judge() if options.check else soak.run()
        finally:
            soak.end([one for one in soak.spawned if one.poll() is None])
        print("\n".join(soak.lines()))
    for kind, count in Counter(one.kind for one in found).items():
        print(f"\nWRONG, {count} times: {kind}")
        print("\n".join(f"  {one.what}" for one in [one for one in found if one.kind == kind][:5]))
    print(f"\nseed {options.seed}, {time.monotonic() - began_s:.0f} s: {'WRONG' if found else 'nothing is wrong'}")
    if found or options.keep or options.check:
        print(f"books and store: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
