"""Asks ElevenLabs, once at every start, whether it accepts the API key.

Otherwise a wrong key would look healthy until the first call.
"""

import asyncio

import structlog

from cloner.provider.elevenlabs import ElevenLabs
from cloner.provider.failures import ProviderFailure, Unauthorized

__all__ = ["check_api_key"]

ANSWER_SECONDS = 30.0

log = structlog.get_logger()


async def check_api_key(provider: ElevenLabs) -> None:
    """Logs one line about the key and raises nothing: a cloner starts even if the provider is down."""
    try:
        await provider.subscription(deadline=asyncio.get_running_loop().time() + ANSWER_SECONDS)
    except Unauthorized as refusal:
        if refusal.permission is None:
            log.error("ElevenLabs refuses ELEVENLABS_API_KEY")
        else:
            log.warning("ELEVENLABS_API_KEY lacks a permission", permission=refusal.permission or "unknown")
    except ProviderFailure as failure:
        log.warning("ELEVENLABS_API_KEY could not be checked", reason=failure.reason)
    else:
        log.info("ElevenLabs takes ELEVENLABS_API_KEY")
