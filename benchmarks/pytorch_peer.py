"""Times PyTorch on the shapes of cases.csv and prints one JSON object a line: {"case": row number, "seconds": [...], "peak_bytes": ...}.

Called by run.sh, alternating with the Fovea program, with the same number of threads.
"""
import argparse
import csv
import json
import os
import resource
import time

import torch
import torch.nn.functional as F


def parse_shape(text):
    return {key: int(value) for key, value in (pair.split("=") for pair in text.split())}


class Crnn(torch.nn.Module):
    """The network of recognizer.h in this folder, layer by layer."""

    def __init__(self, classes):
        super().__init__()
        def block(i, o, pool):
            return [torch.nn.Conv2d(i, o, 3, padding=1, bias=False), torch.nn.BatchNorm2d(o), torch.nn.ReLU(), torch.nn.MaxPool2d(pool)]
        self.features = torch.nn.Sequential(*block(1, 32, 2), *block(32, 64, 2), *block(64, 128, (2, 1)), *block(128, 128, (2, 1)))
        self.rnn = torch.nn.LSTM(256, 128, num_layers=2, bidirectional=True)
        self.head = torch.nn.Linear(256, classes)

    def forward(self, x):
        y = self.features(x)                                     # [n, c, h, w]
        y = y.permute(3, 0, 1, 2).flatten(2)                     # [w, n, c * h]
        return self.head(self.rnn(y)[0])


def make_case(op, direction, s):
    """A function that does the work of one row once."""
    backward = "backward" in direction
    if op == "matmul":
        a, b = torch.randn(s["m"], s["k"]), torch.randn(s["k"], s["n"])
        return lambda: a @ b
    if op == "conv2d":
        x = torch.randn(s["n"], s["c"], s["h"], s["w"], requires_grad=backward)
        w = torch.randn(s["k"], s["c"] // s["groups"], s["r"], s["r"], requires_grad=backward)
        def conv():
            with torch.set_grad_enabled(backward):
                y = F.conv2d(x, w, stride=s["stride"], padding=s["pad"], groups=s["groups"])
            if backward:
                torch.autograd.grad(y, (x, w), torch.ones_like(y))
        return conv
    if op == "lstm":
        net = torch.nn.LSTM(s["input"], s["hidden"], num_layers=s["layers"], bidirectional=s["directions"] == 2)
        x = torch.randn(s["time"], s["batch"], s["input"], requires_grad=True)
        def lstm():
            y = net(x)[0]
            torch.autograd.grad(y, (x, *net.parameters()), torch.ones_like(y))
        return lstm
    if op == "ctc_loss":
        logits = torch.randn(s["time"], s["batch"], s["classes"], requires_grad=True)
        targets = torch.randint(1, s["classes"], (s["batch"], s["target"]))
        times, lengths = torch.full((s["batch"],), s["time"]), torch.full((s["batch"],), s["target"])
        def ctc():
            loss = F.ctc_loss(F.log_softmax(logits, 2), targets, times, lengths)
            torch.autograd.grad(loss, logits)
        return ctc
    if op == "batch_norm_relu":
        x = torch.randn(s["n"], s["c"], s["h"], s["w"], requires_grad=True)
        gamma, beta = torch.ones(s["c"], requires_grad=True), torch.zeros(s["c"], requires_grad=True)
        mean, variance = torch.zeros(s["c"]), torch.ones(s["c"])
        def batch_norm():
            y = F.relu(F.batch_norm(x, mean, variance, gamma, beta, True))
            torch.autograd.grad(y, (x, gamma, beta), torch.ones_like(y))
        return batch_norm
    if op in ("add", "add_small", "add_small_recorded"):
        shape = (4, 4) if op != "add" else (s["n"],)
        a, b = torch.randn(shape, requires_grad=op == "add_small_recorded"), torch.randn(shape)
        return lambda: a + b
    if op in ("relu", "tanh", "sum"):
        x = torch.randn(s["n"])
        return lambda: getattr(torch, op)(x)
    if op == "crnn_step":
        net = Crnn(s["classes"])
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        x = torch.randn(s["batch"], 1, s["height"], s["width"])
        targets = torch.randint(1, s["classes"], (s["batch"], s["target"]))
        lengths = torch.full((s["batch"],), s["target"])
        def step():
            logits = net(x)
            times = torch.full((s["batch"],), logits.shape[0])
            loss = F.ctc_loss(F.log_softmax(logits, 2), targets, times, lengths)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
        return step
    raise ValueError(f"no PyTorch version of {op}")


def measure(run, seconds):
    """Seconds of each of at least five batches of calls; short calls are batched to about 1 ms."""
    run()
    start = time.perf_counter()
    run()
    calls = max(1, int(1e-3 / max(time.perf_counter() - start, 1e-9)))
    samples, end = [], time.perf_counter() + seconds
    while len(samples) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        samples.append((time.perf_counter() - start) / calls)
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=os.path.join(os.path.dirname(__file__), "cases.csv"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="time spent on each case")
    parser.add_argument("--filter", default="", help="only families that contain this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    with open(arguments.cases) as file:
        for number, row in enumerate(csv.DictReader(file)):
            if arguments.filter not in row["family"]:
                continue
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            samples = measure(make_case(row["op"], row["direction"], parse_shape(row["shape"])), arguments.seconds)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            print(json.dumps({"case": number, "seconds": samples, "grown_bytes": grown}), flush=True)


if __name__ == "__main__":
    main()
