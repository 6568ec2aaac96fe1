"""What the fixture scripts share: seeds, safetensors output, NF4 as tandem defines it, and the
search for weights on which bitsandbytes agrees with it on every device."""

import json
import logging
import os
import random
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

# bitsandbytes warns that an optional download of further CPU kernels is not installed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

NF4_BLOCK = 64
NESTED_BLOCK = 256
NF4_CODE = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0], np.float32)
NF4_THRESHOLDS = np.array(
    [-0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544,
     -0.23460740596055984, -0.13791173323988914, -0.045525018125772476, 0.03979014977812767,
     0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
     0.5016634166240692, 0.6427869200706482, 0.8614784178118011], np.float32)


def restart_with_fixed_hashing():
    """PEFT turns target_modules into a set, whose order in the file follows the hash seed."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])


def start(threads=1):
    """One thread and fixed hashing, so that a rerun writes the same bytes on the same machine."""
    restart_with_fixed_hashing()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    seed_all(0)


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def fresh_folder(path):
    path = Path(path)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def save_tensors(path, tensors, metadata=None):
    """Writes contiguous copies; integers other than U8 become I32, which the C reader knows."""
    ready = {}
    for name, value in tensors.items():
        value = torch.as_tensor(value).detach()
        if value.dtype == torch.int64:
            value = value.to(torch.int32)
        ready[name] = value.contiguous().clone()
    save_file(ready, str(path), metadata={"format": "pt", **(metadata or {})})
    os.chmod(path, 0o644)


def write_json(path, value):
    Path(path).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_jsonl(path, rows):
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- NF4 in numpy, independent of bitsandbytes -------------------------------------------------


def dynamic_map(signed=True):
    """The 8-bit dynamic map: 10^(i-6) times the midpoints of linspace(0.1, 1, 2^i + 1), fp32."""
    values = []
    for i in range(7):
        edges = torch.linspace(0.1, 1, (2**i if signed else 2 ** (i + 1)) + 1, dtype=torch.float32)
        means = (edges[:-1] + edges[1:]) / 2.0
        values += (10 ** (i - 6) * means).tolist()
        if signed:
            values += (-(10 ** (i - 6)) * means).tolist()
    values += [0.0, 1.0]
    return np.sort(np.array(values, np.float32))


def midpoints(codes):
    return ((codes[:-1] + codes[1:]) * np.float32(0.5)).astype(np.float32)


def block_absmax(flat, block):
    padded = np.zeros(-(-flat.size // block) * block, np.float32)
    padded[: flat.size] = np.abs(flat)
    return padded.reshape(-1, block).max(1)


def normalized(flat, absmax, block):
    """x = w * (1 / absmax), both in fp32; a block of zeros stays zero."""
    inverse = np.zeros_like(absmax)
    np.divide(np.float32(1), absmax, out=inverse, where=absmax > 0)
    return flat * np.repeat(inverse, block)[: flat.size]


def nf4_codes(x):
    """Number of thresholds strictly below x."""
    return np.searchsorted(NF4_THRESHOLDS, x, side="left").astype(np.uint8)


def nf4_pack(codes):
    """First element in the high nibble; an odd count is filled with the code of zero."""
    if codes.size % 2:
        codes = np.append(codes, np.uint8(7))
    return (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)


def nested_quantize(absmax, codes):
    """offset = mean in fp64 rounded once; nearest code of x = (absmax - offset) * (1 / absmax2).

    A block whose absmax2 is zero (a weight of one block) has code 0, as on the CPU and in CUDA."""
    offset = np.float32(absmax.astype(np.float64).mean())
    centred = absmax - offset
    absmax2 = block_absmax(centred, NESTED_BLOCK)
    x = normalized(centred, absmax2, NESTED_BLOCK)
    quantized = np.searchsorted(midpoints(codes), x, side="left").astype(np.uint8)
    quantized[np.repeat(absmax2, NESTED_BLOCK)[: x.size] == 0] = 0
    return quantized, absmax2, offset, x


def nested_dequantize(quantized, absmax2, offset, codes):
    """Two roundings, product then sum; a fused multiply-add gives other bits."""
    scale = np.repeat(absmax2, NESTED_BLOCK)[: quantized.size]
    return codes[quantized] * scale + offset


def nf4_dequantize(codes, absmax):
    return NF4_CODE[codes] * np.repeat(absmax, NF4_BLOCK)[: codes.size]


def cpu_nested_codes(x, codes):
    """What the CPU kernel of bitsandbytes 0.50 does: a table of 65536 steps, not the nearest code."""
    grid = np.arange(65536, dtype=np.float32)
    table = np.searchsorted(midpoints(codes), (grid + grid) / np.float32(65535) - np.float32(1))
    unit = (np.clip(x, -1, 1).astype(np.float32) + np.float32(1)) * np.float32(0.5)
    return table[(unit.astype(np.float64) * 65535 + 0.5).astype(np.float32).astype(np.int64)]


def distance_to(points, x):
    """Distance of each x to the nearest of the sorted points."""
    at = np.clip(np.searchsorted(points, x), 1, points.size - 1)
    return np.minimum(np.abs(x - points[at - 1]), np.abs(x - points[at]))


def is_unambiguous(weight, margin=2.5e-7):
    """True when bitsandbytes' CPU path, its CUDA path and the formulas above agree.

    They differ within an ulp or two of a threshold (the CPU path divides in the tail block and
    computes its thresholds), in the nested codes (a table instead of the nearest code on the CPU),
    and in the last bit of the mean (summation order). Weights near any of these are not used."""
    flat = weight.detach().float().reshape(-1).numpy()
    absmax = block_absmax(flat, NF4_BLOCK)
    if distance_to(NF4_THRESHOLDS, normalized(flat, absmax, NF4_BLOCK)).min() < margin:
        return False
    codes = dynamic_map()
    quantized, absmax2, offset, x = nested_quantize(absmax, codes)
    live = np.repeat(absmax2, NESTED_BLOCK)[: x.size] > 0
    if live.any() and distance_to(midpoints(codes), x[live]).min() < margin:
        return False
    same_mean = torch.from_numpy(absmax).mean().item() == offset.item()
    return same_mean and np.array_equal(cpu_nested_codes(x, codes)[live], quantized[live])


def draw_unambiguous(draw, attempts=4000):
    """Calls draw() until its weight passes is_unambiguous."""
    for _ in range(attempts):
        weight = draw()
        if is_unambiguous(weight):
            return weight
    raise RuntimeError("no unambiguous weight found")


def bnb_dequantize(packed, state):
    """The weight as every CUDA version of bitsandbytes reads it back.

    On a CPU with AVX-512, version 0.50 takes the scales of other blocks when the rows are not whole
    blocks (in_features % 64 != 0), so its portable implementation is used, and the AVX-512 kernel
    must agree wherever it is right."""
    from bitsandbytes import functional as bnb
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    absmax = state.absmax
    if state.nested:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    weight = _dequantize_4bit_compute(
        packed.reshape(-1), absmax, state.code, state.blocksize, state.shape, state.dtype)
    weight = weight.reshape(state.shape)
    if state.shape[-1] % state.blocksize == 0:
        assert torch.equal(weight, bnb.dequantize_4bit(packed, state))
    return weight


def bnb_roundtrip(weight, nested=True):
    """The weight after NF4 quantization by bitsandbytes, in fp32."""
    from bitsandbytes import functional as bnb

    packed, state = bnb.quantize_4bit(
        weight.detach().float().contiguous(), blocksize=NF4_BLOCK, quant_type="nf4",
        compress_statistics=nested)
    return bnb_dequantize(packed, state)
