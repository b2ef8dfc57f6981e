"""How a request with a sample is written."""

import pytest
from precall.v1 import cloning_pb2 as pb
from precall_client.sample import wire_of


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 10 * 1_048_576])
def test_size(size: int) -> None:
    """The server reads the sample that was given, whatever its size, and the other fields."""
    caller, sample = pb.Caller(name="Ivan", phone_number="+31612345678"), b"~" * size
    wire = wire_of(pb.CloneVoiceRequest(caller=caller, consent="form 7", request_id="7"), sample)

    expected = pb.CloneVoiceRequest(caller=caller, consent="form 7", request_id="7", sample=sample)
    assert expected == pb.CloneVoiceRequest.FromString(wire)


@pytest.mark.parametrize("kind", [pb.PrepareCallRequest, pb.CloneVoiceRequest, pb.ReplaceVoiceRequest])
def test_kind(
    kind: type[pb.PrepareCallRequest | pb.CloneVoiceRequest | pb.ReplaceVoiceRequest],
) -> None:
    """Each request has its sample where its own contract says."""
    assert kind(consent="form 7", sample=b"RIFF") == kind.FromString(wire_of(kind(consent="form 7"), b"RIFF"))
