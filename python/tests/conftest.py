"""Devices to test on: the CPU, and a GPU where PyTorch and this build of Tessera have one."""

import pytest

import tessera

torch = pytest.importorskip("torch")


def _has_gpu() -> bool:
    rows = tessera.implementations()
    return torch.cuda.is_available() and any(
        row["available"] for row in rows if row["device"] == "cuda"
    )


DEVICES = ["cpu", "cuda"] if _has_gpu() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request):
    """Each device in turn, with PyTorch's generators seeded."""
    torch.manual_seed(0)
    return request.param


@pytest.fixture
def gpu():
    """Skips where there is no GPU."""
    if "cuda" not in DEVICES:
        pytest.skip("no GPU that PyTorch and Tessera can use")
    torch.manual_seed(0)
    return "cuda"
