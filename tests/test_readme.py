"""The README's Python runs as it stands, and the files that it names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_snippets_run():
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})


def test_the_files_it_names_exist():
    names = set(re.findall(r"(?:configs_implicitmeshnet|docs|benchmarks|implicitmeshnet|tests)/[\w./]+\.\w+", README))
    assert names
    assert not [name for name in names if not (ROOT / name).exists()]
