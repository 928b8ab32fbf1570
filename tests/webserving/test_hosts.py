"""Headers by which a page of another website gives itself away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webserving.hosts import is_loopback, is_welcome, names_us

LISTED = ("https://voice.example", "null")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST.", "a.localhost", "::1", "[::1]", "::ffff:127.0.0.1"]
)
def test_loopback_names_and_addresses_are_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.1.4", "example", "127.0.0.1.evil.org", "localhost.evil.org"]
)
def test_what_others_can_reach_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "LocalHost", "voice.example:443"])
def test_loopback_and_the_hosts_of_listed_origins_name_us(host: str) -> None:
    assert names_us(host, LISTED)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.org",
        "127.0.0.1.evil.org",
        "a@127.0.0.1",
        "x/127.0.0.1",
        "localhost/x",
        "[::1",
        "localhost:99999",
    ],
)
def test_a_rebound_name_and_nonsense_do_not(host: str | None) -> None:
    assert not names_us(host, LISTED)
    assert not names_us(host, ("*",))


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, None),
        ("http://localhost:8080", "LOCALHOST:8080"),
        ("http://localhost", "localhost:80"),
        ("https://own.example:443", "own.example"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("https://voice.example", "own.example"),
        ("null", "own.example"),
    ],
)
def test_our_own_page_a_listed_one_and_no_page_at_all_are_welcome(origin: str | None, host: str | None) -> None:
    assert is_welcome(origin, host, LISTED)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.org",
        "http://voice.example",
        "http://localhost:9999",
        "https://localhost",
        "http://localhost:8080.evil.org",
        "http://a@localhost:8080",
        "http://localhost:port",
        "chrome-extension://localhost:8080",
        "file://",
        "",
    ],
)
def test_pages_of_others_are_not_but_for_a_star(origin: str) -> None:
    assert not is_welcome(origin, "localhost:8080", LISTED)
    assert is_welcome(origin, "localhost:8080", ("*",))


def test_nobody_is_welcome_at_a_host_that_was_not_told() -> None:
    assert not is_welcome("http://localhost:8080", None, LISTED)


@given(st.text(), st.text(), st.lists(st.text()))
def test_nothing_a_stranger_sends_breaks_a_rule(origin: str, host: str, listed: list[str]) -> None:
    names_us(host, listed)
    is_welcome(origin, host, listed)
    is_loopback(host)
