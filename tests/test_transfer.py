"""Transfer of inputs to a device: calls to a CUDA device, recorded by a stand-in."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from outlier_atlas.devices.cuda import Cuda
from outlier_atlas.devices.registry import named


class StandIn:
    """Tensor that records the calls to it."""

    def __init__(self, said, stream):
        self.said, self.stream, self.device = said, stream, torch.device("cuda:0")

    def pin_memory(self):
        self.said.append("pinned")
        return self

    def to(self, device, non_blocking):
        self.said.append(f"copied to {device} on {self.stream[-1]}, {non_blocking=}")
        return self

    def record_stream(self, stream):
        self.said.append(f"kept for {stream.name}")


@pytest.fixture
def cuda(monkeypatch):
    """Return the recorded calls, and a tensor."""
    said, entered = [], ["the default stream"]

    @contextmanager
    def stream(wanted):
        entered.append(wanted.name)
        yield
        entered.pop()

    def side(device):
        return SimpleNamespace(name="a side stream", record_event=lambda: f"the copy to {device}")

    def wait_event(event):
        said.append(f"waits for {event}")

    forward = SimpleNamespace(name="the forward's stream", wait_event=wait_event)
    monkeypatch.setattr(torch.cuda, "Stream", side)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: forward)
    return said, StandIn(said, entered)


def test_on_cuda_an_input_is_copied_from_pinned_memory_beside_the_forward_pass(cuda):
    said, tensor = cuda
    ahead = Cuda("cuda:0").upload(tensor)
    assert said == ["pinned", "copied to cuda:0 on a side stream, non_blocking=True"]
    said.clear()
    assert ahead.take() is tensor
    assert said == ["waits for the copy to cuda:0", "kept for the forward's stream"]


def test_elsewhere_the_forward_pass_moves_its_input_itself():
    values = torch.ones(2)
    for device in ("cpu", "mps"):
        assert named(device).upload(values).take() is values


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_arrives_on_a_device_is_what_was_sent():
    upload = named("cuda:0").upload
    sent = [torch.randn(1 << 20) for _ in range(8)]
    ahead = [upload(values) for values in sent]
    assert all(
        torch.equal(there.take().cpu(), values) for there, values in zip(ahead, sent, strict=True)
    )
