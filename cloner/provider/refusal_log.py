"""Logs what ElevenLabs refused and why; the level says whether somebody must act."""

import logging
from collections.abc import Mapping

import structlog

from cloner.provider import failures
from cloner.provider.failures import ProviderFailure

__all__ = ["ACT_NOW", "OPERATIONS", "log_refusal"]

log = structlog.get_logger()

# The operations at ElevenLabs, a word for each.
OPERATIONS: Mapping[tuple[str, str], str] = {
    ("POST", "/v1/voices/add"): "clone",
    ("GET", "/v1/voices/{voice_id}"): "read_voice",
    ("DELETE", "/v1/voices/{voice_id}"): "delete_voice",
    ("GET", "/v2/voices"): "list_voices",
    ("GET", "/v1/convai/agents/{agent_id}"): "read_agent",
    ("PATCH", "/v1/convai/agents/{agent_id}"): "update_agent",
    ("GET", "/v1/user/subscription"): "read_account",
}
# Failures after which no call gets a new voice before somebody acts. Full slots are none of them: another
# voice may be deleted.
ACT_NOW = (failures.Unauthorized, failures.PlanLimit, failures.MonthlyLimit)
# Failures that the caller learns of, and that nobody else can do anything about.
OF_THE_REQUEST = (
    failures.SampleRejected,
    failures.VoiceNotFound,
    failures.AgentNotFound,
    failures.DeadlineTooShort,
)


def log_refusal(operation: str, failure: ProviderFailure) -> None:
    """Logs a request to ElevenLabs that failed."""
    level = logging.WARNING
    if isinstance(failure, ACT_NOW):
        level = logging.ERROR
    elif isinstance(failure, OF_THE_REQUEST):
        level = logging.INFO
    facts = {
        "operation": operation,
        "reason": failure.reason,
        "provider_code": failure.code,
        "provider_status": failure.status,
        "retry_after_seconds": failure.retry_after,
        "permission": failure.permission if isinstance(failure, failures.Unauthorized) else None,
    }
    log.log(level, "provider refused", **{name: value for name, value in facts.items() if value is not None})
