"""L2-SP against the formula written out, against AdamW's own weight decay, and in what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from finetune.transfer.l2sp import Pull, add_gradient, drift, is_regularised, penalty, pull_back

FRESH = frozenset({"head.weight", "head.bias"})
ALPHA, BETA = 0.3, 0.07


class Net(nn.Module):
    """An embedding, a normalisation and a linear layer with pretrained values, and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.layer = nn.Linear(4, 3)
        self.r_w_bias = nn.Parameter(torch.randn(2, 3))
        self.head = nn.Linear(3, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(self.norm(self.table(ids)))
        return self.head(torch.tanh(hidden + self.r_w_bias.sum(0)))


def made(seed: int = 0) -> tuple[Net, dict[str, nn.Parameter], Pull]:
    """A net in double precision that has left its anchors, its parameters, and the pull."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net().double()
        anchors = {n: p.detach().clone() for n, p in net.named_parameters() if n not in FRESH}
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
    return net, dict(net.named_parameters()), Pull(anchors, FRESH, ALPHA, BETA)


def loss_of(net: Net) -> torch.Tensor:
    return nn.functional.cross_entropy(net(torch.tensor([0, 1, 2, 4])), torch.tensor([0, 1, 1, 0]))


def written_out(parameters: dict[str, nn.Parameter], pull: Pull) -> torch.Tensor:
    """Ω(w) = α/2·‖w_S − w_S⁰‖² + β/2·‖w_new‖² over the weights of these modules, term by term."""
    omega = torch.zeros((), dtype=torch.float64)
    for name in ("table.weight", "layer.weight"):
        omega = omega + pull.alpha / 2 * (parameters[name] - pull.anchors[name]).pow(2).sum()
    return omega + pull.beta / 2 * parameters["head.weight"].pow(2).sum()


REGULARISED = {"table.weight", "layer.weight", "head.weight"}


def test_biases_and_normalisation_weights_are_left_out() -> None:
    _, parameters, _ = made()
    assert {n for n, p in parameters.items() if is_regularised(n, p)} == REGULARISED
    assert is_regularised("relative_attention_bias.weight", torch.zeros(4, 2))
    assert not is_regularised("attention.r_w_bias", torch.zeros(4, 2))
    assert not is_regularised("bias", torch.zeros(4, 2))
    assert not is_regularised("attention_biases", torch.zeros(4, 2))
    assert not is_regularised("scale", torch.zeros(()))


@pytest.mark.parametrize("shape", [(1, 1, 8), (8, 1, 1), (1, 8, 1, 1), (8, 1), (1, 1)])
def test_a_vector_laid_out_for_broadcasting_is_a_vector(shape: tuple[int, ...]) -> None:
    assert not is_regularised("layer_scale.gamma", torch.zeros(shape))


@pytest.mark.parametrize("layer", [nn.Linear(8, 1), nn.Linear(1, 8), nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 1, 1), nn.Conv1d(1, 1, 3), nn.Embedding(1, 8)])  # fmt: skip
def test_a_kernel_or_matrix_with_one_long_axis_is_no_vector(layer: nn.Module) -> None:
    assert is_regularised("gate.weight", layer.get_parameter("weight"))
    assert is_regularised("weight", layer.get_parameter("weight"))


_TEXT: dict[str, Any] = {"vocab_size": 11, "num_labels": 1}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: hf.BertForSequenceClassification(
        hf.BertConfig(**_TEXT, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    ),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(**_TEXT, dim=8, n_layers=2, n_heads=2, hidden_dim=12)
    ),
    "gpt2": lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**_TEXT, n_embd=8, n_layer=2, n_head=2)),
    "convnextv2": lambda: hf.ConvNextV2ForImageClassification(
        hf.ConvNextV2Config(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    ),
}

# What the penalty leaves out, as the kind of the module that owns it and its last name.
LEFT_OUT = {
    "bert": {"Linear.bias", "LayerNorm.weight", "LayerNorm.bias"},
    "distilbert": {"Linear.bias", "LayerNorm.weight", "LayerNorm.bias"},
    "gpt2": {"Conv1D.bias", "LayerNorm.weight", "LayerNorm.bias"},
    "convnextv2": {
        "Conv2d.bias", "Linear.bias", "LayerNorm.weight", "LayerNorm.bias", "ConvNextV2LayerNorm.weight",
        "ConvNextV2LayerNorm.bias", "ConvNextV2GRN.weight", "ConvNextV2GRN.bias",
    },
    "resnet18": {"BatchNorm2d.weight", "BatchNorm2d.bias", "Linear.bias"},
    "efficientnet_b0": {"BatchNormAct2d.weight", "BatchNormAct2d.bias", "Conv2d.bias", "Linear.bias"},
    "resmlp_12_224": {"Affine.alpha", "Affine.beta", "ResBlock.ls1", "ResBlock.ls2", "Conv2d.bias", "Linear.bias"},
    "nfnet_f0": {"ScaledStdConv2d.gain", "ScaledStdConv2d.bias", "Conv2d.bias", "Linear.bias"},
    "fastvit_t8": {
        "BatchNorm2d.weight", "BatchNorm2d.bias", "BatchNormAct2d.weight", "BatchNormAct2d.bias", "Conv2d.bias",
        "LayerScale2d.gamma", "Linear.bias",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_of_real_networks_exactly_the_matrices_and_kernels_are_pulled(name: str) -> None:
    with torch.device("meta"):
        network = NETWORKS[name]() if name in NETWORKS else timm.create_model(name, pretrained=False, num_classes=1)
    modules = dict(network.named_modules())
    left, pulled = set(), set()
    for parameter, value in network.named_parameters():
        owner, _, own = parameter.rpartition(".")
        (pulled if is_regularised(parameter, value) else left).add(f"{type(modules[owner]).__name__}.{own}")
        kernel = own == "weight" and isinstance(modules[owner], nn.Linear | nn.Embedding | _ConvNd | Conv1D)
        assert is_regularised(parameter, value) == kernel, parameter
    assert left == LEFT_OUT[name]
    assert {own.rpartition(".")[2] for own in pulled} == {"weight"}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_coupling_is_the_gradient_of_the_written_out_penalty(seed: int) -> None:
    net, parameters, pull = made(seed)
    names, values = list(parameters), list(parameters.values())
    expected = torch.autograd.grad(loss_of(net) + written_out(parameters, pull), values)
    loss_of(net).backward()
    add_gradient(pull, parameters)
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=1e-12, atol=1e-14, msg=name)


def test_the_penalty_that_is_logged_is_the_written_out_one() -> None:
    _, parameters, pull = made()
    assert penalty(pull, parameters) == pytest.approx(float(written_out(parameters, pull).detach()), rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(rate=st.floats(1e-8, 0.5), alpha=st.floats(0, 1.9), beta=st.floats(0, 1.9))
def test_the_decoupled_pull_is_its_formula_exactly(rate: float, alpha: float, beta: float) -> None:
    net, parameters, pull = made()
    pull = Pull(pull.anchors, FRESH, alpha, beta)
    loss_of(net).backward()
    before = {n: p.detach().clone() for n, p in parameters.items()}
    rates = {n: rate if n.startswith("head") else rate / 2 for n in parameters}
    pull_back(pull, parameters, rates)
    for name, p in parameters.items():
        w, eta = before[name], rates[name]
        if name not in REGULARISED:
            assert torch.equal(p, w), name
        elif name in FRESH:
            torch.testing.assert_close(p.detach(), (1 - eta * beta) * w, rtol=1e-12, atol=1e-15)
        else:
            expected = w - eta * alpha * (w - pull.anchors[name])
            torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-15)


def to_zero(pull: Pull, strength: float) -> Pull:
    return Pull({n: torch.zeros_like(t) for n, t in pull.anchors.items()}, FRESH, strength, strength)


def adamw(parameters: dict[str, nn.Parameter], rate: float, decay: float) -> torch.optim.AdamW:
    parts = [
        {"params": [p for n, p in parameters.items() if is_regularised(n, p)], "weight_decay": decay},
        {"params": [p for n, p in parameters.items() if not is_regularised(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(parts, lr=rate)


def test_with_anchors_at_zero_it_is_adamws_weight_decay() -> None:
    """Applied where AdamW applies its decay the numbers are equal; applied after the step they differ by η·λ of the step."""
    rate, decay = 0.05, 0.4
    stepped = []
    for order in ("adamw", "before", "after"):
        net, parameters, pull = made()
        pull, rates = to_zero(pull, decay), dict.fromkeys(parameters, rate)
        optimizer = adamw(parameters, rate, decay if order == "adamw" else 0.0)
        start = {n: p.detach().clone() for n, p in parameters.items()}
        loss_of(net).backward()
        if order == "before":
            pull_back(pull, parameters, rates)
        optimizer.step()
        if order == "after":
            pull_back(pull, parameters, rates)
        stepped.append({n: p.detach().clone() for n, p in parameters.items()})
    theirs, before, after = stepped
    for name in theirs:
        torch.testing.assert_close(before[name], theirs[name], rtol=1e-12, atol=1e-15, msg=name)
        step = theirs[name] - (1 - rate * decay) * start[name]
        if name in REGULARISED:
            torch.testing.assert_close(after[name], theirs[name] - rate * decay * step, rtol=1e-10, atol=1e-14)
        else:
            assert torch.equal(after[name], theirs[name])


def couple_loss(pull: Pull, parameters: dict[str, nn.Parameter]) -> None:
    add_gradient(pull, parameters)


def couple_decoupled(pull: Pull, parameters: dict[str, nn.Parameter]) -> None:
    pull_back(pull, parameters, dict.fromkeys(parameters, 0.1))


@pytest.mark.parametrize("couple", [couple_loss, couple_decoupled])
def test_what_has_no_gradient_is_not_pulled(couple: Callable[..., None]) -> None:
    net, parameters, pull = made()
    net.table.requires_grad_(False)
    net.layer.weight.requires_grad_(False)
    loss_of(net).backward()
    parameters["head.weight"].grad = None
    before = {n: p.detach().clone() for n, p in parameters.items()}
    gradients = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
    couple(pull, parameters)
    for name, p in parameters.items():
        assert torch.equal(p, before[name]), name
        assert (p.grad is None) == (name not in gradients)
        assert p.grad is None or torch.equal(p.grad, gradients[name])


@pytest.mark.parametrize("couple", [couple_loss, couple_decoupled])
def test_the_pull_builds_no_graph(couple: Callable[..., None]) -> None:
    net, parameters, pull = made()
    loss_of(net).backward()
    couple(pull, parameters)
    for p in parameters.values():
        assert p.is_leaf
        assert p.requires_grad
        assert p.grad is not None
        assert p.grad.grad_fn is None


@pytest.mark.parametrize("couple", [couple_loss, couple_decoupled])
def test_a_pretrained_weight_without_an_anchor_is_a_mistake_not_a_silence(couple: Callable[..., None]) -> None:
    net, parameters, pull = made()
    loss_of(net).backward()
    forgotten = Pull({n: t for n, t in pull.anchors.items() if n != "layer.weight"}, FRESH, ALPHA, BETA)
    with pytest.raises(KeyError, match=r"layer\.weight"):
        couple(forgotten, parameters)


@pytest.mark.parametrize("coupling", ["loss", "decoupled"])
def test_many_steps_of_either_coupling_bring_the_weights_home(coupling: str) -> None:
    """With a loss that does not care, SGD under either coupling goes to the anchor, and new weights to zero."""
    _, parameters, pull = made()
    pull = Pull(pull.anchors, FRESH, 1.0, 1.0)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    for _ in range(300):
        for p in parameters.values():
            p.grad = torch.zeros_like(p)
        if coupling == "loss":
            add_gradient(pull, parameters)
        optimizer.step()
        if coupling == "decoupled":
            pull_back(pull, parameters, dict.fromkeys(parameters, 0.1))
    for name in REGULARISED:
        target: Any = pull.anchors.get(name, torch.zeros_like(parameters[name]))
        torch.testing.assert_close(parameters[name].detach(), target, atol=1e-9, rtol=0)


ADAPTER = frozenset(f"layer.{part}.default{end}" for part, end in (("lora_A", ".weight"), ("lora_B", ".weight"), ("lora_magnitude_vector", ".weight")))  # fmt: skip


def adapter(seed: int = 0) -> dict[str, nn.Parameter]:
    """What peft calls the parameters of one adapter: A and B of rank 2, and DoRA's magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"layer.lora_A.default.weight": (2, 5), "layer.lora_B.default.weight": (4, 2), "layer.lora_magnitude_vector.default.weight": (4,)}  # fmt: skip
    return {n: nn.Parameter(torch.randn(*size, generator=generator, dtype=torch.float64)) for n, size in sizes.items()}


@pytest.mark.parametrize("coupling", ["loss", "decoupled"])
def test_adapters_go_to_zero_which_is_the_pretrained_network_and_magnitudes_stay(coupling: str) -> None:
    parameters = adapter()
    pull, magnitudes = Pull({}, ADAPTER, 5.0, 1.0), parameters["layer.lora_magnitude_vector.default.weight"].clone()
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    for _ in range(300):
        for p in parameters.values():
            p.grad = torch.zeros_like(p)
        if coupling == "loss":
            add_gradient(pull, parameters)
        optimizer.step()
        if coupling == "decoupled":
            pull_back(pull, parameters, dict.fromkeys(parameters, 0.1))
    update = parameters["layer.lora_B.default.weight"] @ parameters["layer.lora_A.default.weight"]
    assert float(update.detach().norm()) < 1e-9
    assert torch.equal(parameters["layer.lora_magnitude_vector.default.weight"], magnitudes)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_the_penalty_of_an_adapter_is_at_least_the_nuclear_norm_of_its_update(seed: int) -> None:
    """And equal to it for the factors that a singular value decomposition gives."""
    parameters, pull = adapter(seed), Pull({}, ADAPTER, 5.0, BETA)
    a, b = (parameters[f"layer.lora_{side}.default.weight"].detach() for side in "AB")
    u, s, v = torch.linalg.svd(b @ a)
    nuclear = BETA * float(s.sum())
    assert penalty(pull, parameters) >= nuclear * (1 - 1e-12)
    root = s[:2].sqrt()
    best = {
        "layer.lora_A.default.weight": nn.Parameter(root[:, None] * v[:2]),
        "layer.lora_B.default.weight": nn.Parameter(u[:, :2] * root),
    }
    assert penalty(pull, best) == pytest.approx(nuclear, rel=1e-9)


def test_drift_is_the_relative_distance_over_all_anchored_parameters() -> None:
    _, parameters, pull = made()
    moved = sum(float((parameters[n].detach() - a).pow(2).sum()) for n, a in pull.anchors.items())
    start = sum(float(a.pow(2).sum()) for a in pull.anchors.values())
    assert drift(parameters, pull.anchors) == pytest.approx(math.sqrt(moved) / math.sqrt(start), rel=1e-12)
    assert drift({"layer.weight": pull.anchors["layer.weight"] * 1.25}, pull.anchors) == pytest.approx(0.25)
    assert drift(pull.anchors, pull.anchors) == 0.0


def test_drift_of_what_has_no_anchor_is_zero() -> None:
    _, parameters, pull = made()
    assert drift({"head.weight": parameters["head.weight"]}, pull.anchors) == 0.0
    assert drift({}, {}) == 0.0
    assert drift({"w": torch.ones(3)}, {"w": torch.zeros(3)}) == 0.0


def test_drift_survives_numbers_whose_squares_leave_single_precision() -> None:
    tiny = torch.full((10,), 1e-30)
    assert drift({"w": tiny * 3}, {"w": tiny}) == pytest.approx(2.0, rel=1e-5)
