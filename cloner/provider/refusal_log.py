"""Logs what ElevenLabs refused and why; the level says whether somebody must act."""

import logging

import structlog

from cloner.provider import failures
from cloner.provider.failures import ProviderFailure

__all__ = ["ACT_NOW", "log_refusal"]

log = structlog.get_logger()

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
