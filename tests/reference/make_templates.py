"""Writes tests/fixtures/templates: what transformers renders from templates that use every construct
of the language, and from chats through templates of our own. usage: make_templates.py [OUT]"""

import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import (
    _alias_reasoning_fields,
    _compile_jinja_template,
    _render_with_assistant_indices,
)

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "fixtures/templates")

VARIABLES = {
    "n": 7, "z": 0, "f": 2.5, "whole": 3.0, "big": 1e22, "small": 1.5e-7, "t": True, "none_": None,
    "s": "Hello, World", "u": "Größe 日本 😀", "sp": "  pad\t\n", "html": "<a href='x'>&\"</a>",
    "l": [3, 1, 2], "e": [], "words": ["beta", "Alpha", "gamma", "alpha"],
    "d": {"b": 1, "a": [1, 2.0, None, True], "C": {"x": "y'\"\n"}},
    "users": [{"name": "Bob", "age": 30, "on": True}, {"name": "al", "age": 25, "on": False},
              {"name": "Cy", "age": 30, "on": True}],
    "tree": [{"v": "a", "c": [{"v": "b", "c": []}, {"v": "c", "c": [{"v": "d", "c": []}]}]}],
    "lines": "one\ntwo\r\n\nthree", "keys": {"items": 1, "get": 2, "_x": 3},
}

