"""Writes tests/golden/optim.npz for tests/optim_test.cpp: what torch.optim makes of two parameters in six steps of given gradients.

The second parameter has no gradient in the first two steps. CASE/STEP/weight and CASE/STEP/bias are the parameters after STEP steps, CASE/state/... the
state after the last. Also learning rates of torch.optim.lr_scheduler over 30 steps. Made with torch 2.15.0 and numpy 2.4.6.
"""
import pathlib

import numpy as np
import torch
from torch.optim import lr_scheduler

steps = 6
generator = torch.Generator().manual_seed(5)
weight = torch.randn(4, 5, generator=generator)
bias = torch.randn(3, generator=generator)
gradients = [(torch.randn(4, 5, generator=generator), torch.randn(3, generator=generator)) for _ in range(steps)]
arrays = {"weight": weight, "bias": bias}
for i, (w, b) in enumerate(gradients):
    arrays[f"gradient{i}/weight"], arrays[f"gradient{i}/bias"] = w, b

cases = {
    "sgd": (torch.optim.SGD, dict(lr=0.1)),
    "sgd_decay": (torch.optim.SGD, dict(lr=0.1, weight_decay=0.05)),
    "sgd_momentum": (torch.optim.SGD, dict(lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.05)),
    "sgd_nesterov": (torch.optim.SGD, dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05)),
    "adam": (torch.optim.Adam, dict(lr=0.01)),
    "adam_decay": (torch.optim.Adam, dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)),
    "adamw": (torch.optim.AdamW, dict(lr=0.02, betas=(0.8, 0.95), weight_decay=0.1)),
    "rmsprop": (torch.optim.RMSprop, dict(lr=0.01)),
    "rmsprop_all": (torch.optim.RMSprop, dict(lr=0.01, alpha=0.9, eps=1e-4, weight_decay=0.1, momentum=0.7, centered=True)),
    "rmsprop_centered": (torch.optim.RMSprop, dict(lr=0.01, centered=True)),
    "adagrad": (torch.optim.Adagrad, dict(lr=0.1)),
    "adagrad_all": (torch.optim.Adagrad, dict(lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5, eps=1e-6)),
}
for case, (kind, options) in cases.items():
    for dtype in [torch.float32, torch.float64]:
        key = case + ("64" if dtype == torch.float64 else "")
        parameters = [torch.nn.Parameter(t.to(dtype).clone()) for t in (weight, bias)]
        optimizer = kind(parameters, foreach=False, **options)
        for i, pair in enumerate(gradients):
            parameters[0].grad = pair[0].to(dtype)
            parameters[1].grad = pair[1].to(dtype) if i >= 2 else None
            optimizer.step()
        for name, parameter in zip(["weight", "bias"], parameters):
            arrays[f"{key}/{name}"] = parameter.detach()
            for entry, value in optimizer.state[parameter].items():
                if value is not None:
                    arrays[f"{key}/state.{name}.{entry}"] = value.reshape(()).to(torch.int64) if entry == "step" else value

parameters = [torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())]
for norm_type, key in [(2.0, "clip2"), (float("inf"), "clip_inf")]:
    parameters[0].grad, parameters[1].grad = (g.clone() for g in gradients[0])
    arrays[f"{key}/norm"] = torch.nn.utils.clip_grad_norm_(parameters, 1.5, norm_type=norm_type, foreach=False)
    arrays[f"{key}/weight"], arrays[f"{key}/bias"] = parameters[0].grad, parameters[1].grad


def rates(make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = make(optimizer)
    values = []
    for _ in range(30):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return torch.tensor(values, dtype=torch.float64)


arrays["schedule/step"] = rates(lambda o: lr_scheduler.StepLR(o, 7, 0.5))
arrays["schedule/multi_step"] = rates(lambda o: lr_scheduler.MultiStepLR(o, [3, 11, 25], 0.2))
arrays["schedule/exponential"] = rates(lambda o: lr_scheduler.ExponentialLR(o, 0.9))
arrays["schedule/linear"] = rates(lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, 12))
arrays["schedule/cosine"] = torch.tensor([0.05 + (0.4 - 0.05) * (1 + np.cos(np.pi * min(t, 20) / 20)) / 2 for t in range(30)], dtype=torch.float64)
arrays["schedule/sequence"] = rates(lambda o: lr_scheduler.SequentialLR(
    o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.ExponentialLR(o, 0.95)], [5]))

np.savez(pathlib.Path(__file__).parent / "optim.npz", **{name: value.detach().numpy() for name, value in arrays.items()})
