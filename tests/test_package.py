"""What holds for the package as a whole: its public names, its layers, what it never does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tombola as tb

ROOT = Path(tb.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

# From the ground floor up: a module imports only from floors below its own, or its own package.
FLOORS = [
    {"errors", "version", "atomic", "events"},
    {"seeds", "durations", "sealed", "toml", "extras"},
    {"mask", "coding", "batches", "entries"},
    {"pruning", "schedules", "guarding", "recipe", "pictures"},
    {"criteria", "costs", "early_bird", "updates", "integrations"},
    {"at_init"},
    {"ticket", "tasks", "store"},
    {"shipping", "grouping"},
    {"engines"},
    {"training", "task_times"},
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
    functions = [node for node in ast.walk(tree) if own == "ticket" and isinstance(node, ast.FunctionDef)]
    local = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tombola."):
            imported = node.module.split(".")[1]
            # A ticket looks its task up by name when it is asked for a model: the one import against the grain.
            lazily = id(node) in local and (own, imported) == ("ticket", "tasks")
            assert imported == own or lazily or floor(imported) < floor(own), f"{own} imports {imported}"


def test_the_readme_has_every_package_on_its_map() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"(\w+)/ ", text[text.index("## The map") :]))
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} <= shown


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return f"{function.value.id}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_ever_unpickled(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & set(names)
        if isinstance(node, ast.Call):
            assert _called(node.func) not in ("torch.load", "np.load", "numpy.load", "eval", "exec")


def test_every_public_name_is_there() -> None:
    for name in tb.__all__:
        assert getattr(tb, name) is not None
    assert dir(tb) == sorted(tb.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tb.nothing  # noqa: B018


def test_importing_modules_hides_no_public_function() -> None:
    check = """
        import importlib, tombola as tb
        for name in ("draws", "guarding", "pruning", "ticket", "criteria"):
            importlib.import_module(f"tombola.{name}")
            assert all(map(callable, (tb.draw, tb.guard, tb.prune, tb.load, tb.score))), name
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(check)], check=True)


def test_importing_tombola_imports_no_heavy_library() -> None:
    check = "import sys, tombola; assert not {'torch', 'numpy', 'pydantic', 'altair', 'sqlalchemy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