EXPRESSIONS = r"""
1 + 2 * 3 ** 2 - -4
7 // 2, -7 // 2, 7 % 3, -7 % 3, 7 / 2, 6 / 2
2 ** -1, 2 ** 0.5, -2 ** 2, 2 ** 3 ** 2
1_000 + 0x1F + 0b101 + 0o17, 1e3, 1.5e-3, 12_3.4
7.5 // 2, -7.5 % 2, 1e300 * 1e10
n, f, whole, big, small, t, none_, 0.1 + 0.2, 1e16, 123456789012345.6, 1e-5, -0.0
"a" "b" 'c', 'tab\there', "q\"q", '\x41\u00e9\U0001F600', 'a\\nb', '\d'
[1, 'a', none, true, 2.0, {'k': (1,)}], (), (1, 2), {1: 'x', 'y': none}
'it\'s', ['it\'s', "say \"hi\"", 'both \' and "', 'nl\n\t\x00\x7f', 'é😀\u200b']
n == 7 and not z, n > 3 >= 3 < 4, 'a' < 'b', 'B' < 'a', [1, 2] < [1, 3], 1 == 1.0, true == 1
'lo' in s, 'x' not in s, 3 in l, 'b' in d, 9 not in l, 2 in (1, 2), none in [none]
n if t else z, ('yes' if z) ~ '.', (1 if z else 2 if z else 3)
z or 'or', t and 'and', not t, not e, none_ or z, '' or [] or {}
s ~ n ~ none_ ~ f ~ t ~ [1], 'a' ~ missing ~ 'b'
s[0], s[-1], s[99], u[7], u[-1], s[1:4], s[::-1], s[::2], u[2:8], s[-3:], s[10:2], s[5::-2]
l[0], l[-1], l[1:], l[::-1], l[5:], (1, 2, 3)[1:], range(5)[1:3], range(10)[-1]
l + [4], [0] * 3, 'ab' * 3, (1,) + (2,), 2 * [1, 2]
d.b, d['b'], d.a[1], d.C.x, d['C']['x'], d.missing, d.b.c, keys.items() | list, keys['items'], keys._x
s.upper(), s.lower(), s.title(), s.capitalize(), s.swapcase(), u.upper(), 'straße'.upper(), "they're".title()
sp.strip() ~ '|', sp.lstrip() ~ '|', sp.rstrip() ~ '|', 'xxaxx'.strip('x'), 'abcba'.lstrip('ab'), 'a<>b'.strip('<a>')
'a,b,,c'.split(','), ' a  b '.split(), 'a b c d'.split(' ', 2), ' a  b  c '.split(none, 1), 'abc'.split('x')
'a,b,c'.rsplit(',', 1), ' a b  c '.rsplit(none, 1), 'a b c'.rsplit(maxsplit=1), lines.splitlines(), lines.splitlines(true)
s.replace('l', 'L'), s.replace('l', 'L', 1), s.replace('', '-'), 'aaa'.replace('aa', 'b'), 'ab'.replace('x', 'y')
s.startswith('Hell'), s.startswith(('x', 'He')), s.endswith('ld'), s.startswith('ell', 1), s.endswith('')
s.find('o'), s.rfind('o'), s.find('zz'), s.index('W'), s.count('l'), u.find('😀'), s.find('o', 5), s.count('')
'-'.join(['a', 'b']), ','.join('abc'), ''.join([])
'5'.isdigit(), 'a1'.isalnum(), 'ab'.isalpha(), ' '.isspace(), 'Ab'.isupper(), 'ab'.islower(), ''.isdigit(), 'é'.isascii()
'a=b=c'.partition('='), 'a=b=c'.rpartition('='), 'abc'.partition('x'), 'abc'.rpartition('x')
'x'.center(5) ~ '|', 'ab'.center(5, '*'), 'x'.ljust(3) ~ '|', 'x'.rjust(3), '-42'.zfill(6), 'pre_x'.removeprefix('pre_'), 'x.py'.removesuffix('.py')
d.get('b'), d.get('zz'), d.get('zz', 5), d.keys() | list, d.values() | list, d.items() | list, d | length, d.items() | length
l.index(2), l.count(1), (1, 2, 1).count(1), l.copy()
'%s is %d and %.2f, %5s|%-5s|%05d %x %%' % ('a', 3, 2.345, 'r', 'l', 42, 255), '%s' % 'x', '%r' % 'x', '%(b)s' % d, '%s' % [1]
'{} {}'.format(1, 'a'), '{1} {0}'.format('a', 'b'), '{x:>5}|{y:<4}|{z:^5}|'.format(x=1, y='b', z='c'), '{:.2f} {:,} {:05d} {{}}'.format(3.14159, 1234567, 42), '{0.b} {0[a]}'.format(d), '{!r}'.format('q')
sp | trim ~ '|', s | upper, s | lower, s | title, 'foo-bar (baz) x' | title, s | capitalize, s | length, s | reverse, s | wordcount, s | first, s | last, s | list | length
l | sort, l | sort(reverse=true), words | sort, words | sort(case_sensitive=true), words | unique | list, words | unique(true) | list, l | sum, l | min, l | max, words | min, e | max
users | map(attribute='name') | join(', '), users | sum(attribute='age'), users | sort(attribute='age,name') | map(attribute='name') | list, users | selectattr('on') | map(attribute='name') | list
users | selectattr('age', 'gt', 26) | list | length, users | rejectattr('on') | map(attribute='name') | first, users | selectattr('name', 'equalto', 'Bob') | list | length, users | map(attribute='zip', default='?') | list
[1, 2, 3, 4] | select('odd') | list, [1, 2, 3, 4] | reject('divisibleby', 2) | list, [0, 1, '', 'a'] | select | list, ['a', 'B'] | map('upper') | list, [1, 2] | map('string') | join('+'), ['1', 'x'] | map('int', default=9) | list
l | join, l | join('-'), users | join('/', attribute='name'), [[1, 2], [3]] | map('join', '.') | list, l | first, e | first, l | last, l | reverse | list, l | length, 'abc' | list
missing | default('dflt'), none_ | default('x'), none_ | default('x', true), '' | d('e', boolean=true), z | default(5), missing | length, missing | list, missing | join, missing ~ '|'
d | dictsort, d | dictsort(by='value', reverse=false) if z, {'b': 2, 'A': 1} | dictsort, {'b': 2, 'A': 1} | dictsort(true), {'b': 1, 'a': 2} | dictsort(false, 'value'), {'a': 1} | items | list
'4' | int, '4.7' | int, 'x' | int, 'x' | int(5), '0x1f' | int(base=16), f | int, '2.5' | float, 'x' | float, true | int, '  12 ' | int, '1_0' | int, none_ | int
2.5 | round, 3.5 | round, 2.675 | round(2), 2.4 | round(method='ceil'), 2.6 | round(0, 'floor'), 7 | round, -3 | abs, -2.5 | abs, 42 | string ~ '!', 1234.5 | round(-2)
range(7) | batch(3) | list, range(7) | batch(3, 'x') | list, range(7) | slice(3) | list, range(7) | slice(3, 'x') | list
users | groupby('age') | list | length, (users | groupby('age'))[0].grouper, (users | groupby('age'))[1].list | length, users | groupby('age') | map('first') | list
lines | indent, lines | indent(2, true), lines | indent(2, blank=true), lines | indent('> '), 'a' | indent(3, first=true)
'foo bar baz qux' | truncate(9), 'foo bar baz qux' | truncate(9, true), 'foo bar baz qux' | truncate(11), 'foo bar baz qux' | truncate(11, false, '..', 0)
html | escape, html | e, 'a b/c?d=é' | urlencode, {'a b': 'c&d'} | urlencode, '<p>a  <b>b</b></p>' | striptags, html | safe, '%s-%d' | format('a', 3), 'ab' | center(6) ~ '|', s | replace('o', '0'), s | replace('o', '0', 1)
d | tojson, l | tojson, u | tojson, html | tojson, d | tojson(indent=2), d | tojson(separators=(',', ':')), {'b': 1, 'a': 2} | tojson(sort_keys=true), u | tojson(ensure_ascii=true), {1: 2, none: 3, true: 4} | tojson, [big, small, whole, -0.0] | tojson, 'a\n\t\x01"\\/\x7f' | tojson, [] | tojson(indent=2), {} | tojson, (1, 2) | tojson
n is number, s is string, d is mapping, l is sequence, s is sequence, d is sequence, none_ is none, missing is defined, n is defined, missing is undefined, l is iterable, n is iterable, t is boolean, n is integer, f is float, t is true, z is false, t is number, t is integer
3 is odd, 3 is even, 9 is divisibleby 3, 9 is divisibleby(2), 'a' is in 'abc', 1 is in [1], 'a' is lower, 'A' is upper, n is not none, n is eq 7, n is gt(3), 1 is sameas 1, true is sameas true, 'upper' is filter, 'nope' is filter, 'odd' is test, range is callable, n is callable
range(3) | list, range(1, 4) | list, range(5, 0, -2) | list, range(3), range(1, 9, 3), namespace(a=1).a, dict(a=1, b=2), dict([('x', 1)]), dict({'a': 1}, b=2)
[1, [2, {'a': (3,)}]] == [1, [2, {'a': (3,)}]], {'a': 1} == {'a': 1.0}, [1] == (1,), 'a' == 1, none == false
words | map('lower') | unique | sort | join(','), words | select('in', ['beta']) | list, users | map(attribute='name') | map('lower') | list | tojson
l.append, d.pop is defined, s.nothing is defined, l[0:2] | tojson, ''.join(words[:2]) | length, (l | length) - 1, l[(l | length) - 1], -l | length if z
not 1 in [2], not (1 in [1]), 1 not in [1] or t, 1 if t else 2 | string, -1 | abs, (-1) | abs, 'a' ~ (1 + 2), (2 + 3) ~ 4, 1 ~ 2 == '12'
""".strip().splitlines()

