"The models: shapes, sizes, parameters, that they learn, and that storage, layout, compiler and export change nothing."

import shutil
import subprocess
import sys
from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pat.losses import cross_entropy
from pat.models import AttentionGate, AttentionUNet, UNet, UNetPlusPlus, build_model
from pat.training import to_device

KINDS = {
    "segnet": ("segnet", {}),
    "segnet-vgg16": ("segnet", {"depths": [2, 2, 3, 3, 3]}),
    "unet": ("unet", {}),
    "attunet": ("attunet", {}),
    "unet++": ("unet++", {}),
    "unet++deep": ("unet++", {"deep_supervision": True}),
}
all_kinds = pytest.mark.parametrize("kind", KINDS)


def build(kind, classes=10, **options):
    name, own = KINDS[kind]
    return build_model(name, classes, **(own | options))


def trained(kind, width=4, **options):
    "A model in evaluation mode whose batch normalisation knows its features, as it does after training."
    model = build(kind, width=width, **options)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1  # the statistics of the last batch alone
    model(torch.randn(2, 3, 64, 64))
    return model.eval()


@all_kinds
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (16, 16), (17, 33), (31, 16), (19, 50), (64, 96)])
def test_logits_have_the_size_of_the_images(kind, size):
    logits = build(kind, 7, width=2)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7, *size) and logits.isfinite().all()


@all_kinds
def test_any_size_in_evaluation(kind):
    model = build(kind, 3, width=1).eval()

    @settings(max_examples=40)
    @given(st.integers(1, 70), st.integers(1, 70))
    def check(height, width):
        with torch.no_grad():
            assert model(torch.zeros(1, 3, height, width)).shape == (1, 3, height, width)

    check()


@all_kinds
def test_every_weight_gets_a_gradient(kind):
    model = build(kind, 3, width=2)
    model(torch.randn(2, 3, 33, 47)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n.startswith("encoder.0.0"))


# input and output channels of every 3x3 convolution at width 8, in the order of the data
SEGNET = [
    *[(3, 8), (8, 8)],  # full resolution
    *[(8, 16), (16, 16)],  # 1/2
    *[(16, 32), (32, 32), (32, 32)],  # 1/4
    *[(32, 64), (64, 64), (64, 64)],  # 1/8
    *[(64, 64), (64, 64), (64, 32)],  # and back up, mirrored
    *[(32, 32), (32, 32), (32, 16)],
    *[(16, 16), (16, 8)],
    *[(8, 8)],  # the mirror image of (3, 8) is the classifier
]
VGG16 = SEGNET + 6 * [(64, 64)]  # a fifth stage as wide as the fourth, down and up
UNET = [
    *[(3, 8), (8, 8)],
    *[(8, 16), (16, 16)],
    *[(16, 32), (32, 32)],
    *[(32, 64), (64, 64)],
    *[(64, 128), (128, 128)],  # 1/16
    *[(128, 64), (64, 64)],  # 64 channels from below and 64 of the skip connection
    *[(64, 32), (32, 32)],
    *[(32, 16), (16, 16)],
    *[(16, 8), (8, 8)],
]
UPSAMPLINGS = [(128, 64), (64, 32), (32, 16), (16, 8)]  # 2x2 transposed convolutions of UNet
NESTED = [
    *UNET[:10],  # the same encoder
    *[(16, 8), (8, 8), (24, 8), (8, 8), (32, 8), (8, 8), (40, 8), (8, 8)],  # X^{0,1} to X^{0,4}
    *[(32, 16), (16, 16), (48, 16), (16, 16), (64, 16), (16, 16)],  # X^{1,1} to X^{1,3}
    *[(64, 32), (32, 32), (96, 32), (32, 32)],
    *[(128, 64), (64, 64)],
]
NESTED_UPSAMPLINGS = 4 * [(16, 8)] + 3 * [(32, 16)] + 2 * [(64, 32)] + [(128, 64)]


