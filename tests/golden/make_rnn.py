"""Writes tests/golden/rnn.npz: recurrent networks by PyTorch in float64, which tests/rnn_test.cpp compares with. Made with torch 2.15.0.

Each case: inputs, weights in PyTorch's order, outputs, and the gradients of sum(output * d_output) + sum(h_n * d_h_n) (+ sum(c_n * d_c_n)) by all inputs and weights.
"""
import pathlib

import numpy as np
import torch

torch.manual_seed(11)
torch.set_default_dtype(torch.float64)
time, batch, inputs, hidden = 5, 3, 2, 3
cases = {
    "lstm": (torch.nn.LSTM, {}),
    "gru": (torch.nn.GRU, {}),
    "rnn_tanh": (torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
}
arrays = {}
for name, (kind, extra) in cases.items():
    net = kind(inputs, hidden, num_layers=2, bidirectional=True, **extra)
    x = torch.randn(time, batch, inputs, requires_grad=True)
    lengths = torch.tensor([3, 5, 1])
    states = [torch.randn(4, batch, hidden, requires_grad=True) for _ in range(2 if name == "lstm" else 1)]
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    packed_output, final = net(packed, tuple(states) if name == "lstm" else states[0])
    output, _ = torch.nn.utils.rnn.pad_packed_sequence(packed_output, total_length=time)
    outputs = [output, *(final if name == "lstm" else [final])]
    cotangents = [torch.randn_like(o) for o in outputs]
    weights = list(net.parameters())
    gradients = torch.autograd.grad(outputs, [x, *states, *weights], cotangents)
    case = {"x": x, "lengths": lengths, "h0": states[0]}
    if name == "lstm":
        case["c0"] = states[1]
    case |= {f"weight{i}": w for i, w in enumerate(weights)}
    case |= dict(zip(["output", "h_n", "c_n"], outputs))
    case |= dict(zip(["d_output", "d_h_n", "d_c_n"], cotangents))
    case |= dict(zip(["grad_x", "grad_h0"] + (["grad_c0"] if name == "lstm" else []) + [f"grad_weight{i}" for i in range(len(weights))], gradients))
    arrays |= {f"{name}.{key}": value.detach().numpy() for key, value in case.items()}
np.savez_compressed(pathlib.Path(__file__).parent / "rnn.npz", **arrays)
