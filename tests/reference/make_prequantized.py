"""Writes a model folder that transformers and bitsandbytes quantized to NF4 when they loaded it.

usage: make_prequantized.py BASE OUTPUT [--single] [--dtype float32]
BASE is a folder of whole weights; OUTPUT gets config.json, model.safetensors and what else
save_pretrained writes."""

import argparse
import sys
from pathlib import Path

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
    return parser.parse_args()


def main():
    arguments = parse()
    transformers_logging.disable_progress_bar()
    common.seed_all(0)
    dtype = getattr(torch, arguments.dtype)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=not arguments.single)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.base, dtype=dtype, quantization_config=quantization, device_map={"": "cpu"})
    model.save_pretrained(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
