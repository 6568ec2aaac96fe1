"""Loads folders that tandem wrote with transformers and compares them with what was promised.

usage: check_merged.py merged BASE ADAPTER FOLDER ADAPTER_LOGITS [--nf4] [--tolerance T]
       check_merged.py nf4 BASE FOLDER [--single]
       check_merged.py stored FOLDER ADAPTER ADAPTER_LOGITS [--tolerance T]

merged: FOLDER's logits by transformers against those of BASE with ADAPTER as tandem computes them.
ADAPTER_LOGITS is the program tests/adapter_logits; --nf4: the base is quantized first, as FOLDER's
was. nf4: FOLDER loads as a model of Linear4bit layers; codes and absmax are those that
bitsandbytes itself gives BASE's weights, or, where its CPU code is not at the nearest nested
code, those of the formula. stored: logits of a folder that transformers quantized
(make_prequantized.py), by PEFT and bitsandbytes against tandem's. Exit status 1 when something differs."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
from safetensors.torch import load_file, save_file

import common
from make_families import all_logits

from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    merged = commands.add_parser("merged")
    for name in ["base", "adapter", "folder", "program"]:
        merged.add_argument(name, type=Path)
    merged.add_argument("--nf4", action="store_true")
    merged.add_argument("--tolerance", type=float, default=1e-4)
    nf4 = commands.add_parser("nf4")
    nf4.add_argument("base", type=Path)
    nf4.add_argument("folder", type=Path)
    nf4.add_argument("--single", action="store_true")
    stored = commands.add_parser("stored")
    for name in ["base", "adapter", "program"]:
        stored.add_argument(name, type=Path)
    stored.add_argument("--tolerance", type=float, default=1e-4)
    stored.set_defaults(nf4=False)
    return parser.parse_args()


def load_exactly(folder, **options):
    """Every tensor of the file is used and every parameter of the model is in it."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    for problem in ["missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"]:
        if info.get(problem):
            raise SystemExit(f"{folder}: {problem}: {sorted(info[problem])[:3]}")
    return model.eval()


