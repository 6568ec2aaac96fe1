"""Show with PEFT that the quickstart works: LoRA over an NF4-rounded base learns the tool calls.

usage: finetune.py BASE_DIR CHATS_DIR [--rows N --lr LR ...]
CHATS_DIR is what quickstart_chats wrote.

Prints exact match of the held-out tool calls before and after. An answer counts when every greedy
token, the end of turn included, is the expected one; --generate repeats it with generate().
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def read_rows(path):
    return [json.loads(line)["messages"] for line in Path(path).read_text().splitlines()]


def encode(tokenizer, messages):
    """(ids, start of the trained part): the answer and its end-of-turn token are trained."""
    prompt = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=False
    )
    head = tokenizer.encode(prompt, add_special_tokens=False)
    tail = tokenizer.encode(messages[-1]["content"] + "<|im_end|>", add_special_tokens=False)
    return head + tail, len(head)


def collate(rows):
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for i, (tokens, start) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        labels[i, start : len(tokens)] = torch.tensor(tokens[start:])
    return ids, labels[:, 1:]


@torch.no_grad()
def round_to_nf4(model):
    for name, module in model.named_modules():
        if name.split(".")[-1] in TARGETS:
            packed, state = bnb.quantize_nf4(
                module.weight.data.contiguous(), compress_statistics=True
            )
            module.weight.data = bnb.dequantize_nf4(packed, state).to(module.weight.dtype)


def logits_of(model, ids):
    # Padding stands at the end, so the causal mask alone keeps it away from real tokens.
    return model(input_ids=ids).logits[:, :-1].float()


@torch.no_grad()
def evaluate(model, rows, batch=50):
    model.eval()
    right, loss, count = [], 0.0, 0
    for i in range(0, len(rows), batch):
        ids, labels = collate(rows[i : i + batch])
        logits = logits_of(model, ids)
        loss += F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        ).item()
        count += (labels != -100).sum().item()
        right += ((logits.argmax(-1) == labels) | (labels == -100)).all(1).tolist()
    return right, loss / count


@torch.no_grad()
def generate_match(model, tokenizer, rows):
    model.eval()
    right = 0
    for ids, start in rows:
        out = model.generate(
            input_ids=torch.tensor([ids[:start]]),
            attention_mask=torch.ones(1, start),
            max_new_tokens=96,
            do_sample=False,
        )[0].tolist()
        right += tokenizer.decode(out[start:]) == tokenizer.decode(ids[start:])
    return right / len(rows)


def learning_rate(step, steps, args):
    warmup = math.ceil(args.warmup * steps)
    if step < warmup:
        return args.lr * step / max(1, warmup)
    return args.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(model, rows, args):
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.0
    )
    random.Random(args.seed).shuffle(rows)
    steps = len(rows) // args.batch
    model.train()
    begin, tokens = time.time(), 0
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, args)
        ids, labels = collate(rows[step * args.batch : (step + 1) * args.batch])
        tokens += ids.numel()
        loss = F.cross_entropy(
            logits_of(model, ids).flatten(0, 1), labels.flatten(), ignore_index=-100
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            print(
                "step %d/%d  loss %.4f  norm %.2f  %.1f s"
                % (step + 1, steps, loss.item(), norm, time.time() - begin),
                flush=True,
            )
    print("trained %d steps, %d tokens, %.1f s" % (steps, tokens, time.time() - begin))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("chats")
    parser.add_argument("--rows", type=int, default=6400)
    parser.add_argument("--heldout", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=float, default=0.05)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--generate", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    round_to_nf4(model)
    train_rows = [encode(tokenizer, m) for m in read_rows(Path(args.chats) / "train.jsonl")][
        : args.rows
    ]
    heldout_messages = read_rows(Path(args.chats) / "heldout.jsonl")[: args.heldout]
    heldout = [encode(tokenizer, m) for m in heldout_messages]
    print(
        "tokens per row: mean %.1f, most %d"
        % (
            sum(len(r[0]) for r in train_rows) / len(train_rows),
            max(len(r[0]) for r in train_rows + heldout),
        )
    )
    right, loss = evaluate(model, heldout)
    print(
        "before: exact match %.2f %%, eval loss %.4f" % (100 * sum(right) / len(right), loss),
        flush=True,
    )
    model = get_peft_model(
        model,
        LoraConfig(
            r=args.rank,
            lora_alpha=2 * args.rank,
            lora_dropout=0.0,
            target_modules=TARGETS,
            task_type="CAUSAL_LM",
        ),
    )
    train(model, train_rows, args)
    right, loss = evaluate(model, heldout)
    print("after: exact match %.2f %%, eval loss %.4f" % (100 * sum(right) / len(right), loss))
    misses = {}
    for messages, ok in zip(heldout_messages, right):
        name = json.loads(messages[-1]["content"])["name"]
        total, bad = misses.get(name, (0, 0))
        misses[name] = (total + 1, bad + (not ok))
    print(
        "misses by tool:",
        {name: "%d of %d" % (bad, total) for name, (total, bad) in sorted(misses.items())},
    )
    if args.generate:
        print("by generate(): %.2f %%" % (100 * generate_match(model, tokenizer, heldout)))


if __name__ == "__main__":
    main()
