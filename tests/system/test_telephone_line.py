"""A call of a telephone line that is opened before ElevenLabs has a conversation for it."""

import json
from typing import Any

from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from environment import Secret
from tests.kit.clients import channel
from tests.system.signing import signed

SECRET, TOKEN = "secret-of-the-webhook", "token-of-the-initiation"
IVAN = {"name": "Ivan", "date_of_birth": "11.12.2007", "phone_number": "+31612345678"}


async def test_one_call(running, speech: bytes) -> None:
    """It is opened by its line, ended by its conversation, told twice, delivered late, and erased as one call."""
    line = {
        "caller_id": IVAN["phone_number"], "agent_id": "agent_demo", "called_number": "+31201234567",
        "call_sid": "CA0123456789abcdef0123456789abcdef",
    }  # fmt: skip
    async with (
        running(of_gateway={"conversation_init_token": (Secret(TOKEN),)}) as system,
        channel(int(system.cloner.rpartition(":")[2])) as wire,
    ):
        cloner = CloningServiceStub(wire)

        async def calls() -> Any:
            return (await cloner.ListCalls(pb.ListCallsRequest(agent_id="agent_demo"), timeout=10)).calls

        cloned = await cloner.CloneVoice(
            pb.CloneVoiceRequest(caller=pb.Caller(**IVAN), sample=speech), timeout=10
        )
        opened = await system.http.post(
            "/webhook/conversation-init", json=line, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        variables = opened.json()["dynamic_variables"]
        data = {
            "conversation_id": "conv_1",
            "agent_id": "agent_demo",
            "conversation_initiation_client_data": {"dynamic_variables": variables},
        }
        body = json.dumps({"type": "post_call_transcription", "data": data}).encode()
        for _ in range(2):
            headers = {"ElevenLabs-Signature": signed(body, secret=SECRET)}
            told = await system.http.post("/webhook/post-call", content=body, headers=headers)
            assert 200 == told.status_code
        late = await system.deliver(speech, caller_metadata=IVAN)
        (call,) = await calls()
        await cloner.ForgetCaller(pb.ForgetCallerRequest(caller=pb.Caller(**IVAN)), timeout=10)

        assert [] == list(await calls())

    assert ("conv_1", variables["precall_call_id"]) == (call.conversation_id, call.call_id)
    assert cloned.voice.voice_id == call.voice_id == late.json()["voice_id"]
    assert not late.json()["agent_updated"]