STATEMENTS = {
    "if": "{% if n > 9 %}a{% elif n > 5 %}b{% else %}c{% endif %}{% if not z %}d{% endif %}",
    "for": "{% for x in l %}{{ loop.index }}/{{ loop.length }}:{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "loop variables": "{% for x in 'abc' %}[{{ loop.index0 }} {{ loop.revindex }} {{ loop.revindex0 }} {{ loop.first }} {{ loop.last }} {{ loop.depth }} {{ loop.previtem }} {{ loop.nextitem }} {{ loop.cycle('x', 'y') }} {{ loop.changed(x) }}]{% endfor %}",
    "loop changed": "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}",
    "for else": "{% for x in e %}{{ x }}{% else %}empty{% endfor %}{% for x in l if x > 9 %}{{ x }}{% else %}none{% endfor %}",
    "for condition": "{% for x in l if x != 1 %}{{ loop.index }}{{ x }}{{ loop.last }} {% endfor %}",
    "for unpacking": "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "for dict": "{% for k in d %}{{ k }}{% endfor %}{% for c in u %}{{ c }}.{% endfor %}",
    "for recursive": "{% for x in tree recursive %}{{ loop.depth }}{{ x.v }}{% if x.c %}({{ loop(x.c) }}){% endif %}{% endfor %}",
    "break continue": "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "nested loops": "{% for x in [1, 2] %}{% for y in [1, 2] %}{{ loop.index }}{{ x * y }} {% endfor %}{{ loop.index }};{% endfor %}",
    "set": "{% set a = 1 %}{% set b, c = 2, 3 %}{{ a }}{{ b }}{{ c }}{% set t2 = 1, 2 %}{{ t2 }}",
    "set scopes": "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}{% if t %}{% set x = 9 %}{% endif %}{{ x }}",
    "set block": "{% set x %}<{{ n }}>{% set y = 3 %}{% endset %}{{ x }}{{ y }}{% set z2 | upper | replace('A', 'b') %}aha{% endset %}{{ z2 }}",
    "namespace": "{% set ns = namespace(found=false, count=0) %}{% for x in l %}{% set ns.count = ns.count + x %}{% if x == 1 %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.count }}",
    "macro": "{% macro m(a, b=2, c=a) %}{{ a }}-{{ b }}-{{ c }} {% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=4, a=5) }}{{ m(1, c=7) }}{{ m() }}",
    "macro rest": "{% macro m(a) %}{{ a }}|{{ varargs }}|{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}{{ m(*[5, 6], **{'y': 7}) }}",
    "macro scope": "{% set x = 'outer' %}{% macro m() %}{{ x }}{% set x = 'in' %}{{ x }}{% endmacro %}{{ m() }}{{ x }}{% macro rec(n) %}{{ n }}{% if n > 0 %}{{ rec(n - 1) }}{% endif %}{% endmacro %}{{ rec(3) }}",
    "macro late": "{% macro m() %}{{ later }}{% endmacro %}{% set later = 5 %}{{ m() }}",
    "call": "{% macro box(title) %}[{{ title }}: {{ caller() }}]{% endmacro %}{% call box('T') %}body {{ n }}{% endcall %}",
    "call arguments": "{% macro each(items) %}{% for i in items %}{{ caller(i, loop.index) }};{% endfor %}{% endmacro %}{% call(x, y=0) each(l) %}{{ x }}@{{ y }}{% endcall %}",
    "filter block": "{% filter upper | replace('L', '1') %}hello {{ s }}{% endfilter %}",
    "with": "{% with a = 1, b = n %}{{ a }}{{ b }}{% set a = 5 %}{{ a }}{% endwith %}{{ a }}",
    "print": "{% print n, s %}",
    "block": "a{% block body %}{{ n }}{% endblock body %}b",
    "raw": "{% raw %}{{ not }} {% this %}{% endraw %}\n{%- raw -%}  x  {%- endraw -%}  y",
    "comments": "a{# b #}c{#- d -#}  e {# {{ n }}\n {% if %} #}\nf",
    "trim and strip": "  {% if t %}\n  yes\n  {% endif %}\nend\n  {{ n }}\n",
    "signs": "a  {%- if t -%}  b  {%- endif -%}  c  {{- n -}}  d",
    "plus signs": "  {%+ if t +%}\n x\n  {%+ endif %}\ny",
    "inline blocks": "a {% if t %} b {% endif %} c\n\t{% set q = 1 %}\t\nd",
    "line ends": "a\r\nb\r{% if t %}\r\nc{% endif %}\n\n",
    "operators and blocks": "{{ {'a': {'b': 1}}['a']['b'] }}{{ '}}' }}{{ '{%' }}{% if '%}' == '%}' %}ok{% endif %}",
    "generation": "a{% generation %}b{{ n }}{% set q = 1 %}{% endgeneration %}c{{ q }}",
    "dangling names": "{{ missing }}{{ missing is defined }}{{ d.missing }}{{ (missing | default({})).x }}",
    "generators": "{% set g = l | select('gt', 1) %}{{ g | list }}{{ g | list }}{% set h = l | map('string') %}{{ h | first }}{{ h | list }}",
    "string loops": "{% for p in 'a-b'.split('-') %}{{ p | upper }}{% endfor %}{% for i in range(l | length) %}{{ l[i] }}{% endfor %}",
}

