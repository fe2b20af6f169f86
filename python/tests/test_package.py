"""The package as such: what it is linked to, which PyTorch it takes, its types."""

import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tessera

FOLDER = Path(tessera.__file__).parent


def test_operators_use_the_stable_abi_alone():
    """What libtessera_torch.so takes from PyTorch are C functions of the stable ABI, no C++ names."""
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    library = FOLDER / "libtessera_torch.so"
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", "--demangle", library], capture_output=True, text=True
    )
    names = [line.split(maxsplit=1)[1] for line in listed.stdout.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    unstable = ("at::", "c10::", "torch::", "caffe2::")
    assert not [name for name in names if name.startswith(unstable)]


def test_too_old_a_pytorch_is_named():
    """NumPy arrays still work there; PyTorch's tensors are an error that says what to do."""
    code = """
import numpy as np, torch
torch.__version__ = "2.9.1+cpu"
import tessera
q = np.ones((1, 1, 4, 16), np.float32)
assert np.allclose(tessera.attention(q, q, q), 1)
try:
    tessera.attention(*3 * [torch.ones(1, 1, 4, 16)])
except RuntimeError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = "torch: version 2.9.1+cpu, expected 2.10 or later: pip install -U torch"
    assert run.stdout.strip() == expected, run.stderr


def test_types_are_there_for_checkers():
    assert (FOLDER / "py.typed").exists()
    for function in (tessera.attention, tessera.attention_varlen, tessera.explain):
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.annotation is not parameter.empty, parameter


def test_sdpa_has_pytorchs_signature():
    ours = inspect.signature(tessera.scaled_dot_product_attention).parameters
    text = torch.nn.functional.scaled_dot_product_attention.__doc__.split(" -> ")[0]
    theirs = [part.strip() for part in text[text.index("(") + 1 : text.rindex(")")].split(",")]
    defaults = [name if p.default is p.empty else f"{name}={p.default}" for name, p in ours.items()]
    assert defaults == theirs
