"""The sections of the configuration: every key with its default, what it says, and what it may be."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass

from voiceagent.budget_terms import BudgetSettings, WhenLate
from voiceagent.config_keys import checked, documented, is_endpoint_url, optional_within, within, without_secrets
from voiceagent.errors import ConfigError
from voiceagent.repair import REPAIR_MODES, RepairMode, RepairSettings
from voiceagent.server_settings import ServerSettings
from voiceagent.session import BARGE_IN_MODES, MAX_BACKCHANNELS, BargeInMode, SessionSettings, TurnDetection
from voiceagent.silences import SilenceSettings
from voiceagent.tools import ACKNOWLEDGE_AFTER_S, check_schema, parameters_schema

_SERVER = ServerSettings()
_TURN = TurnDetection()
_BUDGET = BudgetSettings()
_SESSION = SessionSettings()
_SILENCE = SilenceSettings()
_REPAIR = RepairSettings()


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


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Who answers."""

    name: str = documented("assistant", "Name of the agent, for pages and logs.", "text that is not empty", bool)
    greeting: str = documented("", "What the agent says first; empty says nothing.", "text")
    instructions: str = documented("", "System prompt.", "text")
    language: str = documented(
        "en", "Language of the conversation (ISO 639-1).", "two letters such as 'en'", lambda v: len(v) == 2
    )


@dataclass(frozen=True, slots=True)
class TurnConfig:
    """When a caller's turn begins and ends."""

    endpoint: str = documented(
        "auto",
        "What ends a caller's turn: `silence` alone, or `words` and silence; `auto` takes the words where a model knows the language.",
        "'auto', 'words' or 'silence'",
        lambda v: v in ("auto", "words", "silence"),
    )
    sound: bool = documented(
        _TURN.weighs_sound,
        "Whether how the voice sounded before a pause is weighed with the words; where there is a Smart Turn (`models.endpoint`), that one listens.",
        "true or false",
    )
    silence_s: float = documented(
        _TURN.silence_s,
        "Silence that ends the caller's turn where nobody judges the words.",
        "seconds from 0.05 to 10",
        within(0.05, 10.0),
    )
    cut_off_cost_s: float = documented(
        _TURN.cut_off_cost_s,
        "Seconds of waiting that avoiding one cut-off is worth, where words are judged.",
        "seconds from 0.01 to 1000",
        within(0.01, 1000.0),
    )
    min_silence_s: float = documented(
        _TURN.min_silence_s,
        "Shortest silence that ends a turn, however complete its words.",
        "seconds from 0.05 to 10",
        within(0.05, 10.0),
    )
    max_silence_s: float = documented(
        _TURN.max_silence_s,
        "Silence that ends every turn, whatever its words.",
        "seconds from 0.05 to 10",
        within(0.05, 10.0),
    )
    dictation_silence_s: float = documented(
        _TURN.dictation_silence_s,
        "Shortest silence that ends digits, spellings and addresses.",
        "seconds from 0.05 to 10",
        within(0.05, 10.0),
    )
    threshold: float = documented(
        _TURN.threshold,
        "Speech probability that opens a turn (0.5 is Silero's).",
        "a probability from 0.01 to 0.99",
        within(0.01, 0.99),
    )
    prefix_padding_s: float = documented(
        _TURN.prefix_padding_s, "Audio kept from before speech was noticed.", "seconds from 0 to 2", within(0.0, 2.0)
    )
    create_response: bool = documented(
        _TURN.create_response, "Whether the end of a turn starts a reply.", "true or false"
    )
    interrupt_response: bool = documented(_TURN.interrupt_response, "Whether speech stops the agent.", "true or false")
    barge_in: str = documented(
        _TURN.barge_in,
        "How: `two_stage` turns the agent down first and judges what was said, `immediate` stops it at once.",
        "'two_stage' or 'immediate'",
        lambda v: v in BARGE_IN_MODES,
    )
    backchannels: tuple[str, ...] = documented(
        _TURN.backchannels,
        "What callers say to show that they listen: it does not stop the agent.",
        f"a list of at most {MAX_BACKCHANNELS} texts, each with a letter in it",
    )
    fragments: tuple[str, ...] = documented(
        _TURN.fragments,
        "Words that say nothing alone, which a recogniser makes of hums and coughs: they do not stop the agent.",
        f"a list of at most {MAX_BACKCHANNELS} texts, each with a letter in it",
    )
    stopping_words: tuple[str, ...] = documented(
        _TURN.stopping_words,
        "Words that stop the agent even if they sound like a hum.",
        f"a list of at most {MAX_BACKCHANNELS} texts, each with a letter in it",
    )
    hums: bool = documented(
        _TURN.hums,
        "Whether a short voice that sounds like a hum is a backchannel, whatever the recogniser makes of it.",
        "true or false",
    )
    mutes: bool = documented(
        _TURN.mutes,
        "Whether voice that lasts mutes the agent and stops it once its words are known, where the client can play on afterwards; `false` stops it at once.",
        "true or false",
    )
    backchannel_s: float = documented(
        _TURN.backchannel_s,
        "Voice over the agent that lasts longer stops it, unless its words so far are a backchannel or none.",
        "seconds from 0.1 to 2",
        within(0.1, 2.0),
    )
    echo_gate: bool = documented(
        _TURN.echo_gate,
        "Whether the agent's own voice, come back from a loudspeaker, is told from the caller's.",
        "true or false",
    )

    def __post_init__(self) -> None:
        checked("turn", self.detection)

    def detection(self) -> TurnDetection:
        return TurnDetection(
            threshold=self.threshold,
            prefix_padding_s=self.prefix_padding_s,
            silence_s=self.silence_s,
            create_response=self.create_response,
            interrupt_response=self.interrupt_response,
            weighs_words=self.endpoint != "silence",
            weighs_sound=self.sound,
            cut_off_cost_s=self.cut_off_cost_s,
            min_silence_s=self.min_silence_s,
            max_silence_s=self.max_silence_s,
            dictation_silence_s=self.dictation_silence_s,
            barge_in=typing.cast(BargeInMode, self.barge_in),
            backchannels=self.backchannels,
            fragments=self.fragments,
            stopping_words=self.stopping_words,
            hums=self.hums,
            backchannel_s=self.backchannel_s,
            mutes=self.mutes,
            echo_gate=self.echo_gate,
        )


