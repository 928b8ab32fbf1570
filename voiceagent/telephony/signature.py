"""Twilio's signature of a request: proof that it comes from an account whose auth token we know. Pure.

Source: protocols 5.2; the vendor's own validators.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

_DEFAULT_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}


def twilio_signature(token: str, url: str, parameters: Mapping[str, str] | None = None) -> str:
    """What `X-Twilio-Signature` must be: base64 of HMAC-SHA1 over the URL and, for a form, its names and values in name order."""
    signed = url + "".join(name + value for name, value in sorted((parameters or {}).items()))
    return base64.b64encode(hmac.digest(token.encode(), signed.encode(), "sha1")).decode("ascii")


def is_signed(signature: str, token: str, url: str) -> bool:
    """Whether `signature` was made with `token` over the websocket address `url`, compared in constant time.

    The default port may or may not be written in the address that was signed, whichever way `url` has it.
    """
    given = signature.encode("utf-8", "replace")
    return any(hmac.compare_digest(given, twilio_signature(token, form).encode()) for form in _forms(url))


def _forms(url: str) -> tuple[str, ...]:
    parts = urlsplit(url)
    default = _DEFAULT_PORTS.get(parts.scheme)
    host = parts.netloc
    if default is None:
        return (url,)
    if parts.port is None:
        return (url, urlunsplit(parts._replace(netloc=f"{host}:{default}")))
    if parts.port == default:
        return (url, urlunsplit(parts._replace(netloc=host.removesuffix(f":{default}"))))
    return (url,)
