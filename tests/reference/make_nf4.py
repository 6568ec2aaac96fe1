"""NF4 weights quantized by bitsandbytes on the CPU: tests/fixtures/nf4/*.safetensors.

Also checks the formulas in common.py, plain numpy, against bitsandbytes bit for bit, and reports how often the CPU kernels of bitsandbytes leave that formula on unselected weights."""

import sys

import numpy as np
import torch

from common import (
    FIXTURES, NF4_BLOCK, NF4_THRESHOLDS, block_absmax, bnb_dequantize, bnb_roundtrip,
    cpu_nested_codes,
    draw_unambiguous, dynamic_map, fresh_folder, midpoints, nested_dequantize, nested_quantize,
    nf4_codes, nf4_dequantize, nf4_pack, normalized, save_tensors, start)

from bitsandbytes import functional as bnb


def gaussian(*shape, scale=0.02, dtype=torch.float32):
    return lambda: (torch.randn(*shape) * scale).to(dtype)


def outliers(*shape):
    def draw():
        weight = torch.randn(*shape) * 0.02
        at = torch.randint(0, weight.numel(), (weight.numel() // 200,))
        weight.view(-1)[at] *= 10.0 ** torch.empty(at.numel()).uniform_(0.5, 2.0)
        return weight

    return draw


def uneven_blocks(*shape):
    """Blocks whose absmax spreads over four decades, as between rows of a real layer."""
    def draw():
        weight = torch.randn(*shape) * 0.02
        return weight * 10.0 ** torch.empty(shape[0], 1).uniform_(-3.0, 1.0)

    return draw


# name -> (draw, with double quantization?, without?)
CASES = {
    "gaussian": (gaussian(48, 160), True, True),
    "bf16": (gaussian(80, 128, dtype=torch.bfloat16), True, True),
    "tail": (gaussian(7, 30), True, True),
    "odd": (gaussian(5, 37), True, True),
    "below_one_block": (gaussian(3, 10), True, True),
    "outliers": (outliers(64, 128), True, True),
    "tiny": (gaussian(32, 96, scale=1e-30), True, True),
    "uneven": (uneven_blocks(48, 128), True, True),
    "many_blocks": (gaussian(150, 256, scale=0.05), True, False),
}


def formula_bytes(weight, nested):
    """Everything the fixture holds for one weight, by numpy only."""
    flat = weight.float().reshape(-1).numpy()
    absmax = block_absmax(flat, NF4_BLOCK)
    codes = nf4_codes(normalized(flat, absmax, NF4_BLOCK))
    found = {"packed": nf4_pack(codes), "absmax": absmax}
    if nested:
        quant_map = dynamic_map()
        quantized, absmax2, offset, _ = nested_quantize(absmax, quant_map)
        found |= {"absmax": quantized, "nested_absmax": absmax2, "nested_offset": offset}
        absmax = nested_dequantize(quantized, absmax2, offset, quant_map)
    found["dequantized"] = nf4_dequantize(codes, absmax).reshape(weight.shape)
    return found


def bnb_bytes(weight, nested):
    packed, state = bnb.quantize_4bit(
        weight, blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=nested)
    found = {"weight": weight, "packed": packed.reshape(-1), "absmax": state.absmax,
             "quant_map": state.code}
    if nested:
        found |= {"nested_absmax": state.state2.absmax, "nested_offset": state.offset.reshape(1),
                  "nested_quant_map": state.state2.code}
    own = bnb_dequantize(packed, state)
    if weight.dtype == torch.bfloat16:
        found["dequantized_bf16"] = own
        found["dequantized"] = bnb_roundtrip(weight, nested)
        assert torch.equal(found["dequantized"].bfloat16(), own)
    else:
        found["dequantized"] = own
    return found, state


def check_agreement(name, fixture, formula):
    for key, expected in formula.items():
        found = fixture[key].numpy().reshape(-1)
        expected = np.asarray(expected).reshape(-1)
        assert found.dtype == expected.dtype, (name, key, found.dtype, expected.dtype)
        assert np.array_equal(found.view(np.uint8), expected.view(np.uint8)), (name, key)


def write_cases(folder):
    for number, (name, (draw, *wanted)) in enumerate(CASES.items()):
        torch.manual_seed(1000 + number)
        weight = draw_unambiguous(draw)
        for nested, kind in ((True, "nested"), (False, "plain")):
            if not wanted[0 if nested else 1]:
                continue
            fixture, state = bnb_bytes(weight, nested)
            check_agreement(f"{name}.{kind}", fixture, formula_bytes(weight, nested))
            save_tensors(folder / f"{name}.{kind}.safetensors", fixture)


def write_prequantized(folder):
    """One Linear4bit state dict as transformers stores pre-quantized folders."""
    import bitsandbytes as modules

    torch.manual_seed(2000)
    layer = modules.nn.Linear4bit(
        128, 96, bias=False, quant_type="nf4", compress_statistics=True,
        compute_dtype=torch.float32)
    weight = draw_unambiguous(gaussian(96, 128, dtype=torch.bfloat16))
    layer.weight = modules.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    layer = layer.to("cpu")
    state = {f"model.layers.0.self_attn.q_proj.{key}": value
             for key, value in layer.state_dict().items()}
    assert any(key.endswith("quant_state.bitsandbytes__nf4") for key in state), state.keys()
    state["original"] = weight
    state["dequantized_bf16"] = bnb_dequantize(layer.weight.data, layer.weight.quant_state)
    save_tensors(folder / "prequantized.safetensors", state)


def report_deviations():
    """How bitsandbytes' CPU path differs from the formulas on weights that nobody selected."""
    torch.manual_seed(3000)
    codes = dynamic_map()
    nf4 = nested = table = mean = total = blocks = 0
    for _ in range(40):
        weight = torch.randn(257, 131) * 0.05
        fixture, state = bnb_bytes(weight, True)
        flat = weight.reshape(-1).numpy()
        absmax = block_absmax(flat, NF4_BLOCK)
        expected = nf4_pack(nf4_codes(normalized(flat, absmax, NF4_BLOCK)))
        nf4 += int((fixture["packed"].numpy() != expected).sum())
        mean += int(state.offset.item() != np.float32(absmax.astype(np.float64).mean()).item())
        centred = absmax - state.offset.numpy()
        x = normalized(centred, block_absmax(centred, 256), 256)
        found = state.absmax.numpy()
        nested += int((found != np.searchsorted(midpoints(codes), x)).sum())
        table += int((found != cpu_nested_codes(x, codes)).sum())
        total, blocks = total + expected.size, blocks + absmax.size
    computed = midpoints(state.code.numpy())
    print(f"thresholds: {(computed != NF4_THRESHOLDS).sum()} of 15 midpoints differ by one ulp "
          f"from the constants of the CUDA kernel: {np.flatnonzero(computed != NF4_THRESHOLDS)}")
    print(f"nf4 bytes: {nf4} of {total} differ from the formula")
    print(f"nested codes: {nested} of {blocks} are not the nearest code; {table} differ from the "
          "65536-step table of cpu_nested_codes")
    print(f"offset: {mean} of 40 means differ from the fp64 mean rounded to fp32")
    zeros, zero_state = bnb.quantize_4bit(torch.zeros(2, 64), quant_type="nf4", blocksize=64)
    print(f"zero blocks: bytes {sorted(set(zeros.reshape(-1).tolist()))}, "
          f"absmax {sorted(set(zero_state.absmax.tolist()))}")


def main():
    start()
    folder = fresh_folder(FIXTURES / "nf4")
    write_cases(folder)
    write_prequantized(folder)
    report_deviations()


if __name__ == "__main__":
    sys.exit(main())