@dataclass(frozen=True, slots=True)
class SilenceConfig:
    """What is said when nobody says anything."""

    prompt_after_s: float | None = documented(
        _SILENCE.prompt_after_s,
        "Silence of the caller, after the agent was heard, that is answered with a prompt, the next one, and at last the goodbye; none waits for ever.",
        "seconds from 1 to 600, or 'none'",
        optional_within(1.0, 600.0),
    )
    prompts: tuple[str, ...] = documented(
        _SILENCE.prompts,
        "Said one after the other, each after another such silence.",
        "a list of texts that are not empty",
        lambda v: all(text.strip() for text in v),
    )
    goodbye: str = documented(
        _SILENCE.goodbye, "Said last; once it has been heard the conversation ends. Empty ends nothing.", "text"
    )
    for_clients: bool = documented(
        _SILENCE.for_clients,
        "Whether Realtime clients and the page begin with it as phone calls do; they can ask for it in any case.",
        "true or false",
    )

    def settings(self) -> SilenceSettings:
        return SilenceSettings(self.prompt_after_s, self.prompts, self.goodbye, self.for_clients)


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """How long an answer may take, and how many denoising steps it may have."""

    target_s: float = documented(
        _SESSION.target_s, "Voice-to-voice latency to aim at.", "seconds from 0.05 to 30", within(0.05, 30.0)
    )
    min_steps: int = documented(
        _BUDGET.min_steps, "Fewest steps for the first clause.", "an integer from 1 to 1024", within(1, 1024)
    )
    max_steps: int = documented(
        _BUDGET.max_steps, "Most steps for the first clause.", "an integer from 1 to 1024", within(1, 1024)
    )
    threshold: float = documented(
        _BUDGET.threshold,
        "Confidence above which a token is committed without waiting.",
        "a probability from 0.01 to 1",
        within(0.01, 1.0),
    )
    useful_gain: float = documented(
        _BUDGET.useful_gain, "Quality that one more step must bring, of 1.", "a number from 0 to 1", within(0.0, 1.0)
    )
    fact_threshold: float = documented(
        _BUDGET.fact_threshold,
        "The same as `budget.threshold` for figures, names and what tools are called with.",
        "a probability from budget.threshold to 1",
        within(0.01, 1.0),
    )
    when_late: str = documented(
        _SESSION.when_late.value,
        "When the steps that are wanted do not fit: answer with fewer, say something first, or answer later.",
        "'fewer_steps', 'acknowledge' or 'answer_later'",
        lambda v: v in set(WhenLate),
    )
    acknowledgements: tuple[str, ...] = documented(
        _SESSION.acknowledgements,
        "What `acknowledge` may say; the shortest that lasts until the answer is chosen.",
        "a list of texts that are not empty",
        lambda v: all(text.strip() for text in v),
    )
    wanted_quality: float = documented(
        _BUDGET.wanted_quality,
        "Quality, of 1, that `acknowledge` and `answer_later` hold on to.",
        "a number from 0 to 1",
        within(0.0, 1.0),
    )
    patience_s: float = documented(
        _BUDGET.patience_s,
        "The latest answer with `answer_later`, from the end of speech.",
        "seconds from 0.05 to 60",
        within(0.05, 60.0),
    )
    speculate: bool = documented(
        _SESSION.speculate,
        "Whether a reply is drafted while the caller pauses, before their turn is over. Never with a remote model.",
        "true or false",
    )
    speculation_share: float = documented(
        _BUDGET.speculation_share,
        "Share of the engine's time that such drafts of all callers may take.",
        "a number from 0.01 to 1",
        within(0.01, 1.0),
    )
    remember: bool = documented(
        True,
        "Whether stage times and timelines (without their texts) are kept in `budget.folder` over restarts.",
        "true or false",
    )
    folder: str = documented("", "Where they are kept; empty is the user's state folder.", "a path, or empty")

    def __post_init__(self) -> None:
        if self.min_steps > self.max_steps:
            raise ConfigError("budget.min_steps", self.min_steps, f"at most budget.max_steps = {self.max_steps}")
        if self.fact_threshold < self.threshold:
            expected = f"at least budget.threshold = {self.threshold}"
            raise ConfigError("budget.fact_threshold", self.fact_threshold, expected)
        if self.when_late == WhenLate.ACKNOWLEDGE and not self.acknowledgements:
            raise ConfigError("budget.acknowledgements", (), "at least one text, as budget.when_late = 'acknowledge'")

    def settings(self) -> BudgetSettings:
        return BudgetSettings(
            min_steps=self.min_steps,
            max_steps=self.max_steps,
            threshold=self.threshold,
            fact_threshold=self.fact_threshold,
            useful_gain=self.useful_gain,
            wanted_quality=self.wanted_quality,
            patience_s=self.patience_s,
            speculation_share=self.speculation_share,
        )