ERRORS = {
    "unknown name attribute": "{{ missing.x }}",
    "call of a missing": "{{ missing() }}",
    "unknown filter": "{{ n | nothing }}",
    "unknown test": "{{ n is nothing }}",
    "adding str and int": "{{ 'a' + 1 }}",
    "undefined plus": "{{ missing + 1 }}",
    "division by zero": "{{ 1 // 0 }}",
    "iterating a number": "{% for x in 5 %}{% endfor %}",
    "length of a number": "{{ 5 | length }}",
    "order of mixed": "{{ [1, 'a'] | sort }}",
    "changing a list": "{{ l.append(1) }}",
    "changing a dict": "{{ d.update({}) }}",
    "dunder": "{{ s.__class__.__mro__ }}",
    "unpacking": "{% for a, b in [[1]] %}{% endfor %}",
    "range too big": "{{ range(100001) }}",
    "tojson of undefined": "{{ missing | tojson }}",
    "raise": "{{ raise_exception('no ' ~ n) }}",
    "open if": "{% if t %}x",
    "open tag": "{{ n",
    "open string": "{{ 'a }}",
    "open comment": "a {# b",
    "unknown statement": "{% nothing %}",
    "nesting": "{% if t %}{% for x in l %}{% endif %}{% endfor %}",
    "stray bracket": "{{ n) }}",
    "empty expression": "{{ }}",
    "assigning a constant": "{% set none = 1 %}",
    "non namespace": "{% set d.x = 1 %}",
    "hidden attribute": "{% set q = namespace() %}{% set q._x = 1 %}",
    "arguments order": "{{ d.get(key='a', 1) }}",
    "too many arguments": "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
    "unknown argument": "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}",
    "unhashable": "{{ {[1]: 2} }}",
    "include": "{% include 'x' %}",
    "loop call": "{% for x in l %}{{ loop(l) }}{% endfor %}",
}


