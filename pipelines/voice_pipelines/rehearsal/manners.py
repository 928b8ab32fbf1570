"""Dialogues about phone manners: greetings, silence, interruptions, noise, small talk, and what nobody on a phone can know."""

import random
import re

from voice_pipelines.rehearsal.facts import Conversation, imagine_business
from voice_pipelines.rehearsal.script import Script
from voice_pipelines.rehearsal.words import fill, one_of, table, words


class Host:
    """Manners of one call, on a script."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation, self.script, self.rng = conversation, conversation.script, conversation.rng
        self.book = table("manners")
        business = conversation.business
        self.slots = {"n": business.name, "g": business.agent}

    def exchange(self) -> None:
        """Something a caller may say at any time, and how the agent takes it."""
        rng = self.rng
        other = "who_unnamed" if self.conversation.business.agent else "who_named"
        found = rng.choice([entry for entry in self.book["exchange"] if entry["kind"] != other])
        slots = {
            **self.slots,
            "city": rng.choice(words("cities")),
            "w": rng.choice(words("nouns")),
            "w2": rng.choice(words("adjectives")),
        }
        facts = self.conversation.book
        opener = rng.choice(facts["openers"]) if rng.random() < 0.5 else ""
        self.script.hear(f"{opener} {one_of(found['said'], rng, slots)}")
        self.script.say(one_of(found["answers"], rng, slots))

    def silence(self) -> bool:
        """The caller says nothing, once or twice; whether the call is over then."""
        rng, lines = self.rng, self.book["silence"]
        seconds = rng.randint(5, 12)
        self.script.note(f"silence: {seconds} seconds")
        self.script.say(one_of(lines["first"], rng, self.slots))
        roll = rng.random()
        if roll < 0.45:
            self.script.note(f"silence: {seconds if rng.random() < 0.6 else rng.randint(5, 15)} seconds")
            self.script.say(one_of(lines["second"], rng, self.slots))
            return True
        if roll < 0.75:
            self.script.hear(one_of(lines["back"], rng))
            self.script.say(one_of(lines["back_answers"], rng))
        return False

    def interruption(self) -> None:
        """The caller talks over the agent's last words: what is new is answered, what was said is not begun again."""
        rng, lines = self.rng, self.book["interruption"]
        heard = self.script.last_reply.split()
        if len(heard) < 4:
            return
        sentences = re.split(r"(?<=[.?!]) (?=[A-Z])", self.script.last_reply)
        # What was not heard is no part of the talk any more; only whole sentences go, as a reply cut in two would teach to break off.
        if len(sentences) > 1 and len(sentences[0].split()) > 3 and rng.random() < 0.5:
            heard = sentences[0].split()
            self.script.keep(sentences[0])
        cut = len(heard) if len(heard) < 3 else rng.randint(2, len(heard))
        self.script.note(
            fill(rng.choice(lines["notes"]), rng, {"h": " ".join(heard[max(0, cut - rng.randint(2, 5)) : cut])})
        )
        if rng.random() < 0.3:
            self.script.hear(rng.choice(lines["breaks"]))
            self.script.say(rng.choice(lines["break_answers"]))
            return
        told, untold = self.conversation.business.told, self.conversation.business.untold
        question = rng.choice(told if told and rng.random() < 0.85 else untold)
        self.script.hear(f"{rng.choice(lines['openers'])} {one_of(question.said, rng, question.slots)}")
        self.script.say(f"{rng.choice(lines['leads'])} {self.conversation.worded(question)}")
        self.conversation.core, self.conversation.asked = "", None

    def repeat(self) -> None:
        """The caller did not understand: the last reply once more."""
        rng, facts = self.rng, self.conversation.book
        if self.script.last_reply:
            last = self.script.last_reply
            self.script.hear(rng.choice(facts["say_again"]))
            self.script.say(f"{rng.choice(facts['again_leads'])} {last}" if len(last.split()) < 30 else last)


def write_dialogue(rng: random.Random) -> Script:
    """Write one dialogue of a call in which manners matter more than facts."""
    business = imagine_business(rng, 1, 4)
    script = Script("manners", business.prompt, rng)
    conversation = Conversation(business, script)
    host = Host(conversation)
    conversation.greet()
    is_over = False
    for _ in range(rng.choice((1, 2, 2, 3, 3, 4))):
        roll = rng.random()
        if roll < 0.48:
            host.exchange()
        elif roll < 0.64 and script.last_reply:
            host.interruption()
        elif roll < 0.76 and script.last_reply:
            is_over = host.silence()
        elif roll < 0.84:
            host.repeat()
        else:
            conversation.step()
        if is_over:
            return script
    if len(script.turns) < 3 or rng.random() < 0.35:
        conversation.close()
    return script
