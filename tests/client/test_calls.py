"""The client against a real cloner, over real sockets."""

import asyncio
import contextlib
import hashlib
import inspect
import io
import logging
import math
import os
import re
import signal
import time
import tracemalloc
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import precall_client
import pytest
import trustme
from opentelemetry.trace import SpanKind, get_current_span
from precall.v1 import cloning_pb2 as pb
from precall_client import Caller, Precall, PrecallError, Tls, TlsInvalid, connect
from precall_client.transport import KEPT_BYTES
from precall_client.upload import uploaded

from emulator import Emulator, Fault
from environment import Pem, Secret, Toml
from tests.kit.processes.cloner import process, ready

MEBIBYTE = 1_048_576
CREATE = "/v1/voices/add"
TOKEN = "token-of-the-cloner-in-tests"
IVAN = Caller(name="Ivan", phone_number="+31612345678")


def target(cloner: Any) -> str:
    """Where a cloner is, by the name that its certificate has."""
    return f"localhost:{cloner.port}"


@pytest.mark.parametrize(
    "method",
    list(pb.DESCRIPTOR.services_by_name["CloningService"].methods),
    ids=lambda method: method.name,
)
def test_every_field(method: Any) -> None:
    """Each method takes every field of its request by its name, and a deadline."""
    name = re.sub(r"(?<=.)(?=[A-Z])", "_", method.name).lower()
    parameters = inspect.signature(getattr(Precall, name)).parameters
    if "wanted" not in parameters:  # which takes whatever the request has
        assert set(method.input_type.fields_by_name) | {"self", "seconds"} == set(parameters)
    assert "seconds" in parameters


async def test_every_call(cloning, samples: Path, speech: bytes, emulator: Emulator) -> None:
    """Each RPC is a method of its name, and does what the proto says; a sample is bytes or a path."""
    assert {
        "".join(f"_{c.lower()}" if c.isupper() else c for c in method.name).lstrip("_")
        for method in pb.DESCRIPTOR.services_by_name["CloningService"].methods
    } <= set(dir(Precall))

    async with (
        cloning(cloner_token=(Secret(TOKEN),)) as cloner,
        connect(target(cloner), token=TOKEN) as precall,
    ):
        cloned = await precall.clone_voice(caller=IVAN, sample=samples / "speech.mp3", consent="form 17")
        again = await precall.clone_voice(caller=IVAN, sample=memoryview(speech))
        assert [False, True] == [cloned.voice_reused, again.voice_reused]
        prepared = await precall.prepare_call(
            agent_id="agent_demo", conversation_id="conv_1", caller=IVAN, sample=speech
        )
        opened = await precall.open_call(agent_id="agent_demo", call_sid="sid_1", phone_number="+31612345678")
        found = await precall.get_voice(cloned.voice.voice_id)
        assert 1 == len({each.voice.voice_id for each in (cloned, again, prepared, opened, found)})
        assert "form 17" == found.voice.consent
        assert found.voice == (await precall.get_voice(caller=IVAN)).voice
        async for seen in precall.watch_voice(cloned.voice.voice_id, seconds=10):
            assert (cloned.voice.voice_id, pb.VOICE_STATE_READY) == (seen.voice_id, seen.state)
            break
        known = (await precall.get_call(call_id=prepared.call_id)).call
        assert ("conv_1", cloned.voice.voice_id) == (known.conversation_id, known.voice_id)
        assert known in (await precall.list_calls(agent_id="agent_demo")).calls
        assert ["form 18"] == [
            each.reference for each in (await precall.set_consent(caller=IVAN, consent="form 18")).consents
        ][:1]
        assert (await precall.get_limits()).sample.min_sample_rate_hertz
        assert 1 == (await precall.get_usage()).voice_slots.used
        assert (await precall.complete_call(conversation_id="conv_1")).found
        replaced = await precall.replace_voice(caller=IVAN, sample=str(samples / "speech.flac"))
        assert [replaced.voice.voice_id] == [
            voice.voice_id async for voice in precall.all_voices(caller=IVAN)
        ]
        assert [replaced.voice.voice_id] == [
            voice.voice_id for voice in (await precall.list_voices(page_size=1)).voices
        ]
        assert (await precall.delete_voice(replaced.voice.voice_id)).deleted
        await precall.forget_caller(caller=IVAN)
        assert [] == [voice async for voice in precall.all_voices()]

    assert [] == emulator.voices.custom


