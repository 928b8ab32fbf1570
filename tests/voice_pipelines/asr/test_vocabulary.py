import pytest

from voice_pipelines.asr.vocabulary import Vocabulary
from voiceagent.errors import ConfigError

TABLE = {"phrases": ["a {drink} [please]"], "slots": {"drink": ["flat white", "[iced] mocha", "tea", "flat white"]}}


def test_a_table_of_a_preset_becomes_a_vocabulary():
    assert Vocabulary.from_table(TABLE).grammar.words() == {"a", "flat", "white", "iced", "mocha", "tea", "please"}


def test_hot_words_are_the_plain_slot_phrases_once_each():
    assert Vocabulary.from_table(TABLE).hot_words() == ("flat white", "tea")


def test_hot_words_take_no_room_for_what_was_said_before_or_is_the_plural_of_it():
    slots = {
        "drink": ["coffee", "cup of coffee", "black coffee", "cold brew"],
        "drinks": ["coffees", "cold brews", "teas"],
    }
    assert Vocabulary(("{drink}", "{drinks}"), slots).hot_words() == ("coffee", "cup of", "black", "cold brew", "teas")


def test_equal_content_has_equal_digests_and_a_changed_word_another():
    changed = {**TABLE, "slots": {"drink": ["flat white"]}}
    assert Vocabulary.from_table(TABLE).digest == Vocabulary.from_table(dict(TABLE)).digest
    assert Vocabulary.from_table(TABLE).digest != Vocabulary.from_table(changed).digest


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"phrases": "a"}, "vocabulary.phrases"),
        ({"phrases": []}, "vocabulary.phrases"),
        ({"phrases": ["a", 1]}, "vocabulary.phrases"),
        ({"phrases": ["a"], "slots": ["x"]}, "vocabulary.slots"),
        ({"phrases": ["a"], "slots": {"x": "b"}}, "vocabulary.slots.x"),
        ({"phrases": ["a"], "words": ["b"]}, "vocabulary.words"),
        ({"phrases": ["a {x}"]}, "vocabulary"),
    ],
)
def test_a_mistake_names_its_key(table, key):
    with pytest.raises(ConfigError) as caught:
        Vocabulary.from_table(table)
    assert caught.value.key == key