@dataclass(frozen=True, slots=True)
class ReplyConfig:
    """How replies are written."""

    temperature: float = documented(
        _SESSION.temperature, "Sampling temperature; 0 takes the best token.", "a number from 0 to 2", within(0.0, 2.0)
    )
    max_output_tokens: int | None = documented(
        _SESSION.max_output_tokens,
        "Longest reply; none is the model's own limit.",
        "an integer from 1 to 4096, or 'none'",
        optional_within(1, 4096),
    )
    tool_acknowledgements: tuple[str, ...] = documented(
        ("One moment, please.", "Let me check that for you.", "Just a second."),
        "Said in turn when a tool takes long and has no words of its own, or only one text; an empty list leaves the silence.",
        "a list of texts that are not empty",
        lambda v: all(text.strip() for text in v),
    )


@dataclass(frozen=True, slots=True)
class ModelsConfig:
    """Which models do the work. `auto` takes the best that is on disk and says why."""

    vad: str = documented("silero", "Voice detector.", "the name of a voice detector", bool)
    asr: str = documented(
        "auto",
        "Recogniser: `pocketsphinx`, `faster-whisper:small`, or the folder of a converted Whisper.",
        "`auto`, a recogniser or a path",
        bool,
    )
    llm: str = documented(
        "auto",
        "Diffusion model: `builtin` or a checkpoint folder; or a remote model: its URL, or `remote` for that of `[remote]`.",
        "`auto`, `builtin`, a path, `remote` or a URL",
        bool,
    )
    tts: str = documented("auto", "Voice, such as `espeak` or `piper:en_US-amy-medium`.", "`auto` or a voice", bool)
    endpoint: str = documented(
        "auto",
        "Smart Turn v3 (ONNX), which listens in the place of the built-in judge of sound; `auto` takes one that was fetched.",
        "`auto`, `none` or a path",
    )
    device: str = documented(
        "auto",
        "Where the diffusion model runs; `auto` is CUDA where there is one.",
        "`auto`, `cpu`, `cuda`, `cuda:1` or `mps`",
        bool,
    )
    dtype: str = documented(
        "auto",
        "Numbers that the diffusion model computes in; `auto` on a CPU is bfloat16 where it has units for it (for the built-in model: where they are faster), else float32, and on a GPU "
        "that of the files. `int8`, `fp8` and `int4` are weights in so many bits.",
        "'auto', 'float32', 'bfloat16', 'float16', 'int8', 'fp8' or 'int4'",
        lambda v: v in ("auto", "float32", "bfloat16", "float16", "int8", "fp8", "int4"),
    )
    cache_dtype: str = documented(
        "auto",
        "Numbers that the diffusion model's prefix cache holds; `auto` is the model's own. `e4m3` is eight bits, for models that keep a prefix: "
        "half or a quarter of the bytes, and other replies now and then (docs/quantisation.md). Layers are not compiled then.",
        "'auto' or 'e4m3'",
        lambda v: v in ("auto", "e4m3"),
    )
    steps_per_visit: int = documented(
        1,
        "Most denoising steps between two looks at their outcome. More spare a GPU the waits for its host; a plan that changes, an interruption and a "
        "clause that is finished take effect that much later.",
        "an integer from 1 to 16",
        within(1, 16),
    )
    graphs: bool = documented(
        False,
        "Whether steps are recorded as CUDA graphs and replayed. For `cuda` alone; not tried on any GPU yet.",
        "true or false",
    )
    threads: int = documented(
        0,
        "CPU threads of the diffusion model; 0 is one where its layers are compiled, else all cores but one.",
        "an integer from 0 to 256",
        within(0, 256),
    )
    compile: bool = documented(
        True,
        "Whether a small model's layers are compiled for this processor (AVX-512, AVX2 or NEON) by the C compiler on the path, if there is one. For one "
        "thread.",
        "true or false",
    )
    folder: str = documented("", "Where fetched models are kept; empty is the user's data folder.", "a path, or empty")


