"""The same encode three times: by rayflow, by the same ffmpeg jobs as plain Ray tasks, and by one plain ffmpeg."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench_machine import NUM_CPUS, Spent, running, scratch, spent
from bench_plain_ray import Task, results

import rayflow
from pipelines.video import audio, encode, ffmpeg, index, join, plan, sample
from pipelines.video.encoders import encoder_arguments
from pipelines.video.job import Job
from pipelines.video.settings import Settings
from pipelines.video.source import content_key
from pipelines.video.workflow import encode_video


@dataclass(frozen=True, slots=True)
class Encode:
    """Wall and CPU seconds of each way, summed over ``rounds``, without ``startup_s``: Ray, workers and their imports.

    rayflow and plain Ray use ``cpus`` workers with one thread each, the one ffmpeg its default threads. CPU seconds count
    everything: the benchmark itself, Ray's processes, workers and ffmpeg.
    """

    source: str
    video_s: float
    size: str
    chunks: int
    cpus: int
    preset: str
    rounds: int
    startup_s: float
    rayflow_wall_s: float
    rayflow_cpu_s: float
    plain_ray_wall_s: float
    plain_ray_cpu_s: float
    one_ffmpeg_wall_s: float
    one_ffmpeg_cpu_s: float
    wall_to_plain_ray: float
    cpu_to_plain_ray: float
    wall_to_one_ffmpeg: float
    cpu_to_one_ffmpeg: float


def encode_three_ways(source: str | None, preset: str, rounds: int, duration_s: float = 40.0) -> Encode:
    """Encode ``source``, or a sample of 720p that is made for it, in chunks of 10 s with x264."""
    settings = Settings(preset=preset, split="fixed", chunk_seconds=10)
    with scratch() as folder:
        path = source or str(_sample(folder, duration_s))
        short = sample.make(folder / "short.mkv", 2.0)
        started_s = time.perf_counter()
        with running(folder) as client:
            for _ in range(2):  # workers are up and have imported what they need
                _by_rayflow(client, str(short), settings, folder / "warm.mkv")
                _by_plain_ray(str(short), settings, folder / "warm.mkv")
            startup_s = time.perf_counter() - started_s
            made = plan.make(index.read(path), settings)
            ways: dict[str, Callable[[Path], None]] = {
                "rayflow": partial(_by_rayflow, client, path, settings),
                "plain_ray": partial(_by_plain_ray, path, settings),
                "one_ffmpeg": partial(_by_one_ffmpeg, path, settings),
            }
            totals = {name: Spent() for name in ways}
            for number in range(rounds):
                for name in ways if number % 2 == 0 else reversed(ways):
                    output = folder / f"{name}-{number}.mkv"
                    with spent() as used:
                        ways[name](output)
                    totals[name].add(used)
                    assert index.read(str(output)).info.video.frames == made.info.video.frames, output
    ours, plain, single = totals.values()
    video = made.info.video
    return Encode(
        source=Path(path).name if source else "generated",
        video_s=made.info.duration_s,
        size=f"{video.width}x{video.height}",
        chunks=len(made.chunks),
        cpus=NUM_CPUS,
        preset=preset,
        rounds=rounds,
        startup_s=startup_s,
        rayflow_wall_s=ours.wall_s,
        rayflow_cpu_s=ours.cpu_s,
        plain_ray_wall_s=plain.wall_s,
        plain_ray_cpu_s=plain.cpu_s,
        one_ffmpeg_wall_s=single.wall_s,
        one_ffmpeg_cpu_s=single.cpu_s,
        wall_to_plain_ray=ours.wall_s / plain.wall_s,
        cpu_to_plain_ray=ours.cpu_s / plain.cpu_s,
        wall_to_one_ffmpeg=ours.wall_s / single.wall_s,
        cpu_to_one_ffmpeg=ours.cpu_s / single.cpu_s,
    )


def _sample(folder: Path, duration_s: float) -> Path:
    """720p with a key frame every two seconds, as is usual for what comes from the web."""
    small = sample.make(folder / "small.mkv", duration_s)
    path = folder / "sample.mkv"
    scale = ["-vf", "scale=1280:720", "-c:v", "libx264", "-preset", "veryfast", "-crf", "16", "-g", "50", "-c:a", "copy", str(path)]
    ffmpeg.run([ffmpeg.find("libx264").path, "-hide_banner", "-i", str(small), *scale])
    return path


def _by_rayflow(client: rayflow.Client, source: str, settings: Settings, output: Path) -> None:
    client.start(encode_video, Job(source, output, settings, content_key(source))).result()


def _by_plain_ray(source: str, settings: Settings, output: Path) -> None:
    """What somebody would write with nothing but Ray: nothing is kept, nothing is tried again."""
    made = Task(_prepare).run(source, output, settings)
    task = Task(encode.encode_chunk)
    paths = {chunk.name: output.with_name(f"{output.stem}-{chunk.name}.mp4") for chunk in made.chunks}
    started = {
        chunk.name: task.start(source, made.info, chunk, settings, paths[chunk.name]) for chunk in plan.longest_first(made.chunks)
    }
    encoded = results([started[chunk.name] for chunk in made.chunks])
    chosen = audio.choose(made.info, settings, output)
    Task(join.join).run(source, made, encoded, settings, chosen, None, output)
    for path in paths.values():
        path.unlink()


def _prepare(source: str, output: Path, settings: Settings) -> plan.Plan:
    read = index.read(source)
    join.check(read.info, settings, output)
    encode.check(settings, read.info.video)
    return plan.make(read, settings)


def _by_one_ffmpeg(source: str, settings: Settings, output: Path) -> None:
    binary = ffmpeg.find("libx264")
    arguments = list(encoder_arguments(settings, index.read(source).info.video))
    place = arguments.index("-threads")
    del arguments[place : place + 2]
    streams = ["-map", "0:v:0", "-map", "0:a?", "-c:a", "copy", "-fps_mode", "passthrough"]
    ffmpeg.run([binary.path, "-hide_banner", "-i", source, *streams, *arguments, str(output)])
