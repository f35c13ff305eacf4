"""Guarantees broken on purpose, each with a test that must then be red; and the table of what shows which invariant.

Most invariants have variants of the simulator or of the model of the log. Those that no simulation sees have *mutations* here:
``test_invariants`` turns a rule off and runs the test that checks it. Some tests break a rule by themselves: they are ``SHOWN``.

    python -m tests.mutations  # the table, as it stands in docs/invariants.md
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from heapq import heappop
from random import Random, SystemRandom
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.video import encoders, join
from rayflow.checkpoint import blobs, log, segment
from rayflow.core import context, crashes, instance, loop, replay, timers, workflows
from rayflow.errors import NonDeterminismError
from rayflow.runtime import reaper
from rayflow.testing.simulation_variants import VARIANTS
from tests.checkpoint import test_blobs, test_log, test_log_model, test_segment
from tests.core import driver, test_crashes, test_replay, test_workflows
from tests.pipelines import test_crashes as test_pipeline_crashes
from tests.pipelines import test_exact, test_ffmpeg, test_join
from tests.pipelines.conversion import LOSSLESS
from tests.runtime import test_reaper

Off = Callable[[pytest.MonkeyPatch, ExitStack], None]
"""Turns a rule off; what it leaves behind is cleaned up by the stack."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """``test``, given ``arguments`` beside its fixtures, fails with ``harm``, a pattern, when ``off`` has broken ``invariant``."""

    invariant: str
    title: str
    off: Off
    test: Callable[..., None]
    harm: str = "^(AssertionError|Failed)"
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _checksums_say_nothing(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.setattr(segment, "_digest", lambda content: bytes(segment.CHECKSUM_BYTES))


def _digests_of_snapshots_say_nothing(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.setattr(log, "_digest", lambda body: "0" * 32)


def _nothing_need_follow(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.setattr(log._Replay, "_check_succession", lambda self, segment, key: None)


def _hashes_of_values_say_nothing(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.setattr(blobs, "digest", lambda data: "00" * 32)


def _dice_are_thrown_anew(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.setattr(instance, "random", SimpleNamespace(Random=lambda seed: SystemRandom()))


def _the_logger_always_speaks(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.delattr(instance.ReplayLogger, "isEnabledFor")


def _now_is_now(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.setattr(context.Context, "now", lambda ctx: datetime.now(UTC))


def _the_code_runs_in_any_order(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    dice = Random(1)

    class Shuffled(deque[Any]):
        def popleft(self) -> Any:
            self.rotate(dice.randrange(len(self)))
            return super().popleft()

    patch.setattr(loop, "deque", Shuffled)


def _nothing_is_compared(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    settle = replay._settle

    def lenient(*args: Any) -> None:
        with suppress(NonDeterminismError):
            settle(*args)

    patch.setattr(replay, "_settle", lenient)


def _one_side_is_named(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    difference = replay._difference

    def one_sided(*args: Any) -> str:
        return re.sub("the code asks for .*", "the code differs", difference(*args))

    patch.setattr(replay, "_difference", one_sided)


def _timers_of_a_forgotten_run_count(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    """They come up although they were cancelled, and are taken for those of the next run: either alone does no harm."""
    advance = workflows.Workflows.advance

    def pop_due(self: timers.Timers[Any], now_ms: int) -> list[Any]:
        due: list[Any] = []
        while self._heap and self._heap[0][0] <= now_ms:
            due.append(heappop(self._heap)[2])
        return due

    def advancing(machine: workflows.Workflows, now_ms: int) -> None:
        for due in machine._timers.pop_due(now_ms):
            entry = machine._live.get(due.execution)
            one = entry.open.get(due.operation) if entry is not None else None
            if one is not None and one.due_ms is not None:
                one.due_ms = min(one.due_ms, due.due_ms)
            machine._timers.set(due.due_ms, due)
        advance(machine, now_ms)

    patch.setattr(timers.Timers, "pop_due", pop_due)
    patch.setattr(timers.Timers, "_counts", lambda self, entry: True)
    patch.setattr(workflows.Workflows, "advance", advancing)


def _the_child_is_left_running(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    class Left(subprocess.Popen[bytes]):
        left = False

        def kill(self) -> None:
            self.left = True
            stack.callback(super().wait)
            stack.callback(super().kill)

        def wait(self, timeout: float | None = None) -> int:
            return 0 if self.left else super().wait(timeout)

    patch.setattr(subprocess, "Popen", Left)


def _the_first_run_gets_lists_for_tuples(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    decode = driver.MemoryCode.decode
    seen: set[Any] = set()

    def decoded(code: driver.MemoryCode, stored: Any) -> Any:
        value = decode(code, stored)
        if isinstance(value, dict) and stored not in seen:
            seen.add(stored)
            return {key: list(one) if isinstance(one, tuple) else one for key, one in value.items()}
        return value

    patch.setattr(driver.MemoryCode, "decode", decoded)


def _a_little_may_be_lost(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.setitem(encoders._ENCODERS, "x264", replace(encoders._ENCODERS["x264"], lossless=("-qp", "10")))


def _the_name_is_given_at_once(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.setattr(join, "partial_name", lambda output: output)


def _nothing_is_flushed(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.setattr(join, "_flush", lambda path: None)


def _nothing_outlives_the_process(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.setattr(reaper, "__file__", os.devnull)


def _it_is_tried_once_more(patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    patch.setattr(crashes, "MAX_CRASHES", crashes.MAX_CRASHES + 1)


MUTATIONS = (
    Mutation(
        "I7",
        "checksums of segments say nothing",
        _checksums_say_nothing,
        test_segment.test_no_flipped_bit_goes_unnoticed,
        harm="^StoreUnsuitable: .* has format version",  # the first flipped bit that is taken for data
    ),
    Mutation(
        "I7",
        "digests of snapshots say nothing",
        _digests_of_snapshots_say_nothing,
        test_log.test_no_flipped_byte_of_any_object_is_read_as_other_data,
    ),
    Mutation(
        "I7",
        "any segment may follow any other",
        _nothing_need_follow,
        test_log.test_segments_that_were_swapped_or_come_from_elsewhere_are_reported,
    ),
    Mutation(
        "I7",
        "hashes of values say nothing",
        _hashes_of_values_say_nothing,
        test_blobs.test_a_damaged_blob_is_named_and_not_returned,
        arguments={"damaged": b"framE"},
    ),
    Mutation(
        "I10",
        "the dice are thrown anew on replay",
        _dice_are_thrown_anew,
        test_replay.test_clock_dice_and_types_are_the_same_on_replay_and_log_lines_come_once,
    ),
    Mutation(
        "I10",
        "now is the time of the replay",
        _now_is_now,
        test_replay.test_clock_dice_and_types_are_the_same_on_replay_and_log_lines_come_once,
    ),
    Mutation(
        "I10",
        "the logger speaks on replay, too",
        _the_logger_always_speaks,
        test_replay.test_clock_dice_and_types_are_the_same_on_replay_and_log_lines_come_once,
    ),
    Mutation(
        "I10",
        "what is ready runs in any order",
        _the_code_runs_in_any_order,
        test_replay.test_a_crash_after_any_batch_changes_neither_the_result_nor_runs_a_completed_step_again,
        harm="^NonDeterminismError",
        arguments={"example": test_replay.gathered, "dispatcher": "survives"},
    ),
    Mutation(
        "I11",
        "what the code asks for is not compared with its record",
        _nothing_is_compared,
        test_replay.test_changed_code_is_told_both_sides_suspends_alone_and_goes_on_once_mended,
        harm="^ValueError: not enough values",  # of answers: nobody is told of a suspension
        arguments={"change": "another argument"},
    ),
    Mutation(
        "I11",
        "what the code asks for is not named",
        _one_side_is_named,
        test_replay.test_changed_code_is_told_both_sides_suspends_alone_and_goes_on_once_mended,
        arguments={"change": "another argument"},
    ),
    Mutation(
        "I14",
        "timers of a forgotten run count",
        _timers_of_a_forgotten_run_count,
        test_workflows.test_a_timer_of_a_forgotten_run_does_not_end_a_wait_or_a_pause_of_the_next,
    ),
    Mutation(
        "I15",
        "an interrupted step leaves its child running",
        _the_child_is_left_running,
        test_ffmpeg.test_an_exception_in_the_waiting_loop_kills_the_child,
    ),
    Mutation(
        "I16",
        "the first run gets a result otherwise than replay does",
        _the_first_run_gets_lists_for_tuples,
        test_workflows.test_a_result_reaches_the_code_as_the_record_holds_it_also_the_first_time,
    ),
    Mutation(
        "I18",
        "an encoder without loss may lose a little",
        _a_little_may_be_lost,
        test_exact.test_every_lossless_codec_is_exact,
        arguments={"settings": LOSSLESS},
    ),
    Mutation(
        "I19",
        "the output has its name from the start",
        _the_name_is_given_at_once,
        test_join.test_the_output_is_on_the_disk_and_verified_when_it_takes_its_name,
    ),
    Mutation(
        "I19",
        "the output is not flushed",
        _nothing_is_flushed,
        test_join.test_the_output_is_on_the_disk_and_verified_when_it_takes_its_name,
    ),
    Mutation(
        "I23",
        "nothing outlives the process that started a Ray",
        _nothing_outlives_the_process,
        test_reaper.test_closing_a_reaper_ends_the_processes_of_its_ray_and_no_others,
    ),
    Mutation(
        "I27",
        "code that ends its process is tried once more",
        _it_is_tried_once_more,
        test_crashes.test_code_that_ends_its_process_in_its_replay_is_suspended_and_the_others_go_on,
    ),
)

SHOWN: tuple[tuple[str, str, Callable[..., None]], ...] = (
    (
        "I17",
        "a join deletes its chunks before it is on record",
        test_pipeline_crashes.test_a_join_that_deletes_the_chunks_before_it_is_on_record_is_found,
    ),
    (
        "I18",
        "chunks are joined without exact durations",
        test_join.test_without_exact_durations_times_drift_and_the_output_is_refused,
    ),
)
"""Invariant, what is broken, and the test that does it and sees what comes of it."""


def rows() -> list[tuple[str, str, str]]:
    """Invariant, what is broken on purpose, and what is red then; in the order of the invariants."""
    found = [
        *((one.invariant, one.title, f"simulator: {'; '.join(one.harm)}") for one in VARIANTS),
        *((invariant, off.__name__.replace("_", " "), f"log: {harm}") for invariant, off, harm in test_log_model.VARIANTS),
        *((one.invariant, one.title, _name(one.test)) for one in MUTATIONS),
        *((invariant, title, _name(test)) for invariant, title, test in SHOWN),
    ]
    return sorted(found, key=lambda row: int(row[0][1:]))


def _name(test: Callable[..., None]) -> str:
    return f"`{test.__module__.replace('.', '/')}.py::{test.__name__}`"


def table() -> str:
    """``rows`` as they stand in the document."""
    return "\n".join(
        ["| no. | what is broken | what is red then |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows())]
    )


if __name__ == "__main__":
    print(table())
