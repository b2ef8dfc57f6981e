import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.edge.signature import SignatureError, VerifiedBody, Verifier

# printf '1702425485.{"type":"pre_call"}' | openssl dgst -sha256 -hmac test-webhook-secret-0001
AT = 1702425485
BODY = b'{"type":"pre_call"}'
FIRST = "01672d1accc401b77d71ab260dd21501213fa7b4cf2cc3a32f8e447a5845dfdc"
# The same with the secret test-webhook-secret-0002.
SECOND = "c7c7a6f34bebc0260b3a1d098100d98f4f9bd3702b26cbc744715f5a5b94ab40"
# printf '001702425485.' ... : the time is signed as it is written. Twelve characters.
PADDED = "37aa64ac47a3f0ec8bdf510234d00996f7f8cafdcba122fcf45a36becf2f0ffe"
# printf '1702425485.' : an empty body.
EMPTY = "1e761ba31630e6e5d21a129a2a7ceb67d7bea266ebb86c0250144614b88e25ea"
# head -c 100000 /dev/zero after '1702425485.'
ZEROS = "6ff2adfd9c581bf8a35c92863004ad5aac396a1cb3cd28df121a2f43473cf2fa"

SECRETS = [b"test-webhook-secret-0001"]
BOTH = [b"test-webhook-secret-0001", b"test-webhook-secret-0002"]
WRONG = "0" * 64


def check(*header: str, body: bytes = BODY, secrets: list[bytes] = SECRETS, now: float = AT) -> bytes:
    """The verified bytes."""
    verifier = Verifier(header, secrets, now=now)
    verifier.feed(body)
    return verifier.finish().content


@pytest.mark.parametrize(
    ("header", "body", "secrets"),
    [
        pytest.param(f"t={AT},v0={FIRST}", BODY, SECRETS, id="plain"),
        pytest.param(f"t={AT},v0={EMPTY}", b"", SECRETS, id="empty body"),
        pytest.param(f"t={AT},v0={ZEROS}", bytes(100_000), SECRETS, id="binary body"),
        pytest.param(f"v0={FIRST},t={AT}", BODY, SECRETS, id="signature before time"),
        pytest.param(f" t={AT} ,\tv0={FIRST} ", BODY, SECRETS, id="spaces around parts"),
        pytest.param(f"t={AT},v1=zzz,x,,v0={FIRST}", BODY, SECRETS, id="unknown parts"),
        pytest.param(f"t={AT},v0={WRONG},v0={FIRST}", BODY, SECRETS, id="second of two"),
        pytest.param(f"t={AT},v0={FIRST},v0={WRONG}", BODY, SECRETS, id="first of two"),
        pytest.param(f"t={AT},v0=XYZ,v0={FIRST}", BODY, SECRETS, id="beside one that is none"),
        pytest.param(f"t={AT},v0={FIRST}", BODY, BOTH, id="old secret"),
        pytest.param(f"t={AT},v0={SECOND}", BODY, BOTH, id="new secret"),
        pytest.param(f"t=00{AT},v0={PADDED}", BODY, SECRETS, id="time as written"),
    ],
)
def test_accepts(header: str, body: bytes, secrets: list[bytes]) -> None:
    """Takes what was signed with one of the secrets, and hands over just those bytes."""
    actual = check(header, body=body, secrets=secrets)

    assert body == actual


def test_pieces() -> None:
    """It does not matter in which pieces the body comes."""
    verifier = Verifier([f"t={AT},v0={FIRST}"], SECRETS, now=AT)
    for byte in BODY:
        verifier.feed(bytes([byte]))

    assert BODY == verifier.finish().content


