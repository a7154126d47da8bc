#!/usr/bin/env python3
"""Golden values for tests/layers_golden_test.cpp: small nets, their weights as PyTorch saves them, inputs, outputs and gradients.

    python3 layers.py          # needs torch and safetensors; writes layers/*.safetensors

NAME.safetensors is the state dict of a net. NAME.values.safetensors holds its inputs ("x", ...), its outputs ("y", ...), and the gradients of
sum(y * weighting) ("grad.x", "grad.<parameter>").
"""
import pathlib

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

folder = pathlib.Path(__file__).parent / "layers"


def randomize_statistics(net):
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)


def save(name, net, values):
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / f"{name}.safetensors")
    save_values(name, values)


def save_values(name, values):
    save_file({k: v.detach().clone().contiguous() for k, v in values.items()}, folder / f"{name}.values.safetensors")


def with_gradients(net, y, inputs, values):
    weighting = torch.randn_like(y)
    (y * weighting).sum().backward()
    values["y"], values["weighting"] = y, weighting
    for key, x in inputs.items():
        values[key] = x
        if x.grad is not None:
            values["grad." + key] = x.grad
    for key, p in net.named_parameters():
        if p.grad is not None:
            values["grad." + key] = p.grad
    return values


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


def run(name, net, x, train=False):
    randomize_statistics(net)
    net.train(train).zero_grad()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    values = {}
    y = net(x)
    with_gradients(net, y, {"x": x}, values)
    if train:
        values.update({"after." + k: v.clone() for k, v in net.state_dict().items() if k in dict(net.named_buffers())})
    net.load_state_dict(before)
    save(name, net, values)


class Crnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.LeakyReLU(0.1), nn.MaxPool2d((4, 1)))
        self.rnn = nn.LSTM(6, 5, num_layers=2, bidirectional=True)
        self.head = nn.Linear(10, 7)

    def forward(self, x):
        f = self.features(x).squeeze(2).permute(2, 0, 1)
        return self.head(self.rnn(f)[0])


def recurrent(name, net, batch_first=False, lengths=(3, 5, 2)):
    """A padded batch of sequences of several lengths, with initial states."""
    time, batch = max(lengths), len(lengths)
    x = leaf(batch, time, net.input_size) if batch_first else leaf(time, batch, net.input_size)
    states = net.num_layers * (2 if net.bidirectional else 1)
    h0, c0 = leaf(states, batch, net.hidden_size), leaf(states, batch, net.hidden_size)
    is_lstm = isinstance(net, nn.LSTM)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=batch_first, enforce_sorted=False)
    out, last = net(packed, (h0, c0) if is_lstm else h0)
    y, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=batch_first)
    values = {"lengths": torch.tensor(lengths), "h_n": last[0] if is_lstm else last}
    inputs = {"x": x, "h0": h0}
    if is_lstm:
        values["c_n"] = last[1]
        inputs["c0"] = c0
    save(name, net, with_gradients(net, y, inputs, values))


def cells():
    values = {}
    for name, cell in (("lstm", nn.LSTMCell(3, 4)), ("gru", nn.GRUCell(3, 4)), ("rnn", nn.RNNCell(3, 4, nonlinearity="relu"))):
        x, h, c = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
        out = cell(x, (h, c)) if name == "lstm" else cell(x, h)
        values.update({f"{name}.x": x, f"{name}.h": h, f"{name}.c": c})
        values[f"{name}.h1"] = out[0] if name == "lstm" else out
        if name == "lstm":
            values["lstm.c1"] = out[1]
        values.update({f"{name}.state.{k}": v for k, v in cell.state_dict().items()})
    save_values("cells", values)


def attention():
    net = nn.MultiheadAttention(8, 2, batch_first=True)
    net.in_proj_bias.data.normal_(0, 0.2)
    net.out_proj.bias.data.normal_(0, 0.2)
    q, k, v = leaf(2, 3, 8), leaf(2, 5, 8), leaf(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 2:] = True
    y, weights = net(q, k, v, key_padding_mask=padding, attn_mask=mask)
    values = {"weights": weights, "key_padding_mask": padding, "attn_mask": mask}
    save("attention", net, with_gradients(net, y, {"q": q, "k": k, "v": v}, values))


