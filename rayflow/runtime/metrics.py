"""What the processes of rayflow tell Prometheus: the names, and how they get there.

``METRICS`` is the one source: docs/metrics.md, the alerts and the dashboard in cluster/metrics are held against it by a test. Ray
exports a metric under ``ray_`` and its name, on a port of each node, with or without its dashboard.

What happens often is counted in plain numbers by a ``Publisher`` and told to Ray every ``PERIOD_S``. Ray's agent takes in every
single observation of a histogram by itself, so at most ``LARGEST_SAMPLE`` of a period are told, evenly taken: quantiles are those
of that sample, exact numbers are in the counters. No label names an execution or an entity: their number has no bound.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum

from ray.util import metrics as ray_metrics

PERIOD_S = 2.0
"""How often counts are told to Ray, in seconds; Ray itself passes them on every 10 s (``RAY_metrics_report_interval_ms``)."""

LARGEST_SAMPLE = 200
LARGEST_LABELS = 100
"""Names of steps that get series of their own, per process; what comes later is counted under ``OTHER``."""

OTHER = "(other)"
_ZERO = sys.float_info.min
"""A counter begins at zero, or its first increment would not be seen as one; but Ray's take nothing that is not above zero."""


class Kind(StrEnum):
    """Types of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One name. All have the label ``store`` besides ``labels``; ``boundaries`` are those of a histogram's buckets."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str
    boundaries: tuple[float, ...] = ()


_QUICK_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_SLOW_S = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
_BATCH = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)

_SHARD = ("shard",)
_STEP = ("step",)

EXECUTIONS = Metric(
    "rayflow_executions",
    Kind.GAUGE,
    "executions",
    ("shard", "state"),
    "Executions that have not ended: `running` (in memory), `resting` (on record alone: they wait for time and letters only) or "
    "`suspended` (their code cannot go on).",
)
EXECUTIONS_STARTED = Metric("rayflow_executions_started_total", Kind.COUNTER, "executions", _SHARD, "Executions started.")
EXECUTIONS_ENDED = Metric(
    "rayflow_executions_ended_total",
    Kind.COUNTER,
    "executions",
    ("shard", "status"),
    "Executions that ended: `completed`, `failed` or `cancelled`.",
)
SUSPENSIONS = Metric(
    "rayflow_suspensions_total",
    Kind.COUNTER,
    "executions",
    _SHARD,
    "Executions whose code could not go on: it does not match its record, cannot be loaded, or ends the process.",
)
REPLAYS = Metric("rayflow_replays_total", Kind.COUNTER, "executions", _SHARD, "Executions whose code ran again through its record.")
RESTED = Metric(
    "rayflow_executions_rested_total", Kind.COUNTER, "executions", _SHARD, "Executions that left memory because they only waited."
)

STEPS_STARTED = Metric("rayflow_steps_started_total", Kind.COUNTER, "steps", _STEP, "Steps that a workflow asked for.")
STEPS_FINISHED = Metric("rayflow_steps_finished_total", Kind.COUNTER, "steps", _STEP, "Steps whose result is on record.")
STEPS_FAILED = Metric(
    "rayflow_steps_failed_total", Kind.COUNTER, "steps", _STEP, "Steps that failed for good: the workflow got the error."
)
STEPS_RETRIED = Metric("rayflow_steps_retried_total", Kind.COUNTER, "attempts", _STEP, "Attempts after the first.")
ATTEMPTS_FAILED = Metric(
    "rayflow_step_attempts_failed_total",
    Kind.COUNTER,
    "attempts",
    ("step", "cause"),
    "Attempts that failed, tried again or not: `error` (the step raised), `timeout`, `crash` (its process died) or `lost` (node, "
    "dispatcher or cluster gone).",
)
STEP_RUN = Metric(
    "rayflow_step_run_seconds", Kind.HISTOGRAM, "seconds", _STEP, "How long attempts ran, where they ran, on record.", _SLOW_S
)
STEP_QUEUE = Metric(
    "rayflow_step_queue_seconds",
    Kind.HISTOGRAM,
    "seconds",
    _STEP,
    "How long attempts waited between the call of Ray and their first line; by the clocks of two nodes. Not of inline steps.",
    _SLOW_S,
)
STEPS_QUEUED = Metric(
    "rayflow_steps_queued",
    Kind.GAUGE,
    "attempts",
    (),
    "Attempts in the dispatcher's hands that are not known to run: they wait for a place, or began less than half a second ago.",
)
STEPS_RUNNING = Metric(
    "rayflow_steps_running", Kind.GAUGE, "attempts", (), "Attempts that have run for half a second or more. Not of inline steps."
)

COMMIT_TIME = Metric(
    "rayflow_commit_seconds",
    Kind.HISTOGRAM,
    "seconds",
    _SHARD,
    "How long a batch took to become durable, retries included.",
    _QUICK_S,
)
COMMIT_RECORDS = Metric("rayflow_commit_records", Kind.HISTOGRAM, "records", _SHARD, "Records in a batch.", _BATCH)
COMMITS = Metric("rayflow_commits_total", Kind.COUNTER, "segments", _SHARD, "Batches that became durable, each as one segment.")
RECORDS = Metric("rayflow_records_total", Kind.COUNTER, "records", _SHARD, "Records that became durable.")
LOG_BYTES = Metric("rayflow_log_bytes_total", Kind.COUNTER, "bytes", _SHARD, "Bytes written to the log, blobs not counted.")
REPLAY_BYTES = Metric(
    "rayflow_log_replay_bytes", Kind.GAUGE, "bytes", _SHARD, "Log since the last snapshot: what a recovery would read."
)
SNAPSHOTS = Metric("rayflow_snapshots_total", Kind.COUNTER, "snapshots", _SHARD, "Snapshots written.")
SNAPSHOT_BYTES = Metric("rayflow_snapshot_bytes", Kind.GAUGE, "bytes", _SHARD, "Size of the last snapshot.")
STORE_ERRORS = Metric(
    "rayflow_store_errors_total",
    Kind.COUNTER,
    "requests",
    _SHARD,
    "Times that the store did not take a write, or did not answer; it is asked again until it does.",
)

CLAIMS = Metric("rayflow_claims_total", Kind.COUNTER, "claims", _SHARD, "Take-overs of a shard: epochs begun.")
EPOCH = Metric("rayflow_epoch", Kind.GAUGE, "epoch", _SHARD, "The epoch of the shard's owner.")
RECOVERY_TIME = Metric(
    "rayflow_recovery_seconds",
    Kind.HISTOGRAM,
    "seconds",
    _SHARD,
    "How long a take-over took, from reading the log to every execution brought back.",
    _SLOW_S,
)
FENCINGS = Metric(
    "rayflow_fencings_total", Kind.COUNTER, "fencings", _SHARD, "Times that an owner found out that the shard has another one."
)
SHARD_FAILURES = Metric(
    "rayflow_shard_failures_total",
    Kind.COUNTER,
    "failures",
    _SHARD,
    "Times that a shard stopped for another reason, and was opened again.",
)
SHARD_OPEN = Metric("rayflow_shard_open", Kind.GAUGE, "0 or 1", _SHARD, "Whether the process owns the shard and works for it.")
SHARD_SUSPENDED = Metric(
    "rayflow_shard_suspended",
    Kind.GAUGE,
    "0 or 1",
    _SHARD,
    "Whether the shard is closed for a while, after failures or crashes in a row.",
)

ENTITIES = Metric("rayflow_entities", Kind.GAUGE, "entities", _SHARD, "Entities that there are.")
ENTITIES_ACTIVE = Metric("rayflow_entities_active", Kind.GAUGE, "entities", _SHARD, "Entities in memory.")
TURNS = Metric(
    "rayflow_entity_turns_total",
    Kind.COUNTER,
    "turns",
    _SHARD,
    "Operations, queries and reminders that entities ran, in vain those that a fenced owner ran last.",
)
ACTIVATIONS = Metric("rayflow_entity_activations_total", Kind.COUNTER, "entities", _SHARD, "Entities brought into memory.")
PASSIVATIONS = Metric("rayflow_entity_passivations_total", Kind.COUNTER, "entities", _SHARD, "Entities that left memory.")
MAILBOX = Metric(
    "rayflow_mailbox_messages",
    Kind.GAUGE,
    "messages",
    _SHARD,
    "Requests of clients that were taken in and not answered; waiting for the end of an execution does not count.",
)
LETTERS = Metric(
    "rayflow_letters_unconfirmed", Kind.GAUGE, "letters", _SHARD, "Letters to other shards that those have not confirmed."
)
DEAD_LETTERS = Metric("rayflow_dead_letters", Kind.GAUGE, "letters", _SHARD, "Dead letters that nobody has settled.")

METRICS: tuple[Metric, ...] = tuple(one for one in list(globals().values()) if isinstance(one, Metric))
"""All of them, in the order above; those of the encoder are in ``pipelines.video.metrics``."""

_Key = tuple[Metric, tuple[str, ...]]


def evenly(values: list[float], most: int) -> list[float]:
    """At most so many of the values, from all over the list."""
    return values[:: max(-(-len(values) // most), 1)]


class Publisher:
    """Gathers what happened and tells Ray of it when asked to. For one thread. ``store`` is the label that all have."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._counts: dict[_Key, float] = {}
        self._values: dict[_Key, list[float]] = {}
        self._levels: dict[_Key, float] = {}
        self._made: dict[str, ray_metrics.Metric] = {}
        self._begun: set[_Key] = set()

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """``by`` more of a counter."""
        key = (metric, labels)
        self._counts[key] = self._counts.get(key, 0.0) + by

    def begin(self, metric: Metric, *labels: str) -> None:
        """Have a counter be there at zero before anything is counted."""
        self._counts.setdefault((metric, labels), 0.0)

    def observe(self, metric: Metric, *labels: str, value: float) -> None:
        """One more observation of a histogram."""
        self._values.setdefault((metric, labels), []).append(value)

    def level(self, metric: Metric, *labels: str, value: float) -> None:
        """What a gauge shows from now on."""
        self._levels[(metric, labels)] = value

    def publish(self) -> None:
        """Tell Ray."""
        counts, self._counts = self._counts, {}
        for key, by in counts.items():
            if key not in self._begun:
                self._begun.add(key)
                self._counter(key[0]).inc(_ZERO, self._tags(key))
            if by > 0:
                self._counter(key[0]).inc(by, self._tags(key))
        values, self._values = self._values, {}
        for key, observed in values.items():
            histogram, tags = self._histogram(key[0]), self._tags(key)
            for value in evenly(observed, LARGEST_SAMPLE):
                histogram.observe(value, tags)
        for key, value in self._levels.items():
            self._gauge(key[0]).set(value, self._tags(key))

    def _tags(self, key: _Key) -> dict[str, str]:
        metric, labels = key
        return {"store": self._store, **dict(zip(metric.labels, labels, strict=True))}

    def _counter(self, metric: Metric) -> ray_metrics.Counter:
        made = self._made.get(metric.name)
        if made is None:
            made = self._made[metric.name] = ray_metrics.Counter(metric.name, metric.meaning, ("store", *metric.labels))
        assert isinstance(made, ray_metrics.Counter)
        return made

    def _gauge(self, metric: Metric) -> ray_metrics.Gauge:
        made = self._made.get(metric.name)
        if made is None:
            made = self._made[metric.name] = ray_metrics.Gauge(metric.name, metric.meaning, ("store", *metric.labels))
        assert isinstance(made, ray_metrics.Gauge)
        return made

    def _histogram(self, metric: Metric) -> ray_metrics.Histogram:
        made = self._made.get(metric.name)
        if made is None:
            made = self._made[metric.name] = ray_metrics.Histogram(
                metric.name, metric.meaning, list(metric.boundaries), ("store", *metric.labels)
            )
        assert isinstance(made, ray_metrics.Histogram)
        return made


class Names:
    """Lets the first ``LARGEST_LABELS`` values of a label through; what comes after them is ``OTHER``."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """The value of the label for this name."""
        if name in self._known:
            return name
        if len(self._known) >= LARGEST_LABELS:
            return OTHER
        self._known.add(name)
        return name

    def is_new(self, name: str) -> bool:
        """Whether ``label`` would let it through for the first time."""
        return name not in self._known and len(self._known) < LARGEST_LABELS
