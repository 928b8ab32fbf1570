"""How words sound, in the phones of the acoustic model: from its bundled dictionary, or from eSpeak for words that are not in it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

# eSpeak's IPA for American English in ARPAbet without stress. Checked against the CMU dictionary on 4,000 random words: these are all
# the symbols eSpeak used. An empty string is a sound the acoustic model has no phone for and that may be left out.
_ARPABET = {
    "a": "AA", "aɪ": "AY", "aɪə": "AY AH", "aɪɚ": "AY ER", "aʊ": "AW", "b": "B", "d": "D", "dʒ": "JH", "eɪ": "EY", "f": "F", "h": "HH",
    "i": "IY", "iə": "IY AH", "iː": "IY", "j": "Y", "k": "K", "l": "L", "m": "M", "n": "N", "n̩": "AH N", "oʊ": "OW", "oː": "AO",
    "oːɹ": "AO R", "p": "P", "r": "R", "s": "S", "t": "T", "tʃ": "CH", "uː": "UW", "u": "UW", "v": "V", "w": "W", "x": "K", "z": "Z",
    "æ": "AE", "ð": "DH", "ŋ": "NG", "ɐ": "AH", "ɑː": "AA", "ɑːɹ": "AA R", "ɑ": "AA", "ɔ": "AO", "ɔɪ": "OY", "ɔː": "AO", "ɔːɹ": "AO R",
    "ə": "AH", "əl": "AH L", "ɚ": "ER", "ɛ": "EH", "ɛɹ": "EH R", "ɜː": "ER", "ɡ": "G", "ɪ": "IH", "ɪɹ": "IH R", "ɹ": "R", "ɾ": "T",
    "ʃ": "SH", "ʊ": "UH", "ʊɹ": "UH R", "ʌ": "AH", "ʒ": "ZH", "ʔ": "T", "θ": "TH", "ᵻ": "IH", "": "", "ɬ": "L", "ç": "HH", "ɲ": "N Y",
    "ɑ̃": "AA N", "ɔ̃": "AO N", "ɫ": "L", "ʍ": "W",
}  # fmt: skip
_STRESS = re.compile("[ˈˌ]")
_SEPARATOR = "_"
_SYNCHRONOUS, _DONT_EXIT = 2, 0x8000
_UTF8, _IPA = 1, 0x02


@lru_cache(maxsize=1)
def bundled_dictionary() -> dict[str, tuple[str, ...]]:
    """Pronunciations of each word of the CMU dictionary that comes with PocketSphinx, likeliest first; about 125,000 words."""
    import pocketsphinx

    entries: dict[str, list[str]] = {}
    path = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"
    for line in path.read_text(encoding="utf-8").splitlines():
        word, _, phones = line.partition(" ")
        # Further pronunciations are written "word(2)".
        entries.setdefault(word.partition("(")[0], []).append(phones.strip())
    return {word: tuple(phones) for word, phones in entries.items()}


def pronunciations(words: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Phones of each word, in ARPAbet, likeliest first; eSpeak is only loaded when the bundled dictionary lacks a word.

    Raises:
        ValueError: If eSpeak can make nothing of a word.
    """
    words = frozenset(words)
    bundled = bundled_dictionary()
    found = {word: bundled[word] for word in words if word in bundled}
    for word in sorted(words - found.keys()):
        if not (phones := spell(word)):
            raise ValueError(f"{word!r}: eSpeak gives no phones for it")
        found[word] = (phones,)
    return found


def spell(word: str) -> str:
    """Phones of a word as eSpeak says it; empty when it says nothing."""
    text = ctypes.c_char_p(word.encode("utf-8"))
    ipa: bytes = _espeak().espeak_TextToPhonemes(ctypes.byref(text), _UTF8, _IPA | ord(_SEPARATOR) << 8)
    return arpabet(ipa.decode("utf-8"))


def arpabet(ipa: str) -> str:
    """Phones for eSpeak's IPA, whose sounds are separated by "_" or blanks; sounds without a phone are left out."""
    sounds = re.split(f"[{_SEPARATOR} ]", _STRESS.sub("", ipa))
    return " ".join(phone for sound in sounds if (phone := _ARPABET.get(sound, "")))


@lru_cache(maxsize=1)
def _espeak() -> ctypes.CDLL:
    """eSpeak NG set to American English. Its state belongs to the process, so it is not for a process that also speaks."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    data = str(espeakng_loader.get_data_path()).encode()
    if library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT) < 0 or library.espeak_SetVoiceByName(b"en-us") != 0:
        raise OSError("eSpeak NG did not load its American English voice")
    return library
