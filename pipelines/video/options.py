"""The command line of ``python -m rayflow.encode``: options, help, and what follows from them without looking at any file."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from pipelines.video.settings import CODECS, SPLITS, Settings
from pipelines.video.source import check_url, in_bucket, is_url, name_of
from rayflow.errors import InvalidInput

PROGRAM = "python -m rayflow.encode"
_LONGEST_ID = 200
SAMPLE_NAME = "rayflow-sample.mp4"

_DESCRIPTION = """\
Encode a video in chunks, in parallel, exactly: every frame of the source, each at its time. Audio, subtitles, chapters and
metadata are kept. Uses this machine, or a Ray cluster (--address). Stop it, kill it, lose the machine: the same command goes on
where it was, and no finished chunk is encoded again.
"""
_EPILOG = """\
examples:
  python -m rayflow.encode movie.mkv
  python -m rayflow.encode movie.mkv -o small.mp4 --codec svt-av1 --crf 30 --preset 6
  python -m rayflow.encode movie.mkv --filters scale=1280:-2 --audio aac --split scenes
  python -m rayflow.encode movie.mkv --address auto --store s3://bucket/encodes
  python -m rayflow.encode --sample

exit codes:
  0    done: the output is there and was verified against the source
  1    the encode failed, or Ray ended under it; the same command tries again and keeps the finished chunks
  2    refused: wrong option, unusable source, output, store or address; nothing was started or written
  130  stopped by Ctrl-C (143: by SIGTERM, 129: by SIGHUP); the same command goes on. A second Ctrl-C stops at once.
       With --address the encode goes on in the cluster; `python -m rayflow cancel ID` ends it.
"""


class View(StrEnum):
    """How to report: for people (a live display on a terminal, else plain lines), as JSON lines, or errors only."""

    PEOPLE = "people"
    JSON = "json"
    QUIET = "quiet"


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for. ``source`` is an absolute path or a URL; ``output`` None: beside the source, or here for a URL.
    ``output_url``: the object in a bucket to write instead, or empty; ``output`` then has its name.

    ``workers`` None: as many chunks at a time as there are CPUs. ``store``, ``address`` None: from the environment. ``id`` None:
    derived from what is to be done. ``fresh``: drop what an earlier run left. ``keep``: leave the chunks in the store. ``sample``:
    make the source if it is not there. ``resume``: the command that goes on where this one stopped.
    """

    source: str
    output: Path | None
    output_url: str
    settings: Settings
    workers: int | None
    store: str | None
    address: str | None
    id: str | None
    fresh: bool
    keep: bool
    dashboard: bool
    sample: bool
    view: View
    resume: str


def parse(arguments: Sequence[str]) -> Options:
    """Read a command line. Raises InvalidInput for a wrong one; SystemExit(0) after ``--help``, which prints."""
    given = _parser().parse_args(arguments)
    if given.input is None and not given.sample:
        raise InvalidInput(f"no video is named: give one, or --sample to have one made; see {PROGRAM} --help")
    source = SAMPLE_NAME if given.input is None else given.input
    for name in (source, given.output or "", given.store or "", os.getcwd()):
        _check_name(name)
    if given.output is not None and given.output.endswith("/"):
        raise InvalidInput(f"-o {given.output} is a folder: name a file in it")
    if is_url(source) and given.sample:
        raise InvalidInput(f"--sample makes a file, but {source} is a URL: name a file, or leave --sample out")
    if given.workers is not None and given.workers < 1:
        raise InvalidInput(f"--workers is {given.workers}: it must be at least 1")
    if given.crf is not None and not math.isfinite(given.crf):
        raise InvalidInput(f"--crf is {given.crf}: it must be a number")
    if given.id is not None and not (given.id.strip() and len(given.id) <= _LONGEST_ID and given.id.isprintable()):
        raise InvalidInput(f"--id {given.id[:40]!a} is empty, longer than {_LONGEST_ID} characters, or cannot be printed")
    settings = Settings(
        codec=given.codec,
        preset=given.preset,
        crf=given.crf,
        lossless=given.lossless,
        filters=given.filters,
        ffmpeg_args=_words(given.ffmpeg_args),
        audio=given.audio,
        audio_kbps=given.audio_kbps,
        split=_split(given.split),
        chunk_seconds=given.chunk_seconds,
        threads=given.threads,
    )
    output_url = given.output if given.output is not None and is_url(given.output) else ""
    if output_url:
        if not in_bucket(output_url):
            raise InvalidInput(f"{output_url}: an output is a file, or an object in a bucket, such as s3://bucket/out.mp4")
        check_url(output_url)
        if output_url == source:
            raise InvalidInput(f"{output_url} is the source itself: give the output another name with -o")
    output = None if given.output is None else Path(name_of(output_url) if output_url else os.path.abspath(given.output))
    address = given.address or os.environ.get("RAY_ADDRESS")
    return Options(
        source=check_url(source) if is_url(source) else os.path.abspath(source),
        output=output,
        output_url=output_url,
        settings=settings,
        workers=given.workers,
        store=given.store,
        address=None if address in (None, "", "local") else address,
        id=given.id,
        fresh=given.fresh,
        keep=given.keep,
        dashboard=given.dashboard,
        sample=given.sample,
        view=view_of(arguments),
        resume=f"{PROGRAM} {shlex.join(word for word in arguments if word != '--fresh')}",
    )


