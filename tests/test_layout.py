"""docs/design.md: who may import whom; importing builds nothing and prints nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STANDARD = set(sys.stdlib_module_names)
MODULES = sorted((ROOT / "implicitmeshnet").rglob("*.py"))
SCRIPTS = sorted(path for path in ROOT.glob("*.py") if path.name != "setup.py")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = ROOT / f"{node.module}.{alias.name}".replace(".", "/")
                names.add(f"{node.module}.{alias.name}" if submodule.with_suffix(".py").exists() else node.module)
    return names


def third_party(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - STANDARD


def table_of_rooms() -> dict[str, set[str]]:
    """Whom each room, or module outside all rooms, may import beside itself: the table of docs/design.md."""
    page = (ROOT / "docs/design.md").read_text()
    _, table, *_ = page.split("Who may import whom:", 1)[1].split("\n\n")
    rooms = {}
    for row in table.splitlines()[2:]:
        _, names, targets, *_ = row.split("|")
        for name in re.findall(r"`(\w+)`", names):
            rooms[name] = set(re.findall(r"`(\w+)`", targets))
    return rooms


ROOMS = table_of_rooms()


def room(name: str) -> str:
    """The room, or the module outside all rooms, of a module: 'implicitmeshnet.data.volume' -> 'data'."""
    return name.split(".")[1]


def test_the_table_of_rooms_names_every_room_and_module_once():
    found = {path.relative_to(ROOT / "implicitmeshnet").with_suffix("").parts[0] for path in MODULES} - {"__init__"}
    assert set(ROOMS) == found
    assert set().union(*ROOMS.values()) <= found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_those_of_the_table_alone(path):
    own = path.relative_to(ROOT / "implicitmeshnet").with_suffix("").parts[0]
    found = {room(name) for name in imports(path) if name.startswith("implicitmeshnet.")} - {own}
    if own == "__init__":
        assert found <= {"predict"}
    else:
        assert found <= ROOMS[own]


def test_training_draws_its_curves_and_takes_nothing_else_from_surfaces():
    for path in (ROOT / "implicitmeshnet" / "training").glob("*.py"):
        found = {name for name in imports(path) if name.startswith("implicitmeshnet.surfaces")}
        assert found <= {"implicitmeshnet.surfaces.figures"}


@pytest.mark.parametrize(
    ("module", "libraries"),
    [
        ("ops", {"torch"}),
        ("config.py", set()),
        ("config_fields.py", set()),
        ("config_json.py", set()),
        ("config_docs.py", set()),
        ("script.py", set()),
        ("commands.py", set()),
        ("structures.py", {"numpy"}),
    ],
)
def test_a_module_needs_few_libraries(module, libraries):
    target = ROOT / "implicitmeshnet" / module
    for path in target.glob("*.py") if target.is_dir() else [target]:
        assert third_party(path) <= libraries | {"implicitmeshnet"}


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("nibabel", {"nifti.py", "volume.py"}),  # files; orientations
        ("matplotlib", {"figures.py", "case_figure.py", "curves.py", "picture.py"}),
        ("PIL", {"figures.py"}),
        ("isal", {"gzipped.py"}),  # optional, as are the next three
        ("SimpleITK", {"itk.py"}),
        ("highdicom", {"dicom_seg.py"}),
        ("pydicom", {"dicom_seg.py"}),
    ],
)
def test_a_library_has_few_users(library, owners):
    users = {path.name for path in MODULES + SCRIPTS if library in third_party(path)}
    assert users == owners


def test_scripts_import_no_script():
    scripts = {path.stem for path in SCRIPTS}
    for path in SCRIPTS + MODULES:
        assert not third_party(path) & scripts


def test_the_package_has_no_import_circles():
    graph = {}
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        graph[name] = imports(path)
    done, active = set(), []

    def visit(name):
        assert name not in active, f"circle: {active} -> {name}"
        if name not in done:
            active.append(name)
            for target in sorted(graph[name] & set(graph) - {name}):
                visit(target)
            active.pop()
            done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.slow
def test_importing_is_silent():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES if path.stem != "__init__"]
    code = "; ".join(f"import {name}" for name in modules)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout + run.stderr == ""
