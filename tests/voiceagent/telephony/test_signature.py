"""Twilio's signature, by vectors that the vendor's own package made (protocols 5.2)."""

from __future__ import annotations

import pytest

from voiceagent.telephony.signature import is_signed, twilio_signature

URL = "wss://e.org/twilio"
SIGNED = "W0VrAty+s4ggGpzVzwhE1c/Hwdc="


def test_the_vendors_vectors() -> None:
    assert twilio_signature("12345", URL) == SIGNED
    form = {"To": "+15550111", "CallSid": "CA1", "From": "+15550100"}
    assert twilio_signature("12345", "https://e.org/voice", form) == "K/1n3lp/VT1FiEfAwDMCvXpc8Vk="


@pytest.mark.parametrize("url", [URL, "wss://e.org:443/twilio"])
def test_the_default_port_may_be_written_or_not(url: str) -> None:
    assert is_signed(SIGNED, "12345", url)
    assert is_signed(twilio_signature("12345", "wss://e.org:443/twilio"), "12345", url)


@pytest.mark.parametrize(
    ("signature", "token", "url"),
    [
        (SIGNED, "12346", URL),
        (SIGNED, "12345", "wss://e.org/twilio?a=b"),
        (SIGNED, "12345", "wss://e.org:8443/twilio"),
        (SIGNED, "12345", "https://e.org/twilio"),
        ("", "12345", URL),
        ("ø\udc80", "12345", URL),
    ],
)
def test_another_token_or_address_does_not_fit(signature: str, token: str, url: str) -> None:
    assert not is_signed(signature, token, url)
