"""Write what the C tests compare with: logits and token ids of the quickstart's base model.

usage: fixtures.py BASE_DIR FIXTURE_DIR
logits.safetensors: input_ids (T) I64 and logits (T, vocab) F32, fp32 compute of the bf16 weights.
tokenizer.jsonl: {"text": ..., "ids": [...]} per line, without added special tokens.
"""

import json
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import corpus

PROMPT_TOKENS = 48
BY_HAND = [
    "",
    " ",
    "  ",
    "   a  b ",
    "\n",
    "\n\n\n",
    "\t tab\tand\r\nline",
    "a",
    "Zorin",
    "hello world",
    "HELLO",
    "it's 5 o'clock",
    "1234567890",
    "3.14159",
    "-42",
    "12:30, 2024-02-29",
    '{"name":"set_timer","arguments":{"minutes":17}}',
    "<|im_start|>user\nhello<|im_end|>\n",
    "<|endoftext|>",
    "<|im_end|><|im_end|>",
    "a<|im_start|>b",
    "<|im_start|",
    " <|im_end|> ",
    "<|endoftext|>\n<|im_start|>",
    "<|IM_START|>",
    "<<|im_end|>>",
    "naïve café",
    "ÄÖÜ äöü ß",
    "Привет, мир",
    "日本語のテキスト",
    "한국어 텍스트",
    "مرحبا بالعالم",
    "हिन्दी",
    "emoji 😀👍🏽 end",
    "👩‍👩‍👧",
    "e\u0301 and \u00e9",
    "½ ² Ⅷ ٣ ३",
    "a\u00a0b\u2003c",
    "zero\u200bwidth",
    "_under_score_",
    "__init__(self)",
    "a-b--c---d",
    "...!?!",
    "https://example.org/a?b=c&d=%20",
    "x = [1, 2, 3];",
    "\u0000\u0001",
    "\u2028line\u2029",
    "tab\t\t\tend",
    "trailing   ",
    "   leading",
    "MiXeD CaSe",
    "ﬁ ligature",
    "\U0001d54f math",
    "\ufeffbom",
    "end of \x7f",
    "cześć świat",
    "ελληνικά",
    "a" * 70,
    "ab " * 20,
]


def texts():
    rng = random.Random(11)
    signs = "ab zé1 2\n\t.,:;\"'{}<>|_-€日😀\u0301 "
    yield from BY_HAND
    for _ in range(90):
        yield corpus.plain(corpus.document(rng))
    for _ in range(55):
        yield "".join(rng.choice(signs) for _ in range(rng.randint(1, 30)))


def main():
    base, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    with open(out / "tokenizer.jsonl", "w") as lines:
        for text in texts():
            ids = tokenizer.encode(text, add_special_tokens=False)
            lines.write(json.dumps({"text": text, "ids": ids}, ensure_ascii=False) + "\n")
    prompt = (
        "<|im_start|>system\nCall one tool.<|im_end|>\n"
        "<|im_start|>user\nSet a timer for 47 minutes "
        "called dovra, then tell Zorin about the meeting in Kelba at 12:30.<|im_end|>\n"
    )
    ids = torch.tensor(tokenizer.encode(prompt, add_special_tokens=False)[:PROMPT_TOKENS])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0].float().contiguous()
    save_file(
        {"input_ids": ids, "logits": logits},
        str(out / "logits.safetensors"),
        metadata={"format": "pt"},
    )
    print(tuple(logits.shape))


if __name__ == "__main__":
    main()