def activations():
    x = torch.cat([torch.linspace(-8, 8, 33), torch.tensor([25.0, -25.0])])
    layers = {
        "ReLU": nn.ReLU(), "ReLU6": nn.ReLU6(), "LeakyReLU": nn.LeakyReLU(0.2), "ELU": nn.ELU(1.3), "GELU": nn.GELU(), "GELU_tanh": nn.GELU("tanh"),
        "SiLU": nn.SiLU(), "Sigmoid": nn.Sigmoid(), "Tanh": nn.Tanh(), "Softplus": nn.Softplus(2, 5), "Hardtanh": nn.Hardtanh(-2, 3),
        "Softmax": nn.Softmax(0), "LogSoftmax": nn.LogSoftmax(0), "PReLU": nn.PReLU(init=0.3)}
    save_values("activations", {"x": x, **{k: f(x) for k, f in layers.items()}})


def losses():
    values = {}

    def add(name, fn, x, *others):
        x = x.clone().requires_grad_()
        loss = fn(x, *others)
        loss.sum().backward()
        values[name], values["grad." + name] = loss, x.grad

    logits, targets, weights = torch.randn(6, 4), torch.tensor([0, 3, 2, 1, 1, 0]), torch.tensor([1.0, 0.5, 2.0, 0.1])
    with_ignored = torch.tensor([0, -100, 2, 1, -100, 0])
    image_logits, image_targets = torch.randn(2, 4, 3, 2), torch.randint(0, 4, (2, 3, 2))
    a, b = torch.randn(5, 3) * 2, torch.randn(5, 3)
    binary = torch.tensor([1.0, 0, 1, 0, 1]).view(5, 1).expand(5, 3).contiguous()
    signs = binary * 2 - 1
    values.update(logits=logits, targets=targets, weights=weights, with_ignored=with_ignored, image_logits=image_logits, image_targets=image_targets, a=a, b=b,
                  binary=binary, signs=signs)
    add("cross_entropy", F.cross_entropy, logits, targets)
    add("cross_entropy_none", lambda x, t: F.cross_entropy(x, t, reduction="none"), logits, targets)
    add("cross_entropy_all", lambda x, t: F.cross_entropy(x, t, weight=weights, label_smoothing=0.1), logits, with_ignored)
    add("cross_entropy_smooth", lambda x, t: F.cross_entropy(x, t, label_smoothing=0.2, reduction="sum"), logits, targets)
    add("cross_entropy_image", F.cross_entropy, image_logits, image_targets)
    add("nll", lambda x, t: F.nll_loss(x.log_softmax(1), t, weight=weights), logits, with_ignored)
    add("mse", F.mse_loss, a, b)
    add("l1", F.l1_loss, a, b)
    add("smooth_l1", lambda x, t: F.smooth_l1_loss(x, t, beta=0.7), a, b)
    add("bce", F.binary_cross_entropy_with_logits, a, binary)
    add("bce_weighted", lambda x, t: F.binary_cross_entropy_with_logits(x, t, pos_weight=torch.tensor([2.0, 1, 0.5])), a, binary)
    add("kl", lambda x, t: F.kl_div(x.log_softmax(1), t.softmax(1), reduction="batchmean"), a, b)
    add("kl_log", lambda x, t: F.kl_div(x.log_softmax(1), t.log_softmax(1), reduction="sum", log_target=True), a, b)
    # PyTorch divides by the number of classes; the multi-class SVM (Weston & Watkins 1999) does not.
    add("multi_margin", lambda x, t: 4 * F.multi_margin_loss(x, t), logits, targets)
    add("multi_margin_squared", lambda x, t: 4 * F.multi_margin_loss(x, t, p=2, margin=0.5), logits, targets)
    add("hinge", lambda x, t: (1 - x * t).clamp(min=0).mean(), a, signs)
    add("hinge_squared", lambda x, t: (0.5 - x * t).clamp(min=0).square().mean(), a, signs)
    scores = torch.randn(6, 3, 5)
    labels, lengths, label_lengths = torch.tensor([[1, 1, 2], [3, 4, 0], [2, 0, 0]]), torch.tensor([6, 5, 4]), torch.tensor([3, 2, 1])
    values.update(scores=scores, labels=labels, lengths=lengths, label_lengths=label_lengths)
    add("ctc", lambda x: F.ctc_loss(x.log_softmax(2), labels, lengths, label_lengths), scores)
    add("ctc_none", lambda x: F.ctc_loss(x.log_softmax(2), labels, lengths, label_lengths, reduction="none"), scores)
    save_values("losses", values)


