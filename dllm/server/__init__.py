"""The HTTP door of the diffusion engine: compatible with OpenAI's clients and with Inception's.

problems, fields     errors in OpenAI's shape; reading typed values out of JSON
requests, parse      what was asked, and JSON to it
plans                what was asked to what the engine is told
stops, reply, tools  the engine's events to text, canvases and tool calls
native_calls         the built-in model's own calls
build                those to JSON and server-sent events
grammars             schemas and tools to constraints, each compiled once
conversations        which conversations the prefix cache keeps
metrics, meters      what operators see
app, endpoints       the ASGI application
command              `dllm serve`

Everything above `grammars` is without input and output.
"""

from dllm.server.app import create_app
from dllm.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]