async def test_pages(cloning, emulator: Emulator, speech: bytes) -> None:
    """All voices come, whatever number of pages they fill."""
    async with cloning() as cloner, connect(target(cloner)) as precall:
        for number in range(3):
            await precall.clone_voice(caller=Caller(phone_number=f"+3161234000{number}"), sample=speech)
        page = await precall.list_voices(page_size=2)
        rest = await precall.list_voices(page_size=2, page_token=page.next_page_token)
        told = [voice.voice_id for voice in (*page.voices, *rest.voices)]

        assert told == [voice.voice_id async for voice in precall.all_voices()]
    assert set(told) == {voice.voice_id for voice in emulator.voices.custom}


async def test_failures(cloning, samples: Path, silence: Any) -> None:
    """What the cloner refuses comes as the class of its reason, with all that it tells."""
    async with cloning(cloner_token=(Secret(TOKEN),)) as cloner:
        async with connect(target(cloner), token=TOKEN) as precall:
            with pytest.raises(precall_client.SampleSilent):
                await precall.clone_voice(caller=IVAN, sample=silence(5.0))
            with pytest.raises(precall_client.FieldInvalid) as invalid:
                await precall.prepare_call(agent_id="", conversation_id="", sample=b"")
            with pytest.raises(precall_client.NotFound):
                await precall.get_voice("voice_of_nobody")
            with pytest.raises(FileNotFoundError):
                await precall.clone_voice(caller=IVAN, sample=samples / "nothing.mp3")
        async with connect(target(cloner), token="another-token-of-16") as stranger:
            with pytest.raises(precall_client.Unauthenticated) as unknown:
                await stranger.get_voice("voice_1")
        may_read = f'[clients.crm]\ntoken_sha256 = ["{hashlib.sha256(b"crm").hexdigest()}"]\nmay = ["read"]'
    async with (
        cloning(cloner_clients=Toml(may_read)) as cloner,
        connect(target(cloner), token=lambda: "crm") as crm,
    ):
        assert [] == list((await crm.list_voices()).voices)
        with pytest.raises(precall_client.PermissionDenied) as denied:
            await crm.forget_caller(caller=IVAN)

    assert {"agent_id", "conversation_id"} == {each.field for each in invalid.value.violations}
    assert (False, None) == (unknown.value.may_repeat, unknown.value.__cause__)
    assert ("erase", 32) == (denied.value.metadata["missing_right"], len(denied.value.trace_id))


@pytest.mark.parametrize("text", [f"{TOKEN}\n", f"{TOKEN}\r\n", f"\ufeff{TOKEN}"], ids=repr)
async def test_token_of_a_file(cloning, text: str) -> None:
    """A byte order mark and one line end at its end are no part of a token, told or asked for."""
    async with cloning(cloner_token=(Secret(TOKEN),)) as cloner:
        for token in (text, lambda: text):
            async with connect(target(cloner), token=token) as precall:
                assert [] == list((await precall.list_voices()).voices)


@pytest.mark.parametrize("text", ["two\nlines", "caf\u00e9", "nul\0", "two line ends\n\n"], ids=repr)
async def test_token_that_cannot_be(text: str) -> None:
    """A token that no header can carry is refused as such, and not shown; also one that is asked for."""
    with pytest.raises(ValueError, match="token must be") as told:
        async with connect("127.0.0.1:1", token=text):
            pass
    async with connect("127.0.0.1:1", token=lambda: text) as precall:
        with pytest.raises(ValueError, match="token must be"):
            await precall.list_voices()
        with pytest.raises(ValueError, match="token must be"):
            await anext(precall.watch_voice("voice_1"))

    assert text not in str(told.value)


