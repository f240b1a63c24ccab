"""How the code hangs together: who imports whom, how long files are, and that all that is public is documented."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import miai_graph as mg

ROOT = Path(__file__).parents[1]
PACKAGES = ("miai_graph", "executors")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST_FILE = 400
LAZY_PACKAGES = {
    "platformdirs",
    "networkx",
    "matplotlib",
    "sklearn",
    "rich",
    "safetensors",
    "pandas",
    "llvmlite",
    "tensorboardX",
}
LAZY_MODULES = {
    "importlib.metadata",
    "resource",
    "tempfile",
    "executors.processes.executable",
    "miai_graph.kernels.compiler.native",
    "miai_graph.kernels.compiler.pauses",
}
"""What is imported where it is used, because it would slow down the start, or is not there on every system."""

CORE = (
    ["errors", "terminal"],
    ["types"],
    ["context", "placement", "state"],
    ["messages"],
    ["node"],
    ["op"],
    ["ops"],
    ["graph"],
    ["interpreter", "recompute", "gradient", "graph_data", "feeding", "timing", "kernels", "passes", "plan"],
    ["check_gradients", "split_interpreter", "executor"],
    ["function"],
)
"""The core in the order in which it is imported: no file imports from a later group."""
of_each_file = pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(node: ast.AST):
    """All nodes of a tree outside functions, apart from what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if not is_for_type_checkers(child) and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from statements(child)


def imported(node: ast.AST) -> set[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "expected absolute imports"
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        return {name if name in MODULES else node.module for name in names}
    return set()


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    return frozenset().union(*(imported(node) for node in statements(tree_of(path))))


def lazy_imports_of(path: Path) -> set[str]:
    return {
        name
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
        for name in imported(child)
    }


def test_no_cycles() -> None:
    graph = {name: {other for other in imports_of(path) if other in MODULES} for name, path in MODULES.items()}
    while graph:
        free = {name for name, others in graph.items() if not others & graph.keys()}
        assert free, f"expected no cycles of imports; found one among {sorted(graph)}"
        graph = {name: others for name, others in graph.items() if name not in free}


@of_each_file
def test_only_heavy_packages_are_imported_within_functions(path: Path) -> None:
    assert {name.split(".")[0] for name in lazy_imports_of(path) - LAZY_MODULES} <= LAZY_PACKAGES


@of_each_file
def test_heavy_packages_are_imported_nowhere_else(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports_of(path)} & LAZY_PACKAGES


@of_each_file
def test_the_library_does_not_know_its_executors(path: Path) -> None:
    if module_of(path).startswith("miai_graph"):
        every = imports_of(path) | lazy_imports_of(path)
        assert not {name for name in every if name.split(".")[0] == "executors"}


def test_the_core_is_imported_in_order() -> None:
    group_of = {name: number for number, names in enumerate(CORE) for name in names}
    for module, path in MODULES.items():
        parts = module.split(".")
        if parts[0] != "miai_graph" or len(parts) == 1 or parts[1] not in group_of:
            continue
        for other in imports_of(path):
            if other.split(".")[0] != "miai_graph":
                continue
            target = other.split(".")[1] if "." in other else None
            assert target in group_of, f"{module} is of the core and imports {other}, which is not"
            assert group_of[target] <= group_of[parts[1]], f"{module} imports {other}, which comes after it"


def test_the_ops_are_closed_under_vjp_in_order() -> None:
    order = [
        "casting",
        "structure",
        "slicing",
        "joining",
        "elementwise",
        "comparisons",
        "arithmetic",
        "nonlinear",
        "special",
        "leaves",
        "reductions",
        "parts",
        "indexing",
        "linalg",
        "convolution",
        "pooling",
        "softmax",
        "random",
        "communication",
        "again",
    ]
    for name, path in MODULES.items():
        if name.startswith("miai_graph.ops."):
            place = order.index(name.rpartition(".")[2])
            used = {other.rpartition(".")[2] for other in imports_of(path) if other.startswith("miai_graph.ops.")}
            assert {order.index(other) for other in used} <= set(range(place)), name


@of_each_file
def test_files_are_short(path: Path) -> None:
    length = len(path.read_text(encoding="utf-8").splitlines())
    assert length <= LONGEST_FILE


def is_public(name: str) -> bool:
    return not name.startswith("_")


def undocumented(module: str):
    """Public classes, and public functions and methods of more than one statement, without a docstring.

    A method that a base declares, such as an op's rules, is documented there or by its class.
    """
    for name, value in vars(importlib.import_module(module)).items():
        if not is_public(name) or getattr(value, "__module__", None) != module:
            continue
        if inspect.isclass(value):
            if not value.__doc__:
                yield name
            declared = {key for base in value.__mro__[1:] for key in (*vars(base), *inspect.get_annotations(base))}
            members = {f"{name}.{key}": getattr(value, key) for key in vars(value) if key not in declared}
        else:
            members = {name: value}
        for title, member in members.items():
            function = member.fget if isinstance(member, property) else member
            is_ours = inspect.isfunction(function) and function.__module__ == module
            if not is_ours or not is_public(title.split(".")[-1]) or not is_public(function.__name__):
                continue
            if not inspect.getdoc(member) and is_long(function):
                yield title


def is_long(function) -> bool:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    return not isinstance(definition, ast.FunctionDef) or len(definition.body) > 1


@of_each_file
def test_what_is_public_is_documented(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)) or not path.read_text(encoding="utf-8")
    assert list(undocumented(module_of(path))) == []


def test_public_names_are_real_and_documented() -> None:
    assert len(set(mg.__all__)) == len(mg.__all__)
    for name in mg.__all__:
        value = getattr(mg, name)
        assert name == "__version__" or inspect.getdoc(value), name
    defined = {
        name
        for name, value in vars(mg).items()
        if is_public(name) and str(getattr(value, "__module__", "")).startswith("miai_graph.")
    }
    assert defined <= set(mg.__all__)


def test_all_modules_can_be_imported() -> None:
    for module in MODULES:
        importlib.import_module(module)


def test_importing_loads_no_heavy_package() -> None:
    heavy = sorted({*LAZY_PACKAGES, "numba", "scipy", "torch", "distributed", "click"})
    code = f"import sys, miai_graph; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
