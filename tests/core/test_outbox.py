"""The output gate: effects stand in the batch of the records that they could have seen, or in a later one.

Invariants: I8.
"""

from rayflow.core.context import Context
from rayflow.core.definitions import step, workflow
from rayflow.core.mail import Mail
from rayflow.core.messages import Accepted, AwaitOutcome, CancelExecution, StartExecution
from rayflow.core.outbox import CancelStep, Outbox, Reply, StartStep
from rayflow.core.records import INLINE_LIMIT_BYTES, Blob, Forgotten, Function, digest, encode_record
from rayflow.core.workflows import Workflows
from tests.core.driver import Driver, MemoryCode


@step
def double(value: bytes) -> bytes:
    return value + value


@workflow
async def doubling(ctx: Context, value: bytes) -> bytes:
    value = await ctx.step(double, value)
    return await ctx.step(double, value)


def test_what_leaves_with_a_batch_was_recorded_in_it_or_before() -> None:
    code = MemoryCode()
    code.workflows["doubling"] = doubling
    outbox = Outbox()
    machine = Workflows(outbox, code, Mail.alone(outbox))
    data = code.encoded(((b"x",), {}))
    machine.receive("start", StartExecution("x", Function("doubling"), "1", data, "f", 1), 0)
    machine.receive("again", StartExecution("x", Function("doubling"), "1", data, "f", 1), 0)
    first = outbox.close()
    assert [type(one).__name__ for one in first.records] == ["Started", "Scheduled"]
    assert [type(one) for one in first.effects] == [StartStep, Reply, Reply]
    assert first.encoded == [encode_record(one) for one in first.records]

    machine.receive("await", AwaitOutcome("x"), 1)
    machine.receive("attach", StartExecution("x", Function("doubling"), "1", data, "f", 1), 1)
    second = outbox.close()
    assert (second.records, [one.token for one in second.effects if isinstance(one, Reply)]) == ([], ["attach"])
    assert second.effects == [Reply("attach", Accepted("x", created=False))]

    machine.receive("cancel", CancelExecution("x", "why"), 2)
    third = outbox.close()
    assert [type(one).__name__ for one in third.records] == ["CancelRequested", "Abandoned", "Finished"]
    assert [type(one) for one in third.effects] == [CancelStep, Reply, Reply]
    assert not outbox


def test_nothing_has_left_when_the_machine_is_lost_before_its_batch_is_durable() -> None:
    driver = Driver(doubling, dispatcher="survives")
    answers = driver.start(doubling, b"x", id="durable")
    message = StartExecution("x", Function("doubling"), "1", driver.code.encoded(((b"y",), {})), "f", 1)
    driver.machine.receive("lost", message, driver.now_ms)
    assert driver.outbox
    driver.crash()
    assert len(answers) == 1
    assert "lost" not in driver.answers
    assert [attempt[0] for attempt in driver.running] == ["durable"]
    assert driver.records("x") == []


def test_nothing_leaves_while_its_batch_is_being_written() -> None:
    driver = Driver(doubling)
    driver.process.store.hold()
    answers = driver.start(doubling, b"x")
    assert (answers, driver.running, driver.log) == ([], {}, [])
    driver.process.store.release()
    driver.commit()
    assert (len(answers), len(driver.running), len(driver.log)) == (1, 1, 1)


def test_large_values_are_blobs_of_the_batch_that_names_them() -> None:
    size = INLINE_LIMIT_BYTES * 2 // 3
    driver = Driver(doubling)
    driver.start(doubling, bytes(size))
    assert isinstance(driver.running[driver.attempt("double#1")].arguments, bytes)
    driver.finish("double#1")
    start = driver.running[driver.attempt("double#2")]
    [(place, argument)] = start.passed
    assert isinstance(argument, Blob) and place == 0
    assert len(driver.code.blobs[argument.hash]) == argument.size_bytes
    driver.settle()
    result = driver.ended().result
    assert isinstance(result, Blob)
    driver.crash()
    assert driver.result() == bytes(4 * size)


def test_a_value_of_exactly_the_limit_stays_inline() -> None:
    outbox = Outbox()
    fits, large = bytes(INLINE_LIMIT_BYTES), bytes(INLINE_LIMIT_BYTES + 1)
    assert outbox.store(fits) is fits
    assert outbox.store(large) == Blob(digest(large), len(large))
    assert not outbox, "a blob alone is nothing to write: it goes with the records that name it"
    outbox.record(Forgotten("x", 0))
    batch = outbox.close()
    assert batch.blobs == {digest(large): large}
    assert not outbox.close().records
