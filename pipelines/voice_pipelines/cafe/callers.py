"""What callers of a café say, for training dialogues: templates in lower case without punctuation, as a recogniser writes them."""

import random

from voice_pipelines.cafe.hearing import Item, plural
from voice_pipelines.cafe.menu import Menu

CAFE_NAMES = ("Corner Café", "The Daily Grind", "Blue Door Café", "Harbour Coffee", "Sunny Side Café", "The Copper Kettle", "Maple Café", "River Street Coffee",
              "Old Mill Coffee", "Café Luna", "The Little Bean", "Northside Coffee", "Garden Café", "Bluebird Café", "Morning Star Coffee", "The Green Cup")  # fmt: skip
FIRST_NAMES = ("Golden", "Silver", "Quiet", "Happy", "Lucky", "Velvet", "Brick", "Oak", "Willow", "Cedar", "Stone", "Red", "Park", "Union", "Lakeside", "Hilltop")
LAST_NAMES = ("Bean", "Cup", "Café", "Coffee", "Coffee House", "Roasters", "Espresso Bar", "Kettle", "Corner", "Mug")
STREETS = ("Main", "Oak", "Mill", "King", "Queen", "Church", "Station", "Park", "River", "Hill", "Garden", "Market", "Bridge", "Elm", "Cedar", "Baker", "Lake", "High", "Pine", "Green")
WIFI = ("espresso", "coffee", "latte", "mocha", "bean", "sunshine", "morning", "croissant", "bluebird", "welcome", "cinnamon", "cup")
WIFI_TAILS = ("time", "lovers", "house", "club", "break", "first", "please", "today", "friends", "club")
INTROS = ("You are the friendly phone agent of {n}, a café.", "You answer the phone at {n}, a small café.", "You take orders on the phone for {n}.",
          "You work the phone line of {n}, a coffee shop.", "You are the voice of {n}, a neighbourhood café.")  # fmt: skip
RULES = ("Take the order, ask for the size if it is missing, read it back with the price and ask for anything else. Keep it short.",
         "Answer in one or two short sentences. Read orders back with the price from the note. If you do not know something, say that the staff can help.",
         "Be brief and friendly. Use the notes for orders and prices, and never invent a price. If you did not understand, ask the caller to say it again.",
         "Speak in short sentences. Repeat the order with its price, ask what size if none was said, and say goodbye at the end.",
         "Callers order drinks and food. A note tells you what was ordered and what it costs: say exactly that, briefly, and ask for anything else.",
         "Read back each order with the price, ask for what is missing, and close with the total and a goodbye. You do not know about allergens, the staff does.",
         "Help callers order. Keep answers under thirty words and friendly. Prices and totals come from the notes.")  # fmt: skip
GREETINGS = ("Hi, this is {n}. What can I get you?", "Thanks for calling {n}. What would you like?", "Hello, {n} here. What can I get started for you?",
             "Good morning, {n}. How can I help?", "Welcome to {n}. What can I get for you today?", "{n}, hello! What would you like to order?")  # fmt: skip
HOW_CAN_I_HELP = ("Hi, what can I get you?", "Hello! What would you like today?", "Hi there, what can I get started for you?", "Hello, how can I help you?",
                  "Hey there! What can I get for you?", "Hi, what would you like to order?")  # fmt: skip
HELLO = ("hello", "hi", "hi there", "hey", "good morning", "good afternoon", "hello there", "hi good morning", "yes hello", "hey there", "hello can you hear me", "hi is this the cafe")
PARDON = ("Sorry, I didn't catch that. Could you say it again?", "Sorry, could you repeat that?", "I didn't quite get that. What would you like?",
          "Pardon? Could you say that once more?", "Sorry, I missed that. What can I get you?", "I'm sorry, could you say that again?",
          "Sorry, what was that?", "I didn't hear that properly. Could you repeat your order?")  # fmt: skip
GARBLED = ("uh", "um", "hmm", "uh huh well", "er", "the the", "you know the", "it was um", "a", "and then", "so", "well", "mm", "is it the", "to the", "it's a uh",
           "there goes the", "of the and", "would the", "oh", "ah", "huh", "um i", "i uh")  # fmt: skip
