"""A reference is given out only if an import leads back to the object, and resolving says what is missing."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest

from rayflow.core.code_reference import reference_of, resolve
from rayflow.errors import InvalidInput
from tests.core import codec_types
from tests.core.codec_types import Chunk, Outer, decorated, double, nameless, shadow

HERE = "tests.core.codec_types"


@pytest.mark.parametrize(
    ("target", "reference", "found"),
    [
        (double, f"{HERE}:double", double),
        (Chunk, f"{HERE}:Chunk", Chunk),
        (Outer.Inner, f"{HERE}:Outer.Inner", Outer.Inner),
        (Outer.method, f"{HERE}:Outer.method", Outer.method),
        (decorated, f"{HERE}:decorated", decorated),
        (decorated.__wrapped__, f"{HERE}:decorated", decorated),
        (nameless.__wrapped__, f"{HERE}:nameless", nameless),
        (len, "builtins:len", len),
    ],
)
def test_a_reference_leads_back_to_the_object_or_to_what_wraps_it(target: Any, reference: str, found: Any) -> None:
    assert reference_of(target) == reference
    assert resolve(reference) is found


def test_an_object_without_a_name_of_its_own_goes_by_what_it_wraps() -> None:
    assert resolve(reference_of(nameless)) is nameless


def of_main() -> int:
    return 1


of_main.__module__ = "__main__"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: 1, "a lambda of module 'tests.core.test_code_reference' has no name"),
        (of_main, "'of_main' is defined in __main__.*top level of a module"),
        (functools.partial(double, 1), "functools.partial.*has no import path.*define a function"),
        (Chunk(1, "a", 0.0), "no import path|names"),
        (shadow, f"{HERE}:double names <function double.*, not <function"),
    ],
)
def test_what_no_import_leads_back_to_is_refused(target: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        reference_of(target)


def test_a_function_or_class_inside_a_function_is_refused() -> None:
    def local() -> int:
        return 1

    class Local:
        pass

    for target in (local, Local):
        with pytest.raises(InvalidInput, match=r"<locals>\.\w+ is defined inside a function.*top level of a module"):
            reference_of(target)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no.such:thing", "module 'no.such' of 'no.such:thing' cannot be imported .*Install it"),
        (f"{HERE}:Gone", f"module '{HERE}' has no attribute 'Gone'.*alias"),
        (f"{HERE}:Outer.gone", f"module '{HERE}' has no attribute 'Outer.gone'"),
        ("__main__:f", "'__main__:f' lies in __main__"),
        *((text, re.escape(repr(text)) + " is no code reference") for text in ("", ":", "a", "a:", ":b", ".a:b", "a:b:c")),
    ],
)
def test_an_unresolved_reference_names_module_and_attribute(reference: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        resolve(reference)


def test_a_module_that_fails_while_it_is_imported_is_invalid_input(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_on_import.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidInput, match=r"'broken_on_import'.*RuntimeError: no licence"):
        resolve("broken_on_import:f")


def test_a_class_defined_again_is_found_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = reference_of(codec_types.Plain)
    newer = type("Plain", (), {"__module__": HERE})
    monkeypatch.setattr(codec_types, "Plain", newer)
    assert resolve(reference) is newer
