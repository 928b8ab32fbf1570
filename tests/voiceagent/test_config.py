"""Configuration: defaults, layers, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceagent.config import (
    SECTIONS,
    Config,
    assignment_layer,
    environment_layer,
    load_config,
    preset_name,
    read_toml,
)
from voiceagent.config_reference import configuration_reference
from voiceagent.errors import ConfigError
from voiceagent.session import SessionSettings, TurnDetection

REPOSITORY = Path(__file__).parents[2]
PRESETS = sorted((REPOSITORY / "pipelines" / "voice_pipelines" / "presets").glob("*.toml"))


def test_no_layers_give_the_defaults() -> None:
    config = load_config()
    assert config == Config()
    assert (config.server.host, config.server.port, config.turn.silence_s) == ("127.0.0.1", 8080, 0.35)
    assert config.turn.endpoint == "auto"
    assert config.turn.detection() == TurnDetection(weighs_words=True)
    assert config.session_settings() == SessionSettings(turn_detection=config.turn.detection())


def test_every_key_says_what_it_does_and_what_is_expected() -> None:
    for section in SECTIONS.values():
        for key in fields(section):
            assert key.metadata["about"].endswith("."), key.name
            assert key.metadata["expected"], key.name


def test_a_stronger_layer_replaces_single_values_and_lists_and_keeps_the_rest() -> None:
    preset = {
        "agent": {"name": "cafe", "greeting": "hi"},
        "vocabulary": {"phrases": ["a", "b"]},
        "turn": {"silence_s": 1},
    }
    user = {"agent": {"greeting": "hello"}, "vocabulary": {"phrases": ["c"]}}
    config = load_config(
        [
            preset,
            user,
            environment_layer({"VOICEAGENT_TURN_SILENCE_S": "0.6", "VOICEAGENT_SERVER_PORT": "9000", "PATH": "/bin"}),
            assignment_layer(["server.port=9001"]),
        ]
    )
    assert (config.agent.name, config.agent.greeting) == ("cafe", "hello")
    assert config.vocabulary.phrases == ("c",)
    assert config.turn.silence_s == 0.6
    assert config.server.port == 9001


def test_loading_leaves_the_layers_as_they_were() -> None:
    preset: dict[str, object] = {"menu": {"latte": {"price": "3.50"}}}
    load_config([preset, assignment_layer(["menu.latte.price=4.00", "menu.tea.price=2.00"])])
    assert preset == {"menu": {"latte": {"price": "3.50"}}}


def test_the_menu_is_handed_on_as_it_is_and_a_user_may_change_one_price() -> None:
    preset = {"menu": {"drinks": {"latte": {"price": "3.50"}, "tea": {"price": "2.25"}}, "sizes": ["small"]}}
    config = load_config(
        [preset, {"menu": {"drinks": {"tea": {"price": "2.50"}}}}, assignment_layer(["menu.open=true"])]
    )
    assert config.menu == {
        "drinks": {"latte": {"price": "3.50"}, "tea": {"price": "2.50"}},
        "sizes": ["small"],
        "open": True,
    }


def test_slots_become_tuples_by_name() -> None:
    config = load_config(
        [{"vocabulary": {"slots": {"size": ["small", "large"]}}}, assignment_layer(["vocabulary.slots.milk=oat, soy"])]
    )
    assert config.vocabulary.slots == {"size": ("small", "large"), "milk": ("oat", "soy")}


@pytest.mark.parametrize(
    ("variable", "text", "section", "key", "value"),
    [
        ("VOICEAGENT_SERVER_PORT", "9000", "server", "port", 9000),
        ("VOICEAGENT_SERVER_MAX_SESSIONS", "3", "server", "max_sessions", 3),
        ("VOICEAGENT_SERVER_API_KEY", "12345", "server", "api_key", "12345"),
        ("VOICEAGENT_SERVER_ALLOWED_ORIGINS", "https://a.example, https://b.example", "server", "allowed_origins", ("https://a.example", "https://b.example")),
        ("VOICEAGENT_SERVER_ALLOWED_ORIGINS", '["https://a.example"]', "server", "allowed_origins", ("https://a.example",)),
        ("VOICEAGENT_TURN_INTERRUPT_RESPONSE", "false", "turn", "interrupt_response", False),
        ("VOICEAGENT_AGENT_GREETING", "Hi = hello", "agent", "greeting", "Hi = hello"),
        ("VOICEAGENT_VOCABULARY_SLOTS", '{size = ["small"]}', "vocabulary", "slots", {"size": ("small",)}),
    ],
)  # fmt: skip
def test_a_variable_is_read_as_its_key_s_type(variable: str, text: str, section: str, key: str, value: object) -> None:
    assert getattr(getattr(load_config([environment_layer({variable: text})]), section), key) == value


def test_a_variable_that_is_no_key_is_named_with_the_closest_one() -> None:
    with pytest.raises(ConfigError, match=r"VOICEAGENT_SERVER_PROT = .*did you mean VOICEAGENT_SERVER_PORT"):
        environment_layer({"VOICEAGENT_SERVER_PROT": "1"})
    assert environment_layer({"VOICEAGENT_CONFIG": "x.toml", "HOME": "/home/me"}) == {}


def test_variables_that_kubernetes_sets_for_a_service_of_our_name_are_no_keys() -> None:
    service = {
        "VOICEAGENT_SERVICE_HOST": "10.0.0.11",
        "VOICEAGENT_SERVICE_PORT": "8080",
        "VOICEAGENT_SERVICE_PORT_HTTP": "8080",
        "VOICEAGENT_PORT": "tcp://10.0.0.11:8080",
        "VOICEAGENT_PORT_8080_TCP": "tcp://10.0.0.11:8080",
        "VOICEAGENT_PORT_8080_TCP_PROTO": "tcp",
        "VOICEAGENT_PORT_8080_TCP_PORT": "8080",
        "VOICEAGENT_PORT_8080_TCP_ADDR": "10.0.0.11",
        "VOICEAGENT_SERVER_SERVICE_HOST": "10.0.0.12",
        "VOICEAGENT_SERVER_PORT": "tcp://10.0.0.12:8080",  # of a service `voiceagent-server`
    }
    assert environment_layer(service) == {}
    with pytest.raises(ConfigError, match="VOICEAGENT_PORT = "):
        environment_layer({"VOICEAGENT_PORT": "8080"})


@pytest.mark.parametrize(
    "read",
    [
        lambda: environment_layer({"VOICEAGENT_SERVER_APIKEY": "hunter2"}),
        lambda: load_config([{"server": {"apikey": "hunter2"}}]),
        lambda: load_config([{"sever": {"api_key": "hunter2"}}]),
        lambda: load_config([{"tools": {"book": {"header": {"x": "hunter2"}}}}]),
        lambda: load_config([assignment_layer(["remote.apikey=hunter2"])]),
        lambda: environment_layer({"VOICEAGENT_SERVER_API_KYE": "hunter2"}),
        lambda: environment_layer({"VOICEAGENT_SERVER_TWILIO_AUHT_TOEKN": "hunter2"}),
        lambda: load_config([{"server": {"api_kye": "hunter2"}}]),
        lambda: load_config([{"remot": {"kye": ["hunter2"]}}]),
        lambda: load_config([{"remote": "hunter2"}]),
        lambda: load_config([{"tools": {"book": "hunter2"}}]),
        lambda: load_config([assignment_layer(["server.api_kye=hunter2"])]),
        lambda: load_config([assignment_layer(["tools.kye=hunter2"])]),
        lambda: assignment_layer(["server.api_key:hunter2"]),
        lambda: assignment_layer(["server..api_key=hunter2"]),
        lambda: assignment_layer(["hunter2"]),
    ],
)
def test_a_value_that_has_no_key_is_not_shown(read: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="hidden") as caught:
        read()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "table",
    [
        {"remote": {"url": "https://u:hunter2@host/v1"}},
        {"remote": {"url": "https://u:hun/ter2?hunter2#@host/v1"}},
        {"remote": {"url": "https://host/v1?key=hunter2"}},
        {"remote": {"url": "https://host/v1#hunter2"}},
        {"remote": {"url": "u:hunter2@host"}},
        {"remote": {"url": ["https://u:hunter2@host/v1"]}},
        {"models": {"llm": ["https://u:hunter2@host/v1"]}},
        {"tools": {"book": {"url": "https://u:hunter2@host/v1"}}},
        {"tools": {"book": {"url": "https://host/v1?key=hunter2#x"}}},
        {"tools": {"book": {"url": "https://host/v1?key=hunter2", "function": "a:b"}}},
        {"budget": {"when_late": "https://u:hunter2@host/v1"}},
    ],
)
def test_what_a_url_may_hold_of_a_secret_is_not_shown(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="hidden") as caught:
        load_config([table])
    assert "hunter2" not in str(caught.value)


def test_what_is_no_secret_of_a_wrong_url_is_shown() -> None:
    for text, shown in (
        ("ftp://host/v1", "ftp://host/v1"),
        ("https://u:hunter2@host:1/v1", "https://(hidden)@host:1/v1"),
        ("https://host/v1?key=hunter2", "https://host/v1?(hidden)"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config([assignment_layer([f"remote.url={text}"])])
        assert caught.value.value == shown


def test_an_unknown_key_is_named_with_the_closest_one() -> None:
    with pytest.raises(ConfigError, match=r"turn\.silense_s = .*did you mean turn\.silence_s") as caught:
        load_config([{"turn": {"silense_s": 1}}])
    assert caught.value.key == "turn.silense_s"
    with pytest.raises(ConfigError, match="did you mean server"):
        load_config([{"sever": {"port": 1}}])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"server": {"port": "8080"}}, "server.port = '8080': expected an integer from 0 to 65535"),
        ({"server": {"port": 70000}}, "server.port = 70000: expected an integer from 0 to 65535"),
        ({"server": {"port": True}}, "server.port = True: expected an integer"),
        ({"server": {"port": 80.5}}, "server.port = 80.5: expected an integer"),
        ({"server": {"host": ""}}, "server.host = '': expected a host name"),
        ({"server": {"host": "0.0.0.0"}}, "server.host = '0.0.0.0': expected 127.0.0.1 or another loopback"),
        ({"server": {"tls_cert": "cert.pem"}}, "server.tls_key"),
        ({"server": {"allowed_origins": "https://a.example"}}, "server.allowed_origins = 'https://a.example': expected a list"),
        ({"server": {"session_minutes": float("nan")}}, "server.session_minutes = nan: expected minutes"),
        ({"server": 8080}, r"server = .*: expected a table: \[server\]"),
        ({"turn": {"silence_s": 0}}, "turn.silence_s = 0: expected seconds from 0.05 to 10"),
        ({"turn": {"create_response": 1}}, "turn.create_response = 1: expected true or false"),
        ({"budget": {"min_steps": 9, "max_steps": 8}}, "budget.min_steps = 9: expected at most budget.max_steps = 8"),
        ({"notes": {"function": "cafe"}}, "notes.function = 'cafe': expected 'package.module:function'"),
        ({"vocabulary": {"phrases": [1]}}, r"vocabulary.phrases = \[1\]: expected a list of phrases"),
        ({"vocabulary": {"slots": {"size": "small"}}}, "vocabulary.slots = .*: expected a table of lists"),
        ({"preset": 3}, "preset = 3: expected a name or a path"),
        ({"menu": []}, r"menu = .*: expected a table"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_an_error_that_names_key_value_and_expectation(layer: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([layer])


def test_a_network_address_is_accepted_with_a_key() -> None:
    config = load_config([{"server": {"host": "0.0.0.0", "api_key": "secret"}}])
    assert config.server.settings().api_key == "secret"
    assert load_config().server.settings().api_key is None


def test_a_key_is_never_shown_in_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([{"server": {"api_key": 998877}}])
    assert "998877" not in str(caught.value)


def test_an_assignment_without_a_value_is_named_by_its_key() -> None:
    with pytest.raises(ConfigError, match="--set = 'server.port': expected key=value"):
        assignment_layer(["server.port"])
    with pytest.raises(ConfigError, match=r"--set = 'server.port\(hidden\)': expected key=value"):
        assignment_layer(["server.port:9000"])


@pytest.mark.parametrize("pair", ["server.port", "=3", "a b=3", "server..port=3", ""])
def test_a_set_that_is_not_key_value_is_refused(pair: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        assignment_layer([pair])


def test_a_set_may_hold_an_equals_sign_and_quoted_names() -> None:
    layer = assignment_layer(["agent.greeting=1 + 1 = 2", 'menu."hot dog".price="2.50"'])
    config = load_config([layer])
    assert config.agent.greeting == "1 + 1 = 2"
    assert config.menu == {"hot dog": {"price": "2.50"}}


def test_the_strongest_layer_names_the_preset() -> None:
    assert preset_name([]) == "cafe"
    layers = [{"preset": "open"}, environment_layer({"VOICEAGENT_PRESET": "mine.toml"}), {}]
    assert preset_name(layers) == "mine.toml"
    assert load_config(layers).preset == "mine.toml"


DEEP = 5_000 * "[" + 5_000 * "]"


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_toml(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[server\nport = 1\n")
    with pytest.raises(ConfigError, match="line 1"):
        read_toml(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="TOML"):
        read_toml(broken)
    broken.write_text(f"x = {DEEP}")
    with pytest.raises(ConfigError, match="nests less deeply"):
        read_toml(broken)
    broken.write_text("x = " + 5_000 * "9")
    with pytest.raises(ConfigError, match="TOML"):
        read_toml(broken)
    with pytest.raises(ConfigError, match="a readable file"):
        read_toml(tmp_path)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "windows.toml").write_text("preset = 'open'\n", "utf-8-sig")
    assert read_toml(tmp_path / "windows.toml") == {"preset": "open"}


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_a_number_beyond_all_floats_is_of_a_wrong_type(number: int) -> None:
    with pytest.raises(ConfigError, match="turn.silence_s"):
        load_config([{"turn": {"silence_s": number}}])


@pytest.mark.parametrize("key", ["silence.prompts", "turn.silence_s"])
def test_a_value_that_nests_too_deeply_is_of_a_wrong_type(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_config([assignment_layer([f"{key}={DEEP}"])])


def test_a_menu_that_nests_too_deeply_is_named() -> None:
    with pytest.raises(ConfigError, match="menu = .*nest less deeply"):
        load_config([assignment_layer(["menu." + "a." * 2_000 + "b=1"])])


def test_a_free_value_that_nests_too_deeply_is_text() -> None:
    assert load_config([assignment_layer([f"menu.latte={5_000 * '9'}"])]).menu == {"latte": 5_000 * "9"}
    assert load_config([assignment_layer([f"menu.latte={DEEP}"])]).menu == {"latte": DEEP}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_a_valid_configuration(path: Path) -> None:
    config = load_config([read_toml(path)])
    assert config.agent.instructions
    assert config.agent.name != Config().agent.name or path.stem == "open"


def test_there_are_presets() -> None:
    assert {"cafe", "open"} <= {path.stem for path in PRESETS}


def test_the_reference_page_is_up_to_date() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == configuration_reference(), "run `make docs`"


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
_paths = st.sampled_from([(name, key.name) for name, kind in SECTIONS.items() for key in fields(kind)])


@given(_paths, _values)
def test_any_value_is_either_accepted_or_a_config_error(path: tuple[str, str], value: object) -> None:
    try:
        config = load_config([{path[0]: {path[1]: value}}])
    except ConfigError:
        return
    assert isinstance(config, Config)


@given(_paths, st.text(max_size=20))
def test_any_text_after_set_is_either_accepted_or_a_config_error(path: tuple[str, str], text: str) -> None:
    try:
        load_config([assignment_layer([f"{path[0]}.{path[1]}={text}"])])
    except ConfigError as error:
        assert error.expected
