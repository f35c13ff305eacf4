"""What a user defines: steps, workflows, and how a step is to be run and tried again.

Called directly, a step is the plain function, so that it can be tested with nothing running.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from rayflow.core import options as allowed
from rayflow.core.options import check, refuse, shown
from rayflow.errors import InvalidInput

if TYPE_CHECKING:
    from rayflow.core.context import Context

P = ParamSpec("P")
R = TypeVar("R")

Delivery = Literal["at_least_once", "at_most_once"]


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed attempt is followed by another.

    Before attempt n+1 passes ``min(initial_s * backoff ** (n - 1), max_s)`` seconds, spread by ``± jitter`` of itself. The spread
    is drawn from the execution's seed: the schedule of retries is the same on every replay.

    Attributes:
        max_attempts: Attempts in all, at least 1. Attempts lost with the cluster do not count.
        initial_s: Seconds before the second attempt.
        backoff: Factor from one pause to the next, at least 1.
        max_s: Longest pause in seconds.
        jitter: Share of the pause by which it is spread, 0 to 1.
        retry_on: Exception types that are worth another attempt; others fail the step at once.
        give_up_on: Exceptions to these. Wrong input is never retried.
    """

    max_attempts: int = 3
    initial_s: float = 1.0
    backoff: float = 2.0
    max_s: float = 60.0
    jitter: float = 0.1
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = (InvalidInput,)

    def __post_init__(self) -> None:
        check("Retry", "max_attempts", self.max_attempts, allowed.COUNT)
        check("Retry", "initial_s", self.initial_s, allowed.PAUSE)
        check("Retry", "backoff", self.backoff, allowed.FACTOR)
        check("Retry", "max_s", self.max_s, allowed.PAUSE)
        check("Retry", "jitter", self.jitter, allowed.SHARE)
        check("Retry", "retry_on", self.retry_on, allowed.ERRORS)
        check("Retry", "give_up_on", self.give_up_on, allowed.ERRORS)

    def pause_ms(self, failed_attempt: int, spread: float) -> int:
        """Milliseconds between failed attempt number ``failed_attempt`` (from 1) and the next; ``spread`` is in [-1, 1]."""
        try:
            grown_s = self.initial_s * float(self.backoff) ** min(failed_attempt - 1, 64)
        except OverflowError:
            grown_s = self.max_s if self.initial_s else 0.0
        return round(min(grown_s, self.max_s) * (1 + self.jitter * spread) * 1000)

    def wants(self, error: BaseException) -> bool:
        """Whether this type of error is worth another attempt."""
        return isinstance(error, self.retry_on) and not isinstance(error, self.give_up_on)


def retry_pause_ms(retry: Retry, seed: int, operation: str, failed_attempt: int) -> int:
    """The pause after failed attempt number ``failed_attempt``: known in advance, the same on every run of this execution."""
    spread = random.Random(f"{seed}/{operation}/{failed_attempt}").uniform(-1, 1)
    return retry.pause_ms(failed_attempt, spread)


@dataclass(frozen=True, slots=True)
class StepOptions:
    """How a step runs. ``resources`` are Ray's own task options (num_cpus, num_gpus, memory, label_selector, ...)."""

    name: str
    retry: Retry = Retry()
    timeout_s: float | None = None
    inline: bool = False
    delivery: Delivery = "at_least_once"
    resources: Mapping[str, Any] = field(default_factory=dict[str, Any])
    speculative: bool = False


