"""Pages that open from a file and ask no network for anything: their sources and data in one file."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from implicitmeshnet.script import atomic_path


def write_page(path: Path, package: str, tree: Mapping[str, Any], blobs: Sequence[str]) -> None:
    """Write the page of a package, its page.html with its page.js, whole or not at all.

    `tree` is JSON that the script finds as `report`, `blobs` are elements that `blob` makes. Style and viewer are the
    same in all pages. Raises InputError where the file cannot be written.
    """
    parts = {
        "style": source(__package__, "page.css"),
        "viewer": source(__package__, "viewer.html"),
        "report": json.dumps(tree, allow_nan=False).replace("<", "\\u003c"),  # or a name could end the element
        "blobs": "\n".join(blobs),
        "script": source(__package__, "viewer.js") + "\n" + source(package, "page.js"),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(filled(source(package, "page.html"), parts), encoding="utf-8")


def packed(data: bytes) -> str:
    """Bytes as a page holds them: deflated and in base64."""
    return base64.b64encode(zlib.compress(data)).decode()


def blob(name: str, text: str) -> str:
    """A text as an element of a page that no browser runs or shows."""
    return f'<script type="text/plain" id="{name}">{text}</script>'


def source(package: str, name: str) -> str:
    """A file beside the modules of a package."""
    return (files(package) / name).read_text(encoding="utf-8")


def filled(template: str, parts: Mapping[str, str]) -> str:
    """A template with @name@ replaced by each part, whatever stands in the parts."""
    text = template
    pieces = []
    for name, part in parts.items():  # in the template's order
        before, _, text = text.partition(f"@{name}@")
        pieces += [before, part]
    return "".join([*pieces, text])
