"""Chat templates of other projects against transformers: rendered text, and the assistant's mask.

usage: check_templates.py CHAT_PROBE [TEMPLATE.jinja or FOLDER ...]      (default: those of the trl package)

Every template renders every conversation here and there. Where it marks generation, the masks are compared as well; where a
template NAME.jinja has a NAME_training.jinja with marks beside it, our mask on the plain one is compared with transformers'
mask on the marked one, for the conversations that both write alike. Prints what differs and counts; exit 1 if anything does.
"""

import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import (
    _alias_reasoning_fields,
    _compile_jinja_template,
    _render_with_assistant_indices,
)

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "The \"weather\" <in> a city, é",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "City & name"}, "days": {"type": "integer", "enum": [1, 2]}},
        "required": ["city"]},
    "return": {"type": "string"}}}]
CALL = {"type": "function", "id": "abcdefghi", "function": {
    "name": "get_weather", "arguments": {"city": "Zürich", "days": 1, "x": 1.0, "n": None, "l": [1, "a"]}}}
CALL_TEXT = {"type": "function", "id": "abcdefghi", "function": {
    "name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def result(text):
    return {"role": "tool", "name": "get_weather", "content": text, "tool_call_id": "abcdefghi"}


def conversations():
    chats = {
        "single turn": [user("Hi"), assistant("  Hello **you**!\n")],
        "prompt only": [user("Hi there")],
        "multi turn": [user("Hi"), assistant("Hello"), user("And?"), assistant("Bye 日本 😀.")],
        "system": [system("Be brief."), user("Hi"), assistant("Hello"), user("And?"), assistant("Bye.")],
        "system only": [system("Be brief."), user("Hi")],
        "thinking in the text": [user("Hi"), assistant("<think>\nhm\n</think>\n\nHello"), user("And?"),
                                 assistant("<think>\nwell\n</think>\n\nBye.")],
        "reasoning": [user("Hi"), assistant("Hello", reasoning_content="hm"), user("And?"),
                      assistant("Bye.", reasoning_content="well")],
        "empty answer": [user("Hi"), assistant("")],
        "assistant first": [assistant("Hi"), user("x")],
        "two users": [user("Hi"), user("x")],
        "tools not used": [user("Hi"), assistant("Hello")],
        "tool call": [user("Weather?"), assistant("", tool_calls=[CALL])],
        "tool call, no content": [user("Weather?"), assistant(None, tool_calls=[CALL])],
        "tool result": [user("Weather?"), assistant("", tool_calls=[CALL]), result("sunny"), assistant("It is sunny.")],
        "tool call with text": [system("sys"), user("Weather?"), assistant("Let me see.", tool_calls=[CALL]),
                                result("{\"t\": 20}"), assistant("It is sunny."), user("ok"), assistant("yes")],
        "arguments as text": [user("Weather?"), assistant("", tool_calls=[CALL_TEXT]), result("sunny"),
                              assistant("It is sunny.")],
        "two tool calls": [user("Weather?"), assistant("", tool_calls=[CALL, CALL]), result("sunny"), result("rain"),
                           assistant("It is mixed.")],
        "tool call with reasoning": [user("Weather?"), assistant("", tool_calls=[CALL], reasoning_content="so"),
                                     result("sunny"), assistant("It is sunny.", reasoning_content="done")],
    }
    for name, messages in chats.items():
        tools = TOOLS if "tool" in name or "arguments" in name else None
        yield name, messages, tools
        yield name + ", in parts", [in_parts(message) for message in messages], tools


def in_parts(message):
    if not isinstance(message["content"], str):
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


class Probe:
    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def number(self):
        return struct.unpack("<I", self.process.stdout.read(4))[0]

    def render(self, source, messages, tools):
        row = {"messages": messages, **({"tools": tools} if tools else {})}
        for text in (source, json.dumps(TOKENS), json.dumps(row, ensure_ascii=False)):
            data = text.encode()
            self.process.stdin.write(struct.pack("<I", len(data)) + data)
        self.process.stdin.flush()
        is_refused, text = self.number(), self.process.stdout.read(self.number())
        flat = [self.number() for _ in range(self.number())]
        return None if is_refused else text, list(zip(flat[::2], flat[1::2]))


def reference(source, messages, tools):
    """Text and merged byte ranges, or None where the template refuses."""
    try:
        text, spans = _render_with_assistant_indices(
            _compile_jinja_template(source), _alias_reasoning_fields(messages), tools, None, False, **TOKENS)
    except Exception:
        return None, []
    ranges = []
    for begin, end in sorted(spans):
        begin, end = len(text[:begin].encode()), len(text[:end].encode())
        if ranges and ranges[-1][1] == begin:
            ranges[-1] = (ranges[-1][0], end)
        elif begin < end:
            ranges.append((begin, end))
    return text.encode(), ranges


def takes_parts(source):
    """Whether content in parts comes out as its text, and content that is a string does."""
    def shows(message):
        text, _ = reference(source, [message], None)
        return text is not None and b"probe" in text and b"'probe'" not in text
    return shows(in_parts(user("probe"))), shows(user("probe"))


class Account:
    def __init__(self):
        self.counts = {}

    def add(self, kind, name, same, detail=None):
        self.counts.setdefault(kind, [0, 0])[0 if same else 1] += 1
        if not same:
            print(f"{name}: {kind} differs", detail or "")


def check(probe, path, account):
    source = path.open(newline="").read()
    is_marked = "generation %}" in source or "generation -%}" in source
    twin = path.with_name(path.stem + "_training.jinja")
    twin_source = twin.open(newline="").read() if twin.exists() else None
    parts, strings = takes_parts(source)
    for chat, messages, tools in conversations():
        # Content in a form that the template cannot take is refused or garbled there, and converted here.
        if (", in parts" in chat and not parts) or (", in parts" not in chat and not strings and parts):
            continue
        name = f"{path.name}, {chat}"
        text, ranges = reference(source, messages, tools)
        ours, our_ranges = probe.render(source, messages, tools)
        if text is None:
            account.add("refusal", name, ours is None)
            continue
        account.add("text", name, ours == text, None if ours == text else ours)
        if is_marked:
            account.add("mask with marks", name, our_ranges == ranges, (ranges, our_ranges))
        if twin_source is None:
            continue
        twin_text, twin_ranges = reference(twin_source, messages, tools)
        if twin_text != text:
            account.counts.setdefault("(written otherwise by the marked template)", [0, 0])[0] += 1
        else:
            account.add("mask without marks", name, our_ranges == twin_ranges,
                        ([text[b:e] for b, e in twin_ranges], [text[b:e] for b, e in our_ranges]))


def main():
    probe, account, paths = Probe(sys.argv[1]), Account(), []
    given = sys.argv[2:] or [Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"]
    for item in map(Path, given):
        paths += sorted(item.glob("**/*.jinja")) if item.is_dir() else [item]
    for path in paths:
        check(probe, path, account)
    print(len(paths), "templates")
    for kind, (same, different) in account.counts.items():
        print(f"{kind}: {same} equal, {different} different" if kind[0] != "(" else f"{kind}: {same}")
    return any(different for _, different in account.counts.values())


if __name__ == "__main__":
    sys.exit(main())