@dataclass(frozen=True, slots=True)
class AsrConfig:
    """Words that were probably misheard. The built-in model judges them; see docs/asr.md for what it is worth."""

    repair: str = documented(
        _REPAIR.mode,
        "`show` tells clients and timelines which words were probably misheard and what was meant, `use` goes by that.",
        "'off', 'show' or 'use'",
        lambda v: v in REPAIR_MODES,
    )
    repair_below: float = documented(
        _REPAIR.below,
        "Words at least as probable as this are left alone.",
        "a probability from 0 to 1",
        within(0.0, 1.0),
    )
    repair_factor: float = documented(
        _REPAIR.factor,
        "So many times as likely must the other word be in the place.",
        "a number from 1 to 1e9",
        within(1.0, 1e9),
    )
    repair_distance: float = documented(
        _REPAIR.distance,
        "How different the two may sound: share of the sounds that differ.",
        "a number from 0 to 1",
        within(0.0, 1.0),
    )

    def settings(self) -> RepairSettings:
        mode = typing.cast(RepairMode, self.repair)
        return RepairSettings(mode, self.repair_below, self.repair_factor, self.repair_distance)


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """A language model on somebody else's machine; used when `models.llm` is `remote` or a URL."""

    url: str = documented(
        "",
        "Base URL that `/chat/completions` is appended to, as OpenAI clients take it.",
        "a URL such as 'https://host/v1', or empty",
        lambda v: not v or is_endpoint_url(v),
    )
    model: str = documented("", "Name of the model; empty takes the only one that the endpoint lists.", "text")
    dialect: str = documented(
        "openai",
        "`inception` also sends `realtime`, `diffusing` and a `reasoning_effort` that follows the plan.",
        "'openai' or 'inception'",
        lambda v: v in ("openai", "inception"),
    )
    api_key: str = documented("", "Key that the endpoint asks for.", "text")
    api_key_env: str = documented(
        "", "Variable that holds the key, such as `OPENAI_API_KEY`; instead of `remote.api_key`.", "a name, or empty"
    )
    timeout_s: float = documented(
        10.0, "Longest wait for the next piece of a reply.", "seconds from 0.1 to 600", within(0.1, 600.0)
    )
    pause_s: float = documented(
        1.0,
        "Silence between two sentences after which the reply ends with the last whole one.",
        "seconds from 0 to 60",
        within(0.0, 60.0),
    )
    max_tokens: int = documented(
        128,
        "Longest reply, and with models that reason the longest thought as well.",
        "an integer from 1 to 65536",
        within(1, 65_536),
    )
    reasoning_effort: str = documented(
        "auto",
        "`auto` follows the plan with Inception and is left to the model with OpenAI.",
        "`auto` or an effort that the endpoint knows, such as 'low'",
        bool,
    )
    diffusing: bool = documented(False, "Whether Inception streams its canvases while they denoise.", "true or false")

    def __post_init__(self) -> None:
        if self.diffusing and self.dialect != "inception":
            raise ConfigError("remote.diffusing", True, "remote.dialect = 'inception', which alone streams canvases")
        if self.api_key and self.api_key_env:
            raise ConfigError("remote.api_key_env", self.api_key_env, "nothing beside remote.api_key, or the other way")