class Step(Generic[P, R]):
    """A function that a workflow runs as one durable operation. Made by ``@rayflow.step``."""

    def __init__(self, function: Callable[P, Any], options: StepOptions) -> None:
        self.function = function
        self.settings = options
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, with nothing recorded."""
        return self.function(*args, **kwargs)

    def options(
        self,
        *,
        name: str | None = None,
        key: str | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
        **ray_options: Any,
    ) -> BoundStep[P, R]:
        """The same step with other settings for one call; ``key`` names the operation where it is called more than once.

        Raises:
            InvalidInput: As ``step`` does.
        """
        if key is not None:
            check(f"step {self.settings.name}", "key", key, allowed.KEY)
        settings = replace(
            self.settings,
            name=self.settings.name if name is None else name,
            retry=self.settings.retry if retry is None else retry,
            timeout_s=self.settings.timeout_s if timeout is None else timeout,
            resources={**self.settings.resources, **ray_options},
        )
        _check(settings, self.function)
        return BoundStep(self, settings, key)

    def __repr__(self) -> str:
        return f"<step {self.settings.name}>"


@dataclass(frozen=True, slots=True)
class BoundStep(Generic[P, R]):
    """A step with the settings of one call."""

    step: Step[P, R]
    settings: StepOptions
    key: str | None


@overload
def step(function: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    retry: Retry = ...,
    timeout: float | None = None,
    inline: bool = False,
    delivery: Delivery = "at_least_once",
    speculative: bool = False,
    **ray_options: Any,
) -> Callable[[Callable[P, R]], Step[P, R]]: ...
def step(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: Retry | None = None,
    timeout: float | None = None,
    inline: bool = False,
    delivery: Delivery = "at_least_once",
    speculative: bool = False,
    **ray_options: Any,
) -> Any:
    """Make a function a step: run by a workflow with ``ctx.step(function, ...)``, recorded, tried again, never run again once done.

    Args:
        name: How the step is called in records and in the Ray dashboard; default: the function's name.
        retry: See Retry; default: 3 attempts after any Exception.
        timeout: Seconds one attempt may take, counted where it runs; its process is stopped afterwards.
        inline: Run in the shard's process instead of as a Ray task: for functions of milliseconds. Takes no Ray options, and a
            time-out only if the function is ``async``.
        delivery: "at_least_once" (default), or "at_most_once": an attempt that may have run is never followed by another.
        speculative: An attempt that takes at least twice as long as the median of the same step in the same execution (three of
            which must have ended), and five seconds longer, is run a second time on another node that has CPUs to spare. The first
            to succeed counts, the other is stopped. For steps whose effects may happen twice at the same time.
        ray_options: num_cpus, num_gpus, memory (bytes), resources, accelerator_type, label_selector, scheduling_strategy,
            runtime_env: given to Ray as they are.

    Raises:
        InvalidInput: An option has a value that it does not take, options contradict each other, Ray has no such option, or what
            they are for is no function.
    """

    def make(function: Callable[..., Any]) -> Step[..., Any]:
        title = _function_name(function, "step") if name is None else name
        _check_returns(function, title)
        chosen = Retry() if retry is None else retry
        options = StepOptions(title, chosen, timeout, inline, delivery, dict(ray_options), speculative)
        _check(options, function)
        return Step(function, options)

    return make if function is None else make(function)


_OWN_OPTIONS = frozenset(["delivery", "inline", "name", "retry", "speculative", "timeout"])


def _check(options: StepOptions, function: Callable[..., Any]) -> None:
    check(f"step {shown(options.name)}", "name", options.name, allowed.NAME)
    owner, given = f"step {options.name}", sorted(options.resources)
    unknown = [name for name in given if name not in allowed.RAY]
    if unknown:
        where = " (of the definition alone: it cannot be another for one call)" if _OWN_OPTIONS.issuperset(unknown) else ""
        raise InvalidInput(
            f"{owner}: unknown option {', '.join(unknown)}{where}; Ray options are {', '.join(sorted(allowed.RAY))}, "
            f"others are {', '.join(sorted(_OWN_OPTIONS))}"
        )
    if not isinstance(options.retry, Retry):  # pyright: ignore[reportUnnecessaryIsInstance]  # users are not all typed
        attempts = options.retry if allowed.is_count(options.retry) else 3
        refuse(owner, "retry", options.retry, f"a rayflow.Retry: write retry=rayflow.Retry(max_attempts={attempts})")
    if options.timeout_s is not None:
        check(owner, "timeout", options.timeout_s, allowed.SECONDS)
    check(owner, "inline", options.inline, allowed.YES_OR_NO)
    check(owner, "speculative", options.speculative, allowed.YES_OR_NO)
    check(owner, "delivery", options.delivery, allowed.DELIVERY)
    for name, value in options.resources.items():
        check(owner, name, value, allowed.RAY[name])
    if options.inline and given:
        raise InvalidInput(f"{owner}: inline steps run in the shard's process and take no {given}")
    if options.speculative and (options.inline or options.delivery == "at_most_once" or "scheduling_strategy" in given):
        raise InvalidInput(
            f"{owner}: a speculative step may run twice at a time, on two nodes: it is neither inline nor at_most_once, "
            f"and chooses no scheduling_strategy"
        )
    if options.inline and options.timeout_s is not None and not inspect.iscoroutinefunction(function):
        raise InvalidInput(f"{owner}: an inline function cannot be interrupted; make it async or not inline")


def _function_name(function: object, kind: str) -> str:
    name, text = getattr(function, "__name__", None), shown(function)
    if not callable(function) or isinstance(function, (type, Step, Workflow)) or not isinstance(name, str):
        raise InvalidInput(
            f"@rayflow.{kind} stands above a function and takes its options by name: {text} is no function; write "
            f"@rayflow.{kind} or @rayflow.{kind}(name='...') above a 'def'"
        )
    return name


def _check_returns(function: Callable[..., Any], name: str) -> None:
    _function_name(function, "step")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidInput(f"step {name}: it yields; a step returns one value: return a list, or make a step of each part")


class Workflow(Generic[P, R]):
    """An ``async def`` that supervises steps. Made by ``@rayflow.workflow``; started with ``client.start``."""

    def __init__(self, function: Callable[Concatenate[Context, P], Coroutine[Any, Any, R]], name: str, version: str) -> None:
        self.function = function
        self.name = name
        self.version = version
        functools.update_wrapper(self, function)

    def __call__(self, ctx: Context, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """The coroutine itself, for calling a workflow's code from another's."""
        return self.function(ctx, *args, **kwargs)

    def check_arguments(self, ctx: Context, *args: Any, **kwargs: Any) -> None:
        """Raises InvalidInput for arguments that the function does not take. Types are not looked at."""
        try:
            inspect.signature(self.function).bind(ctx, *args, **kwargs)
        except TypeError as error:
            raise InvalidInput(f"workflow {self.name} does not take these arguments: {error}") from error

    def __repr__(self) -> str:
        return f"<workflow {self.name} version {self.version}>"


@overload
def workflow(function: Callable[Concatenate[Context, P], Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *, name: str | None = None, version: str = "1"
) -> Callable[[Callable[Concatenate[Context, P], Coroutine[Any, Any, R]]], Workflow[P, R]]: ...
def workflow(function: Callable[..., Any] | None = None, /, *, name: str | None = None, version: str = "1", **unknown: Any) -> Any:
    """Make an ``async def`` a workflow. Its first parameter is the Context; ``version`` is recorded with every execution.

    Raises InvalidInput: name or version is no text, it has other options, or what they are for is no ``async def``.
    """

    def make(function: Callable[..., Any]) -> Workflow[..., Any]:
        title = _function_name(function, "workflow")
        if not inspect.iscoroutinefunction(function):
            raise InvalidInput(f"workflow {title}: a workflow is an async function: write 'async def'")
        if unknown:
            raise InvalidInput(
                f"workflow {title}: unknown option {', '.join(sorted(unknown))}; it takes name and version, its steps the rest"
            )
        if name is not None:
            check(f"workflow {title}", "name", name, allowed.TEXT)
        check(f"workflow {title}", "version", version, allowed.TEXT)
        return Workflow(function, title if name is None else name, version)

    return make if function is None else make(function)
