"""Scene changes are found at their frame, in however many intervals one looks."""

from __future__ import annotations

from pathlib import Path

from pipelines.video import index, plan, sample, scenes
from pipelines.video.settings import Settings
from tests.pipelines.conversion import clip


def test_intervals_find_the_same_changes_as_one_look() -> None:
    source = clip("bikes.mp4")
    indexed = index.read(source)
    whole = scenes.detect(source, indexed.info, plan.make(indexed, Settings(split="none")).chunks[0])
    assert whole == (15_360, 38_912, 70_144, 95_744, 123_904)
    parts = plan.make(indexed, Settings(split=(2.0, 4.0, 7.0))).chunks
    assert scenes.merge(scenes.detect(source, indexed.info, part) for part in parts) == whole


def test_the_sample_has_five_scenes_that_chunks_follow(tmp_path: Path) -> None:
    made = sample.make(tmp_path / "sample.mp4", duration_s=10.0)
    indexed = index.read(str(made))
    assert (indexed.info.video.frames, indexed.info.video.width, len(indexed.info.of_kind("audio"))) == (250, 640, 1)
    changes = scenes.merge(scenes.detect(str(made), indexed.info, interval) for interval in plan.scene_intervals(indexed))
    tick = indexed.info.video.time_base
    assert [float(at * tick) for at in changes] == [2.0, 4.0, 6.0, 8.0]
    chunks = plan.make(indexed, Settings(split="scenes", chunk_seconds=2.1), changes).chunks
    assert [chunk.start_pts for chunk in chunks[1:]] == list(changes)
    assert [path.name for path in tmp_path.iterdir()] == ["sample.mp4"]
