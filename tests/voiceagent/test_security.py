from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceagent.errors import ConfigError
from voiceagent.security import AccessPolicy, check_bind, extract_key, select_subprotocol
from voiceagent.server_settings import ServerSettings

OPEN = AccessPolicy("127.0.0.1")
KEYED = AccessPolicy("0.0.0.0", "secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_serving_this_machine_alone_needs_no_key(host: str) -> None:
    check_bind(host, None)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.1.4", "example.org", "127.0.0.1.evil.org", "localhost.evil.org"]
)
def test_serving_a_network_without_a_key_is_refused_with_the_reason(host: str) -> None:
    with pytest.raises(ConfigError, match="api_key") as caught:
        check_bind(host, None)
    assert caught.value.key == "host"
    check_bind(host, "secret")


def test_settings_refuse_to_be_built_for_an_open_network_server() -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", api_key="secret").access.allows_key("secret")


def test_a_key_that_cannot_ride_in_a_header_is_refused_without_showing_it() -> None:
    for key in ("", "two words", "ключ", 'quo"te', "a,b"):
        with pytest.raises(ConfigError, match="api_key") as caught:
            ServerSettings(api_key=key)
        assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("max_sessions", 0),
        ("max_message_bytes", 1024),
        ("send_buffer_limit", 10),
        ("send_timeout_s", 0.0),
        ("session_s", -1.0),
        ("drain_s", -0.1),
        ("max_malformed_messages", 0),
        ("public_url", "voice.example"),
        ("public_url", "https://voice.example/?a=b"),
        ("public_url", "https://voice.example:70000"),
        ("tls_cert", "cert.pem"),
        ("tls_key", "key.pem"),
    ],
)
def test_each_bad_setting_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match="tls_" if field.startswith("tls") else field):
        ServerSettings(**{field: value})  # type: ignore[arg-type]


def test_an_auth_token_needs_the_name_that_signatures_are_made_over() -> None:
    with pytest.raises(ConfigError, match="public_url") as caught:
        ServerSettings(twilio_auth_token="12345")
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize(
    ("public", "wanted"),
    [
        ("https://voice.example", "wss://voice.example/telephony/twilio?a=b"),
        ("wss://voice.example:8443/", "wss://voice.example:8443/telephony/twilio?a=b"),
        ("http://10.0.0.1:8080/agents", "ws://10.0.0.1:8080/agents/telephony/twilio?a=b"),
    ],
)
def test_the_address_of_a_websocket_follows_the_public_name(public: str, wanted: str) -> None:
    assert ServerSettings(public_url=public).websocket_url("/telephony/twilio", "a=b") == wanted


def test_the_authorization_header_comes_before_the_subprotocol() -> None:
    offered = ["realtime", "openai-insecure-api-key.from-protocol"]
    assert extract_key("Bearer from-header", offered) == "from-header"
    assert extract_key("bearer  spaced ", offered) == "spaced"
    assert extract_key(None, offered) == "from-protocol"
    assert extract_key("Basic abc", offered) == "from-protocol"
    assert extract_key("Bearer ", offered) == "from-protocol"
    assert extract_key(None, ["realtime", "openai-insecure-api-key."]) is None
    assert extract_key(None, []) is None


def test_a_key_in_a_subprotocol_may_hold_dots_and_dashes() -> None:
    assert extract_key(None, ["openai-insecure-api-key.ek_a.b-c_d.e"]) == "ek_a.b-c_d.e"


def test_only_realtime_is_ever_selected() -> None:
    assert select_subprotocol(["openai-insecure-api-key.k", "realtime", "openai-agents-sdk.0.2"]) == "realtime"
    assert select_subprotocol(["openai-insecure-api-key.k"]) is None
    assert select_subprotocol([]) is None


def test_keys_are_compared_whole_and_a_missing_one_fails() -> None:
    assert KEYED.allows_key("secret")
    assert not any(KEYED.allows_key(key) for key in (None, "", "secre", "secret ", "SECRET", "sécret", "\udcff"))
    assert OPEN.allows_key(None) and OPEN.allows_key("anything")


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:8080", "127.0.0.1", "[::1]:8080", "LocalHost"])
def test_an_open_server_answers_to_loopback_names(host: str) -> None:
    assert OPEN.allows_host(host)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.org",
        "evil.org:8080",
        "127.0.0.1.evil.org",
        "a@127.0.0.1",
        "x/127.0.0.1",
        "[::1",
        "localhost:99999",
    ],
)
def test_an_open_server_does_not_answer_to_a_rebound_name(host: str | None) -> None:
    assert not OPEN.allows_host(host)


def test_a_key_or_a_named_origin_lets_other_hosts_through() -> None:
    assert KEYED.allows_host("voice.example") and KEYED.allows_host(None)
    proxied = AccessPolicy("127.0.0.1", None, ("https://voice.example",))
    assert proxied.allows_host("voice.example") and not proxied.allows_host("evil.org")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "localhost:8080"),
        ("http://localhost:8080", "localhost:8080"),
        ("http://LOCALHOST:8080", "localhost:8080"),
        ("http://localhost", "localhost"),
        ("http://localhost:80", "localhost"),
        ("https://voice.example", "voice.example"),
        ("https://voice.example", "voice.example:443"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_the_page_itself_and_clients_without_an_origin_may_connect(origin: str | None, host: str) -> None:
    assert OPEN.allows_origin(origin, host) and KEYED.allows_origin(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://evil.org", "localhost:8080"),
        ("http://localhost:9999", "localhost:8080"),
        ("https://localhost:8080.evil.org", "localhost:8080"),
        ("null", "localhost:8080"),
        ("", "localhost:8080"),
        ("file://", "localhost:8080"),
        ("chrome-extension://localhost:8080", "localhost:8080"),
        ("http://localhost:port", "localhost:8080"),
        ("http://localhost:8080", None),
    ],
)
def test_foreign_pages_may_not_connect_even_with_the_key(origin: str, host: str | None) -> None:
    assert not OPEN.allows_origin(origin, host) and not KEYED.allows_origin(origin, host)


def test_origins_on_the_list_may_connect_and_a_star_lets_all_in() -> None:
    listed = AccessPolicy("0.0.0.0", "secret", ("https://app.example", "null"))
    assert listed.allows_origin("https://app.example", "voice.example") and listed.allows_origin(
        "null", "voice.example"
    )
    assert not listed.allows_origin("http://app.example", "voice.example")
    assert AccessPolicy("127.0.0.1", None, ("*",)).allows_origin("http://evil.org", "localhost")


@given(st.text(), st.text(), st.lists(st.text()))
def test_nothing_a_stranger_sends_breaks_a_check(origin: str, host: str, offered: list[str]) -> None:
    for policy in (OPEN, KEYED):
        policy.allows_origin(origin, host)
        policy.allows_host(host)
        policy.allows_key(extract_key(origin, offered))
    select_subprotocol(offered)
