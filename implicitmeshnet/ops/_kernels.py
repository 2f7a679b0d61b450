"""The op library `implicitmeshnet`: schemas, reference kernels, and the compiled library where there is one."""

import functools
import warnings
from pathlib import Path

import torch

library = torch.library.Library("implicitmeshnet", "DEF")
_loaded, _failure = False, ""
for _path in sorted(Path(__file__).parents[1].glob("_C*.so")):
    try:
        torch.ops.load_library(str(_path))
        _loaded = True
    except OSError as error:  # built for another torch or another machine
        _failure = f" ({_path.name} does not load: {error})"


def compiled() -> bool:
    """Whether compiled CPU kernels are loaded; otherwise the ops run their plain-PyTorch reference."""
    return _loaded


@functools.cache
def _warn_uncompiled():
    warnings.warn(
        f"implicitmeshnet: the ops run in plain PyTorch, slowly, as no compiled library was found{_failure}; install a"
        " C++ compiler (g++) and run `pip install --no-build-isolation -e .`", stacklevel=4)


def define(schema: str, reference, fake):
    """Define an op with its reference as the default kernel, and its fake kernel; returns the op."""
    name = schema.partition("(")[0]

    @functools.wraps(reference)
    def default(*args, **kwargs):
        if any(isinstance(a, torch.Tensor) and a.device.type == "cpu" for a in args):
            _warn_uncompiled()
        return reference(*args, **kwargs)

    library.define(schema)
    library.impl(name, default, "CompositeExplicitAutograd")
    torch.library.register_fake(f"implicitmeshnet::{name}", fake, lib=library)
    return getattr(torch.ops.implicitmeshnet, name)


def register_autograd(name: str, backward, setup_context):
    torch.library.register_autograd(f"implicitmeshnet::{name}", backward, setup_context=setup_context, lib=library)