_FIELDS = "audio_kbps|chunk_seconds|ffmpeg_args|filters"


def as_options(message: str) -> str:
    """A message about ``Settings`` in the words of the command line: ``--ffmpeg-args`` for ``ffmpeg_args``."""
    return re.sub(
        rf"(?<![\w/.-])`?({_FIELDS})\b(?:`|=(?=['\"]))?(?![\w/.-])",
        lambda found: f"--{found[1].replace('_', '-')}" + (" " if found[0].endswith("=") else ""),
        message,
    )


def view_of(arguments: Sequence[str]) -> View:
    """How to report; told from a command line that may be wrong otherwise."""
    return View.JSON if "--json" in arguments else View.QUIET if "--quiet" in arguments else View.PEOPLE


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0]
        hint = f"; if that is the video, name it ./{unknown}" if unknown.startswith("-") and os.path.exists(unknown) else ""
        raise InvalidInput(f"{message}{hint}; see {PROGRAM} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "input", nargs="?", metavar="IN", help="the video to encode: a file, or a URL, http(s)://, s3://, gs:// or az://"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT",
        help="the file to write, .mp4, .mov, .mkv or .webm, or an s3://, gs:// or az:// URL; one that exists is replaced once the "
        "new one is verified "
        "(default: IN.encoded.mp4 beside the source, for a URL in this folder; .mkv where mp4 cannot hold it)",
    )  # fmt: skip
    parser.add_argument("--sample", action="store_true", help=f"make a sample video first, as IN (default: {SAMPLE_NAME})")

    video = parser.add_argument_group("encoding")
    video.add_argument(
        "--codec", default="x264", metavar="NAME", help=f"{', '.join(CODECS)}, or any encoder of ffmpeg (default: x264)"
    )
    video.add_argument("--preset", metavar="NAME", help="the encoder's speed setting (default: medium; svt-av1: 8; vp9: 2)")
    video.add_argument(
        "--crf", type=float, metavar="N", help="constant quality, lower is better (default: x264 21, x265 24, svt-av1 and vp9 32)"
    )
    video.add_argument("--lossless", action="store_true", help="decodes to the very frames of the source")
    video.add_argument("--filters", default="", metavar="CHAIN", help="ffmpeg filters that keep frames and times: scale=1280:-2")
    video.add_argument("--ffmpeg-args", default="", metavar="'ARGS'", help="further ffmpeg options for the video encoder")
    video.add_argument(
        "--audio", default="copy", metavar="NAME", help="copy, none, aac, opus, or any audio encoder (default: copy)"
    )
    video.add_argument("--audio-kbps", type=int, metavar="N", help="bit rate per audio track (default: the encoder's)")

    work = parser.add_argument_group("dividing the work")
    work.add_argument(
        "--split", default="keyframes", metavar="HOW", help=f"{', '.join(SPLITS)}, or seconds: 10,25.5,40 (default: keyframes)"
    )
    work.add_argument("--chunk-seconds", type=float, default=10.0, metavar="N", help="wanted length of a chunk (default: 10)")
    work.add_argument("--workers", type=int, metavar="N", help="chunks to encode at a time (default: as many as there are CPUs)")
    work.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each ffmpeg (default: 1)")

    where = parser.add_argument_group("where")
    where.add_argument(
        "--store", metavar="STORE",
        help="folder or s3://, gs://, az:// URL for progress and chunks "
        "(default: $RAYFLOW_STORE, else $XDG_DATA_HOME/rayflow or ~/.local/share/rayflow)",
    )  # fmt: skip
    where.add_argument(
        "--address", help="of a running Ray cluster, host:port or auto (default: $RAY_ADDRESS, else this machine alone)"
    )
    where.add_argument("--dashboard", action="store_true", help="serve the Ray dashboard while encoding on this machine")

    again = parser.add_argument_group("again")
    again.add_argument(
        "--id", help="name of the execution (default: from source, settings and output, so that the same command goes on)"
    )
    again.add_argument("--fresh", action="store_true", help="forget what earlier runs did")
    again.add_argument("--keep", action="store_true", help="keep the encoded chunks in the store")

    shown = parser.add_argument_group("output on the terminal").add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="one JSON object per event and line")
    shown.add_argument("--quiet", action="store_true", help="nothing but errors")
    return parser


def _check_name(name: str) -> None:
    """Names go into records, lists and terminals. Raises InvalidInput."""
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        raise InvalidInput(f"the name {name!a} has control characters, or is no UTF-8: rename the file")


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidInput(f"--ffmpeg-args {text!r} cannot be read ({error}): close every quotation mark") from error


def _split(text: str) -> str | tuple[float, ...]:
    if text in SPLITS:
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidInput(f"--split {text!r} is unknown: use {', '.join(SPLITS)}, or seconds such as 10,25.5,40") from None
