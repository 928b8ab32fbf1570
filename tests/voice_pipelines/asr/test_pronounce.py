import pytest

from voice_pipelines.asr.pronounce import arpabet, bundled_dictionary, pronunciations

PHONES = {
    "AA",
    "AE",
    "AH",
    "AO",
    "AW",
    "AY",
    "B",
    "CH",
    "D",
    "DH",
    "EH",
    "ER",
    "EY",
    "F",
    "G",
    "HH",
    "IH",
    "IY",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "OW",
    "OY",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "UH",
    "UW",
    "V",
    "W",
    "Y",
    "Z",
    "ZH",
}


def test_known_words_come_from_the_dictionary_with_all_their_variants():
    assert pronunciations(["a", "latte"]) == {"a": ("AH", "EY"), "latte": ("L AA T EY",)}


def test_a_word_the_dictionary_lacks_is_spoken_by_espeak():
    assert "cortado" not in bundled_dictionary()
    assert pronunciations(["cortado", "macchiato"]) == {
        "cortado": ("K AO R T AA D OW",),
        "macchiato": ("M AE K IH AA T OW",),
    }


@pytest.mark.parametrize(
    "word", ["kombucha", "affogato", "ristretto", "açaí", "jalapeño", "crème", "o'reilly's", "bánh"]
)
def test_espeak_gives_only_phones_the_acoustic_model_has(word):
    (phones,) = pronunciations([word])[word][:1]
    assert phones and set(phones.split()) <= PHONES


def test_stress_is_dropped_and_compound_sounds_are_split():
    assert arpabet("f_ˈaɪɚ") == "F AY ER"
    assert arpabet("t_ˈɛ_m_p_əl") == "T EH M P AH L"


def test_a_word_nobody_can_say_is_refused():
    with pytest.raises(ValueError, match="no phones"):
        pronunciations(["''"])


def test_espeak_mostly_agrees_with_the_dictionary_on_common_words():
    from voice_pipelines.asr import pronounce

    words = "coffee milk sugar please thank sandwich chocolate vanilla table seven people morning ticket credit flight hotel".split()
    known = bundled_dictionary()
    spelled = {word: pronounce.spell(word) for word in words}
    assert sum(spelled[word] in known[word] for word in words) >= 0.7 * len(words)