def cases():
    for text in EXPRESSIONS:
        for part in split_top(text):
            yield part, "{{ " + part + " }}"
    yield from STATEMENTS.items()


def split_top(text):
    """The expressions between commas outside of brackets and strings."""
    parts, depth, quote, begin, escaped = [], 0, None, 0, False
    for i, c in enumerate(text):
        if quote:
            quote = None if c == quote and not escaped else quote
            escaped = c == "\\" and not escaped
        elif c in "'\"":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[begin:i].strip())
            begin = i + 1
    return parts + [text[begin:].strip()]


CHATML = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
)
STRICT = (
    "{{ bos_token }}{% set first = messages[0] %}"
    "{% if first.role == 'system' %}{% set system = first.content ~ '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ (system if loop.first else '') + m.content | trim }} [/INST]"
    "{% else %}{{ MARK }} {{ m.content | trim }}{{ eos_token }}{{ END }}{% endif %}"
    "{% endfor %}"
)
THINKING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{{ MARK }}"
    "{% if m.reasoning_content and loop.index0 > ns.last %}<think>{{ m.reasoning_content }}</think>\n{% endif %}"
    "{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}\n<call>{{ (c.function.arguments if c.function.arguments is string else c.function.arguments | tojson) }} {{ c.function.name }}</call>{% endfor %}"
    "<|end|>\n{{ END }}{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MACROS = (
    "{% macro turn(m) %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endmacro %}"
    "{% for i in range(messages | length) %}{% set m = messages[i] %}"
    "{% set text %}{{ turn(m) | trim }}{% endset %}"
    "{% if m.role == 'assistant' %}<start>model\n{{ MARK }}{{ text }}<end>\n{{ END }}"
    "{% else %}<start>{{ m.role }}\n{{ text }}<end>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "strict": STRICT, "thinking": THINKING, "macros": MACROS}