SAY_AGAIN = ("sorry what", "what was that", "could you repeat that", "can you say that again", "pardon", "say that again please", "i didn't hear you", "what did you say", "come again", "sorry i missed that")
AGAIN = ("Sure. ", "Of course. ", "I said: ", "No problem. ", "Sorry. ")
TALK = (
    (("how are you", "how are you doing today", "how's it going", "how are you doing", "hi how are you"),
     ("I'm doing well, thanks. What can I get you?", "Great, thank you! What would you like?", "Very well, thanks for asking. What can I get you?", "I'm good, thanks. What can I get started for you?")),
    (("thank you", "thanks", "thanks a lot", "thank you so much", "great thanks"),
     ("You're welcome!", "My pleasure.", "You're welcome. Anything else?", "No problem at all.", "Happy to help.")),
    (("are you a robot", "am i talking to a computer", "are you a real person", "is this a machine"),
     ("I'm the café's voice assistant. What can I get you?", "Yes, I'm a voice assistant. What would you like?", "I'm a computer, but the coffee is real. What can I get you?")),
    (("it's a lovely day", "nice weather today", "it's so cold today", "it's raining here", "what a day"),
     ("It is! What can I get you?", "A good day for coffee. What would you like?", "Then something warm would be nice. What can I get you?")),
    (("okay", "ok", "alright", "sure", "yes", "yeah", "yes please", "yep", "right"),
     ("Great. What else would you like?", "Okay. What can I get you?", "Sure, go ahead.", "All right, what would you like?")),
    (("can i order", "can i place an order", "i'd like to place an order", "i want to order something", "i'd like to order", "can i make an order"),
     ("Of course. What would you like?", "Sure, go ahead.", "Yes, what can I get you?", "Absolutely. What would you like to order?")),
    (("can i talk to a person", "can i speak to someone", "i want to speak to a human", "can i talk to the manager"),
     ("I can't transfer you, sorry, but our staff can help you at the counter.", "Sorry, I can only take orders. The staff can help you at the café.", "I'm afraid I can't connect you. Please ask our staff at the counter.")),
    (("wait", "stop", "hold on", "wait a moment", "hang on", "excuse me", "no wait"),
     ("Sure, go ahead.", "Of course, I'm listening.", "Okay, go ahead.", "Sure, what is it?", "Yes, I'm here.")),
    (("let me think", "let me see", "just a second", "one moment", "one second please", "hmm let me think", "i'm not sure yet", "i don't know what to get", "i can't decide", "give me a minute", "i'm still thinking"),
     ("Take your time.", "No rush. Let me know when you're ready.", "Take your time. I'm here.", "No problem, just tell me when you're ready.")),
)  # fmt: skip
FACTS = {
    "hours": (("what time do you close", "when do you open", "what are your hours", "are you open on the weekend", "how late are you open", "when are you open", "what time do you open", "are you open today", "till when are you open"),
              ("We're open {o} to {c}, and {w} on weekends.", "We open at {o} and close at {c} on weekdays. Weekends are {w}.", "Weekdays {o} to {c}, weekends {w}.", "On weekdays it's {o} to {c}, on weekends {w}.")),
    "address": (("where are you", "what's your address", "where are you located", "how do i find you", "what is the address", "where is the cafe"),
                ("We're at {a}.", "You can find us at {a}.", "The address is {a}.", "It's {a}.", "Sure, we're at {a}.")),
    "wifi": (("do you have wifi", "what's the wifi password", "is there wifi", "do you have internet", "what is the password for the wifi", "do you have wi fi"),
             ("Yes, the wifi password is {p}.", "The password is {p}.", "We have free wifi. The password is {p}.", "Sure, the wifi password is {p}.")),
    "name": (("who is this", "what's the name of this place", "what cafe is this", "where did i call", "is this the coffee shop"),
             ("This is {n}.", "You've reached {n}.", "You're talking to {n}. What can I get you?", "This is {n}. How can I help?")),
}  # fmt: skip
EXTRA_FACTS = {
    "payment": (("can i pay by card", "how can i pay", "do you take cards", "is it cash only", "do you take credit cards"),
                ("cards and cash", "cash only", "cards only", "cards, cash and mobile pay"),
                ("Payment: {x}.", "We take {x}.", "You can pay with {x}."), ("We take {x}.", "It's {x}.", "You can pay with {x}.", "Payment is {x}.")),
    "parking": (("is there parking", "where can i park", "do you have parking", "can i park there"),
                ("behind the house", "across the street", "on the street", "in the garage next door", "in front of the door"),
                ("Parking {x}.", "You can park {x}.", "There is parking {x}."), ("You can park {x}.", "There's parking {x}.", "Yes, {x}.", "Parking is {x}.")),
    "delivery": (("do you deliver", "can you deliver that", "is there delivery", "can you bring it to my house"),
                 ("pickup only", "delivery on weekdays", "no delivery", "delivery within a mile", "free delivery nearby"),
                 ("Delivery: {x}.", "We offer {x}.", "About delivery: {x}."), ("It's {x}.", "We have {x}.", "Sorry, it's {x}." , "For now it's {x}.")),
    "dogs": (("can i bring my dog", "are dogs allowed", "are you dog friendly"),
             ("dogs are welcome", "dogs only outside", "no dogs inside", "dogs are welcome on the terrace"),
             ("Pets: {x}.", "Rule: {x}.", "Note for guests: {x}."), ("Well, {x}.", "Here {x}.", "At our place, {x}.", "It's like this: {x}.")),
}  # fmt: skip
UNKNOWN_FACT = ("I'm sorry, I don't know that. Our staff can tell you.", "I don't have that here, sorry. Please ask our staff.", "Sorry, I'm not sure. The staff at the counter can help.", "I don't know that one, sorry.")
CLOSINGS = ("that's all", "no thanks", "that'll be it", "that's it", "no that's all", "no thank you", "nothing else", "that's everything", "no that's it thanks", "i'm good", "that will be all", "no", "no i'm good thanks", "that's all thank you", "nope that's it", "that is all for today", "i'm all set", "no that's everything thanks", "just that please", "that'll do")
GOODBYES = ("Goodbye!", "Thanks for calling, goodbye!", "Bye, have a great day!", "Goodbye, see you soon!")
FAREWELL = (("thanks bye", "bye", "goodbye", "thank you bye", "great thanks", "see you", "thank you goodbye", "okay bye", "thanks see you soon", "perfect thank you"),
            ("Goodbye!", "Bye, see you soon!", "Thank you, goodbye!", "You're welcome, goodbye!", "See you soon!", "Have a great day!", "Thanks, bye!"))  # fmt: skip
