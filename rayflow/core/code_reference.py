"""Code by its import path: ``"package.module:qualified.name"``.

A record names the function or class it needs, and another process, perhaps with newer code, finds it again. So a
reference is given out only for what an import leads back to: not for lambdas, functions or classes made inside a
function, or anything of ``__main__``, which is another module in every process.

Trust: resolving a reference imports its module, which runs the module's own top-level code. References come from the
store, so whoever can write to the store chooses which *installed* modules are imported; nothing found there is called
here.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator

from rayflow.errors import InvalidInput

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_MAIN_MODULES = ("__main__", "__mp_main__")
_MOVE_IT = "Move it to the top level of a module that every process can import"


def reference_of(target: object) -> str:
    """The reference of a function, a class, or an object that wraps one and sits in its place (a decorated function).

    Guarantees that ``resolve`` finds ``target``, or an object whose chain of ``__wrapped__`` leads to it.
    Raises InvalidInput for lambdas, what is defined inside a function, objects of ``__main__`` and unnamed objects.
    """
    module, qualname = _name_of(target)
    if "<lambda>" in qualname:
        raise InvalidInput(f"a lambda of module {module!r} has no name to find it by. Define it with 'def'. {_MOVE_IT}.")
    if "<locals>" in qualname:
        raise InvalidInput(f"{module}:{qualname} is defined inside a function and cannot be found by name. {_MOVE_IT}.")
    if module in _MAIN_MODULES:
        raise InvalidInput(f"{qualname!r} is defined in __main__, which is another module elsewhere. {_MOVE_IT}.")
    reference = f"{module}:{qualname}"
    found = resolve(reference)
    if not any(layer is target for layer in _layers(found)):
        raise InvalidInput(
            f"{reference} names {found!r}, not {target!r}: the name was bound again or the object was replaced by a "
            "decorator without __wrapped__. Give each its own name, or use functools.wraps in the decorator."
        )
    return reference


def resolve(reference: str) -> object:
    """The object that ``reference`` names, importing its module if need be.

    Raises InvalidInput, naming module and attribute, if the text is no reference, or either cannot be found or
    imported.
    """
    module_name, _, qualname = reference.partition(":")
    if module_name in _MAIN_MODULES:
        raise InvalidInput(f"{reference!r} lies in __main__, which is another module here. {_MOVE_IT}.")
    module = sys.modules.get(module_name)
    if module is not None:
        try:
            return _walk(module, qualname)
        except AttributeError:
            pass  # Another thread may be in the middle of importing it; import_module waits for that.
    if not _REFERENCE.fullmatch(reference):
        raise InvalidInput(f"{reference!r} is no code reference; expected 'package.module:name'.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InvalidInput(
            f"module {module_name!r} of {reference!r} cannot be imported ({type(error).__name__}: {error}). "
            "Install it on this machine, or leave a module of the old name that imports what moved."
        ) from error
    try:
        return _walk(module, qualname)
    except AttributeError as error:
        raise InvalidInput(
            f"module {module_name!r} has no attribute {qualname!r}. "
            f"If it was renamed or moved, leave an alias of the old name in {module_name!r}."
        ) from error


def _walk(found: object, qualname: str) -> object:
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def _name_of(target: object) -> tuple[str, str]:
    for layer in _layers(target):
        module = getattr(layer, "__module__", None)
        qualname = getattr(layer, "__qualname__", None)
        if isinstance(module, str) and isinstance(qualname, str):
            return module, qualname
    raise InvalidInput(
        f"{target!r} ({type(target).__name__}) has no import path. Pass a function or class of a module; "
        "in place of functools.partial or a callable instance define a function."
    )


def _layers(target: object) -> Iterator[object]:
    seen: set[int] = set()
    layer: object | None = target
    while layer is not None and id(layer) not in seen:
        yield layer
        seen.add(id(layer))
        layer = getattr(layer, "__wrapped__", None)