def tandem_logits(arguments, tokens):
    with tempfile.TemporaryDirectory() as folder:
        asked, found = Path(folder) / "tokens.safetensors", Path(folder) / "logits.safetensors"
        starts = torch.tensor([0, tokens.numel() // 2, tokens.numel()], dtype=torch.int32)
        save_file({"input_ids": tokens, "cu_seqlens": starts}, asked)
        command = [arguments.program, arguments.base, arguments.adapter, asked, found]
        subprocess.run(command + (["--nf4"] if arguments.nf4 else []), check=True)
        return load_file(found)["logits"], starts.tolist()


def check_logits(arguments, name, model):
    tokens = torch.randint(3, model.config.get_text_config().vocab_size, (48,), dtype=torch.int32)
    expected, starts = tandem_logits(arguments, tokens)
    ids = tokens.long()
    with torch.no_grad():
        logits = all_logits(model, [ids[a:b] for a, b in zip(starts, starts[1:])])
    difference = (logits - expected).abs().max().item()
    print(f"{arguments.command} {name}: {tokens.numel()} tokens, largest logit difference "
          f"{difference:.3e} (tolerance {arguments.tolerance:.0e})")
    # Written so that a NaN fails.
    return 0 if difference <= arguments.tolerance else 1


def without_repacking(model):
    """In evaluation mode bitsandbytes' CPU code repacks weights, and only those of certain sizes.

    Its AVX-512 code is right for in_features % 64 == 0 only (common.bnb_dequantize)."""
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.training = True
            if module.in_features % common.NF4_BLOCK:
                raise SystemExit("bitsandbytes' CPU code needs rows of whole blocks")
    return model


def check_stored(arguments):
    model = load_exactly(arguments.base, device_map={"": "cpu"})
    model = PeftModel.from_pretrained(model, arguments.adapter).eval()
    return check_logits(arguments, arguments.base.name, without_repacking(model))


def check_merged(arguments):
    config = json.loads((arguments.folder / "config.json").read_text())
    if "quantization_config" in config:
        raise SystemExit(f"{arguments.folder}: still says that it is quantized")
    return check_logits(arguments, arguments.folder.name,
                        load_exactly(arguments.folder, dtype=torch.float32))


def block_absmax(weight):
    """Of every block of 64, without bitsandbytes."""
    flat = weight.float().reshape(-1).numpy()
    pad = -flat.size % common.NF4_BLOCK
    blocks = np.pad(flat, (0, pad)).reshape(-1, common.NF4_BLOCK)
    return np.abs(blocks).max(axis=1)


def compare(counts, name, found, expected):
    found, expected = np.asarray(found).reshape(-1), np.asarray(expected).reshape(-1)
    same, total = counts.get(name, (0, 0))
    if found.shape != expected.shape:
        raise SystemExit(f"{name}: {found.shape} values, expected {expected.shape}")
    counts[name] = same + int((found == expected).sum()), total + found.size


def check_nested(counts, state, absmax):
    """The codes are those of the nearest entries, for the offset and scales of the file."""
    offset = np.float32(state.offset.item())
    compare(counts, "nested offset", [offset], [np.float32(absmax.astype(np.float64).mean())])
    centred = absmax - offset
    pad = -centred.size % common.NESTED_BLOCK
    scales = np.abs(np.pad(centred, (0, pad)).reshape(-1, common.NESTED_BLOCK)).max(axis=1)
    compare(counts, "nested absmax", state.state2.absmax.numpy(), scales)
    x = centred / np.repeat(scales, common.NESTED_BLOCK)[:centred.size]
    table = state.state2.code.numpy()
    middles = (table[1:] + table[:-1]) / 2
    compare(counts, "nested codes, nearest", state.absmax.numpy(),
            np.searchsorted(middles.astype(np.float32), x.astype(np.float32)))


def check_layer(counts, layer, weight, single):
    state = layer.weight.quant_state
    expected, theirs = bitsandbytes.functional.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=not single)
    compare(counts, "codes", layer.weight.data.numpy(), expected.numpy())
    compare(counts, "quant map", state.code.numpy(), theirs.code.numpy())
    if state.dtype != weight.dtype or tuple(state.shape) != tuple(weight.shape):
        raise SystemExit(f"state of {state.shape} {state.dtype}, expected {weight.shape}")
    if single:
        compare(counts, "absmax", state.absmax.numpy(), theirs.absmax.numpy())
        return
    compare(counts, "nested map", state.state2.code.numpy(), theirs.state2.code.numpy())
    compare(counts, "nested codes, bitsandbytes' own", state.absmax.numpy(),
            theirs.absmax.numpy())
    check_nested(counts, state, block_absmax(weight))


def check_nf4(arguments):
    base = AutoModelForCausalLM.from_pretrained(arguments.base, dtype="auto")
    model = load_exactly(arguments.folder, device_map={"": "cpu"})
    weights, counts, layers = dict(base.named_parameters()), {}, 0
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            layers += 1
            check_layer(counts, module, weights[name + ".weight"].data, arguments.single)
    for name, value in model.named_parameters():
        if not isinstance(value, bitsandbytes.nn.Params4bit):
            compare(counts, "other values", value.detach().float().numpy(),
                    weights[name].detach().float().numpy())
    exact = ["codes", "quant map", "absmax", "nested map", "nested absmax", "other values"]
    failed = layers == 0
    for name, (same, total) in counts.items():
        print(f"nf4 {arguments.folder.name}: {name}: {same} of {total} the same")
        failed |= name in exact and same != total
    return 1 if failed else 0


def main():
    arguments = parse()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    common.seed_all(0)
    checks = {"merged": check_merged, "nf4": check_nf4, "stored": check_stored}
    return checks[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(main())