# Templates that write elsewhere than where they go through the messages, where marks cannot stand: what is trained is said here.
GATHERED = (
    "{% set ns = namespace(out='') %}{% for m in messages %}"
    "{% set ns.out = ns.out ~ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' %}{% endfor %}{{ ns.out }}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REBUILT = (
    "{% set ns = namespace(list=[]) %}{% for m in messages %}"
    "{% set ns.list = ns.list + [dict(role=m.role, text=m.content)] %}{% endfor %}"
    "{% for x in ns.list %}<|{{ x.role }}|>{{ x.text }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


CALL = [{"type": "function", "function": {"name": "sum", "arguments": {"x": [1, 2.0], "é": None}}}]
CALL_TEXT = [{"type": "function", "function": {"name": "sum", "arguments": "{\"x\": 1}"}}]
CHATS = {
    "single": [user("Hi")],
    "pair": [user("Hi"), assistant(" Hello \n")],
    "several": [user("Hi"), assistant("Hello"), user("And?"), assistant("日本 😀")],
    "system": [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Yes")],
    "empty": [user("Hi"), assistant("")],
    "same text": [user("Hi"), assistant("Hi"), user("Hi"), assistant("Hi")],
    "reasoning": [user("a"), assistant("b", reasoning_content="r1"), user("c"), assistant("d", reasoning="r2")],
    "calls": [user("a"), assistant("", tool_calls=CALL), {"role": "tool", "content": "3"}, assistant("It is 3.")],
    "calls as text": [user("a"), assistant("Well.", tool_calls=CALL_TEXT), {"role": "tool", "content": "1"}, assistant("1.")],
    "order": [assistant("a"), user("b")],
    "two users": [user("a"), user("b")],
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def marked(source):
    return source.replace("{{ MARK }}", "{% generation %}").replace("{{ END }}", "{% endgeneration %}")


def plain(source):
    return source.replace("{{ MARK }}", "").replace("{{ END }}", "")


def chat_case(name, source, chat, messages):
    case = {"name": f"{name}: {chat}", "plain": plain(source), "tokens": json.dumps(TOKENS),
            "row": json.dumps({"messages": messages}, ensure_ascii=False)}
    if marked(source) == plain(source):
        return {**case, "text": _compile_jinja_template(source).render(messages=messages, **TOKENS)}
    case["marked"] = marked(source)
    try:
        text, spans = _render_with_assistant_indices(
            _compile_jinja_template(marked(source)), _alias_reasoning_fields(messages), None, None, False, **TOKENS)
    except Exception as error:
        return {**case, "error": str(error)}
    ranges = [[len(text[:a].encode()), len(text[:b].encode())] for a, b in spans]
    return {**case, "text": text, "trained": ranges}


def plain_case(name, source, end):
    """The answers in a chat of several turns, each with its end."""
    text = _compile_jinja_template(source).render(messages=CHATS["several"], **TOKENS)
    ranges, at = [], 0
    for message in CHATS["several"]:
        begin = text.index(message["content"], at)
        at = begin + len(message["content"] + end)
        if message["role"] == "assistant":
            ranges.append([len(text[:begin].encode()), len(text[:at].encode())])
    return {"name": name, "plain": source, "tokens": json.dumps(TOKENS), "text": text, "trained": ranges,
            "row": json.dumps({"messages": CHATS["several"]}, ensure_ascii=False)}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    language = []
    for name, source in cases():
        try:
            text = _compile_jinja_template(source).render(**VARIABLES)
        except Exception as error:
            raise SystemExit(f"{name}: {error}") from error
        language.append({"name": name, "template": source, "text": text})
    errors = []
    for name, source in ERRORS.items():
        try:
            _compile_jinja_template(source).render(**VARIABLES)
            raise SystemExit(f"{name}: renders")
        except Exception as error:
            errors.append({"name": name, "template": source, "error": f"{type(error).__name__}: {error}"})
    chats = [chat_case(name, source, chat, messages) for name, source in TEMPLATES.items()
             for chat, messages in CHATS.items()]
    chats += [plain_case("gathered", GATHERED, "<|end|>"), plain_case("rebuilt", REBUILT, "<|end|>\n")]
    data = {"variables": json.dumps(VARIABLES, ensure_ascii=False), "language": language, "errors": errors, "chats": chats}
    (OUT / "cases.json").write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    print(len(language), "templates,", len(errors), "errors,", len(chats), "chats")


if __name__ == "__main__":
    main()
