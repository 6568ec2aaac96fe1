"""Deterministic synthetic corpus for the quickstart's base model.

Every document is made of invented words, names and numbers, and its second part can be told only
by copying from the first: repeats, records restated in another format, questions about a passage,
chats. A document is a list of (text, weight) pieces; the weight is how much the piece counts in the
loss, low for the invented values (which nobody can predict) and 1 for what follows from them.

The tool calls that the quickstart teaches ({"name": ..., "arguments": {...}}) never occur here.
"""

import json
import random

ONSETS = (
    "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl fr gl gr kl pl pr sh sk sl sm sn sp "
    "st th tr"
).split()
VOWELS = "a e i o u a e i o u ai ea io oa ou".split()
CODAS = ["", "", "", "", "l", "m", "n", "r", "s", "t", "k", "x", "nd", "rt", "st"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"

# What a field is called, what its values look like, and how people mention it. "%" is the value.
FIELDS = {
    "name": ("name", ["called %", "named %", "with the name %", "name %", "by the name of %"]),
    "title": ("phrase", ["titled %", "with the title %", "entitled %", "title %"]),
    "owner": ("name", ["owned by %", "that belongs to %", "with % as owner", "of the owner %"]),
    "author": ("name", ["written by %", "by %", "from the pen of %", "author %"]),
    "friend": ("name", ["with my friend %", "together with %", "along with %", "and %"]),
    "guest": ("name", ["for our guest %", "for %", "where % is the guest", "and invite %"]),
    "recipient": ("name", ["to %", "for %", "addressed to %", "meant for %", "and tell %"]),
    "sender": ("name", ["from %", "sent by %", "sender %"]),
    "doctor": ("name", ["with doctor %", "at doctor %", "doctor %"]),
    "person": ("name", ["person %", "with %", "for %", "ask %"]),
    "city": ("name", ["in %", "in the city of %", "near %", "city %", "for %", "over %"]),
    "country": ("name", ["in the country of %", "country %", "from %"]),
    "origin": ("name", ["from %", "leaving %", "starting in %", "out of %", "departing from %"]),
    "destination": ("name", ["to %", "bound for %", "towards %", "going to %", "ending in %"]),
    "street": ("name", ["on % street", "at % road", "street %", "in % lane"]),
    "station": ("name", ["at % station", "station %", "near the % stop"]),
    "colour": ("word", ["in %", "coloured %", "of % colour", "painted %", "colour %", "to %"]),
    "material": ("word", ["made of %", "of pure %", "out of %", "from %"]),
    "tool": ("word", ["using the %", "with a %", "by means of a %", "tool %"]),
    "animal": ("word", ["the % barked", "an animal called %", "a wild %", "animal %"]),
    "dish": ("word", ["a plate of %", "some %", "a bowl of %", "dish %", "the % please"]),
    "drink": ("word", ["a cup of %", "a glass of %", "a bottle of %", "drink %"]),
    "product": (
        "word",
        ["a box of %", "the product %", "some %", "packs of %", "a %", "product %"],
    ),
    "item": ("word", ["the item %", "item %", "a %", "one %", "the %", "boxes of %"]),
    "label": ("word", ["labelled %", "with label %", "marked %", "under the label %", "tagged %"]),
    "file": ("word", ["the file %", "in file %", "file %", "the document %"]),
    "folder": ("word", ["into the folder %", "folder %", "under %", "in the % folder"]),
    "project": ("word", ["for the project %", "project %", "in the % project"]),
    "room": ("word", ["in the %", "room %", "in room %", "in the % room"]),
    "song": ("phrase", ["the song %", "the tune %", "song %", "play %"]),
    "artist": ("name", ["by %", "sung by %", "from the band %", "artist %"]),
    "text": ("phrase", ["saying %", "that says %", "with the text %", "which reads %", "text %"]),
    "topic": ("phrase", ["about %", "on the topic of %", "concerning %", "on %", "topic %"]),
    "task": ("phrase", ["the task %", "to %", "task %", "that I must %"]),
    "subject": ("phrase", ["subject %", "regarding %", "about %", "with subject %"]),
    "query": ("phrase", ["for %", "look up %", "search for %", "find %"]),
    "code": ("code", ["code %", "with code %", "numbered %", "under code %"]),
    "ticket": ("code", ["ticket %", "with ticket %", "on ticket %"]),
    "time": ("time", ["at %", "around %", "time %", "by %", "before %"]),
    "start": ("time", ["starting at %", "from %", "start %"]),
    "end": ("time", ["ending at %", "until %", "till %", "end %"]),
    "date": ("date", ["on %", "date %", "dated %", "for %"]),
    "price": ("number", ["for % crowns", "at a price of %", "costing %", "price %", "paying %"]),
    "amount": ("number", ["% crowns", "an amount of %", "% euros", "the sum of %", "amount %"]),
    "count": ("number", ["% of them", "% pieces", "% copies", "count %", "%"]),
    "quantity": ("number", ["% units", "% boxes", "a quantity of %", "%"]),
    "minutes": ("number", ["for % minutes", "% minutes", "lasting % minutes", "in % minutes"]),
    "hours": ("number", ["for % hours", "% hours", "within % hours"]),
    "days": ("number", ["for % days", "% days", "in % days"]),
    "seats": ("number", ["with % seats", "% seats", "for % people", "seats %"]),
    "age": ("number", ["aged %", "% years old", "at the age of %"]),
    "weight": ("number", ["weighing % grams", "of % grams", "% grams"]),
    "height": ("number", ["% metres high", "of % metres", "height %"]),
    "level": ("number", ["to level %", "at %", "level %", "to %", "% percent"]),
    "degrees": ("number", ["to % degrees", "% degrees", "at % degrees"]),
    "page": ("number", ["on page %", "page %", "from page %"]),
    "number": ("number", ["number %", "with number %", "no %"]),
    "channel": ("number", ["to channel %", "channel %", "on channel %"]),
    "value": ("number", ["the value %", "value %", "set to %", "%"]),
    "speed": ("number", ["at a speed of %", "% knots", "speed %"]),
}
KEYS = list(FIELDS)

OPENINGS = [
    "please note a thing",
    "I want something",
    "we have a parcel",
    "can you write down a visit",
    "there was a trip",
    "book a table",
    "make an entry",
    "remember the meeting",
    "add an order",
    "I saw a house",
    "the clerk wrote a letter",
    "please send a note",
    "could you plan a journey",
    "we need a list",
    "put down an errand",
    "I would like a seat",
    "the shop sold goods",
    "start a job",
    "keep a record",
    "set up a visit",
    "show me a report",
    "get me a ticket",
    "create a plan",
    "move the meeting",
    "turn on the lamp",
    "find a shop",
    "buy things",
    "tell me of a walk",
    "give us a call",
    "open a case",
]
POLITE = ["", "", "", "please ", "hi, ", "hello, ", "hey, ", "now ", "could you ", "thanks, "]
TAILS = ["", "", "", ".", ".", " please.", " thanks.", ", thank you.", " today.", " now."]
SYSTEMS = [
    "You answer with the facts.",
    "You are a careful clerk.",
    "Copy what the user says.",
    "You keep records.",
    "Answer briefly.",
    "You are a helpful assistant.",
    "Restate the request.",
    "Use only the words of the user.",
    "Tools: pen, paper, stamp.",
    "You write forms.",
    "Forms: order, visit, letter, trip.",
]


def hit(rng, p):
    return rng.random() < p


def letters_word(rng):
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 7)))