def convolutions(channels):
    "9 weights for each pair of channels; batch normalisation has a scale and a shift for each output."
    return sum(9 * a * b + 2 * b for a, b in channels)


def upsamplings(channels):
    "2x2 weights for each pair of channels, and a bias for each output."
    return sum(4 * a * b + b for a, b in channels)


def gates(channels):
    "1x1 weights from the features, and from twice as many coarser ones with biases; one output of the sum, with bias."
    return sum(a * a + 2 * a * a + a + a + 1 for a in channels)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("segnet", convolutions(SEGNET) + 9 * 8 * 10 + 10),  # 3x3 classifier with bias
        ("segnet-vgg16", convolutions(VGG16) + 9 * 8 * 10 + 10),
        ("unet", convolutions(UNET) + upsamplings(UPSAMPLINGS) + 8 * 10 + 10),  # 1x1 classifier
        ("attunet", convolutions(UNET) + upsamplings(UPSAMPLINGS) + gates([16, 32, 64]) + 8 * 10 + 10),
        ("unet++", convolutions(NESTED) + upsamplings(NESTED_UPSAMPLINGS) + 8 * 10 + 10),
        ("unet++deep", convolutions(NESTED) + upsamplings(NESTED_UPSAMPLINGS) + 4 * (8 * 10 + 10)),
    ],
)
def test_parameter_count(kind, expected):
    assert sum(p.numel() for p in build(kind, width=8).parameters()) == expected


def test_one_convolution_per_stage():
    channels = [(3, 8), (8, 16), (16, 32), (32, 64), (64, 32), (32, 16), (16, 8)]  # the classifier is the eighth
    model = build_model("segnet", 10, width=8, depths=[1, 1, 1, 1])
    assert sum(p.numel() for p in model.parameters()) == convolutions(channels) + 9 * 8 * 10 + 10
    assert model(torch.randn(2, 3, 33, 47)).shape == (2, 10, 33, 47)


def test_a_gate_by_hand():
    gate = AttentionGate(1, 1)
    for parameter, value in [(gate.w_x.weight, 2), (gate.w_g.weight, 3), (gate.w_g.bias, -1), (gate.psi.weight, 0.5)]:
        torch.nn.init.constant_(parameter, value)
    torch.nn.init.constant_(gate.psi.bias, 0.25)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])  # the coarse grid sees the first pixel
    for g, score in [(1.0, 0.5 * (2 * 1 + 3 * 1 - 1) + 0.25), (-0.5, 0.25)]:  # 2 * 1 - 3 * 0.5 - 1 < 0: ReLU
        expected = x / (1 + np.exp(-score))
        torch.testing.assert_close(gate(x, torch.full((1, 1, 1, 1), g)), expected)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1)])
