"""What workflows are tested with: in one process, in memory, with a clock that needs no time.

``run_workflow`` runs one and returns its result. ``crash_sweep`` runs it again and again with a crash at every write.
``replay_execution`` and ``replay_history`` check what production has on record against the code of today.
"""

from rayflow.checkpoint.reading import read_records
from rayflow.testing.crash_sweep import SweepReport, crash_sweep
from rayflow.testing.replayer import replay_execution, replay_history
from rayflow.testing.virtual import run_workflow

__all__ = ["SweepReport", "crash_sweep", "read_records", "replay_execution", "replay_history", "run_workflow"]