def syllable_word(rng):
    return "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
        for _ in range(rng.choice((1, 2, 2, 2, 3)))
    )


def word(rng):
    return letters_word(rng) if hit(rng, 0.25) else syllable_word(rng)


def number(rng):
    digits = rng.choice((1, 2, 2, 3, 3, 4, 4, 5))
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def value(rng, kind):
    if kind == "word":
        return word(rng)
    if kind == "name":
        first = word(rng).capitalize()
        return first + " " + word(rng).capitalize() if hit(rng, 0.2) else first
    if kind == "phrase":
        return " ".join(word(rng) for _ in range(rng.randint(1, 4)))
    if kind == "number":
        return number(rng)
    if kind == "time":
        return "%02d:%02d" % (rng.randint(0, 23), rng.randint(0, 59))
    if kind == "date":
        return "%d-%02d-%02d" % (rng.randint(1900, 2099), rng.randint(1, 12), rng.randint(1, 31))
    return letters_word(rng)[:3] + number(rng)


def record(rng, count):
    """Fields with values: [(key, kind, value)]. Now and then a key is an invented word too."""
    fields = []
    for key in rng.sample(KEYS, count):
        kind = FIELDS[key][0]
        if hit(rng, 0.12):
            kind = rng.choice(("word", "name", "phrase", "number", "code"))
            key = syllable_word(rng)
        fields.append((key, kind, value(rng, kind)))
    return fields


def mention(rng, field):
    """One field as a person would say it, split around its value."""
    key, kind, text = field
    if key in FIELDS and hit(rng, 0.75):
        before, after = rng.choice(FIELDS[key][1]).split("%")
    else:
        before, after = rng.choice(
            (
                ("%s " % key, ""),
                ("the %s is " % key, ""),
                ("with %s " % key, ""),
                ("", " as the %s" % key),
                ("a %s of " % key, ""),
                ("%s: " % key, ""),
                ("%s = " % key, ""),
            )
        )
    if kind != "number" and hit(rng, 0.2):
        quote = rng.choice("\"'")
        before, after = before + quote, quote + after
    return before, text, after


def prose(rng, fields):
    pieces = [(rng.choice(POLITE) + rng.choice(OPENINGS) + " ", 0.1)]
    for i, field in enumerate(rng.sample(fields, len(fields))):
        before, text, after = mention(rng, field)
        glue = "" if i == 0 else rng.choice((" ", " ", ", ", " and "))
        pieces += [(glue + before, 0.1), (text, 0.05), (after, 0.1)]
    return pieces + [(rng.choice(TAILS), 0.1)]


