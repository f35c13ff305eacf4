"""``python -m rayflow diagnose`` on a cluster: from what nodes said to what is told. Real nodes are in tests/cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayflow.operator.cluster_diagnosis import COLUMNS, NodeReport, Versions, findings, row, skew
from rayflow.operator.command import main
from rayflow.operator.display import fitted_lines

HERE = Versions("2.60.0", "3.11.2", "0.1.0")
FINE = NodeReport("one", HERE, "7.0.2", "", 0.01, 0.002, 20 * 2**30)


def test_where_nothing_is_wrong_that_is_the_only_finding() -> None:
    (found,) = findings([FINE, replace(FINE, node="two")], HERE)
    assert (found.ok, found.detail) == (True, "2 nodes, nothing wrong")


@pytest.mark.parametrize(
    ("report", "says"),
    [
        (replace(FINE, versions=replace(HERE, ray="2.59.0")), "Ray 2.59.0, here 2.60.0: use one version on all nodes"),
        (replace(FINE, versions=replace(HERE, python="3.12.1")), "Python 3.12.1, here 3.11.2"),
        (replace(FINE, versions=replace(HERE, rayflow="0.2.0")), "rayflow 0.2.0, here 0.1.0"),
        (replace(FINE, ffmpeg=""), "no ffmpeg that runs"),
        (replace(FINE, store_error="StoreUnsuitable: access denied"), "store: StoreUnsuitable: access denied"),
        (replace(FINE, skew_s=-3.2), "its clock is 3.2 s (give or take 0.00 s) behind the one here"),
        (replace(FINE, free_bytes=2**29), "0.5 GiB free for temporary files: make room"),
        (NodeReport("one", unanswered="nothing within 45 s"), "no answer (nothing within 45 s)"),
    ],
)
def test_what_is_wrong_with_a_node_is_said_with_its_name(report: NodeReport, says: str) -> None:
    (found,) = findings([replace(FINE, node="two"), report], HERE)
    assert (found.subject, found.ok) == ("one", False)
    assert says in found.detail


def test_a_cluster_without_a_node_is_not_fine() -> None:
    assert [found.ok for found in findings([], HERE)] == [False]


def test_a_clock_that_cannot_be_told_well_enough_is_not_called_wrong() -> None:
    ahead_s, uncertainty_s = skew(100.0, 107.0, 110.0)
    assert (ahead_s, uncertainty_s) == (2.0, 5.0)
    assert findings([replace(FINE, skew_s=ahead_s, skew_uncertainty_s=uncertainty_s)], HERE)[0].ok
    assert not findings([replace(FINE, skew_s=ahead_s, skew_uncertainty_s=0.5)], HERE)[0].ok


def test_the_table_fits_a_terminal_and_has_a_row_for_a_node_that_does_not_answer() -> None:
    reports = [replace(FINE, node="ip-10-0-12-34 (head)"), NodeReport("ip-10-0-12-35", unanswered="nothing within 45 s")]
    heading, fine, silent = fitted_lines(COLUMNS, [row(report) for report in reports], 80)
    assert {"NODE", "STORE", "CLOCK"} <= set(heading.split())
    assert "+0.01±0.00s" in fine
    assert silent.split()[0] == "ip-10-0-12-35" and "no answer" in silent
    assert max(map(len, (heading, fine, silent))) <= 80


def test_an_address_where_no_cluster_answers_is_said_in_one_line(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYFLOW_STORE", f"{tmp_path}/store")
    assert main(["diagnose", "--address", "127.0.0.1:9"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("rayflow: no Ray cluster answers at 127.0.0.1:9") and captured.err.count("\n") == 1