def misc():
    """One layer each; the state dict is kept under state.NAME. beside the values."""
    values = {}
    layers = {
        "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), leaf(2, 4, 9)),
        "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), leaf(2, 3, 7, 6)),
        "conv_transpose1d": (nn.ConvTranspose1d(3, 4, 4, stride=2, padding=1), leaf(2, 3, 5)),
        "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), leaf(2, 4, 3, 4)),
        "linear": (nn.Linear(5, 3), leaf(2, 4, 5)),
        "layer_norm": (nn.LayerNorm(6), leaf(2, 3, 6)),
        "layer_norm_2": (nn.LayerNorm((3, 6)), leaf(2, 3, 6)),
        "group_norm": (nn.GroupNorm(2, 6), leaf(2, 6, 3, 2)),
        "instance_norm1d": (nn.InstanceNorm1d(3, affine=True), leaf(2, 3, 7)),
        "instance_norm2d": (nn.InstanceNorm2d(3, affine=True), leaf(2, 3, 4, 5)),
        "batch_norm1d": (nn.BatchNorm1d(4), leaf(6, 4)),
        "batch_norm1d_3": (nn.BatchNorm1d(4), leaf(3, 4, 5)),
        "max_pool": (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), leaf(2, 3, 6, 7)),
        "avg_pool": (nn.AvgPool2d((2, 3), stride=(2, 1), padding=(0, 1), count_include_pad=False), leaf(2, 3, 6, 7)),
        "max_pool1d": (nn.MaxPool1d(3, 2), leaf(2, 3, 9)),
        "avg_pool1d": (nn.AvgPool1d(2), leaf(2, 3, 9)),
        "adaptive_avg": (nn.AdaptiveAvgPool2d((2, 3)), leaf(2, 3, 5, 7)),
        "adaptive_max": (nn.AdaptiveMaxPool2d(2), leaf(2, 3, 5, 7)),
        "adaptive_avg1d": (nn.AdaptiveAvgPool1d(4), leaf(2, 3, 9)),
        "upsample_nearest": (nn.Upsample(scale_factor=2), leaf(2, 3, 3, 4)),
        "upsample_bilinear": (nn.Upsample(size=(5, 9), mode="bilinear"), leaf(2, 3, 3, 4)),
        "upsample_corners": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), leaf(2, 3, 3, 4)),
    }
    for name, (layer, x) in layers.items():
        randomize_statistics(layer)
        values.update({f"{name}.state.{k}": v.clone() for k, v in layer.state_dict().items()})
        y = layer.train()(x)
        for key, value in with_gradients(layer, y, {"x": x}, {}).items():
            values[f"{name}.{key}"] = value
        values.update({f"{name}.after.{k}": v.clone() for k, v in layer.named_buffers()})
    bilinear, a, b = nn.Bilinear(3, 4, 2), torch.randn(5, 3), torch.randn(5, 4)
    values.update({"bilinear.a": a, "bilinear.b": b, "bilinear.y": bilinear(a, b)})
    values.update({f"bilinear.state.{k}": v for k, v in bilinear.state_dict().items()})
    embedding, index = nn.Embedding(6, 3, padding_idx=0), torch.tensor([[1, 0, 5], [2, 2, 4]])
    y = embedding(index)
    weighting = torch.randn_like(y)
    (y * weighting).sum().backward()
    values.update({"embedding.x": index, "embedding.y": y, "embedding.weighting": weighting, "embedding.grad": embedding.weight.grad,
                   "embedding.state.weight": embedding.weight})
    save_values("misc", values)


def main():
    folder.mkdir(exist_ok=True)
    torch.manual_seed(7)
    cnn = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 6, 1), nn.GELU(),
        nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    run("cnn", cnn, leaf(3, 2, 9, 8))
    run("cnn_train", cnn, leaf(3, 2, 9, 8), train=True)
    run("crnn", Crnn(), leaf(2, 1, 8, 10))
    recurrent("lstm", nn.LSTM(3, 4, num_layers=2, bidirectional=True))
    recurrent("gru", nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True), batch_first=True)
    recurrent("rnn", nn.RNN(3, 4, nonlinearity="relu", bias=False))
    cells()
    attention()
    activations()
    losses()
    misc()


if __name__ == "__main__":
    main()
