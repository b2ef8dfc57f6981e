"""How each reason comes about that a call of the contract may fail for."""

from typing import Any

from tests.kit.promises import EVERY, PROMISED
from tests.kit.requests import CLONING, METHODS

__all__ = ["MADE", "OF_A_CALL", "TRIED"]

# How each reason comes about: settings, a fault of ElevenLabs', what the sample is made of, seconds to wait.
MADE: dict[str, dict[str, Any]] = {
    "SAMPLE_TOO_LARGE": {"sample": lambda _: bytes(10 * 1_048_576 + 1)},
    "SAMPLE_TOO_SHORT": {"sample": lambda silence: silence(2.0)},
    "SAMPLE_TOO_LONG": {"settings": {"voice_clone_max_duration": 4.0}},
    "SAMPLE_SILENT": {"sample": lambda silence: silence(4.0)},
    "SAMPLE_RATE_TOO_LOW": {"sample": lambda silence: silence(4.0, 8_000)},
    "SAMPLE_UNREADABLE": {"sample": lambda _: b"<html>" * 100},
    "SAMPLE_REJECTED": {"fault": {"error": "invalid_content"}},
    "VOICE_NEEDS_VERIFICATION": {"fault": {"requires_verification": True}},
    "CONSENT_MISSING": {"settings": {"require_consent": True}},
    "PROVIDER_UNAUTHORIZED": {"fault": {"error": "invalid_api_key"}},
    "PROVIDER_PLAN_LIMIT": {"fault": {"error": "quota_exceeded"}},
    "VOICE_SLOTS_EXHAUSTED": {"fault": {"error": "voice_limit_reached"}},
    "VOICE_MONTHLY_LIMIT": {"fault": {"error": "voice_add_edit_limit_reached"}},
    "PROVIDER_PROTOCOL": {"fault": {"status": 200, "body": "?"}},
    "PROVIDER_BUSY": {"fault": {"error": "system_busy"}},
    "PROVIDER_UNAVAILABLE": {"fault": {"error": "service_unavailable"}},
    "PROVIDER_TIMEOUT": {"fault": {"hold": "before"}, "seconds": 2.0},
}
OF_A_CALL = {
    "AGENT_NOT_FOUND": {"method": "GET", "error": "agent_not_found"},
    "AGENT_REJECTED": {"method": "PATCH", "status": 400, "body": {"detail": "no"}},
    "CONVERSATION_MISMATCH": None,
    "SAMPLE_REQUIRED": None,
}
# Of which of the calls that promise them these are tried, each by one test for all of those calls; for a deadline
# that is too short, GetLimits, which asks nobody, by a slow body.
OF_ALL = ("FIELD_INVALID", "NOT_FOUND", "REGISTRY_UNAVAILABLE", "DEADLINE_TOO_SHORT")
TRIED = {
    *((method, reason) for method in CLONING for reason in MADE),
    *(("PrepareCall", reason) for reason in OF_A_CALL),
    *((method, reason) for method in METHODS for reason in OF_ALL if reason in EVERY | PROMISED[method]),
}
