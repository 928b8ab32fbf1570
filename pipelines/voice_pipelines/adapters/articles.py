""" "A" or "an", by the word behind it: a small model that is told to say "iced mocha" may put "A" in front of it. Pure; English.

What a reply says of the caller's order is fixed before the words around it are chosen, and the model has seen "a" before such names more often than
"an". Which of the two belongs there is no matter of opinion, so it is set right on the way to the voice; nothing else is changed.
"""

from __future__ import annotations

import re

_ARTICLE = re.compile(r"(?P<start>^|[.?!]\s+|\s)(?P<article>[Aa]n?)(?=\s+(?P<word>[a-z][a-z'-]+))")
_OPEN = re.compile(r"(?:^|\s)([Aa]n?)(?:\s+[\w'-]*)?$")
_SPOKEN_AS_CONSONANT = re.compile(r"(?:one|once)\b|eu|ewe")
_SPOKEN_WORD = re.compile(
    r"(?:squ?|sch|thr|chr|shr|spr|scr|str|spl|qu|[bcfgpk][lr]|sl|[dt]r|wr|[cgpstw]h|s[ckmnptw]|[kg]n|[td]w|[b-df-hj-np-tv-z])[aeiouy][a-z']|eu|ewe|onc?e"
)
"""What is read as a word: "x-ray", "sms" and "mri" are spelled, and take the article of a letter."""
_LETTERED = re.compile(
    r"\b(?:plan|row|option|grade|vitamin|gate|type|block|team|seat|class|section|level|group|part|model|platform|terminal|floor|unit|size)\s+$",
    re.IGNORECASE,
)
_NO_NOUN = frozenset("a an and or nor but is are was of in on at as if to than".split())
"""Behind these the letter is a letter, as in "a and b"."""


def with_articles(text: str) -> str:
    """`text` with the article that the word behind it asks for. A capital is an article only where a sentence begins."""
    return _ARTICLE.sub(_agreeing, text)


def settled(text: str) -> str:
    """The beginning of `text` whose articles are known, while more of it is to come: all but an article that ends it, with the word behind that."""
    found = _OPEN.search(text)
    return text if found is None else text[: found.start(1)]


def _agreeing(found: re.Match[str]) -> str:
    start, article, word = found.group("start", "article", "word")
    if word in _NO_NOUN or (article[0] == "A" and start.strip() == "" and found.start() > 0):
        return found[0]
    if word[0] in "uh":
        return found[0]  # "a unit" and "an uncle", "a house" and "an hour": it takes a dictionary to know.
    is_vowel = word[0] in "aeio" and _SPOKEN_AS_CONSONANT.match(word) is None
    if not is_vowel and _SPOKEN_WORD.match(word) is None:
        return found[0]
    if article == "a" and _LETTERED.search(found.string[: found.start("article")]):
        return found[0]
    right = "an" if is_vowel else "a"
    return f"{start}{article[0]}{right[1:]}"
