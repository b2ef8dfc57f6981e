import pytest

from gateway.edge.path import legible


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/webhook", "/webhook"),
        ("/webhook/", "/webhook/"),
        ("/webhook/post-call/", "/webhook/post-call/"),
        ("/webhook/post-cal", "/webhook/post-cal"),
        ("/webhook/post_call", "/webhook/post#"),
        ("/webhooks", "/webhook#"),
        ("/webhook/conversation-init-", "/webhook/conversation-init#"),
        ("/webhook/post-call/wsec_0f1e2d3c4b5a", "/webhook/post-call/#"),
        ("/webhook/06-12-34-56-78/Ivan.Petrov/11.12.2007", "/webhook/#"),
        ("/webhook/+31612345678", "/webhook/#"),
        ("/webhook/0612.345.678/v0=abc", "/webhook/#"),
        ("/webhook\n/Ivan", "/webhook#"),
        ("/webhook/" + "p" * 10_000, "/webhook/p#"),
        ("/elsewhere/webhook", None),
        ("", None),
    ],
)
def test_legible(path: str, expected: str | None) -> None:
    """A mistyped URL shows as far as it is right, and nothing shows that somebody else wrote."""
    assert expected == legible(path)