async def test_deadline(cloning, emulator: Emulator, speech: bytes) -> None:
    """Every call ends when its time has come, whoever holds it up; nobody at all is told so as well."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
    async with cloning() as cloner, connect(target(cloner)) as precall:
        began = time.monotonic()
        with pytest.raises(precall_client.ProviderTimeout) as late:
            await precall.clone_voice(caller=IVAN, sample=speech, seconds=2.0)
        took = time.monotonic() - began
        emulator.faults.clear()
    async with connect("127.0.0.1:1") as nobody:
        with pytest.raises(precall_client.ClonerUnavailable):
            await nobody.list_voices(seconds=5)
        with pytest.raises(PrecallError):
            await nobody.list_voices(seconds=-1.0)

    assert 10 > took
    assert late.value.may_repeat


@pytest.mark.long
@pytest.mark.parametrize("size", [0, 300_000], ids=["small", "large"])
async def test_server_that_stands_still(size: int) -> None:
    """A call to a process that is frozen ends long before its deadline, so that it may be made elsewhere."""
    async with (
        process(ELEVENLABS_API_KEY="k", CLONER_PORT="0") as started,
        connect(await ready(started)) as precall,
    ):
        await precall.get_limits(seconds=10)
        os.kill(started.pid, signal.SIGSTOP)
        try:
            with pytest.raises(precall_client.ClonerUnavailable):
                await precall.clone_voice(caller=IVAN, sample=bytes(size), seconds=60)
        finally:
            os.kill(started.pid, signal.SIGCONT)


@pytest.mark.parametrize("sample", [b"", bytes(300_000)], ids=["small", "large"])
async def test_no_deadline(cloning, sample: bytes) -> None:
    """A deadline of centuries, or none at all, is a long one."""
    async with cloning() as cloner, connect(target(cloner)) as precall:
        for seconds in (math.inf, 1e300):
            assert not (await precall.list_voices(seconds=seconds)).voices
            with pytest.raises(PrecallError) as refused:
                await precall.clone_voice(caller=IVAN, sample=sample, seconds=seconds)
            assert refused.value.reason in {"FIELD_INVALID", "SAMPLE_UNREADABLE"}
            with pytest.raises(precall_client.NotFound):
                await anext(precall.watch_voice("voice_of_nobody", seconds=seconds))


async def test_trace(cloning, spans) -> None:
    """The trace that is current goes on at the cloner, with a span of the call between; its failure is told."""
    provider = spans.provider("service")
    async with cloning() as cloner, connect(target(cloner), tracer_provider=provider) as precall:
        with (
            provider.get_tracer("test").start_as_current_span("work") as work,
            pytest.raises(precall_client.NotFound),
        ):
            await precall.get_voice("voice_of_nobody")
        server, client = sorted(
            await spans.wait("precall.v1.CloningService/GetVoice", 2),
            key=lambda span: span.kind is SpanKind.CLIENT,
        )

    assert work.get_span_context().span_id == client.parent.span_id
    assert client.context.span_id == server.parent.span_id
    assert 1 == len({each.context.trace_id for each in (server, client)} | {work.get_span_context().trace_id})
    assert "NOT_FOUND" == client.attributes["rpc.response.status_code"]
    assert not client.status.is_ok


async def test_trace_of_a_stream(cloning, spans, speech: bytes, caplog) -> None:
    """Whoever iterates over a stream, and leaves it, stays in the span that is its own; the stream has its own."""
    provider = spans.provider("service")
    tracer = provider.get_tracer("test")
    async with cloning() as cloner, connect(target(cloner), tracer_provider=provider) as precall:
        cloned = await precall.clone_voice(caller=IVAN, sample=speech)
        with tracer.start_as_current_span("work") as work:
            async for _ in precall.watch_voice(cloned.voice.voice_id):
                assert work is get_current_span()
                break
            assert work is get_current_span()
            ended = await spans.wait("precall.v1.CloningService/WatchVoice", 2)
            assert work is get_current_span()
        server, client = sorted(ended, key=lambda span: span.kind is SpanKind.CLIENT)

    assert work.get_span_context().span_id == client.parent.span_id
    assert client.context.span_id == server.parent.span_id
    assert "CANCELLED" == client.attributes["rpc.response.status_code"]
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_large_request_goes_once_it_is_sent() -> None:
    """Whoever waits for an answer holds nothing of what was asked any more, where that is large."""
    asked = pb.PrepareCallRequest(
        agent_id="agent_demo", conversation_id="conv_1", sample=bytes(10 * MEBIBYTE)
    )
    arrived, answering = asyncio.Event(), asyncio.Event()
    same = False

    async def prepare(requests: Any, _: Any) -> bytes:
        nonlocal same
        async for request in requests:
            same = asked.SerializeToString() == request
        del request
        arrived.set()
        await answering.wait()
        return pb.PrepareCallResponse(call_id="call_1").SerializeToString()

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_registered_method_handlers(
        "precall.v1.CloningService", {"PrepareCall": grpc.stream_unary_rpc_method_handler(prepare)}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tracemalloc.start()
    try:
        async with connect(f"127.0.0.1:{port}") as precall:
            call = asyncio.create_task(
                precall.prepare_call(
                    agent_id="agent_demo", conversation_id="conv_1", sample=bytearray(10 * MEBIBYTE)
                )
            )
            await arrived.wait()
            held, most = tracemalloc.get_traced_memory()
            answering.set()
            answer = await call
    finally:
        tracemalloc.stop()
        await server.stop(None)

    assert same
    assert "call_1" == answer.call_id
    assert MEBIBYTE > held
    assert 10 * MEBIBYTE < most


async def test_large_request_meets_its_end() -> None:
    """Wherever in a large request its time runs out, that is told, and never looks as if the caller gave up."""

    async def ponder(requests: Any, _: Any) -> bytes:
        async for _request in requests:
            pass
        return await asyncio.get_running_loop().create_future()

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_registered_method_handlers(
        "precall.v1.CloningService", {"CloneVoice": grpc.stream_unary_rpc_method_handler(ponder)}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sample = bytes(3 * MEBIBYTE)
    found = set()
    try:
        async with connect(f"127.0.0.1:{port}") as precall:
            for count in range(400):
                call = asyncio.create_task(precall.clone_voice(sample=sample, seconds=count % 40 / 5000))
                await asyncio.wait((call,))
                found.add(asyncio.CancelledError if call.cancelled() else type(call.exception()))
    finally:
        await server.stop(None)

    assert {precall_client.ProviderTimeout} == found


@asynccontextmanager
async def relayed(turned_away: int = 0) -> AsyncIterator[tuple[asyncio.Server, asyncio.Event]]:
    """A server of CloneVoice behind a relay, which breaks what is used while the event is set.

    The first connections, as many as are `turned_away`, are closed at once.
    """
    broken = asyncio.Event()
    relaying: dict[Any, asyncio.Task[None]] = {}

    async def answer(requests: Any, _: Any) -> bytes:
        async for _request in requests:
            pass
        return pb.CloneVoiceResponse().SerializeToString()

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relaying[writer.get_extra_info("peername")] = asyncio.create_task(relay(reader, writer))

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turned_away
        turned_away -= 1
        try:
            # gRPC may connect once more when client and server are gone.
            with contextlib.suppress(ConnectionRefusedError):
                if turned_away < 0:
                    await pass_on(reader, writer)
        finally:
            writer.transport.abort()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        pumps = [asyncio.create_task(pump(*ends)) for ends in ((reader, far_writer), (far_reader, writer))]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, far_writer):
            each.transport.abort()
        await asyncio.wait(pumps)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while (data := await reader.read(65536)) and not broken.is_set():
                writer.write(data)

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_registered_method_handlers(
        "precall.v1.CloningService", {"CloneVoice": grpc.stream_unary_rpc_method_handler(answer)}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with await asyncio.start_server(take, "127.0.0.1", 0) as relays:
            yield relays, broken
            # Once this one is taken, so is every connection that the client has begun.
            _, last = await asyncio.open_connection(*relays.sockets[0].getsockname())
            while last.get_extra_info("sockname") not in relaying:
                await asyncio.sleep(0.005)
            last.transport.abort()
            # The client is gone, so each comes to its end, and leaves no connection to another test.
            await asyncio.gather(*relaying.values())
    finally:
        await server.stop(None)


async def test_large_request_loses_its_connection() -> None:
    """A cloner that goes while a large request is sent is told at once, and not when time has run out."""
    sample = bytes(5 * MEBIBYTE)
    found = set()
    for _ in range(10):
        async with (
            relayed() as (relays, broken),
            connect(f"127.0.0.1:{relays.sockets[0].getsockname()[1]}") as precall,
        ):
            await precall.clone_voice(sample=sample)
            broken.set()
            with pytest.raises(PrecallError) as lost:
                await precall.clone_voice(sample=sample, seconds=5)
            found.add(type(lost.value))

    assert {precall_client.ClonerUnavailable} == found


async def test_large_request_finds_nobody_at_first() -> None:
    """A large request that nobody has taken is tried again, as a smaller one is."""
    async with (
        relayed(turned_away=1) as (relays, _),
        connect(f"127.0.0.1:{relays.sockets[0].getsockname()[1]}") as precall,
    ):
        answer = await precall.clone_voice(sample=bytes(5 * MEBIBYTE))

    assert pb.CloneVoiceResponse() == answer


@pytest.mark.parametrize("busy", [False, True])
async def test_large_request_ends_in_time(busy: bool) -> None:
    """A large request that finds nobody is not tried again once its time would have run out, or has."""
    left = []
    if busy:
        # In the pause after the first try, which finds at once that nobody is there.
        asyncio.get_running_loop().call_later(0.05, time.sleep, 0.6)

    def begin(seconds: float) -> Any:
        left.append(seconds)
        return method(timeout=seconds)

    async with grpc.aio.insecure_channel("127.0.0.1:1") as nobody:
        method: Any = nobody.stream_unary("/precall.v1.CloningService/CloneVoice")
        with pytest.raises(grpc.aio.AioRpcError):
            await uploaded(begin, [b"large"], 0.5)

    assert [] == [seconds for seconds in left if seconds <= 0]


def repeated(recording: Path, times: int) -> bytes:
    """A WAV file, so many times in a row."""
    file = io.BytesIO()
    with wave.open(str(recording)) as reader, wave.open(file, "wb") as writer:
        writer.setparams(reader.getparams())
        writer.writeframes(times * reader.readframes(reader.getnframes()))
    return file.getvalue()


@pytest.mark.parametrize("large", [False, True])
async def test_given_up(cloning, emulator: Emulator, samples: Path, spans, eventually, large: bool) -> None:
    """A call that is cancelled is cancelled at the cloner, too, however its request was sent."""
    emulator.faults.set(Fault(method="POST", path=CREATE, times=None, hold="before"))
    speech = repeated(samples / "speech.wav", 8 if large else 1)
    assert large == (KEPT_BYTES < len(speech))
    async with cloning() as cloner, connect(target(cloner)) as precall:
        call = asyncio.create_task(precall.clone_voice(caller=IVAN, sample=speech))
        await eventually(lambda: emulator.requests.matching(path=CREATE))
        call.cancel()
        (span,) = await spans.wait("precall.v1.CloningService/CloneVoice")
        emulator.faults.clear()

    assert "CANCELLED" == span.attributes["rpc.response.status_code"]


def write(folder: Path, authority: trustme.CA, name: str) -> Tls:
    """Certificates in files."""
    issued = authority.issue_cert(name)
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())
    (folder / "cert.pem").write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    (folder / "key.pem").write_bytes(issued.private_key_pem.bytes())
    return Tls(ca=folder / "ca.pem", cert=folder / "cert.pem", key=folder / "key.pem")


def server_side(folder: Path) -> dict[str, Pem]:
    """The same files, as a cloner's settings."""
    names = {"cloner_tls_client_ca": "ca.pem", "cloner_tls_cert": "cert.pem", "cloner_tls_key": "key.pem"}
    return {name: Pem((folder / file).read_text(), folder / file) for name, file in names.items()}


