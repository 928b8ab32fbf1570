"""The section `[server]` of the configuration: where the server listens and whom it lets in."""

from __future__ import annotations

from dataclasses import dataclass

from voiceagent.config_keys import checked, documented, within
from voiceagent.server_settings import ServerSettings

_SERVER = ServerSettings()


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where the server listens and whom it lets in."""

    host: str = documented(_SERVER.host, "Address to listen on.", "a host name or IP address", bool)
    port: int = documented(
        _SERVER.port, "Port to listen on; 0 picks a free one.", "an integer from 0 to 65535", within(0, 65535)
    )
    api_key: str = documented(
        "", "Key that clients must present; empty asks for none, which only loopback allows.", "text"
    )
    allowed_origins: tuple[str, ...] = documented(
        (),
        "Web pages that may connect, beside the server's own page.",
        "a list of origins such as 'https://shop.example'",
    )
    max_sessions: int = documented(
        32,
        "Conversations at one time; one more is refused with the reason.",
        "an integer from 1 to 10000",
        within(1, 10_000),
    )
    refuse_when_full: bool = documented(
        True,
        "Whether a caller is refused, with the reason, who would make those who are there late (docs/load.md); `max_sessions` holds in any case.",
        "true or false",
    )
    session_minutes: float = documented(
        _SERVER.session_s / 60.0,
        "Longest conversation (60 minutes is OpenAI's).",
        "minutes from 0.1 to 1440",
        within(0.1, 1440.0),
    )
    tls_cert: str = documented(
        "", "Certificate file (PEM) for https, which phones need for the microphone.", "a path, or empty"
    )
    tls_key: str = documented("", "Private key file (PEM) of that certificate.", "a path, or empty")
    public_url: str = documented(
        "",
        "What callers call this server; needed to check a bridge's signature.",
        "a URL such as 'https://voice.example', or empty",
    )
    twilio_auth_token: str = documented(
        "", "Auth token of your Twilio account: its signature then opens the phone door.", "text, or empty"
    )

    def __post_init__(self) -> None:
        checked("server", self.settings)

    def settings(self) -> ServerSettings:
        return ServerSettings(
            host=self.host,
            port=self.port,
            api_key=self.api_key or None,
            allowed_origins=self.allowed_origins,
            max_sessions=self.max_sessions,
            tls_cert=self.tls_cert or None,
            tls_key=self.tls_key or None,
            session_s=self.session_minutes * 60.0,
            public_url=self.public_url or None,
            twilio_auth_token=self.twilio_auth_token or None,
        )
