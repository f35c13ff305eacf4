from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from pipelines.video.command_process import StopRequested, stopped_by_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Signals as they are by default, and in the end as they were."""
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_the_command_with_its_exit_code(number: signal.Signals) -> None:
    with pytest.raises(StopRequested) as stopped, stopped_by_signals():
        os.kill(os.getpid(), number)
    assert stopped.value.exit_code == 128 + number
    assert {signal.getsignal(one) for one in SIGNALS} == {signal.SIG_DFL}


def test_a_signal_that_is_ignored_as_under_nohup_or_in_the_background_does_not_stop_it() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with pytest.raises(StopRequested) as stopped, stopped_by_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