def test_a_gate_strides_by_two(size):
    "The pixels that it leaves out are those of a convolution with stride 2, in NCHW, whose kernel is sound."
    gate, x, g = AttentionGate(4, 8), torch.randn(2, 4, *size), torch.randn(2, 8, *[-(-n // 2) for n in size])
    strided = F.conv2d(x, gate.w_x.weight, stride=2)
    alpha = gate.psi(F.relu(strided + gate.w_g(g))).sigmoid()
    expected = x * F.interpolate(alpha, size=size, mode="bilinear")
    torch.testing.assert_close(gate(x.contiguous(memory_format=torch.channels_last), g), expected)


@all_kinds
def test_no_narrow_layer_has_a_kernel_that_corrupts_memory(kind):
    "torch 2.14, AVX2: the backward pass of a 1x1 convolution with stride 2 of fewer than 8 channels_last channels."
    for module in build(kind, width=2).modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1):
            assert module.stride == (1, 1), module


def test_open_gates_make_a_unet():
    unet, gated = trained("unet"), trained("attunet")
    missing, unexpected = gated.load_state_dict(unet.state_dict(), strict=False)
    assert not unexpected and {name.split(".")[0] for name in missing} == {"gates"}
    images = torch.randn(2, 3, 37, 50)
    assert not torch.allclose(gated(images), unet(images))
    for gate in gated.gates:
        torch.nn.init.zeros_(gate.psi.weight)
        torch.nn.init.constant_(gate.psi.bias, 100.0)
    torch.testing.assert_close(gated(images), unet(images))


def test_gates_are_steered_by_the_coarser_level():
    model = AttentionUNet(3, width=2, levels=3)
    assert len(model.gates) == 1  # not on the first level
    seen = []
    model.gates[0].register_forward_hook(lambda module, inputs, output: seen.extend(inputs))
    model.eval()(torch.randn(1, 3, 21, 30))
    assert [tuple(x.shape) for x in seen] == [(1, 4, 11, 15), (1, 8, 6, 8)]


def nodes(model, images):
    "The nodes of UNet++ by recursion, as the equation is written."

    @cache
    def X(i, j):
        if j == 0:
            return model.encoder[i](F.max_pool2d(X(i - 1, 0), 2, ceil_mode=True) if i else images)
        H, W = X(i, 0).shape[2:]
        row = [X(i, k) for k in range(j)]
        return model.decoder[j - 1][i](torch.cat([*row, model.up[j - 1][i](X(i + 1, j - 1))[:, :, :H, :W]], 1))

    return X


def test_nested_nodes_follow_the_equation():
    model, images = trained("unet++deep"), torch.randn(2, 3, 37, 50)
    X = nodes(model, images)
    expected = sum(model.heads[j - 1](X(0, j)) for j in range(1, 5)) / 4
    torch.testing.assert_close(model(images), expected)
    plain = trained("unet++")
    torch.testing.assert_close(plain(images), plain.heads[0](nodes(plain, images)(0, 4)))


def test_a_branch_of_deep_supervision_is_a_smaller_net():
    model, images = trained("unet++deep"), torch.randn(2, 3, 32, 32)
    model.heads[0](nodes(model, images)(0, 1)).square().sum().backward()
    reached = {name.split(".")[1] for name, p in model.named_parameters() if "encoder" in name and p.grad is not None}
    assert reached == {"0", "1"}  # X^{0,1} belongs to the net of two levels


@pytest.mark.parametrize("model", [UNet(3, 2, levels=1), AttentionUNet(3, 2, 1), UNetPlusPlus(3, 2, 1)])
def test_one_level_is_two_convolutions_and_a_classifier(model):
    assert sum(p.numel() for p in model.parameters()) == convolutions([(3, 2), (2, 2)]) + 3 * 2 + 3
    assert model(torch.randn(2, 3, 5, 6)).shape == (2, 3, 5, 6)


@all_kinds
def test_normalized_head_gives_cosines(kind):
    model = build(kind, 5, width=4, normalized_head=True).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(1e3 if name.startswith("head") else 1)  # a cosine has no scale
    images = torch.randn(2, 3, 32, 48)
    logits = model(images)
    assert logits.shape == (2, 5, 32, 48) and logits.abs().max() <= 1 + 1e-5
    logits.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@all_kinds
def test_default_width_is_32_and_channels_of_the_image_are_free(kind):
    assert build(kind).encoder[0][0].out_channels == 32
    assert build(kind, 3, width=2, in_channels=4)(torch.randn(2, 4, 20, 20)).shape == (2, 3, 20, 20)


@all_kinds
def test_one_batch_is_learnt_by_heart(kind, scenes):
    "From log 10 = 2.3 of a guess, past the 1.6 of the labels' entropy, to below 0.4: 0.13 to 0.33 over three seeds."
    torch.manual_seed(1)
    batch = torch.from_numpy(scenes.images[:2].copy()), torch.from_numpy(scenes.labels[:2].copy())
    images, target = to_device(batch, torch.device("cpu"))
    model = build(kind, width=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = cross_entropy(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4


@all_kinds
def test_stored_weights_give_the_same_logits(kind, tmp_path):
    model, other = trained(kind), build(kind, width=4).eval()
    images = torch.randn(2, 3, 32, 48)
    assert not torch.equal(other(images), model(images))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other(images), model(images))


@all_kinds
@pytest.mark.parametrize("size", [(32, 48), (17, 33)])
def test_memory_layout_changes_no_logit(kind, size):
    model, images = trained(kind), torch.randn(2, 3, *size)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    logits = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


@all_kinds
def test_images_of_a_batch_do_not_mix_in_evaluation(kind):
    model, images = trained(kind), torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-3, atol=1e-4)


# the same code as at full depth, in a fraction of the compiler's time
SHALLOW = {
    "segnet": {"depths": [1, 1]},
    "unet": {"levels": 2},
    "attunet": {"levels": 3},
    "unet++deep": {"levels": 3},
}


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("kind", SHALLOW)
def test_compiled_model_gives_the_same_logits(kind):
    model, images = trained(kind, **SHALLOW[kind]), torch.randn(2, 3, 17, 33)
    with torch.no_grad():
        logits = torch.compile(model, fullgraph=True)(images)
        torch.testing.assert_close(logits, model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", SHALLOW)
def test_onnx_file_gives_the_same_logits_at_any_size(kind, tmp_path):
    model, file = trained(kind, **SHALLOW[kind]), tmp_path / "model.onnx"
    any_size = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
    torch.onnx.export(
        model, (torch.randn(2, 3, 21, 34),), file, dynamo=True, dynamic_shapes=(any_size,), input_names=["images"]
    )
    session = onnxruntime.InferenceSession(file)
    for batch, *size in [(2, 21, 34), (1, 32, 48), (3, 17, 33), (1, 5, 6)]:
        images = torch.randn(batch, 3, *size)
        (logits,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(images), rtol=1e-3, atol=1e-4)


def test_unknown_model():
    known = r"There are: segnet, unet, attunet, unet\+\+, smp/<Architecture>/<encoder>$"
    with pytest.raises(ValueError, match=r"unknown model 'segent'\. Did you mean 'segnet'\? " + known):
        build_model("segent", 10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("segnet", {"depth": 1}, r"unknown option of model 'segnet' 'depth'\. Did you mean 'depths'\?"),
        ("unet", {"depths": [1]}, r"unknown option of model 'unet' 'depths'"),
        ("unet", {"deep_supervision": True}, r"unknown option of model 'unet' 'deep_supervision'"),
        ("unet", {"width": 0}, "width is 0, expected a whole number of at least 1"),
        ("unet", {"levels": 2.5}, r"levels is 2\.5, expected a whole number of at least 1"),
        ("attunet", {"levels": 0}, "levels is 0, expected a whole number of at least 1"),
        ("unet++", {"in_channels": "3"}, "in_channels is '3', expected a whole number of at least 1"),
        ("segnet", {"depths": []}, r"depths is \[\], expected a list of whole numbers"),
        ("segnet", {"depths": 3}, "depths is 3, expected a list of whole numbers"),
        ("segnet", {"depths": [2, 0]}, "an entry of depths is 0, expected a whole number of at least 1"),
        ("segnet", {"width": True}, "width is True, expected a whole number of at least 1"),
    ],
)
def test_options_that_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, 10, **options)


@pytest.mark.parametrize("name", ["segnet", "unet", "attunet", "unet++"])
def test_classes_that_cannot_be(name):
    with pytest.raises(ValueError, match="classes is 0, expected a whole number of at least 1"):
        build_model(name, 0)


def test_segmentation_models_pytorch_is_imported_only_where_it_is_needed():
    code = "import sys; from pat.models import build_model; build_model('unet', 3, width=1); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"pat.models", "pat.encoders"} <= set(modules)
    assert not {"segmentation_models_pytorch", "timm", "torchvision", "yaml", "lightning_fabric"} & set(modules)