@pytest.mark.long
async def test_certificates_that_change(cloning, tmp_path: Path) -> None:
    """One client goes on while the certificates of both sides are replaced."""
    (tmp_path / "server").mkdir()
    (tmp_path / "client").mkdir()
    first, second = trustme.CA(), trustme.CA()
    tls = write(tmp_path / "client", first, "client")
    write(tmp_path / "server", first, "localhost")
    async with (
        cloning(**server_side(tmp_path / "server")) as cloner,
        connect(target(cloner), tls=tls) as precall,
    ):
        await precall.list_voices(seconds=10)
        before = precall.channel

        # The key of another certificate is nothing to change for.
        key = (tmp_path / "client" / "key.pem").read_bytes()
        (tmp_path / "client" / "key.pem").write_bytes(first.issue_cert("x").private_key_pem.bytes())
        await asyncio.sleep(3)
        await precall.list_voices(seconds=10)
        assert before is precall.channel
        (tmp_path / "client" / "key.pem").write_bytes(key)

        write(tmp_path / "client", second, "client")
        write(tmp_path / "server", second, "localhost")
        async with asyncio.timeout(60):
            while True:
                await asyncio.sleep(0.2)
                if precall.channel is before:
                    continue
                try:
                    await precall.list_voices(seconds=10)
                except precall_client.ClonerUnavailable:
                    continue  # the cloner has yet to look
                break


