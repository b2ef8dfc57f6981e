"""The peer: one service that takes the same deliveries and does what most would do with them.

It verifies the signature, decodes the sample, looks at it with soundfile, makes a voice of it and gives that
to the agent. It keeps nothing: no registry, so a caller is cloned again with each call, a delivery that
comes twice is cloned twice, and nothing is ever put back or deleted.
"""

import base64
import binascii
import hashlib
import hmac
import io
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import httpx
import soundfile
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

SECRET = os.environ["ELEVENLABS_WEBHOOK_SECRET"].encode()
BASE_URL = os.environ["ELEVENLABS_BASE_URL"]
API_KEY = os.environ["ELEVENLABS_API_KEY"]
TOLERANCE_SECONDS = 30 * 60
MAX_SAMPLE_BYTES = 10 * 1024 * 1024
MIN_SECONDS = 3.0
MIN_RATE = 16_000


class Caller(BaseModel):
    """Who is calling."""

    name: str | None = None
    date_of_birth: str | None = None
    phone_number: str | None = None


class Metadata(BaseModel):
    """An event without its sample."""

    type: Literal["pre_call"]
    conversation_id: str
    agent_id: str
    caller_metadata: Caller = Caller()


class Sample(BaseModel):
    """A sample in base64."""

    format: str = "base64"
    data: str


class PreCall(Metadata):
    """An event with its sample."""

    voice_sample: Sample


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Holds one client of the provider for as long as the worker lives."""
    async with httpx.AsyncClient(base_url=BASE_URL, headers={"xi-api-key": API_KEY}, timeout=60) as http:
        app.state.http = http
        if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            trace(app, http)
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> dict[str, str]:
    """Says that the service lives."""
    return {"status": "healthy"}


@app.post("/webhook")
async def webhook(request: Request) -> dict[str, Any]:
    """One delivery, from its bytes to its answer."""
    began = time.perf_counter()
    body = await request.body()
    verify(request.headers.get("elevenlabs-signature", ""), body)
    event, sample = await read(request, body)
    check(sample)
    caller = event.caller_metadata
    name = f"{caller.name or 'Caller'}_Clone_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    http: httpx.AsyncClient = request.app.state.http
    created = await http.post(
        "/v1/voices/add",
        data={"name": name, "description": "Cloned before the call"},
        files={"files": ("sample.wav", sample, "audio/wav")},
    )
    if created.is_error:
        raise HTTPException(502, "The provider did not clone the voice.")
    voice_id = created.json()["voice_id"]
    first_message = f"Hallo {caller.name}, fijn dat je belt!"
    updated = await http.patch(
        f"/v1/convai/agents/{event.agent_id}",
        json={
            "conversation_config": {
                "agent": {"first_message": first_message}, "tts": {"voice_id": voice_id},
            }
        },
    )  # fmt: skip
    if updated.is_error:
        raise HTTPException(502, "The provider did not update the agent.")
    return {
        "status": "success",
        "conversation_id": event.conversation_id,
        "voice_id": voice_id,
        "voice_name": name,
        "agent_updated": True,
        "caller_info": {"Name": caller.name, "DateOfBirth": caller.date_of_birth},
        "processing_time_ms": int((time.perf_counter() - began) * 1000),
    }


def verify(header: str, body: bytes) -> None:
    """Returns where the signature is that of the body and not too old."""
    parts = dict(part.strip().partition("=")[::2] for part in header.split(","))
    stamp = parts.get("t", "")
    if not stamp.isdigit() or abs(time.time() - int(stamp)) > TOLERANCE_SECONDS:
        raise HTTPException(401, "Invalid signature.")
    expected = hmac.new(SECRET, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, parts.get("v0", "")):
        raise HTTPException(401, "Invalid signature.")


async def read(request: Request, body: bytes) -> tuple[Metadata, bytes]:
    """The event and its sample, of either form."""
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            event = PreCall.model_validate_json(body)
            return event, base64.b64decode(event.voice_sample.data, validate=True)
        async with request.form() as form:
            metadata, upload = form["metadata"], form["voice_sample"]
            if not isinstance(upload, UploadFile):
                raise HTTPException(400, "voice_sample must be a file.")
            return Metadata.model_validate_json(str(metadata)), await upload.read()
    except (ValidationError, KeyError, binascii.Error) as error:
        raise HTTPException(400, "Invalid delivery.") from error


def check(sample: bytes) -> None:
    """Returns where the sample is long enough and its sample rate high enough."""
    if len(sample) > MAX_SAMPLE_BYTES:
        raise HTTPException(413, "Voice sample too large.")
    try:
        sound = soundfile.info(io.BytesIO(sample))
    except soundfile.LibsndfileError as error:
        raise HTTPException(422, "Voice sample unreadable.") from error
    if sound.duration < MIN_SECONDS or sound.samplerate < MIN_RATE:
        raise HTTPException(422, "Voice sample too short, or its sample rate too low.")


def trace(app: FastAPI, http: httpx.AsyncClient) -> None:
    """Sends spans of requests in and out, as the instrumentations of OpenTelemetry make them."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    HTTPXClientInstrumentor.instrument_client(http, tracer_provider=provider)
