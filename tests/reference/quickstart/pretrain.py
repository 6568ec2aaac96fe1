"""Pretrain the quickstart's base model from scratch on a CPU and write it as a Hugging Face folder.

usage: pretrain.py BASE_DIR --minutes 30
BASE_DIR holds tokenizer.json; weights and config are added.

The model is a plain Llama. Matrices are trained with Muon (Jordan et al. 2024: momentum whose
update is orthogonalized by a Newton-Schulz iteration), embeddings and norms with AdamW, in bf16
autocast over fp32 weights. The schedule follows the wall clock, so a slower machine sees fewer
tokens. --resume goes on from the weights that are there, on the full mixture from the start.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

import corpus


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            c["num_attention_heads"],
            c["num_key_value_heads"],
            c["head_dim"],
        )
        h, kv, ff = c["hidden_size"], self.kv_heads * self.head_dim, c["intermediate_size"]
        self.norm1, self.norm2 = nn.Parameter(torch.ones(h)), nn.Parameter(torch.ones(h))
        self.q_proj, self.k_proj = nn.Linear(h, h, bias=False), nn.Linear(h, kv, bias=False)
        self.v_proj, self.o_proj = nn.Linear(h, kv, bias=False), nn.Linear(h, h, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(h, ff, bias=False), nn.Linear(h, ff, bias=False)
        self.down_proj = nn.Linear(ff, h, bias=False)

    def forward(self, x, cos, sin, mask):  # x (B, T, hidden)
        b, t, h = x.shape
        n = F.rms_norm(x, (h,), self.norm1, 1e-5)
        q = self.q_proj(n).view(b, t, self.heads, -1).transpose(1, 2)
        k = self.k_proj(n).view(b, t, self.kv_heads, -1).transpose(1, 2)
        v = self.v_proj(n).view(b, t, self.kv_heads, -1).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        # At these lengths plain products are faster on a CPU than the fused kernel's backward.
        scores = (q @ k.mT) * self.head_dim**-0.5 + mask
        a = scores.softmax(-1, dtype=x.dtype) @ v
        x = x + self.o_proj(a.transpose(1, 2).reshape(b, t, h))
        n = F.rms_norm(x, (h,), self.norm2, 1e-5)
        return x + self.down_proj(F.silu(self.gate_proj(n)) * self.up_proj(n))


def rotate(x, cos, sin):  # x (B, H, T, D), half-split rotary embedding
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.Parameter(torch.ones(c["hidden_size"]))
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 if p is self.embed.weight else p.shape[1] ** -0.5)
        d = c["head_dim"]
        freq = 1.0 / 10000.0 ** (torch.arange(0, d, 2).float() / d)
        angle = torch.outer(torch.arange(c["max_position_embeddings"]).float(), freq)
        angle = torch.cat((angle, angle), -1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids):  # (B, T) -> (B, T, hidden)
        x = self.embed(ids)
        t = ids.shape[1]
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        cos, sin = self.cos[:t].to(dtype), self.sin[:t].to(dtype)
        mask = torch.full((t, t), float("-inf"), dtype=dtype).triu(1)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return F.rms_norm(x, x.shape[-1:], self.norm, 1e-5)


class Muon:
    """Orthogonalized momentum; matrices of one shape are stacked and iterated together."""

    def __init__(self, params, momentum=0.95, decay=0.01):
        self.momentum, self.decay, self.groups = momentum, decay, {}
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.state = {shape: torch.zeros(len(ps), *shape) for shape, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, lr):
        for shape, params in self.groups.items():
            grad, m = torch.stack([p.grad for p in params]), self.state[shape]
            m.lerp_(grad, 1 - self.momentum)
            update = (
                orthogonalize(grad.lerp(m, self.momentum)) * max(1.0, shape[0] / shape[1]) ** 0.5
            )
            for p, u in zip(params, update):
                p.mul_(1 - lr * self.decay).add_(u, alpha=-lr)


def orthogonalize(g):  # (N, rows, cols)
    x = g.bfloat16()
    wide = x.shape[-2] > x.shape[-1]
    x = x.mT if wide else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if wide else x).float()


class Feed:
    """Batches of about `tokens` tokens with documents of like length side by side."""

    def __init__(self, tokenizer, tokens, longest, seed, token_repeats=0.0):
        self.tokenizer, self.tokens, self.longest = tokenizer, tokens, longest
        self.token_repeats = token_repeats  # their share of the documents
        self.rng, self.ready = random.Random(seed), []

    def encode(self, pieces):
        """Ids of the whole text; a token has the weight of the piece that its first byte is in."""
        encoding = self.tokenizer.encode(corpus.plain(pieces), add_special_tokens=False)
        ends, weights, at = [], [], 0
        for text, weight in pieces:
            at += len(text)
            ends.append(at)
            weights.append(weight)
        piece, token_weights = 0, []
        for start, _ in encoding.offsets:
            while start >= ends[piece]:
                piece += 1
            token_weights.append(weights[piece])
        return encoding.ids, token_weights

    def token_repeat(self):
        """Random token ids and the same again: the barest copying."""
        ids = [
            self.rng.randrange(3, self.tokenizer.get_vocab_size())
            for _ in range(self.rng.randint(5, 24))
        ]
        gap = [
            self.rng.randrange(3, self.tokenizer.get_vocab_size())
            for _ in range(self.rng.randint(0, 4))
        ]
        # The first token of the second round comes as a surprise.
        return ids + gap + ids, [0.02] * (len(ids) + len(gap) + 1) + [1.0] * (len(ids) - 1)

    def document(self, progress):
        if self.token_repeats and self.rng.random() < self.token_repeats:
            return self.token_repeat()
        return self.encode(corpus.document(self.rng, progress))

    def refill(self, progress):
        docs = [self.document(progress) for _ in range(1200)]
        docs = sorted((d for d in docs if len(d[0]) <= self.longest), key=lambda d: len(d[0]))
        batches, batch = [], []
        for doc in docs:
            if batch and (len(batch) + 1) * len(doc[0]) > self.tokens:
                batches.append(batch)
                batch = []
            batch.append(doc)
        self.rng.shuffle(batches)
        self.ready = batches

    def next(self, progress):
        if not self.ready:
            self.refill(progress)
        batch = self.ready.pop()
        width = max(len(ids) for ids, _ in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        weights = torch.zeros(len(batch), width)
        for row, (tokens, token_weights) in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            weights[row, : len(tokens)] = torch.tensor(token_weights)
        return ids, weights


def loss_of(model, ids, weights):
    hidden = model(ids[:, :-1])
    keep = weights[:, 1:] > 0
    logits = (hidden[keep] @ model.embed.weight.T).float()
    targets, w = ids[:, 1:][keep], weights[:, 1:][keep]
    losses = F.cross_entropy(logits, targets, reduction="none")
    sure = (logits.argmax(-1) == targets).float()
    copied = w == 1.0
    return (losses * w).sum() / w.sum(), losses[copied].mean(), sure[copied].mean()


def config_of(args, vocab_size):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": args.hidden,
        "intermediate_size": args.ff,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.hidden // args.heads,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def tensors_of(model):
    """The parameters by their names in a Hugging Face folder."""
    names = {"norm1": "input_layernorm.weight", "norm2": "post_attention_layernorm.weight"}
    tensors = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm}
    for i, block in enumerate(model.blocks):
        for name, p in block.named_parameters():
            stem = name.split(".")[0]
            place = "self_attn." if stem[0] in "qkvo" else "mlp."
            tensors["model.layers.%d.%s" % (i, names.get(stem, place + name))] = p
    return tensors


def save(model, out):
    tensors = {
        name: p.detach().to(torch.bfloat16).contiguous() for name, p in tensors_of(model).items()
    }
    temporary = out / "model.safetensors.part"
    save_file(tensors, str(temporary), metadata={"format": "pt"})
    temporary.rename(out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(model.config, indent=2) + "\n")
    (out / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 2, "pad_token_id": 0, "do_sample": False}, indent=2) + "\n"
    )


def load(model, out):
    """The inverse of save(), to go on from a model that is already there."""
    tensors = load_file(str(out / "model.safetensors"))
    with torch.no_grad():
        for name, p in tensors_of(model).items():
            p.copy_(tensors[name].float())


def schedule(progress, step):
    return min(1.0, step / 100) * min(1.0, (1 - progress) / 0.45 + 1e-3)


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    out = Path(args.base)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model = Llama(config_of(args, tokenizer.get_vocab_size()))
    if args.resume:
        load(model, out)
    matrices = [p for b in model.blocks for p in b.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon, adam = Muon(matrices), torch.optim.AdamW(
        others, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    feed = Feed(tokenizer, args.batch_tokens, 256, args.seed, 0.04 if args.resume else 0.0)
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    begin, saved, seen, step, progress = time.time(), time.time(), 0, 0, 0.0
    while progress < 1.0:
        ids, weights = feed.next(1.0 if args.resume else progress)
        with torch.autocast("cpu", torch.bfloat16):
            loss, copy_loss, copy_sure = loss_of(model, ids, weights)
        loss.backward()
        scale = schedule(progress, step)
        for group in adam.param_groups:
            group["lr"] = args.lr_adam * scale
        muon.step(args.lr_muon * scale)
        adam.step()
        model.zero_grad()
        step, seen = step + 1, seen + ids.numel()
        progress = (time.time() - begin) / (60 * args.minutes)
        if step % 50 == 0:
            print(
                "step %d  %.1f min  %.2f M tokens  loss %.4f  copied %.4f  right %.4f"
                % (
                    step,
                    progress * args.minutes,
                    seen / 1e6,
                    loss.item(),
                    copy_loss.item(),
                    copy_sure.item(),
                ),
                flush=True,
            )
        if time.time() - saved > 120:
            save(model, out)
            saved = time.time()
    save(model, out)
    print("done: %d steps, %.2f M tokens" % (step, seen / 1e6))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--ff", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr-muon", type=float, default=0.02)
    parser.add_argument("--lr-adam", type=float, default=0.004)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
