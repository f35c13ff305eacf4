"""The driver's own code, for the nodes of a cluster, where nobody has put it.

Steps, workflows and entities are found by import path, so a node needs the modules that they are in. What was imported here from
outside of the installed packages, and rayflow itself, is copied into one folder, which Ray sends to every node that needs it, named
by its content. So a node needs Ray and rayflow's requirements only, and none ever runs another version of the code than the driver.

Whole packages travel, with their data up to 10 MiB a file; of single modules those that were imported by then.
"""

from __future__ import annotations

import os
import shutil
import site
import sys
import sysconfig
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import ray

_LARGEST_FILE_BYTES = 10 * 2**20
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the driver of a submitted job."""


@contextmanager
def collected_project() -> Generator[str | None]:
    """A folder with the driver's code, to be named as Ray's working_dir; None in a submitted job, which has one already."""
    if os.environ.get(_JOB):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="rayflow-project-") as folder:
        for name, origin in _own_modules():
            _copy(origin, Path(folder, name))
        yield folder


def code_version() -> str:
    """What names the code that came with this process's job or actor; empty where none was sent."""
    environment = cast("dict[str, str]", ray.get_runtime_context().runtime_env)
    return environment.get("working_dir", "")


def code_name() -> str:
    """What names the code of this actor's process, for all that happens until that may have changed.

    Where code was sent it is that, for all hosts of the cluster. Elsewhere, as in a Ray of a program's own, it is the Ray: the same
    for a host that is made anew after a crash, another one for the next program.
    """
    return code_version() or ray.get_runtime_context().get_session_name()


def _own_modules() -> list[tuple[str, Path]]:
    """Top-level modules and packages of the driver's own, with the file or folder each comes from."""
    installed = _installed()
    found: list[tuple[str, Path]] = []
    for name, module in list(sys.modules.items()):
        if "." in name or name == "__main__":
            continue
        file = cast("str | None", getattr(module, "__file__", None))
        folders = cast("Iterable[str]", getattr(module, "__path__", ()))
        paths = [*folders] or [file or ""]
        origins = [Path(path).resolve() for path in paths if path and (path.endswith(".py") or os.path.isdir(path))]
        found.extend(
            (name, origin)
            for origin in origins
            if origin.exists() and (name == "rayflow" or not any(origin.is_relative_to(place) for place in installed))
        )
    return sorted(found)


def _installed() -> set[Path]:
    paths: Iterable[str] = (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
        *(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))),
        sys.prefix + "/lib",
        sys.base_prefix + "/lib",
    )
    return {Path(path).resolve() for path in paths}


def _copy(origin: Path, target: Path) -> None:
    if origin.is_file():
        shutil.copyfile(origin, target.with_suffix(".py"))
        return
    shutil.copytree(origin, target, ignore=_left_out, copy_function=shutil.copyfile, dirs_exist_ok=True)


def _left_out(folder: str, names: list[str]) -> set[str]:
    def is_left_out(name: str) -> bool:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            return name == "__pycache__" or name.startswith(".")
        return name.endswith(".pyc") or not os.path.isfile(path) or os.path.getsize(path) > _LARGEST_FILE_BYTES

    return {name for name in names if is_left_out(name)}