@dataclass(frozen=True, slots=True)
class VocabularyConfig:
    """What callers say to this agent: it steers the recogniser."""

    phrases: tuple[str, ...] = documented(
        (),
        "What callers say: `{slot}` is any entry of that slot, `[…]` may be left out, `(a\\|b)` is either.",
        "a list of phrases",
    )
    slots: Mapping[str, tuple[str, ...]] = documented(
        {}, "Lists of alternatives by name.", "a table of lists of phrases"
    )


@dataclass(frozen=True, slots=True)
class NotesConfig:
    """The function that turns what was said into facts, such as an order and its price."""

    function: str = documented(
        "",
        "Factory of note takers; it is called with the table `[menu]`.",
        "'package.module:function', or empty",
        lambda v: not v or (v.count(":") == 1 and all(v.split(":"))),
    )


def _is_function_name(text: str) -> bool:
    return text.count(":") == 1 and all(text.split(":"))


def _is_tool_url(text: str) -> bool:
    """An HTTP address; unlike an endpoint's it may have a query."""
    return is_endpoint_url(text.partition("?")[0]) and "#" not in text and text.isprintable() and " " not in text


@dataclass(frozen=True, slots=True)
class ToolConfig:
    """A function that the agent may call: `function` or `url` says which. `NAME` is letters, digits and underscores."""

    description: str = documented("", "What the tool does, for the model: 'books a table'.", "text")
    parameters: Mapping[str, str] = documented(
        {},
        "What it is called with: `string`, `integer`, `number`, `boolean` or alternatives `small\\|large`; `?` behind it: optional.",
        "a table such as {people = 'integer', day = 'string?'}",
    )
    function: str = documented(
        "",
        "Python function, plain or async. It may lie beside the configuration file.",
        "'package.module:function', or empty",
        lambda v: not v or _is_function_name(v),
    )
    url: str = documented(
        "",
        "HTTP address that takes the arguments as JSON and answers in JSON.",
        "a URL such as 'https://host/book', or empty",
        lambda v: not v or _is_tool_url(v),
    )
    method: str = documented(
        "POST",
        "HTTP method; `GET` and `DELETE` send the arguments as query.",
        "'POST', 'PUT', 'PATCH', 'GET' or 'DELETE'",
        lambda v: v in ("POST", "PUT", "PATCH", "GET", "DELETE"),
    )
    headers: Mapping[str, str] = documented(
        {}, "HTTP headers; `${NAME}` in a value is that environment variable.", "a table of header values"
    )
    timeout_s: float = documented(
        5.0, "Longest wait for the result; then the call has failed.", "seconds from 0.05 to 120", within(0.05, 120.0)
    )
    side_effect: bool = documented(
        True, "Whether it changes anything: not repeated in a turn, not cancelled by an interruption.", "true or false"
    )
    result: Mapping[str, object] = documented(
        {}, "JSON schema of the result; another result is a failure. Empty takes any.", "a JSON schema"
    )
    say_while_running: tuple[str, ...] = documented(
        (),
        "One of these is said when the result takes long, another each time; those of `reply.tool_acknowledgements` when there are fewer than two.",
        "a text or a list of texts that are not empty",
        lambda v: all(text.strip() for text in v),
    )
    acknowledge_after_s: float | None = documented(
        ACKNOWLEDGE_AFTER_S,
        "So long is long, from the start of the call; none never says anything.",
        "seconds from 0.05 to 60, or 'none'",
        optional_within(0.05, 60.0),
    )

    def __post_init__(self) -> None:
        if bool(self.function) == bool(self.url):
            key, value = ("url", without_secrets(self.url)) if self.url else ("function", "")
            raise ConfigError(key, value, "exactly one of function and url")
        if self.function and self.headers:
            raise ConfigError("headers", "(hidden)", "nothing, because function is given and headers belong to a url")
        parameters_schema("parameters", self.parameters)
        check_schema("result", self.result)
