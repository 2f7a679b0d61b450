"""Files of tensors and plain values, which appear whole or not at all and load with weights_only=True."""

import io
from pathlib import Path
from typing import Any

import torch

from implicitmeshnet.script import atomic_path


def save_checkpoint(path: Path | str, state: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values, through a temporary file; the same state gives the same bytes.

    Raises InputError where the file cannot be written.
    """
    # Through memory: given a path, torch would write the file's name into the file and would not say why it failed.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