@pytest.mark.parametrize(
    ("size", "before", "kept", "whole"),
    [
        pytest.param(4, 0, b'{"ty', False, id="from the start"),
        pytest.param(4, 2, b'{"ty', False, id="before so much came"),
        pytest.param(4, 10, b'{"ty', False, id="after more came"),
        pytest.param(4, 19, b'{"ty', False, id="after all came"),
        pytest.param(19, 3, BODY, True, id="as much as there is"),
        pytest.param(0, 3, b"", False, id="nothing"),
    ],
)
def test_kept(size: int, before: int, kept: bytes, whole: bool) -> None:
    """Checks the whole of a body of which only the beginning is kept."""
    verifier = Verifier([f"t={AT},v0={FIRST}"], SECRETS, now=AT)
    verifier.feed(BODY[:before])
    verifier.keep_first(size)
    for byte in BODY[before:]:
        verifier.feed(bytes([byte]))

    held = verifier.kept
    body = verifier.finish()

    assert (kept, whole, len(kept), 0) == (body.content, body.whole, held, verifier.kept)


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        ",",
        "garbage",
        f"t={AT}",
        f"v0={FIRST}",
        f"t={AT},v0=",
        f"t={AT},v0={FIRST.upper()}",
        f"t={AT},v0={FIRST[:-1]}",
        f"t={AT},v0={FIRST}0",
        f"t={AT},v0={FIRST}\n",
        f"t={AT},v0={FIRST[:-1]}é",
        f"t={AT},v1={FIRST}",
        f"t={AT},V0={FIRST}",
        f"t={AT},t={AT},v0={FIRST}",
        f"t=,v0={FIRST}",
        f"t=-{AT},v0={FIRST}",
        f"t=+{AT},v0={FIRST}",
        f"t={AT}.0,v0={FIRST}",
        f"t=1e9,v0={FIRST}",
        f"t=1_702_425,v0={FIRST}",
        f"t= {AT},v0={FIRST}",
        f"t={'9' * 13},v0={FIRST}",
        f"t={'9' * 5000},v0={FIRST}",
        f"t=١٧٠٢٤٢٥٤٨٥,v0={FIRST}",
        f"t=²,v0={FIRST}",
        f"t=NaN,v0={FIRST}",
        f"t={AT};v0={FIRST}",
        f"t={AT}" + f",v0={WRONG}" * 9,
        f"t={AT},v0={FIRST}," + "x" * 3000,
        "\x00" * 100,
    ],
)
def test_malformed(header: str) -> None:
    """Refuses a header of another form before any body is read."""
    with pytest.raises(SignatureError) as refused:
        Verifier([header], SECRETS, now=AT)

    assert "SIGNATURE_MALFORMED" == refused.value.reason


def test_missing() -> None:
    """Refuses a delivery without the header."""
    with pytest.raises(SignatureError) as refused:
        Verifier([], SECRETS, now=AT)

    assert "SIGNATURE_MISSING" == refused.value.reason


def test_repeated_header() -> None:
    """Refuses two headers even where both are right."""
    with pytest.raises(SignatureError) as refused:
        Verifier([f"t={AT},v0={FIRST}"] * 2, SECRETS, now=AT)

    assert "SIGNATURE_MALFORMED" == refused.value.reason


@pytest.mark.parametrize("now", [AT + 1800.1, AT + 10**9, AT - 300.1, 0.0])
def test_expired(now: float) -> None:
    """Refuses a time more than 30 minutes back or 5 minutes ahead, before any body is read."""
    with pytest.raises(SignatureError) as refused:
        Verifier([f"t={AT},v0={FIRST}"], SECRETS, now=now)

    assert "SIGNATURE_EXPIRED" == refused.value.reason


@pytest.mark.parametrize("now", [AT + 1800, AT + 1799.9, AT, AT - 300])
def test_window(now: float) -> None:
    """Takes a time up to and including the edges of the window."""
    assert BODY == check(f"t={AT},v0={FIRST}", now=now)


@pytest.mark.parametrize(
    ("header", "body", "secrets"),
    [
        (f"t={AT},v0={FIRST}", BODY + b" ", SECRETS),
        (f"t={AT},v0={FIRST}", BODY[:-1], SECRETS),
        (f"t={AT + 1},v0={FIRST}", BODY, SECRETS),
        (f"t=0{AT},v0={FIRST}", BODY, SECRETS),
        (f"t={AT},v0={WRONG}", BODY, SECRETS),
        (f"t={AT},v0={SECOND}", BODY, SECRETS),
        (f"t={AT},v0={FIRST}", BODY, []),
    ],
)
def test_mismatch(header: str, body: bytes, secrets: list[bytes]) -> None:
    """Refuses a body, a time or a secret other than what was signed."""
    with pytest.raises(SignatureError) as refused:
        check(header, body=body, secrets=secrets)

    assert "SIGNATURE_MISMATCH" == refused.value.reason


def test_no_other_way_to_a_verified_body() -> None:
    """A body cannot be called verified by hand."""
    with pytest.raises(TypeError):
        VerifiedBody(BODY, object())


@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(["t", "v0", "=", ",", " ", "1", "a", "\x00", "é", "٣", FIRST, str(AT)])).map(
            "".join
        ),
    ),
    st.binary(max_size=64),
)
def test_nothing_else_escapes(header: str, body: bytes) -> None:
    """Whatever a stranger sends ends in SignatureError."""
    with pytest.raises(SignatureError):
        check(header, body=body + b"\x00")