YES = ("yes please", "yes", "yeah", "sure", "okay", "yes i'll take one", "sure why not", "yeah please", "yes i would", "okay i'll take one", "that sounds good")
NO = ("no thanks", "no", "no thank you", "nope", "nah", "not really", "no that's okay")
STEPS = {"order": 50, "change": 14, "remove": 5, "fact": 8, "repeat": 3, "talk": 6, "noise": 4, "price": 6, "offmenu": 5, "have": 4, "list": 3, "total": 5, "allergy": 3, "wait": 2}

_CARRIERS = ("can i get", "can i have", "could i get", "could i have", "may i have", "i'd like", "i want", "i'll have", "i'll take", "get me", "give me", "make me", "let me get", "i would like",
             "can i please get", "could you make me", "can you make me", "please make me", "i need", "can i order", "brew", "brew me", "hi can i get", "yeah can i get", "hello i'd like", "yes i'd like", "um can i get", "", "", "please give me", "i would love", "we'd like", "can we get")  # fmt: skip
_MORE = ("and", "and also", "also", "can i also get", "and can i have", "plus", "add", "also add", "oh and", "and one more thing")
_CHANGES = ("make that {x}", "make it {x}", "actually make that {x}", "actually make it {x}", "can you make that {x}", "no i said {x}", "sorry i meant {x}", "change it to {x}", "no {x} please", "i said {x}", "actually {x}", "{x} instead", "no {x} instead", "could you make it {x} instead", "wait make it {x}", "sorry {x}")
_AMOUNTS = ("", "", "", "", "a bit of", "a little bit of", "some", "a lot of", "lots of", "extra", "a splash of")
_SPLITS = {"latte": "la tay", "mocha": "mock a", "espresso": "express oh", "croissant": "cross on", "medium": "me dium", "almond": "all mond", "cappuccino": "cap a chino", "double": "double the"}
_SMALL = {"a": "the", "of": "off", "with": "when", "and": "in", "can": "could", "get": "got", "i'd": "i", "some": "sum", "to": "two", "please": "", "for": "four", "the": "a", "i": "a", "like": "", "have": "of"}


