#!/usr/bin/env python3
"""Golden values of every operation, made by PyTorch: python3 tests/golden/ops.py build/release/tests/op_cases_tool

op_cases_tool writes the inputs of its rows, this script calls PyTorch on them in float64 and writes tests/golden/ops.npz: one array for each row, which
holds for each of its samples the rank, the sizes and the elements of the result. It also lets the program write docs/operations.md.
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F

FUNCTIONS = {
    # --- shape ---
    "transpose": lambda x: x.transpose(-2, -1),
    "transpose/axes": lambda x: x.transpose(0, -1),
    "permute": lambda x: x.permute(2, 0, 1),
    "expand": lambda x: x.expand(4, 3, 5),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x.squeeze(1),
    "squeeze/all": torch.squeeze,
    "narrow": lambda x: x.narrow(1, 1, 2),
    "slice": lambda x: x[..., 1:9:3],
    "slice/backwards": lambda x: x.flip(0)[::2],
    "select": lambda x: x.select(1, -1),
    "flip": lambda x: x.flip(0, -1),
    "diagonal": lambda x: x.diagonal(dim1=-2, dim2=-1),
    "split": lambda x: torch.cat([x.split(2, 1)[1], x.split(2, 1)[0]], 1),
    "chunk": lambda x: x.chunk(3, 0)[1],
    "reshape": lambda x: x.reshape(-1, 6),
    "flatten": lambda x: x.flatten(1),
    "contiguous": lambda x: x.transpose(-2, -1),
    "clone": torch.clone,
    "channels_last": torch.clone,
    "concat": lambda x, y: torch.cat([x, y, x]),
    "concat/last axis": lambda x, y: torch.cat([x.T, y.T], -1),
    "stack": lambda x: torch.stack([x, x, x], 1),
    "repeat": lambda x: x.repeat(2, 1, 3),
    "roll": lambda x: x.roll(2, -1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
    "pad/cut": lambda x: F.pad(x, (-1, 2, 1, -1)),
    "pad/reflect": lambda x: F.pad(x, (2, 1), "reflect"),
    "pad/replicate": lambda x: F.pad(x, (2, 1), "replicate"),
    "tril": lambda x: x.tril(1),
    "triu": lambda x: x.triu(-1),
    "to/float64": lambda x: x,
    "sum_to": lambda x: x.sum_to_size(3, 1),
    # --- elementwise ---
    **{name: getattr(torch, name) for name in (
        "neg abs sign square sqrt rsqrt reciprocal exp expm1 log log1p sin cos erf floor ceil round add sub mul div pow maximum minimum atan2 where lerp "
        "eq ne lt le gt ge logical_and logical_or logical_xor logical_not isnan isfinite").split()},
    "clamp": lambda x: x.clamp(-0.5, 1.25),
    "clamp_min": lambda x: x.clamp(min=0.25),
    "clamp_max": lambda x: x.clamp(max=0.25),
    "remainder": lambda x: x.remainder(0.75),
    "add/number": lambda x: 2 + x + 0.5,
    "sub/number": lambda x: 1 - x - 3,
    "mul/number": lambda x: 2 * x * 1.5,
    "div/number": lambda x: 2 / (x / 4),
    "pow/number": lambda x: x.pow(3),
    "pow/fraction": lambda x: x.pow(0.3),
    "where/number": lambda x: torch.where(x > 0, x, -1.0),
    "lerp/number": lambda x, y: x.lerp(y, 0.3),
    "addcmul": lambda x, y, z: x.addcmul(y, z, value=0.7),
    "addcdiv": lambda x, y, z: x.addcdiv(y, z, value=0.7),
    # --- activations ---
    **{name: getattr(F, name) for name in "relu relu6 sigmoid tanh silu gelu".split()},
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": lambda x: F.elu(x, 1.5),
    "softplus": lambda x: F.softplus(x, 2, 4),
    "gelu/tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 1),
    # --- products ---
    "matmul": torch.matmul,
    "dot": torch.dot,
    "outer": torch.outer,
    "linear": F.linear,
    "linear/no bias": F.linear,
    # --- convolutions ---
    "conv1d": lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=1, dilation=2),
    "conv2d": lambda x, w, b: F.conv2d(x, w, b, padding=1),
    "conv2d/no bias": F.conv2d,
    "conv2d/strided": lambda x, w, b: F.conv2d(x, w, b, stride=(2, 3), padding=(0, 2), dilation=(2, 1)),
    "conv2d/groups": lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=2),
    "conv2d/depthwise": lambda x, w: F.conv2d(x, w, stride=2, padding=1, groups=x.shape[-3]),
    "conv_transpose1d": lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2, padding=1, output_padding=1),
    "conv_transpose2d": lambda x, w, b: F.conv_transpose2d(x, w, b, stride=(2, 1), padding=1, output_padding=(1, 0)),
    "conv_transpose2d/groups": lambda x, w: F.conv_transpose2d(x, w, groups=2, dilation=2),
}

FUNCTIONS |= {
    "batch_norm/training": lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
    "batch_norm/plain": lambda x: F.batch_norm(x, None, None, None, None, True),
    "batch_norm/evaluation": lambda x, w, b, mean, var: F.batch_norm(x, mean, var, w, b),
    "batch_norm_relu/training": lambda x, w, b: F.batch_norm(x, None, None, w, b, True).relu(),
    "batch_norm_relu/evaluation": lambda x, w, b, mean, var: F.batch_norm(x, mean, var, w, b).relu(),
    "batch_norm_add_relu/training": lambda x, w, b, r: (F.batch_norm(x, None, None, w, b, True) + r).relu(),
    "batch_norm_add_relu/evaluation": lambda x, w, b, mean, var, r: (F.batch_norm(x, mean, var, w, b) + r).relu(),
    "batch_norm_add_relu/channels last": lambda x, w, b, r: (F.batch_norm(x, None, None, w, b, True) + r).relu(),
    "layer_norm": lambda x, w, b: F.layer_norm(x, w.shape, w, b),
    "layer_norm/plain": lambda x: F.layer_norm(x, x.shape[-1:]),
    "group_norm": lambda x, w, b: F.group_norm(x, 2, w, b),
    "instance_norm": lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
}

FUNCTIONS |= {
    # --- indexing and order ---
    "gather": lambda x, i: x.gather(1, i),
    "take_along": lambda x, i: torch.take_along_dim(x, i, 0),
    "scatter_add": lambda x, i, s: x.scatter_add(0, i, s),
    "index_select": lambda x, i: x.index_select(1, i),
    "index_add": lambda x, i, s: x.index_add(0, i, s),
    "embedding": F.embedding,
    "one_hot": lambda i: F.one_hot(i, 5),
    "masked_fill": lambda x, m: x.masked_fill(m, -3),
    "sort": lambda x: x.sort().values,
    "sort/descending": lambda x: x.sort(0, descending=True).values,
    "argsort": lambda x: x.argsort(stable=True),
    "topk": lambda x: x.topk(2, 1).values,
    "topk/smallest": lambda x: x.topk(3, largest=False).values,
    "topk/indices": lambda x: x.topk(2, 1).indices,
    "index/slices": lambda x: x[0, 1:5:2, ..., None],
    "index/tensors": lambda x, i, j: x[i, :, j],
    # --- softmax ---
    "softmax": lambda x: x.softmax(-1),
    "softmax/first axis": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(-1),
    "log_softmax/axis": lambda x: x.log_softmax(-2),
    "cross_entropy": F.cross_entropy,
    "cross_entropy/each": lambda x, t: F.cross_entropy(x, t, reduction="none"),
    "cross_entropy/smoothed": lambda x, t: F.cross_entropy(x, t, reduction="sum", label_smoothing=0.2),
    "cross_entropy/ignored": lambda x, t: F.cross_entropy(x, t, ignore_index=1),
    "nll_loss": lambda x, t: F.nll_loss(x, t, ignore_index=1),
    "nll_loss/weighted": lambda x, t, w: F.nll_loss(x, t, w, reduction="sum"),
    "nll_loss/each": lambda x, t: F.nll_loss(x, t, reduction="none"),
    "ctc_loss": lambda x, *rest: F.ctc_loss(x.log_softmax(-1), *rest),
    "ctc_loss/each": lambda x, *rest: F.ctc_loss(x.log_softmax(-1), *rest, reduction="none"),
    "cross_entropy/weighted": lambda x, t, w: F.cross_entropy(x, t, w),
}


def empty_aware(function):
    """PyTorch refuses some empty batches; the result is then empty as well."""
    return lambda x, *rest: function(x, *rest) if x.numel() else torch.zeros(0, *function(torch.zeros(1, *x.shape[1:], dtype=x.dtype), *rest).shape[1:])


FUNCTIONS |= {name: empty_aware(function) for name, function in {
    # --- pooling and images ---
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "max_pool2d/overlapping": lambda x: F.max_pool2d(x, (3, 2), stride=(1, 2), padding=(1, 0)),
    "max_pool2d/dilated": lambda x: F.max_pool2d(x, 2, stride=1, dilation=2),
    "max_pool2d/ceil": lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    "max_pool2d/indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
    "max_pool1d": lambda x: F.max_pool1d(x, 3, stride=2, padding=1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "avg_pool2d/padded": lambda x: F.avg_pool2d(x, 3, stride=2, padding=1, ceil_mode=True),
    "avg_pool2d/padding not counted": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "avg_pool1d": lambda x: F.avg_pool1d(x, 2),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x, 3),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x, 3),
    "global_avg_pool": lambda x: x.flatten(2).mean(2),
    "global_max_pool": lambda x: x.flatten(2).amax(2),
    "interpolate/nearest": lambda x: F.interpolate(x, (5, 3)),
    "interpolate/bilinear": lambda x: F.interpolate(x, (5, 3), mode="bilinear"),
    "interpolate/corners": lambda x: F.interpolate(x, (5, 3), mode="bilinear", align_corners=True),
    "grid_sample": lambda x, g: F.grid_sample(x, g, align_corners=False),
    "grid_sample/corners": lambda x, g: F.grid_sample(x, g, align_corners=True),
    "affine_grid": lambda t: F.affine_grid(t, (t.shape[0], 1, 3, 4), align_corners=False),
    "affine_grid/corners": lambda t: F.affine_grid(t, (t.shape[0], 1, 3, 4), align_corners=True),
}.items()}


def reduction(function):
    return {"": lambda x: function(x, tuple(range(x.dim())), False), "/last axis": lambda x: function(x, (-1,), False),
            "/first axis": lambda x: function(x, (0,), True), "/axes": lambda x: function(x, (0, -1), True)}


def over_each_axis(function):
    """For functions that take one axis at a time."""
    def reduce(x, axes, keepdim):
        for axis in sorted((a % x.dim() for a in axes), reverse=True):
            x = function(x, axis, keepdim)
        return x if axes or x.dim() else function(x.reshape(1), 0, False)
    return reduce


def logsumexp(x, axes, keepdim):
    return torch.logsumexp(x, axes, keepdim) if x.dim() else x


def norm_of(p):
    return lambda x, axes, keepdim: torch.linalg.vector_norm(x, p, axes, keepdim)


for name, function in {
    "sum": lambda x, axes, keepdim: x.sum(axes, keepdim) if x.dim() else x,
    "mean": lambda x, axes, keepdim: x.mean(axes, keepdim) if x.dim() else x,
    "prod": over_each_axis(torch.prod), "any": over_each_axis(torch.any), "all": over_each_axis(torch.all),
    "amax": torch.amax, "amin": torch.amin, "logsumexp": logsumexp, "norm": norm_of(2), "norm/1": norm_of(1), "norm/3": norm_of(3),
}.items():
    for variant, call in reduction(function).items():
        FUNCTIONS[name + variant] = call
FUNCTIONS |= {
    "norm/infinity": lambda x: torch.linalg.vector_norm(x, float("inf"), -1),
    "var": lambda x: x.var(-1),
    "var/biased": lambda x: x.var((0, 2), keepdim=True, correction=0),
    "stddev": torch.std,
    "max/axis": lambda x: x.max(1).values,
    "min/axis": lambda x: x.min(-1, keepdim=True).values,
    "max/indices": lambda x: x.max(1).indices,
    "argmax": torch.argmax,
    "argmin": torch.argmin,
    "argmax/axis": lambda x: x.argmax(1),
    "argmin/axis": lambda x: x.argmin(0, keepdim=True),
    "cumsum": lambda x: x.cumsum(1),
}


def recurrent(kind, directions, **options):
    """x and the weights of one layer -> outputs and last states joined along the first axis; both directions: the outputs alone."""
    def run(x, *weights):
        net = kind(x.shape[2], weights[1].shape[1], bidirectional=directions == 2, dtype=x.dtype, **options)
        names = [n + d for d in ["", "_reverse"][:directions] for n in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
        with torch.no_grad():
            for name, value in zip(names, weights, strict=True):
                getattr(net, name).copy_(value)
            if x.shape[1] == 0:                          # PyTorch has no result for an empty batch
                return torch.zeros(x.shape[0] + (2 if kind is torch.nn.LSTM else 1), 0, weights[1].shape[1])
            y, states = net(x)
        states = states if isinstance(states, tuple) else (states,)
        return torch.cat([y, *states]) if directions == 1 else y
    return run


FUNCTIONS |= {
    "lstm": recurrent(torch.nn.LSTM, 1), "lstm/bidirectional": recurrent(torch.nn.LSTM, 2),
    "gru": recurrent(torch.nn.GRU, 1), "gru/bidirectional": recurrent(torch.nn.GRU, 2),
    "rnn": recurrent(torch.nn.RNN, 1), "rnn/relu": recurrent(torch.nn.RNN, 1, nonlinearity="relu"),
}


def packed(results):
    parts = []
    for y in results:
        parts += [[y.dim()], list(y.shape), y.reshape(-1).to(torch.float64).numpy()]
    return np.concatenate([np.asarray(p, dtype=np.float64) for p in parts]) if parts else np.zeros(0)


def main():
    program = sys.argv[1]
    root = pathlib.Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        inputs_file = f"{folder}/inputs.npz"
        subprocess.run([program, "--write-inputs", inputs_file], check=True)
        inputs = np.load(inputs_file)
        samples = {}                                     # name -> sample -> inputs
        for key in inputs.files:                         # "name:sample:input"
            name, sample, argument = key.rsplit(":", 2)
            samples.setdefault(name, {}).setdefault(int(sample), {})[int(argument)] = torch.from_numpy(inputs[key])
    missing = sorted(set(samples) - set(FUNCTIONS))
    if missing:
        sys.exit(f"ops.py: no PyTorch function for {', '.join(missing)}")
    golden = {}
    for name, of_name in samples.items():
        results = []
        for index in sorted(of_name):
            arguments = of_name[index]
            try:
                results.append(FUNCTIONS[name](*[arguments[i] for i in sorted(arguments)]))
            except Exception as error:
                sys.exit(f"ops.py: {name}, sample {index}: {error}")
        golden[name] = packed(results)
    np.savez_compressed(root / "tests/golden/ops.npz", **golden)
    (root / "docs").mkdir(exist_ok=True)
    subprocess.run([program, "--write-table", str(root / "docs/operations.md")], check=True)


main()
