"""Writes a model folder that transformers and bitsandbytes quantized to NF4 when they loaded it.

usage: make_prequantized.py BASE OUTPUT [--single] [--dtype float32] [--skip MODULE ...] [--logits]
BASE is a folder of whole weights; OUTPUT gets config.json, model.safetensors and what else
save_pretrained writes. --skip: llm_int8_skip_modules. --logits: expected.safetensors has ids and
the logits of the weights as every version of bitsandbytes reads them back."""

import argparse
import sys
from pathlib import Path

import bitsandbytes
import torch

import common

from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--single", action="store_true", help="without double quantization")
    parser.add_argument("--dtype", default="float32", help="the weights are cast to it first")
    parser.add_argument("--skip", nargs="+", help="modules that are not quantized")
    parser.add_argument("--logits", action="store_true")
    return parser.parse_args()


def write_logits(model, base, output):
    """A model of whole weights computes, because bitsandbytes' CPU kernel is off for some shapes."""
    whole = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                weight = common.bnb_dequantize(module.weight.data, module.weight.quant_state)
                whole.get_submodule(name).weight.copy_(weight)
            elif isinstance(module, torch.nn.Linear):
                assert torch.equal(whole.get_submodule(name).weight, module.weight.float())
        ids = torch.randint(3, whole.config.vocab_size, (24,))
        logits = whole(input_ids=ids[None]).logits[0]
    common.save_tensors(output / "expected.safetensors", {"input_ids": ids, "logits": logits})


def main():
    arguments = parse()
    transformers_logging.disable_progress_bar()
    common.seed_all(0)
    dtype = getattr(torch, arguments.dtype)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=not arguments.single, llm_int8_skip_modules=arguments.skip)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.base, dtype=dtype, quantization_config=quantization, device_map={"": "cpu"})
    model.save_pretrained(arguments.output)
    if arguments.logits:
        write_logits(model, arguments.base, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
