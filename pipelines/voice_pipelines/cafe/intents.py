"""What a caller wants, apart from which products: patterns over a normalised transcript (lower-case words, single blanks).

They are wide on purpose: a recogniser drops and changes small words, so each pattern keys on the words that survive.
"""

import re


def _any(*alternatives: str) -> re.Pattern[str]:
    """Compile alternatives that match anywhere, at word boundaries."""
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b")


CHANGE = _any(
    r"make (?:that|it|the|my|them|those)", "changed? my mind", "change", "switch", "instead", "i said", "i meant", "i mean", "swap", "replace", "wrong",
    r"(?<!why )not (?:a|an|the|that)", "should be", r"(?:get|have) (?:that|it|those|them) (?:with|in|as)", "rather", r"of (?:them|those)",
)  # fmt: skip
NO_BUT = re.compile(r"(?:actually )?no (?!just|only|but|and|also|i'd|i would|can|could)")
"""A "no" with more after it, which corrects what was understood ("no a mocha"), unless it only answers "anything else?"."""
ADDING = _any("also", "too", "add", "as well", "another", "plus", r"and (?:can|could|may) i")
ORDERING = _any(
    r"(?:can|could|may|might) (?:i|you|we) (?:please )?(?:get|have|make|give|order|also|add|grab)", r"i(?:'d| would)? (?:like|want|need|love)",
    r"i'?ll (?:have|take|get)", r"(?:give|get|make|brew|bring) me", "brew", r"let me (?:get|have)", r"do you (?:have|sell|serve)",
)  # fmt: skip
ALL_OF_THEM = _any("both", r"(?:all|each) of (?:them|those)", "all three", "for all")
JUST_ONE = re.compile(r"\b(?:(?:just|only|make (?:it|that)) one$|(?:just|only) one\b)")

REMOVE = _any(
    "remove", "cancel", r"take (?:off|out|away)", "scratch", "forget", r"drop (?:the|my|that)", "get rid of", "don't want", "do not want",
    "delete", "never ?mind",
)  # fmt: skip
REMOVE_LAST = _any(
    r"(?:remove|cancel|scratch|forget|drop|delete|take off) (?:that|it|this|the last one)",
    "never ?mind",
    "take (?:that|it) (?:off|out|away)",
)
REMOVE_ALL = _any(
    r"(?:cancel|scratch|forget|delete|remove) (?:everything|all|it all|all of it|(?:the|my) (?:whole )?order|that order)", "start over",
)  # fmt: skip

DONE = _any(
    r"(?:that's|thats|that is|that'll be|that will be|that would be|this is|that'll do|that should be) (?:all|it|everything)",
    r"that'?(?:ll| will) do", r"nothing (?:else|more)", "no more", r"i'?m (?:good|done|all set|finished|fine)", r"i am (?:good|done|all set)",
    "just that", "that's fine", "all set", "that's my order", r"we're (?:good|done)", r"(?:don't|do not) (?:want|need) anything(?: else)?",
)  # fmt: skip
NO = re.compile(
    r"(?:(?:um |uh |oh |okay )?no|nope|nah|not really|no i don't|no that's okay|no not today|no please|no (?:it|the))"
    r"(?: (?:thanks|thank you))*"
)
"""The whole of a transcript that refuses; after "anything else?" it closes the order."""
YES = re.compile(
    r"(?:yes|yeah|yep|yup|sure|okay|ok|alright|all right|please|definitely|absolutely|of course|why not|yes i would"
    r"|i'll take (?:it|one|that)|sounds good|that sounds good|go ahead|one please)"
    r"(?: (?:yes|sure|please|thanks|thank you|why not|i'll take (?:it|one|that)|one|i would|add (?:it|one)))*"
)
AGAIN = re.compile(
    r"^(?:um |uh |oh |i'm |hm )?(?:sorry|pardon|what|huh|excuse me|come again|sorry what|pardon me|what sorry)(?: what| please| again)?$"
    r"|\b(?:say|repeat) (?:that|it)(?: again| once more)?\b|\bwhat (?:was|is) that(?: again)?$|\bwhat did you say\b"
    r"|\b(?:didn't|did not|couldn't|can't) (?:hear|catch|get)\b|\bmissed that\b|\bcome again\b"
)

PRICE = _any("how much", "prices?", "costs?", "what do you charge", "how expensive", "what does")
TOTAL = _any(
    "total", r"how much (?:is (?:it|that|everything|all)|do i owe|will (?:it|that) be|does (?:it|that) come)",
    r"repeat (?:my|the) order", r"read (?:my|the|that) (?:order )?back", "what did i order", "what's in my order",
    r"what(?:'s| is| have) (?:i|my) order\w*", r"what do (?:you|i) have (?:so far|down)", "my order so far", "what do i owe",
)  # fmt: skip
HAVE = _any(
    r"do you (?:guys |also |still )?(?:have|sell|do|serve|offer|carry|make)",
    "have you got",
    "is there",
    "are there",
    "you have any",
)
LISTS = _any("what", "which", "any", "kinds?", "types?", "sorts?", "other", "list", "options?", "do you")
WAIT = _any("how long", r"when (?:will|can)", "when is it ready", "ready")
ALLERGY = _any(
    r"allerg\w*",
    "gluten",
    "nuts?",
    "peanuts?",
    "lactose",
    "dairy free",
    "celiac",
    "coeliac",
    "vegan",
    "halal",
    "kosher",
)
MENU = _any(
    r"what(?:'s| is) on (?:the|your) menu", r"what do you (?:have|sell|serve|offer)", "your menu", r"what can i (?:get|order|have)", "recommend",
)  # fmt: skip
ASKING = re.compile(r"(?:what|what's|which|is|are|does|why|who|where|when|tell me about)\b(?! about)")
"""The beginning of a question: what it names is not ordered by it."""

GROUPS = {
    "milks": _any("milks?"),
    "teas": _any("teas?"),
    "syrups": _any("syrups?", "flavou?rs?"),
    "sizes": _any("sizes?"),
    "roasts": _any("roasts?"),
    "pastries": _any("pastry", "pastries", "baked", "sweets?", "muffins?"),
    "sandwiches": _any("sandwich(?:es)?"),
    "food": _any("food", "snacks?", "to eat"),
    "drinks": _any("drinks?", "coffees", "coffee drinks?"),
}
"""Groups of the menu that a caller may ask to have listed."""
