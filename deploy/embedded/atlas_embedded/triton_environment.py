"""The environment that Triton runs in: is it complete, and how is the server started in it?

The wheel ``nvidia-pytriton`` brings the server binary and a stub process for every Python version;
the stub must lie beside the Python backend and find the libpython of its environment.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from atlas_core.errors import ConfigurationError

STUB = "triton_python_backend_stub"
_REMEDY = "run `make setup`"

# Asked of the environment's own Python, because only it knows its libraries.
_QUESTION = """
import ctypes, importlib.metadata as metadata, json, os, sys, sysconfig
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
def loads(*names):
    for name in names:
        try:
            return bool(ctypes.CDLL(name))
        except OSError:
            pass
    return False
folder, library = map(sysconfig.get_config_var, ("LIBDIR", "INSTSONAME"))
print(json.dumps({
    "python": "%d.%d" % sys.version_info[:2],
    "packages": sysconfig.get_path("purelib"),
    "library_dir": folder,
    "library": library,
    "library_loads": loads(os.path.join(folder, library), library),
    "versions": {name: version(name) for name in
                 ("nvidia-pytriton", "numpy", "openvino", "onnxruntime")},
}))
"""


@dataclass(frozen=True)
class TritonEnvironment:
    """A complete environment.

    Attributes:
        root: of the virtual environment.
        server: folder of the wheel that holds ``bin``, ``backends`` and ``python_backend_stubs``.
        library_dir: where libpython lies.
    """

    root: Path
    server: Path
    library_dir: str

    @property
    def binary(self) -> Path:
        return self.server / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        return self.server / "backends"

    def variables(self) -> dict[str, str]:
        """What must be set for the server and its stub processes."""
        before = os.environ.get("LD_LIBRARY_PATH")
        path = os.environ.get("PATH", os.defpath)
        return {
            # The stub embeds whichever Python comes first on PATH.
            "PATH": f"{self.root / 'bin'}{os.pathsep}{path}",
            "VIRTUAL_ENV": str(self.root),
            "LD_LIBRARY_PATH": (
                f"{self.library_dir}{os.pathsep}{before}" if before else self.library_dir
            ),
        }


def find_triton(root: Path) -> TritonEnvironment:
    """Checks the virtual environment at `root` and puts the stub where the server looks for it.

    Raises:
        ConfigurationError: something is missing, or does not work together.
    """
    python = root / "bin" / "python"
    if not python.exists():
        raise ConfigurationError(
            "Triton's environment is missing", expected=str(python), remedy=_REMEDY
        )
    found = _ask(python)
    _require_packages(found.versions)
    if not found.library_loads:
        raise ConfigurationError(
            "the Python of Triton's environment has no shared library, which its stub needs",
            expected=f"{found.library} in {found.library_dir}",
            remedy="use a Python built with --enable-shared (on Debian: libpython3.11), "
            "then run `make setup` again",
        )
    server = Path(found.packages) / "pytriton" / "tritonserver"
    environment = TritonEnvironment(root, server, found.library_dir)
    if not os.access(environment.binary, os.X_OK):
        raise ConfigurationError(
            "the server binary is missing", expected=str(environment.binary), remedy=_REMEDY
        )
    _link_stub(environment, found.python)
    return environment


@dataclass(frozen=True)
class _Found:
    """The environment's answer to `_QUESTION`."""

    python: str
    packages: str
    library_dir: str
    library: str
    library_loads: bool
    versions: dict[str, str | None]


def _ask(python: Path) -> _Found:
    answer = subprocess.run(
        [python, "-c", _QUESTION], capture_output=True, text=True, check=False, timeout=60
    )
    if answer.returncode:
        raise ConfigurationError(
            "the Python of Triton's environment does not start",
            got=answer.stderr.strip().splitlines()[-1:],
            remedy=_REMEDY,
        )
    return _Found(**json.loads(answer.stdout))


def _require_packages(versions: dict[str, str | None]) -> None:
    if versions["nvidia-pytriton"] is None:
        raise ConfigurationError(
            "Triton's environment holds no server", expected="nvidia-pytriton", remedy=_REMEDY
        )
    if versions["openvino"] is None and versions["onnxruntime"] is None:
        raise ConfigurationError(
            "Triton's environment holds no runtime for the models",
            expected="openvino or onnxruntime",
            remedy=_REMEDY,
        )
    numpy = versions["numpy"]
    # With numpy 2 this backend loads every model and answers with zeros: it must not start at all.
    if numpy is None or not numpy.startswith("1."):
        raise ConfigurationError(
            "Triton's environment holds a numpy that its Python backend cannot work with",
            expected="numpy < 2",
            got=numpy or "none",
            remedy=_REMEDY,
        )


def _link_stub(environment: TritonEnvironment, python: str) -> None:
    stub = environment.server / "python_backend_stubs" / python / STUB
    if not stub.exists():
        raise ConfigurationError(
            f"this server has no stub for Python {python}",
            expected="one of "
            + ", ".join(sorted(path.parent.name for path in stub.parents[1].glob(f"*/{STUB}"))),
            remedy="make Triton's environment with one of these",
        )
    link = environment.backends / "python" / STUB
    target = os.path.relpath(stub, link.parent)
    if link.is_symlink() and str(link.readlink()) == target:
        return
    fresh = link.with_name(f".{STUB}-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
