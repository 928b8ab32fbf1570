import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice_pipelines.asr.text import spoken_words


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("2 lattes at 7:30pm", "two lattes at seven thirty pm"),
        ("I am up at 5 a.m.", "i am up at five a m"),
        ("$3.50 or $30, 2% milk", "three dollars and fifty cents or thirty dollars two percent milk"),
        ("the 3rd, in 1999", "the third in nineteen ninety nine"),
        ("call 5551234", "call five five five one two three four"),
        ("12oz at 10:05", "twelve oz at ten oh five"),
        ("1,200 or 1.5", "twelve hundred or one point five"),
        ("OK, it\u2019s 21", "okay it's twenty one"),
        ("", ""),
    ],
)
def test_figures_become_words(written, said):
    assert " ".join(spoken_words(written)) == said


@given(st.text(alphabet="0123456789 .,:$%apm'-xé", max_size=30))
def test_any_text_becomes_words_without_figures_or_signs(text):
    for word in spoken_words(text):
        assert word.replace("'", "").isalpha()