def listing(rng, fields):
    form, glue = rng.choice(
        (
            ("%s: %s", "\n"),
            ("- %s: %s", "\n"),
            ("%s = %s", "; "),
            ("%s is %s", ", "),
            ("%s %s", ", "),
        )
    )
    return glue.join(form % (key, text) for key, _, text in fields)


def as_json(rng, fields):
    pairs = {
        key: int(text) if kind == "number" and hit(rng, 0.9) else text for key, kind, text in fields
    }
    return json.dumps(pairs, separators=(",", ":") if hit(rng, 0.7) else (", ", ": "))


def as_xml(rng, fields):
    return "".join("<%s>%s</%s>" % (key, text, key) for key, _, text in fields)


def as_sentences(rng, fields):
    form = rng.choice(("The %s is %s.", 'Its %s is "%s".', "%s is %s.", "I took %s as %s."))
    return " ".join(form % (key, text) for key, _, text in fields)


FORMATS = {"json": as_json, "list": listing, "xml": as_xml, "words": as_sentences}


def restate(rng, fields):
    """A format word and the fields, in an order of their own and perhaps only some of them."""
    chosen = rng.sample(fields, rng.randint(max(1, len(fields) - 1), len(fields)))
    form = rng.choice(("json", "json", "list", "xml", "words"))
    return form, [key for key, _, _ in chosen], FORMATS[form](rng, chosen)


def repeat(rng, longest):
    """Words, then the same words again: the plainest reason to copy."""
    make = rng.choice((word, letters_word, number, syllable_word))
    words = [make(rng) for _ in range(rng.randint(3, longest))]
    first = rng.choice((" ", ", ", "; ", "\n"))
    second = first if hit(rng, 0.5) else rng.choice((" ", ", ", '","', "|"))
    return [
        (first.join(words), 0.05),
        (rng.choice((" | ", "\nagain: ", " = ")), 0.1),
        (second.join(words), 1.0),
    ]


def lookup(rng):
    """A passage of pairs and questions about some of them."""
    kind = rng.choice(("word", "number", "name", "code"))
    relation = rng.choice(("has", "likes", "owns", "is", "->", "=", ":", "means"))
    pairs = [
        (value(rng, rng.choice(("word", "name"))), value(rng, kind))
        for _ in range(rng.randint(2, 6))
    ]
    glue = rng.choice((". ", "; ", "\n", ", "))
    pieces = [(glue.join("%s %s %s" % (a, relation, b) for a, b in pairs), 0.05), ("\n", 0.1)]
    for a, b in rng.sample(pairs, rng.randint(1, len(pairs))):
        ask, answer = rng.choice(
            (("%s %s ", "%s\n"), ("what of %s? ", "%s\n"), ('"%s":', '"%s"\n'), ("%s ? ", '"%s"\n'))
        )
        pieces += [(ask % ((a, relation) if ask.count("%s") == 2 else a), 0.1), (answer % b, 1.0)]
    return pieces


def restatement(rng, count):
    fields = record(rng, count)
    source = prose(rng, fields) if hit(rng, 0.7) else [(listing(rng, fields), 0.05)]
    form, keys, text = restate(rng, fields)
    asked = " (%s)" % ", ".join(keys) if hit(rng, 0.4) else ""
    return source + [("\n%s%s:\n" % (form, asked), 0.1), (text, 1.0)]


def chat(rng, count):
    """A ChatML conversation whose answers copy from the question."""
    pieces = []
    if hit(rng, 0.7):
        pieces.append(("<|im_start|>system\n%s<|im_end|>\n" % rng.choice(SYSTEMS), 0.1))
    fields = record(rng, count)
    form, keys, text = restate(rng, fields)
    ask = " %s: %s." % (form, ", ".join(keys))
    if hit(rng, 0.25):
        ask, text = "", as_sentences(rng, fields)
    elif hit(rng, 0.4):
        key, _, found = rng.choice(fields)
        ask, text = (
            " What is the %s?" % key,
            rng.choice(("%s", '"%s"', "It is %s.", "The answer is '%s'.")) % found,
        )
    return (
        pieces
        + [("<|im_start|>user\n", 0.1)]
        + prose(rng, fields)
        + [
            (ask + "<|im_end|>\n<|im_start|>assistant\n", 0.1),
            (text + "<|im_end|>", 1.0),
            ("\n", 0.1),
        ]
    )


def document(rng, progress=1.0):
    """One document; `progress` in [0, 1] goes from short repeats to the whole mixture."""
    if hit(rng, 0.75 - 0.65 * min(1.0, progress * 5)):
        return repeat(rng, 6 + int(10 * progress))
    if hit(rng, 0.25):
        return lookup(rng)
    count = rng.randint(1, 2 + int(3 * min(1.0, progress * 3)))
    return chat(rng, count) if hit(rng, 0.55) else restatement(rng, count)


def plain(pieces):
    return "".join(text for text, _ in pieces)


if __name__ == "__main__":
    rng = random.Random(1)
    for _ in range(20):
        print(plain(document(rng)), "\n-----")
