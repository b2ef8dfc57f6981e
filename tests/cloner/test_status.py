import re
from pathlib import Path

import pytest
from precall.v1.error_reason_pb2 import ErrorReason

from cloner.rpc.status import TABLE

PROTO = Path(__file__).parents[2] / "proto" / "precall" / "v1" / "error_reason.proto"
# What the contract promises, as the proto's comments state it: "HTTP 422, gRPC INVALID_ARGUMENT."
PROMISED = {
    name: code
    for code, name in re.findall(r"// HTTP \S+, gRPC (\S+)\.\n\s+ERROR_REASON_(\w+) = ", PROTO.read_text())
}


@pytest.mark.parametrize("failure", TABLE, ids=lambda failure: failure.__name__)
def test_codes(failure: type[Exception]) -> None:
    """Each reason goes out with the status code that the proto promises."""
    reason, code = TABLE[failure]

    assert PROMISED[ErrorReason.Name(reason).removeprefix("ERROR_REASON_")] == code.name


def test_every_failure_has_a_row() -> None:
    """No failure of the provider or of a sample is taken for a bug."""
    from cloner.provider import failures
    from cloner.voices import samples

    raised = {
        kind
        for module, base in ((failures, failures.ProviderFailure), (samples, samples.SampleRefused))
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
    }

    assert set() == raised - set(TABLE)
