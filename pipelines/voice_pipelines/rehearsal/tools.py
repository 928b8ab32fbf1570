"""Dialogues in which the agent calls tools: asks for what is missing, confirms, calls, and tells what came back."""

import random
from collections.abc import Sequence

from voice_pipelines.rehearsal.facts import Conversation, imagine_business
from voice_pipelines.rehearsal.results import Told, draw_result
from voice_pipelines.rehearsal.schemas import Parameter, Tool, Value, ask_for, draw_value, fill_detail, make_tool
from voice_pipelines.rehearsal.script import MOST_WORDS, Script
from voice_pipelines.rehearsal.words import (
    bare,
    fill,
    first_name,
    one_of,
    sentence,
    table,
)

_PLAIN = {
    "book": "book {n}",
    "cancel": "cancel {n}",
    "status": "look up {n}",
    "find": "find {n}",
    "price": "give you a price for {n}",
    "move": "move {n}",
    "order": "order {n}",
    "send": "send {n}",
    "pay": "pay {n}",
    "connect": "connect you to {n}",
    "report": "report {n}",
    "remind": "set {n}",
    "check": "check {n}",
}
"""What a tool of each action lets the agent do, in its own words."""

_REPEATED = ("book", "order", "move", "remind", "report")
"""Actions after which the details are worth saying again."""

_APART = ("choice", "count")
"""Details that stand behind a comma: "a chair, nine of them"."""


