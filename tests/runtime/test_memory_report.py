"""What is left of Ray's report of a process that it has ended for memory."""

from __future__ import annotations

from rayflow.runtime.memory_report import explain

ADVICE = ": have it use less, or say how much it needs (memory=, in bytes), so that Ray runs fewer at a time"

REPORT = """2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 9aaf) was 2.64GB used / 23.54GB limit (0.112)
OOM kill reason: Memory usage 2825187328B exceeded threshold of 2798108672B (11.1% of 25276502016B limit)
Ray killed 2 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Task: job ID=01000000, lease ID=0100, task name=new train[2], required resources={CPU: 0.5}, pid=11, actual memory used=0.04GB, worker ID=d309)
Selected to kill: (Task: job ID=01000000, lease ID=0000, task name=old train[1] (+3), required resources={CPU: 0.5}, pid=12, actual memory used=1.69GB, worker ID=41be)
(Actor(1293): job ID=01000000, lease ID=0000, task name=s:Sup.__init__, required resources={memory: 1}, pid=9, actual memory used=0.06GB, worker ID=a6e1)
]
Top 10 memory users: PID	MEM(GB)	COMMAND
12	1.69	ray::old train[1]
9	0.06	ray::Sup.arun
Refer to the documentation on how to address the out of memory issue."""  # noqa: E501

UNTIL_2_55 = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.7, ID: 9aaf) where the task (task ID: c8ef, name=old train[1], pid=12, memory used=15.00GB) was running was 28.00GB / 29.30GB (0.955), which exceeds the memory usage threshold of 0.95."""  # noqa: E501


def test_it_says_which_node_and_how_much_the_step_had() -> None:
    had = "Ray ended its process, which had 1.69 GB, because node 10.0.0.7 was running out of memory (2.64 of 23.54 GB in use)"
    assert explain(REPORT, "old train[1]") == had + ADVICE
    had = "Ray ended its process, which had 15 GB, because node 10.0.0.7 was running out of memory (28.00 of 29.30 GB in use)"
    assert explain(UNTIL_2_55, "old train[1]") == had + ADVICE


def test_one_that_went_for_the_memory_of_another_says_whose() -> None:
    shared = "because node 10.0.0.7 was running out of memory (2.64 of 23.54 GB in use, 1.69 by ray::old train[1])"
    assert explain(REPORT, "new train[2]") == f"Ray ended its process, which had 0.04 GB, {shared}{ADVICE}"
    assert explain(REPORT, "new train[20]") == f"Ray ended its process {shared}{ADVICE}", "its process has the name of another step"


def test_a_report_of_another_form_is_no_error() -> None:
    assert explain("something else", "x y") == f"Ray ended its process because its node was running out of memory{ADVICE}"
