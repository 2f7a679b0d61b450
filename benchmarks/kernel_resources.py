"""Registers, spills and shared memory of every CUDA kernel, from nvcc, for each architecture; prints a table.

    python benchmarks/kernel_resources.py [--architectures 80 90 ...] [--sources mesh2sdf ...] [--kernels solve ...]

Wants nvcc, no GPU. A cell holds registers of a thread / bytes spilled / KiB of shared memory of a group.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from implicitmeshnet.script import InputError, run_script

CSRC = Path(__file__).resolve().parents[1] / "csrc"
ARCHITECTURES = [75, 80, 86, 90, 100, 120]
SOURCES = sorted(CSRC.glob("*.cu"))
ENTRY = re.compile(
    r"Compiling entry function '(?P<entry>\w+)' for 'sm_(?P<architecture>\d+)'.*?"
    r"(?P<stored>\d+) bytes spill stores, (?P<loaded>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)
TYPES = {"f": "float", "d": "double", "t": "bfloat16"}


def kernel_name(entry: str) -> str:
    """What a mangled name in an unnamed namespace says: the kernel, and the types that it is of."""
    _, rest = _length_and_name(entry.removeprefix("_ZN"))  # the namespace
    name, rest = _length_and_name(rest)
    types = re.match(r"I([fdt]+)E", rest)
    return " ".join([name, *(TYPES[letter] for letter in (types[1] if types else ""))])


def _length_and_name(text: str) -> tuple[str, str]:
    """A name that its length stands before, and what follows."""
    match = re.match(r"\d+", text)
    if not match:
        return text, ""
    end = match.end() + int(match[0])
    return text[match.end() : end], text[end:]


def resources(source: Path, architectures: list[int]) -> dict[str, dict[int, str]]:
    """Kernel -> architecture -> its cell."""
    found: dict[str, dict[int, str]] = {}
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++17", "-O3", *codes, "-Xptxas=-v", "-c", source, "-o", f"{folder}/out.o"]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise InputError(f"{source.name}: wanted code for {architectures}, found {run.stderr.strip()[:200]}")
    for match in ENTRY.finditer(run.stderr):
        spilled = int(match["stored"]) + int(match["loaded"])
        cell = f"{match['registers']} / {spilled} / {int(match['shared'] or 0) / 1024:.1f}"
        found.setdefault(kernel_name(match["entry"]), {})[int(match["architecture"])] = cell
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--sources", nargs="+", choices=[source.stem for source in SOURCES], help="all unless named")
    parser.add_argument("--kernels", nargs="+", help="only those whose names begin so")
    arguments = parser.parse_args()
    if not shutil.which("nvcc"):
        raise InputError("nvcc: wanted the CUDA toolkit's compiler on the PATH, found none")
    print("| kernel | " + " | ".join(f"sm_{number}" for number in arguments.architectures) + " |")
    print("|---|" + "---|" * len(arguments.architectures))
    for source in SOURCES:
        if arguments.sources and source.stem not in arguments.sources:
            continue
        print(f"| **{source.name}** |" + " |" * len(arguments.architectures))
        for name, cells in sorted(resources(source, arguments.architectures).items()):
            if arguments.kernels and not name.startswith(tuple(arguments.kernels)):
                continue
            print(
                f"| {name} | " + " | ".join(cells.get(each, "") for each in arguments.architectures) + " |", flush=True
            )


if __name__ == "__main__":
    run_script(main)