class Clerk:
    """Works on tasks of one dialogue with its tools."""

    def __init__(self, script: Script, tools: list[Tool], *, confirms: bool) -> None:
        self.script, self.rng, self.tools, self.confirms = script, script.rng, tools, confirms
        self.book = table("tools")
        self.frame = self.book["frame"]
        self.arguments: dict[str, Value] = {}
        self.is_pinned = self.rng.random() < 0.5

    def task(self, tool: Tool) -> None:
        """A request for one tool, from its first words to its result."""
        self._take_details(tool)
        if self.confirms and self.book["action"][tool.action].get("effect") and not self._confirmed(tool):
            return
        self._call(tool)
        if self.rng.random() < 0.15:
            self._fail(tool)
        else:
            self._succeed(tool)

    def two_tasks(self, first: Tool, second: Tool) -> None:
        """Two requests in one breath, all details given: two calls, then one answer."""
        rng = self.rng
        said, arguments = [], []
        for tool in (first, second):
            self.arguments = self._all_details(tool)
            said.append(f"{self._request(tool)} {self._added(tool, list(self.arguments))}")
            arguments.append(self.arguments)
        self.script.hear(
            f"{said[0]} {rng.choice(('and', 'and also', 'and then', 'and after that'))} {said[1]}", as_spoken=True
        )
        told = []
        for tool, self.arguments in zip((first, second), arguments, strict=True):
            self._call(tool)
            told.append(self._result(tool, most=1, may_repeat=False))
            self.script.note(told[-1].note)
        text = f"{told[0].text} {told[1].text}"
        if len(text.split()) > MOST_WORDS:
            text = f"{told[0].brief} {told[1].brief}"
        self._tell(text, told[0].must_say + told[1].must_say)

    def refuse(self, stranger: Tool) -> None:
        """A request that no tool of this dialogue meets."""
        rng = self.rng
        self.script.hear(f"{rng.choice(self.frame['openers'])} {self._request(stranger)}", as_spoken=True)
        offered = rng.choice(self.tools)
        can = fill(_PLAIN[offered.action], rng, {"n": offered.noun})
        alternative = one_of(self.frame["cannot_next"], rng, {"can": can})
        what = fill(_PLAIN[stranger.action], rng, {"n": stranger.noun})
        self.script.say(one_of(self.frame["cannot"], rng, {"what": what, "alt": alternative}))

    def close(self) -> None:
        """A goodbye."""
        self.script.hear(self.rng.choice(self.frame["no_more"]), as_spoken=True)
        self.script.say(one_of(self.frame["bye"], self.rng))

    # --- taking details ----------------------------------------------------------------------------------------------------

    def _all_details(self, tool: Tool) -> dict[str, Value]:
        wanted = [p for p in tool.parameters if p.is_required or (self.rng.random() < 0.5 and p.kind != "flag")]
        return {parameter.name: draw_value(parameter, self.rng) for parameter in wanted}

    def _take_details(self, tool: Tool) -> None:
        rng, frame = self.rng, self.frame
        self.arguments = self._all_details(tool)
        optional = {parameter.name for parameter in tool.parameters if not parameter.is_required}
        flags = {parameter.name for parameter in tool.parameters if parameter.kind == "flag"}
        share = rng.choice((0.0, 0.5, 0.5, 0.8, 1.0, 1.0, 1.0))
        given = [name for name in self.arguments if name not in flags and (name in optional or rng.random() < share)]
        text = f"{rng.choice(frame['openers'])} {self._request(tool)} {self._added(tool, given)} {rng.choice(frame['endings'])}"
        self.script.hear(text, as_spoken=True)
        missing = [p for p in tool.parameters if p.is_required and p.name not in given]
        is_first = True
        while missing:
            parameter = missing.pop(0)
            lead = rng.choice(frame["leads"] if is_first else frame["got_it"])
            is_first = False
            asked = sentence(ask_for(parameter, rng))
            self.script.say(f"{lead} {asked}")
            value = self.arguments[parameter.name]
            answer = self._corrected(
                parameter, fill_detail(self._entry(parameter)["alone"], rng, parameter, value.said), "alone"
            )
            if missing and rng.random() < 0.15 and missing[0].kind != "flag":
                more = missing.pop(0)
                answer += f" {fill_detail(self._entry(more)['said'], rng, more, self.arguments[more.name].said)}"
            self.script.hear(answer, as_spoken=True)

    def _entry(self, parameter: Parameter) -> dict[str, list[str]]:
        found: dict[str, list[str]] = self.book["param"][parameter.kind]
        return found

    def _request(self, tool: Tool) -> str:
        return one_of(self.book["action"][tool.action]["said"], self.rng, {"n": tool.noun, "b": bare(tool.noun)})

    def _added(self, tool: Tool, names: list[str]) -> str:
        """The details of these names, in some order, as a caller adds them to a request."""
        rng = self.rng
        parts = []
        for parameter in tool.parameters:
            if parameter.name in names and parameter.kind != "flag":
                value = self.arguments[parameter.name]
                part = fill_detail(self._entry(parameter)["said"], rng, parameter, value.said)
                parts.append(self._corrected(parameter, part, "said"))
            elif parameter.name in names:
                parts.append(f"{parameter.name.replace('_', ' ')} {self.arguments[parameter.name].said}")
        rng.shuffle(parts)
        return "".join(rng.choice(self.frame["joints"]) + part for part in parts)

    def _corrected(self, parameter: Parameter, part: str, how: str) -> str:
        """Sometimes with a slip of the tongue before it, which the caller corrects at once: the last word counts."""
        if self.rng.random() > 0.05 or parameter.kind in ("note", "flag"):
            return part
        slip = draw_value(parameter, self.rng)
        if slip.said in part or part in slip.said:
            return part
        slipped = fill_detail(self._entry(parameter)[how], self.rng, parameter, slip.said)
        return (
            f"{slipped} {self.rng.choice(('no sorry', 'no wait', 'sorry i mean', 'i mean', 'no', 'actually'))} {part}"
        )

    # --- confirming --------------------------------------------------------------------------------------------------------

    def _confirmed(self, tool: Tool) -> bool:
        """Repeat the details and ask; the caller agrees, corrects a detail, or takes it back."""
        rng, frame = self.rng, self.frame
        ask = self.book["action"][tool.action]["confirm"]
        plain = fill(_PLAIN[tool.action], rng, {"n": tool.noun})
        head = rng.choice((bare(tool.noun), tool.noun, f"I'll {plain}"))
        self.script.say(f"{self._echoed(tool, head)}. {rng.choice(ask)}")
        changeable = [p for p in tool.parameters if p.name in self.arguments and p.kind not in ("flag", "note")]
        roll = rng.random()
        if roll < 0.12:
            self.script.hear(rng.choice(frame["no"]), as_spoken=True)
            self.script.say(one_of(frame["dropped"], rng))
            return False
        if roll < 0.34 and changeable:
            parameter = rng.choice(changeable)
            self._change(parameter)
            self.script.hear(
                rng.choice(frame["corrections"]).format(x=self.arguments[parameter.name].said), as_spoken=True
            )
            shown = fill_detail(self._entry(parameter)["echo"], rng, parameter, self.arguments[parameter.name].shown)
            self.script.say(f"{one_of(frame['sorry'], rng, {'x': shown})}. {rng.choice(ask)}")
        self.script.hear(rng.choice(frame["yes"]), as_spoken=True)
        return True

    def _echoed(self, tool: Tool, head: str) -> str:
        """The thing with its details, as the agent repeats them; without them where they are many."""
        parts: list[str] = []
        for parameter in sorted(tool.parameters, key=lambda parameter: parameter.kind in _APART):
            if parameter.name in self.arguments and self._entry(parameter)["echo"]:
                value = self.arguments[parameter.name]
                part = fill_detail(self._entry(parameter)["echo"], self.rng, parameter, value.shown)
                parts.append(f", {part}" if parameter.kind in _APART else part)
        text = " ".join([head, *parts]).replace(" ,", ",")
        return text if len(text.split()) < MOST_WORDS - 10 else head

    def _change(self, parameter: Parameter) -> None:
        old = self.arguments[parameter.name]
        while (new := draw_value(parameter, self.rng)).said == old.said:
            pass
        self.arguments[parameter.name] = new

    # --- calling -----------------------------------------------------------------------------------------------------------

    def _call(self, tool: Tool) -> None:
        ordered = [p.name for p in tool.parameters if p.name in self.arguments]
        self.script.call(tool.name, {name: self.arguments[name].said for name in ordered})

    def _succeed(self, tool: Tool) -> None:
        rng, frame = self.rng, self.frame
        if rng.random() < 0.03:
            self.script.note(f"{tool.name}: not finished yet")
            self.script.say(rng.choice(frame["waits"]))
            self.script.hear(rng.choice(frame["hurries"]), as_spoken=True)
        told = self._result(tool, most=3)
        self.script.note(told.note)
        self._tell(told.text, told.must_say)
        if rng.random() < 0.06 and told.must_say:
            self.script.hear(rng.choice(frame["again"]), as_spoken=True)
            # The note was answered already: at run time nothing is pinned now, so the pieces are learnt by copying.
            self._tell(told.text)
        changeable = [
            p
            for p in tool.parameters
            if p.name in self.arguments
            and p.kind in ("day", "time", "people", "count", "name", "number", "city", "choice")
        ]
        if changeable and rng.random() < 0.08:
            parameter = rng.choice(changeable)
            self._change(parameter)
            self.script.hear(
                rng.choice(frame["late_corrections"]).format(x=self.arguments[parameter.name].said), as_spoken=True
            )
            self._call(tool)
            told = self._result(tool, most=2)
            self.script.note(told.note)
            self._tell(told.text, told.must_say)

    def _fail(self, tool: Tool) -> None:
        rng, frame = self.rng, self.frame
        slots = {"b": bare(tool.noun), "past": rng.choice(("canceled", "paid", "sent", "booked", "closed", "reported"))}
        reason = one_of(self.book["lists"]["reasons"], rng, slots)
        self.script.note(f"{tool.name} failed: {reason}")
        told = one_of(frame["failed"], rng, {"r": reason, "alt": rng.choice(frame["failed_next"])})
        self.script.say(told)
        if ("again" in told or "once more" in told) and rng.random() < 0.6:
            self.script.hear(rng.choice(frame["try_again"]), as_spoken=True)
            self._call(tool)
            self._succeed(tool)
            return
        if rng.random() < 0.5:
            self.script.hear(rng.choice(frame["give_up"]), as_spoken=True)
            self.script.say(one_of(frame["given_up"], rng))

    def _tell(self, text: str, must_say: Sequence[str] = ()) -> None:
        longer = f"{text} {self.rng.choice(self.frame['tails'])}" if not text.endswith("?") else text
        self.script.say(longer if len(longer.split()) <= MOST_WORDS else text, must_say if self.is_pinned else ())

    def _result(self, tool: Tool, most: int, *, may_repeat: bool = True) -> Told:
        done = one_of(self.book["action"][tool.action]["done"], self.rng, {"n": tool.noun, "b": bare(tool.noun)})
        if may_repeat and tool.action in _REPEATED and self.arguments and self.rng.random() < 0.35:
            done = sentence(one_of(self.frame["with_details"], self.rng, {"w": self._echoed(tool, tool.noun)}))
        # Where the caller has said when, a time that differs would be a contradiction.
        tells_when = not any(p.kind in ("day", "time") and p.name in self.arguments for p in tool.parameters)
        return draw_result(tool, done, self.rng, most=most, tells_when=tells_when)


