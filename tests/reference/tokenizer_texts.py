"""Texts on which tokenizers tend to differ, for make_tokenizers.py. No text contains U+0000, which
JSON readers in C cannot hand on."""

import random

MULTILINGUAL = [
    "The quick brown fox jumps over the lazy dog.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Portez ce vieux whisky au juge blond qui fume, garçon naïf à l'œil bleu.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "いろはにほへと ちりぬるを。カタカナも漢字も使います。",
    "我能吞下玻璃而不伤身体。今天天气很好，我们去公园吧！",
    "다람쥐 헌 쳇바퀴에 타고파. 안녕하세요 세계!",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul ığdır",
    "Quốc gia Việt Nam, tiếng Việt có nhiều dấu.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
]

EMOJI = [
    "👍", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "☃", "👨🏿‍🚀 to the moon 🚀🚀🚀", "1️⃣2️⃣", "🤷‍♀️?",
    "a👍b", " 👍 ", "x👩‍💻y",
]

CODE = [
    "int main(void)\n{\n    return 0;\n}\n",
    "def f(x):\n\tif x:\n\t\treturn x ** 2\n\n\treturn None\n",
    "for (size_t i = 0; i < n; ++i) sum += a[i] * b[i]; // dot",
    "SELECT name, COUNT(*) FROM t WHERE id >= 10 GROUP BY 1;",
    '{"tool": "search", "arguments": {"q": "caf\u00e9", "limit": 10}}',
    "<div class=\"a\">x &amp; y</div>",
    "https://example.org/path?q=1&r=%20#frag",
    "$ make -j2 2>&1 | tee build.log",
    "a_b_c camelCase PascalCase SCREAMING_SNAKE kebab-case",
    "x!=y; x!==y; a<=>b; a->b; a::b; !!!; ???; ...; //////; =======",
    "C:\\Users\\name\\file.txt",
]

CONTRACTIONS = [
    "I'm you're he's she'd we'll they've don't", "I'M YOU'RE HE'S SHE'D WE'LL THEY'VE DON'T",
    "I'm'RE'Ve'lL'd", "'s't're've'm'll'd", "'S'T'RE'VE'M'LL'D", "it’s we’re", "'twas 'tis",
    "rock'n'roll",
    "x'", "''s", "'sad 'tea 'redo", "' s", "'\u017f 'S\u017f", "o'\u212aeefe",
]

DIGITS = [
    "0", "7", "42", "123", "1234", "12345", "1234567890", "3.14159", "1,000,000", "-17",
    "2024-05-01",
    "v1.2.3", "0x1F", "1e-5", "abc123def456", "1 2 3", " 12 ", "²³¹", "½¾", "Ⅷ Ⅻ", "٣٤٥", "१२३",
    "１２３４",
    "12\n34", "007", "a1b2c3",
]

SPACES = [
    " ", "  ", "   ", "    ", " " * 9, " " * 40, "\n", "\n\n", "\n\n\n\n", "\r\n", "\r\n\r\n", "\r",
    "\t",
    "\t\t\t", " \n", "\n ", " \n \n ", "\n\n  x", "x  \n\n", "x   y", "x  ", "  x", " x ", "\t x",
    "x\t\ty",
    "a\u00a0b", "a\u00a0\u00a0 b", "a\u2003b", "a\u3000b", "\u2028x\u2029", "a\u0085b",
    "\u000b\u000c",
    "a\u180eb", "a\u200bb", "a \u180e b", "\ufeffbom", "a\u2009\n\u2009b", "\x1c\x1d x \x1e\x1f",
    "line one\n    line two\n\n        line three\n", "a" + " " * 17 + "b", "-" + "\n" * 12 + "-",
    "! \n?", "!\n\n?", "!\r\n\r\n a", "a.\n\n\nb", "..\n  ..",
]

CONTROL = [
    "\x01", "\x02\x03\x04", "a\x07b", "\x1b[31mred\x1b[0m", "\x7f", "a\x08b", "\x80\x9f", "\ufffd",
    "\uffff",
    "\U0010ffff", "\ue000", "\u200e\u200f", "\u00ad", "a\u2060b",
]

COMBINING = [
    "cafe\u0301", "caf\u00e9", "cafe\u0301 caf\u00e9", "A\u030a \u00c5 \u212b", "e\u0301\u0301",
    "a\u0323\u0307", "a\u0307\u0323",
    "\u1e69 s\u0323\u0307 s\u0307\u0323", "n\u0303o", "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "\ud55c\uae00", "\u0915\u093c \u0958",
    "\ufb01ne \ufb03", "\u2126 \u03a9", "\u0301", " \u0301x", "x\u0301\u0302\u0303\u0304",
    "I\u0307 i\u0307", "\u0344", "\u304b\u3099 \u304c",
    "o\u0308sterreich U\u0308ber", "q\u0307\u0323", "'\u0301s", "1\u0301", "\u05d0\u05bc \ufb30",
    "\U0001d15e", "\u4e0d \uf967",
]

LETTERS = [
    "", "a", "A", "the", "The", " the", "THE", "thee", "Hello", " Hello", "hello world",
    "Hello, world!",
    "supercalifragilisticexpialidocious", "aaaaaaaaaaaaaaaa", "abababababab", "ABCdef", "ß ẞ",
    "ǅ ǆ",
    "ªº", "ʰʷ", "ﬁ", "Ａｂｃ", "𝒜𝓫𝔠", "ㅎㅏㄴ", "ا", "ﷺ", "𐍈𐌰", "ꯍ", "Ångström", "naïve", "\u02bcs",
]

SPECIAL_PATTERNS = [
    "{0}", "{0}{0}", "a{0}b", "a {0} b", "{0} x", "x {0}", " {0} ", "\n{0}\n", "{0}\n\nhello",
    "{1}user\nHi{2}\n",
    "{1}system\nYou are kind.{2}\n{1}user\n2+2?{2}\n{1}assistant\n4{2}\n", "{0}{1}{2}", "x{1}{1}y",
    "cafe\u0301{0}cafe\u0301", "{0}'s", "'{0}", "{0}123", "12{0}34", "<{0}>", "{0}{0}  {0}",
]


def fixed_texts():
    return [*LETTERS, *MULTILINGUAL, *EMOJI, *CODE, *CONTRACTIONS, *DIGITS, *SPACES, *CONTROL,
            *COMBINING]


def special_texts(tokens):
    """Texts with special tokens inside, broken and whole."""
    first = [*tokens, *tokens, *tokens][:3]
    texts = [pattern.format(*first) for pattern in SPECIAL_PATTERNS]
    for token in tokens:
        texts += [token[:-1], token[1:], token.upper(), token[: len(token) // 2] + token,
                  f"w{token}w {token} w"]
    return texts


def mixed_texts(count, tokens, seed):
    """Random joins of everything above."""
    generator = random.Random(seed)
    pools = [LETTERS, MULTILINGUAL, EMOJI, CODE, CONTRACTIONS, DIGITS, SPACES, CONTROL, COMBINING,
             list(tokens), SPACES, DIGITS]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(generator.randint(2, 6)):
            part = generator.choice(generator.choice(pools))
            start = generator.randint(0, max(0, len(part) - 12))
            parts.append(part if part in tokens else part[start : start + generator.randint(1, 12)])
        texts.append(generator.choice(["", "", " ", "\n"]).join(parts))
    return texts
