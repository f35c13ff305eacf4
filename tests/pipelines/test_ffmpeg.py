"""Running ffmpeg: found, heard, understood, and never left behind."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from pipelines.video import ffmpeg
from rayflow.errors import InvalidInput

ENDLESS = ("-f", "lavfi", "-re", "-i", "testsrc2=size=64x36", "-f", "null", "-")


def command(*arguments: str) -> list[str]:
    return [ffmpeg.find().path, "-v", "warning", "-nostdin", "-nostats", "-progress", "pipe:1", *arguments]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Enough(BaseException):
    """Stands for a cancellation, which arrives as an exception in the waiting thread."""


def children_here() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_an_exception_in_the_waiting_loop_kills_the_child() -> None:
    children: set[int] = set()
    others = children_here()

    def interrupt(progress: ffmpeg.Progress) -> None:
        children.update(children_here() - others)
        raise Enough

    with pytest.raises(Enough):
        ffmpeg.run(command(*ENDLESS), interrupt)
    assert children
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


@pytest.mark.crash
def test_the_child_dies_with_a_parent_that_is_killed() -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from pipelines.video import ffmpeg\n"
        "def started(progress):\n"
        "    print(Path(f'/proc/self/task/{os.getpid()}/children').read_text(), flush=True)\n"
        "ffmpeg.run(sys.argv[1:], started)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, *command(*ENDLESS)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        descriptor = os.pidfd_open(child)
        try:
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            # a pidfd becomes readable when its process ends
            assert select.select([descriptor], [], [], 5.0)[0], "ffmpeg outlived its parent"
        finally:
            os.close(descriptor)


def test_the_child_leaves_no_process_group_of_its_own() -> None:
    groups: list[int] = []

    def children() -> set[int]:
        return {int(pid) for tasks in Path("/proc/self/task").glob("*/children") for pid in tasks.read_text().split()}

    before = children()

    def look(progress: ffmpeg.Progress) -> None:
        groups.extend(os.getpgid(child) for child in children() - before)

    ffmpeg.run(command("-f", "lavfi", "-i", "testsrc2=size=640x360:duration=2", "-f", "null", "-"), look)
    assert set(groups) == {os.getpgrp()}


def test_a_failure_says_what_ffmpeg_said_and_can_travel(tmp_path: Path) -> None:
    with pytest.raises(ffmpeg.FfmpegFailed, match=r"failed with exit code \d+: .*No such file") as caught:
        ffmpeg.run(command("-i", str(tmp_path / "absent file.mp4"), "-f", "null", "-"))
    assert "'" + str(tmp_path / "absent file.mp4") + "'" in caught.value.command
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.exit_code, again.reason) == (
        str(caught.value),
        caught.value.exit_code,
        caught.value.reason,
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-c:v", "libx264", "-preset", "warp"), "x264 [error]: invalid preset 'warp' | libx264: Error setting preset"),
        (("-c:v", "libx264", "-vf", "crop=5000:36"), "Parsed_crop_0: Invalid too big or non positive size for width '5000'"),
        (("-c:v", "libx264", "-no_such_option", "1"), "Unrecognized option 'no_such_option'"),
        (("-c:v", "aac"), "Invalid encoder type 'aac'"),
    ],
)
def test_a_failure_names_the_cause_and_not_what_follows_from_it(tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ffmpeg.FfmpegFailed) as caught:
        ffmpeg.run(command("-f", "lavfi", "-i", "testsrc2=size=64x36:duration=1", *arguments, "-f", "nut", str(tmp_path / "a.nut")))
    assert caught.value.reason.startswith(reason)
    assert not any(word in caught.value.reason for word in (" 0x", "Task finished", "Nothing was written", "Could not open"))


def test_resources_and_progress_are_measured() -> None:
    seen: list[ffmpeg.Progress] = []
    done = ffmpeg.run(command("-f", "lavfi", "-i", "testsrc2=size=640x360:duration=4", "-f", "null", "-"), seen.append)
    assert done.frames == 100
    assert done.cpu_s > 0
    assert done.wall_s > 0
    assert [progress.frames for progress in seen] == sorted(progress.frames for progress in seen)


def test_an_override_is_obeyed_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = ffmpeg.find("libx264")
    link = tmp_path / "my-ffmpeg"
    link.symlink_to(found.path)
    monkeypatch.setenv(ffmpeg.ENVIRONMENT_VARIABLE, str(link))
    assert ffmpeg.find("libx264").path == str(link)
    with pytest.raises(InvalidInput, match="lacks the encoder 'no-such'"):
        ffmpeg.find("no-such")
    monkeypatch.setenv(ffmpeg.ENVIRONMENT_VARIABLE, sys.executable)
    with pytest.raises(InvalidInput, match="does not run as ffmpeg"):
        ffmpeg.find()


def test_an_old_ffmpeg_on_the_path_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ffmpeg.ENVIRONMENT_VARIABLE, raising=False)
    old = tmp_path / "ffmpeg"
    old.write_text("#!/bin/sh\necho 'ffmpeg version 4.4.2-0ubuntu0 Copyright'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert ffmpeg.find("libx264").path != str(old)


def test_seconds_are_exact_to_the_microsecond() -> None:
    assert ffmpeg.seconds(Fraction(-1, 3)) == "-0.333333"
    assert ffmpeg.seconds(Fraction(7_200_000_001, 1_000_000)) == "7200.000001"
    assert ffmpeg.seconds(Fraction(1, 10_000_000)) == "0.000000"