class Caller:
    """A caller of one café: makes sentences about its menu."""

    def __init__(self, menu: Menu, rng: random.Random) -> None:
        self.menu, self.rng = menu, rng
        self.drinks = [p for p in menu.products.values() if p.is_drink]
        self.food = [p for p in menu.products.values() if not p.is_drink]

    def said_size(self) -> str:
        return self.rng.choice((*self.menu.sizes[:3], *self.menu.sizes[:3], *self.menu.sizes, *(s for s in self.menu.said_sizes if s.endswith("ounce"))))

    def addition(self) -> str:
        rng = self.rng
        names = (*self.menu.milks, *self.menu.extras, *self.menu.said_additions)
        return f"{rng.choice(_AMOUNTS)} {rng.choice(names)}".strip()

    def drink(self, bare: bool = False) -> str:
        """Return a drink with its words in any order."""
        rng = self.rng
        product = rng.choice(self.drinks)
        name = rng.choice((product.name, product.name, product.name, *product.also))
        words = []
        count = rng.choices((1, 2, 3, 4), (85, 10, 3, 2))[0]
        if product.is_sized and rng.random() < 0.72:
            words.append(self.said_size())
        if not bare:
            if rng.random() < 0.3:
                words.append(f"{rng.choice(tuple(self.menu.shots))} shot")
            if rng.random() < 0.22 and ("coffee" in name or rng.random() < 0.2):
                words.append(f"{rng.choice(self.menu.roasts)} roast")
            if rng.random() < 0.07 and "iced" not in name and "ice" not in name.split():
                words.append(rng.choice(("iced", "decaf")))
        rng.shuffle(words)
        if not bare and rng.random() < 0.06:
            milk = rng.choice(("oat milk", "soy milk", "almond milk", "skim milk", "oat", "soy", "vanilla", "caramel"))
            words.append(milk)
        after = ""
        if words and rng.random() < 0.08:
            after = " " + words.pop()
        text = " ".join([*words, plural(name) if count > 1 else name]) + after
        lead = ("", "", "two", "three", "four")[count] if count > 1 else rng.choice(("a", "a", "a", "a", "one", ""))
        if lead == "a" and text[0] in "aeiou":
            lead = "an"
        text = f"{lead} {text}".strip()
        if not bare and rng.random() < 0.45:
            joint = rng.choice(("with", "with", "with", "with", "and"))
            text += f" {joint} {self.addition()}"
            if rng.random() < 0.25:
                text += f" and {self.addition()}"
        return text

    def snack(self) -> str:
        rng = self.rng
        if not self.food:
            return self.drink()
        name = rng.choice(self.food).name
        if rng.random() < 0.15:
            return f"{rng.choice(('two', 'three'))} {plural(name)}"
        return f"{rng.choice(('an' if name[0] in 'aeiou' else 'a', 'one'))} {name}"

    def thing(self) -> str:
        return self.drink() if self.rng.random() < 0.78 else self.snack()

    def order(self, is_more: bool) -> str:
        rng = self.rng
        text = f"{rng.choice((*_CARRIERS, *_MORE) if is_more else _CARRIERS)} {self.thing()}".strip()
        if rng.random() < 0.16:
            text += f" {rng.choice(('and', 'and', 'and also', 'plus'))} {self.thing()}"
        if rng.random() < 0.03:
            text += f" and {self.thing()}"
        if rng.random() < 0.14:
            text += " please"
        if rng.random() < 0.03:
            text += rng.choice((" and that's all", " that's it", " and that's it", " that'll be all"))
        if rng.random() < 0.02:
            text += f" and a {rng.choice(self.menu.not_sold)}"
        return text

    def size(self) -> str:
        size = self.said_size()
        return self.rng.choice(("{s}", "{s} please", "a {s}", "{s} please", "make it a {s}", "i'd like a {s}", "a {s} please", "{s} is fine", "let's do {s}", "uh {s}", "the {s} one")).format(s=size)

    def change(self, items: tuple[Item, ...]) -> str:
        rng = self.rng
        kind = rng.random()
        target = rng.choice(items)
        if kind < 0.35:
            x = f"{rng.choice(('a ', ''))}{self.said_size()}"
        elif kind < 0.6:
            x = self.addition()
            if rng.random() < 0.5:
                return rng.choice(("with {x}", "and {x}", "add {x}", "can you add {x}", "can i get that with {x}", "with {x} please", "put {x} in it")).format(x=x)
        elif kind < 0.7:
            return rng.choice(("make the {n} {s}", "change the {n} to {s}", "can you make the {n} {s}", "make the {n} a {s}")).format(n=target.name, s=self.said_size())
        elif kind < 0.78:
            return rng.choice(("no sugar please", "without milk", "no milk", "without sugar", "no sweetener", "hold the ice", "no foam"))
        elif kind < 0.88:
            other = rng.choice(self.drinks).name
            return rng.choice(("change the {n} to a {o}", "actually make that a {o}", "make it a {o} instead", "no i said {o}", "no a {o}", "swap the {n} for a {o}", "a {o} instead please")).format(n=target.name, o=other)
        elif kind < 0.95:
            x = rng.choice(("two of them", "two", "three", "three of those", "decaf", "iced", "a double shot", "a single shot", "dark roast", "light roast"))
        else:
            x = self.drink()
        return rng.choice(_CHANGES).format(x=x)

    def remove(self, items: tuple[Item, ...]) -> str:
        rng = self.rng
        item = rng.choice(items)
        things = [item.name, item.name, item.name, *(a.name for a in item.additions)]
        return rng.choice(("remove the {n}", "cancel the {n}", "take off the {n}", "forget the {n}", "actually i don't want the {n}", "can you remove the {n}", "please cancel the {n}",
                           "drop the {n}", "scratch the {n}", "no {n}", "cancel everything", "cancel that", "start over")).format(n=rng.choice(things))  # fmt: skip

    def question(self, kind: str) -> str:
        rng = self.rng
        some = rng.choice((*self.drinks, *self.food)).name
        match kind:
            case "price":
                sized = f"{self.said_size()} {some}" if rng.random() < 0.3 else some
                return rng.choice(("how much is a {n}", "how much is the {n}", "what does a {n} cost", "how much for a {n}", "what's the price of a {n}", "how much does a {n} cost", "price of a {n}", "how much are your {p}")).format(n=sized, p=plural(some))  # fmt: skip
            case "offmenu":
                name = rng.choice(self.menu.not_sold)
                frame = rng.choice(("{c} a {n}", "{c} {n}", "do you have {n}", "do you sell {n}", "{c} a {n} please", "have you got {n}", "can i get {d} and a {n}"))
                return frame.format(c=rng.choice(_CARRIERS[:16]), n=name if frame.endswith("{n}") and " a {n}" not in frame else name.removesuffix("s"), d=self.drink(bare=True))
            case "have":
                return rng.choice(("do you have {p}", "do you sell {p}", "do you have {m}", "do you have any {p}", "is there {m}", "do you do {p}")).format(p=plural(some), m=rng.choice((*self.menu.milks, *self.menu.extras)))  # fmt: skip
            case "list":
                return rng.choice(("what kinds of milk do you have", "what milks do you have", "what teas do you have", "what kind of tea do you have", "what syrups do you have", "what sizes do you have", "what do you have to eat",
                                   "what pastries do you have", "what sandwiches do you have", "what drinks do you have", "what's on the menu", "what do you have", "what do you recommend", "what roasts do you have", "which milk do you have", "what flavors do you have"))  # fmt: skip
            case "total":
                return rng.choice(("what's my total", "how much is that", "what do i owe", "how much do i owe you", "what's the total", "can you repeat my order", "read my order back", "what did i order", "how much is it all together", "what do i have so far"))
            case "wait":
                return rng.choice(("how long will it take", "when will it be ready", "how long does it take", "when can i pick it up", "how long is the wait"))
            case _:
                return rng.choice(("is there gluten in the {n}", "does the {n} have nuts", "i have a nut allergy", "is the {n} vegan", "are there nuts in the {n}", "is the {n} gluten free", "i'm allergic to peanuts is the {n} okay", "does the {n} contain lactose", "i'm lactose intolerant", "is it dairy free")).format(n=some)  # fmt: skip


def misrecognise(text: str, rng: random.Random) -> str:
    """Return the text with one or two errors such as recognisers make."""
    words = text.split()
    for _ in range(rng.choice((1, 1, 2))):
        if not words:
            break
        place = rng.randrange(len(words))
        word = words[place]
        if word in _SPLITS and rng.random() < 0.5:
            words[place] = _SPLITS[word]
        elif word in _SMALL:
            words[place] = _SMALL[word]
        elif rng.random() < 0.3 and len(words) > 2:
            words.pop(place)
        elif rng.random() < 0.4:
            words.insert(place, rng.choice(("uh", "um", "the", "a", "and", "it", "like")))
    return " ".join(" ".join(words).split())
