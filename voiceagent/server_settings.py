"""Options of the server, checked when built."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from voiceagent.config_keys import without_secrets
from voiceagent.errors import ConfigError
from voiceagent.security import AccessPolicy, check_bind
from webserving.descriptors import Demand

MIB = 1024 * 1024

MIN_MESSAGE_BYTES = 21 * MIB
"""One append may carry 15 MiB of audio, which is 20 MiB as base64, and clients know no smaller limit (protocols 1.1)."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where to listen, who may come in, and how much one client may ask for."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 takes a free one."""
    api_key: str | None = None
    allowed_origins: tuple[str, ...] = ()
    """Origins of other hosts' pages that may connect, such as `https://voice.example`; "*" allows all."""
    max_sessions: int = 64
    tls_cert: str | None = None
    tls_key: str | None = None
    max_message_bytes: int = 24 * MIB
    """A longer message closes the connection with 1009."""
    send_buffer_limit: int = 8 * MIB
    """Bytes that may wait for a client that reads slowly: about two minutes of speech as base64 PCM."""
    send_timeout_s: float = 20.0
    """A client that takes nothing for so long is taken for stalled."""
    request_timeout_s: float = 10.0
    """A connection whose request is not there after so long, since it was made or since its last answer, is cut."""
    max_waiting: int = 256
    """Connections whose request is not there yet; one more cuts the oldest of them."""
    close_timeout_s: float = 5.0
    """What a client may take to read its last messages before the connection is cut."""
    session_s: float = 3600.0
    """Lifetime of a session; the vendor's own."""
    drain_s: float = 20.0
    """What a reply being spoken may still take when the server is asked to stop."""
    ping_interval_s: float = 20.0
    """Proxies drop sockets that are idle for 30 to 60 s."""
    ping_timeout_s: float = 60.0
    max_malformed_messages: int = 10
    """So many messages in a row that are not JSON close the connection with 1007."""
    twilio_auth_token: str | None = None
    """Lets in phone bridges that sign their request with it."""
    public_url: str | None = None
    """What clients call this server, such as `https://voice.example`: a signature is made over that name."""

    def __post_init__(self) -> None:
        check_bind(self.host, self.api_key)
        if not 0 <= self.port <= 65535:
            raise ConfigError("port", self.port, "0 to 65535")
        if self.api_key is not None and not _is_token(self.api_key):
            # The value is a secret: the message must not show it.
            raise ConfigError(
                "api_key", "…", "printable ASCII without spaces, commas and quotes: it has to fit into a header"
            )
        for key in ("max_sessions", "max_waiting"):
            if getattr(self, key) < 1:
                raise ConfigError(key, getattr(self, key), "at least 1")
        if (self.tls_cert is None) != (self.tls_key is None):
            given, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise ConfigError(missing, None, f"a file, because {given} is given")
        if self.max_message_bytes < MIN_MESSAGE_BYTES:
            raise ConfigError("max_message_bytes", self.max_message_bytes, f"at least {MIN_MESSAGE_BYTES}")
        if self.send_buffer_limit < 64 * 1024:
            raise ConfigError("send_buffer_limit", self.send_buffer_limit, "at least 65536")
        if self.max_malformed_messages < 1:
            raise ConfigError("max_malformed_messages", self.max_malformed_messages, "at least 1")
        for key in (
            "send_timeout_s", "request_timeout_s", "close_timeout_s", "session_s", "ping_interval_s", "ping_timeout_s",
        ):  # fmt: skip
            if getattr(self, key) <= 0:
                raise ConfigError(key, getattr(self, key), "more than 0 seconds")
        if self.twilio_auth_token and not self.public_url:
            raise ConfigError("public_url", None, "this server's public address, because twilio_auth_token is given")
        if self.public_url is not None and not _is_public_url(self.public_url):
            raise ConfigError(
                "public_url",
                without_secrets(self.public_url),
                "an address such as 'https://voice.example', without a query",
            )
        if self.drain_s < 0:
            raise ConfigError("drain_s", self.drain_s, "0 seconds or more")

    def websocket_url(self, path: str, query: str = "") -> str:
        """The address that a bridge was given for one of our websockets, by `public_url`."""
        secure, _, rest = (self.public_url or "").partition("://")
        scheme = "wss" if secure in ("https", "wss") else "ws"
        return f"{scheme}://{rest.rstrip('/')}{path}{'?' + query if query else ''}"

    def open_files(self, each: int = 1) -> Demand:
        """What the server needs at its fullest.

        Args:
            each: What a conversation takes: its own socket, and those to a remote model and to tools.
        """
        # As many phone bridges as conversations may have connected without a call yet.
        return Demand(self.max_sessions, each + 1, self.max_waiting, "conversations", "server.max_sessions")

    @property
    def access(self) -> AccessPolicy:
        return AccessPolicy(self.host, self.api_key, self.allowed_origins)


def _is_public_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return bool(url.scheme in ("http", "https", "ws", "wss") and url.hostname and url.port != 0) and not (
            url.query or url.fragment or url.username
        )
    except ValueError:
        return False


def _is_token(text: str) -> bool:
    return bool(text) and all(33 <= ord(char) <= 126 and char not in '",;' for char in text)