def write_dialogue(rng: random.Random, *, held_back: bool = False) -> Script:
    """Write one dialogue; `held_back`: with tools that training never shows."""
    business = imagine_business(rng, 0, 2)
    frame = table("tools")["frame"]
    tools = [make_tool(rng, held_back=held_back)]
    actions = tuple(table("tools")["action"])
    for _ in range(rng.choice((0, 0, 1, 1, 2, 2, 3))):
        noun = rng.choice(tools).noun if rng.random() < 0.3 else ""
        other = make_tool(rng, held_back=held_back, noun=noun)
        # Two tools that do the same with the same thing, or bear one name, would make a choice nobody could learn.
        if all(
            other.name != tool.name
            and (other.action, other.noun) != (tool.action, tool.noun)
            and other.action != tool.action
            for tool in tools
        ):
            tools.append(other)
    relevant = tools[0]
    shown = rng.sample(tools, len(tools))
    confirms = rng.random() < 0.3
    rule = rng.choice(frame["ask_first"] if confirms else frame["prompts"])
    is_generic = rng.random() < 0.12
    prompt = one_of(frame["generic"], rng, {"g": first_name(rng)}) if is_generic else business.prompt
    script = Script("tools", f"{prompt} {rule}".strip(), rng, [tool.described() for tool in shown])
    clerk, conversation = Clerk(script, tools, confirms=confirms), Conversation(business, script)
    if rng.random() < 0.4 and not is_generic:
        conversation.greet()
    unmet = sorted(set(actions) - {tool.action for tool in tools} - {"check", "status", "find"})
    for number in range(rng.choice((1, 1, 1, 2))):
        roll = rng.random()
        if roll < 0.1:
            clerk.refuse(make_tool(rng, held_back=held_back, action=rng.choice(unmet)))
        elif roll < 0.22 and not is_generic:
            conversation.step()
        elif roll < 0.29 and len(tools) > 1 and not confirms:
            clerk.two_tasks(tools[0], tools[1])
        else:
            clerk.task(relevant if number == 0 else rng.choice(tools))
    if rng.random() < 0.3:
        clerk.close()
    return script
