"""Loads an adapter that tandem wrote with PEFT and compares the logits of both.

The safetensors file holds input_ids (T) I32, cu_seqlens (n+1) I32 and logits (T, vocab) F32, as
tandem computed them. Exit status 1 when they differ by more than the tolerance."""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import common
from make_families import all_logits, load_base, quantize_blocks

from peft import PeftModel
from transformers.utils import logging as transformers_logging


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="model folder")
    parser.add_argument("adapter", type=Path, help="PEFT adapter folder")
    parser.add_argument("logits", type=Path, help="safetensors file written by tandem")
    parser.add_argument("--nf4", action="store_true",
                        help="quantize the base by bitsandbytes NF4 with double quantization first")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    return parser.parse_args()


def sequences(found):
    starts = found["cu_seqlens"].tolist()
    ids = found["input_ids"].long()
    if starts[0] != 0 or starts[-1] != ids.numel() or starts != sorted(starts):
        raise SystemExit(f"cu_seqlens {starts} do not cover {ids.numel()} tokens")
    return [ids[first:last] for first, last in zip(starts, starts[1:]) if last > first]


def load(arguments):
    base = load_base(arguments.base)
    if arguments.nf4:
        quantize_blocks(base)
    return PeftModel.from_pretrained(base, arguments.adapter).eval()


def check_loaded(model, adapter):
    """PEFT ignores tensors whose names it does not know; that must not pass for agreement."""
    stored = load_file(adapter / "adapter_model.safetensors")
    parameters = {name.replace(".default", ""): value for name, value in model.named_parameters()}
    for name, value in stored.items():
        if name not in parameters or not torch.equal(parameters[name], value.float()):
            raise SystemExit(f"{adapter}: PEFT did not load {name}")
    missing = [name for name in parameters if ".lora_" in name and name not in stored]
    if missing:
        raise SystemExit(f"{adapter}: no tensor for {missing[0]} and {len(missing) - 1} more")
    return len(stored)


def main():
    arguments = parse()
    transformers_logging.disable_progress_bar()
    common.seed_all(0)
    found = load_file(arguments.logits)
    model = load(arguments)
    count = check_loaded(model, arguments.adapter)
    with torch.no_grad():
        expected = all_logits(model, sequences(found))
    if expected.shape != found["logits"].shape:
        print(f"logits have shape {tuple(found['logits'].shape)}, expected {tuple(expected.shape)}")
        return 1
    difference = (expected - found["logits"]).abs().max().item()
    print(f"{count} tensors loaded, {expected.shape[0]} tokens, largest logit difference "
          f"{difference:.3e} (tolerance {arguments.tolerance:.0e})")
    # Written so that a NaN fails.
    return 0 if difference <= arguments.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
