"""What holds for the package as a whole: its public names, its layers, what it never does."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tombola as tb

ROOT = Path(tb.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

# From the ground floor up: a module imports only from floors below its own, or its own package.
FLOORS = [
    {"errors", "version", "atomic"},
    {"seeds", "durations", "sealed", "toml", "extras"},
    {"mask", "coding", "batches", "entries"},
    {"pruning", "schedules", "guarding", "recipe", "pictures"},
    {"criteria", "costs", "early_bird", "updates", "integrations"},
    {"at_init"},
    {"ticket", "tasks", "store"},
    {"shipping"},
    {"engines"},
    {"training"},
    {"lab"},
    {"together", "tracking"},
    {"methods"},
    {"audits"},
    {"asked"},
    {"draws"},
    {"diagnostics", "findings"},
    {"execution", "report"},
    {"comparing", "auditing"},
    {"studies", "transferring"},
    {"serving"},
    {"cli"},
    {"__main__"},
]


def floor(module: str) -> int:
    (found,) = [number for number, names in enumerate(FLOORS) if module in names] or [-1]
    assert found >= 0, f"tombola.{module} has no floor yet: give it one in FLOORS"
    return found


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_only_down(path: Path) -> None:
    if path == ROOT / "__init__.py":
        return
    own = part(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    local = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tombola."):
            imported = node.module.split(".")[1]
            # A ticket looks its task up by name when it is asked for a model: the one import against the grain.
            lazily = id(node) in local and (own, imported) == ("ticket", "tasks")
            assert imported == own or lazily or floor(imported) < floor(own), f"{own} imports {imported}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_ever_unpickled(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & set(names)
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("torch.load", "np.load", "numpy.load", "eval", "exec")


def test_every_public_name_is_there() -> None:
    for name in tb.__all__:
        assert getattr(tb, name) is not None
    assert dir(tb) == sorted(tb.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tb.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["draws", "guarding", "pruning", "ticket", "criteria"])
def test_importing_a_module_hides_no_public_function(module: str) -> None:
    check = f"import tombola.{module}, tombola as tb; assert all(map(callable, (tb.draw, tb.guard, tb.prune, tb.load)))"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_importing_tombola_imports_no_heavy_library() -> None:
    check = "import sys, tombola; assert not {'torch', 'numpy', 'pydantic', 'altair', 'sqlalchemy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
