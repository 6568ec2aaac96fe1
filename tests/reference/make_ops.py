"""Optimizer and schedule fixtures: tests/fixtures/ops/.

AdamW by torch, learning rates by transformers, 8-bit AdamW by the update of bitsandbytes."""

import sys

import numpy as np
import torch

from common import (
    FIXTURES, block_absmax, distance_to, dynamic_map, fresh_folder, midpoints, save_tensors, start,
    write_json)

from bitsandbytes.backends.cpu import ops as bnb_cpu
from transformers import get_scheduler

FOLDER = FIXTURES / "ops"
STEPS = 8
ELEMENTS = 1000
BETAS = (0.9, 0.999)
EPS = 1e-8
WEIGHT_DECAY = 0.01


def draw_gradients(steps):
    """Gradients over many decades; some elements get none, ever or at some steps."""
    spread = 10.0 ** torch.empty(ELEMENTS).uniform_(-7, 0)
    grads = torch.randn(steps, ELEMENTS) * spread
    grads[:, :20] = 0
    grads[::2, 20:60] = 0
    return grads


def make_adamw():
    torch.manual_seed(700)
    parameter = torch.nn.Parameter(0.1 * torch.randn(ELEMENTS))
    rates = torch.tensor([0.0, *torch.empty(STEPS - 1).uniform_(1e-4, 1e-2).tolist()])
    grads = draw_gradients(STEPS)
    optimizer = torch.optim.AdamW(
        [parameter], lr=1.0, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
    found = {"initial": parameter.detach().clone(), "grads": grads, "lr": rates}
    after = []
    for rate, grad in zip(rates.tolist(), grads):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = grad.clone()
        optimizer.step()
        after.append(parameter.detach().clone())
    state = optimizer.state[parameter]
    found |= {"params": torch.stack(after), "m": state["exp_avg"], "v": state["exp_avg_sq"],
              "betas": torch.tensor(BETAS), "eps": torch.tensor([EPS]),
              "weight_decay": torch.tensor([WEIGHT_DECAY])}
    save_tensors(FOLDER / "adamw.safetensors", found)


class NearestQuantizer:
    """Replaces the CPU kernel of bitsandbytes, a table of 65536 linear steps that cannot tell small
    second moments apart, by the nearest code as its CUDA kernel finds it. Remembers whether some
    value was too close to the middle of two codes for another rounding to agree."""

    def __init__(self):
        self.clear = True

    def __call__(self, values, codes, absmax_out, codes_out, block):
        codes = codes.numpy()
        flat = values.numpy().reshape(-1)
        absmax = block_absmax(flat, block)
        x = flat * np.repeat((1 / absmax).astype(np.float32), block)[: flat.size]
        middle = midpoints(codes)
        self.clear = self.clear and bool((distance_to(middle, x) > 1e-5 * np.abs(x))[x != 0].all())
        codes_out.copy_(torch.from_numpy(np.searchsorted(middle, x).astype(np.uint8)))
        absmax_out.copy_(torch.from_numpy(absmax))


def run_adamw_8bit(steps=4):
    parameter = 0.1 * torch.randn(ELEMENTS)
    grads = draw_gradients(steps)
    blocks = -(-ELEMENTS // 256)
    signed = torch.from_numpy(dynamic_map(True))
    unsigned = torch.from_numpy(dynamic_map(False))
    m, v = (torch.zeros(ELEMENTS, dtype=torch.uint8) for _ in range(2))
    m_absmax, v_absmax = torch.zeros(blocks), torch.zeros(blocks)
    found = {"initial": parameter.clone(), "grads": grads, "lr": torch.full((steps,), 3e-3),
             "map_signed": signed, "map_unsigned": unsigned}
    kept = {"params": [], "m": [], "v": [], "m_absmax": [], "v_absmax": []}
    for step, grad in enumerate(grads, 1):
        bnb_cpu._optimizer_update_8bit_blockwise_cpu(
            "adam", grad, parameter, m, v, *BETAS, 0.0, 0.0, EPS, step, 3e-3, signed, unsigned,
            m_absmax, v_absmax, WEIGHT_DECAY, 1.0)
        for key, value in zip(kept, (parameter, m, v, m_absmax, v_absmax)):
            kept[key].append(value.clone())
    return found | {key: torch.stack(values) for key, values in kept.items()}


def make_adamw_8bit():
    torch.manual_seed(701)
    for _ in range(2000):
        quantizer = NearestQuantizer()
        bnb_cpu._quant_blockwise_fp32_direct = quantizer
        found = run_adamw_8bit()
        if quantizer.clear:
            save_tensors(FOLDER / "adamw_8bit.safetensors", found)
            return
    raise RuntimeError("every draw had a value in the middle of two codes")


def learning_rates(name, warmup, total, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def make_schedules():
    names = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
    cases = []
    for name, theirs in names.items():
        for warmup, total in ((0, 20), (5, 25), (1, 2), (7, 7), (3, 40), (10, 4)):
            cases.append({"schedule": name, "warmup_steps": warmup, "total_steps": total,
                          "factor": learning_rates(theirs, warmup, total, total)})
    write_json(FOLDER / "schedules.json", {"cases": cases})


def main():
    start()
    fresh_folder(FOLDER)
    make_adamw()
    make_adamw_8bit()
    make_schedules()


if __name__ == "__main__":
    sys.exit(main())