async def test_strangers_certificate(cloning, tmp_path: Path) -> None:
    """A cloner that shows a certificate of somebody else is not spoken to, nor is one in plain text."""
    (tmp_path / "server").mkdir()
    (tmp_path / "client").mkdir()
    tls = write(tmp_path / "client", trustme.CA(), "client")
    write(tmp_path / "server", trustme.CA(), "localhost")
    for settings in (server_side(tmp_path / "server"), {}):
        async with cloning(**settings) as cloner, connect(target(cloner), token=TOKEN, tls=tls) as precall:
            with pytest.raises(precall_client.ClonerUnavailable) as refused:
                await precall.list_voices(seconds=10)
            assert grpc.StatusCode.UNAVAILABLE is refused.value.code


def test_tls_that_cannot_be(tmp_path: Path) -> None:
    """What could never work is told at once, and holds nothing of a key."""
    issued, other = trustme.CA().issue_cert("a"), trustme.CA().issue_cert("b")
    cert, key = tmp_path / "cert", tmp_path / "key"
    issued.cert_chain_pems[0].write_to_path(str(cert))
    other.private_key_pem.write_to_path(str(key))

    with pytest.raises(TlsInvalid, match="cert and key go together"):
        Tls(cert=cert)
    with pytest.raises(TlsInvalid, match="KEY_VALUES_MISMATCH"):
        Tls(cert=cert, key=key).check()
    with pytest.raises(TlsInvalid, match="ca is not PEM"):
        Tls(ca=b"/etc/ca.pem").read()
    for part in (key, key.read_bytes()):
        with pytest.raises(TlsInvalid, match="ca holds no certificate"):
            Tls(ca=part).read()
    with pytest.raises(TlsInvalid, match="key holds no private key"):
        Tls(cert=cert, key=cert).read()
    with pytest.raises(TlsInvalid, match="ca cannot be read"):
        Tls(ca=tmp_path / "nothing").read()


@pytest.mark.parametrize(
    "target", ["http://cloner:50051", "HTTPS://cloner", "tcp://cloner:50051", "grpc://cloner:1", "", " "]
)
async def test_no_target(target: str) -> None:
    """What can never be reached is refused at once, rather than told to be out of reach."""
    with pytest.raises(ValueError, match=r"^target must be host:port"):
        async with connect(target):
            pass
