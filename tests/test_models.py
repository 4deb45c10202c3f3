"""SegNet and UNet: shapes, sizes, that they learn, and that memory layout and storage change nothing."""

import pytest
import torch

from pat.losses import cross_entropy
from pat.models import NormalizedConv2d, build_model
from pat.training import to_device

both = pytest.mark.parametrize("name", ["segnet", "unet"])


def trained(name, steps=3, width=4):
    "A model whose batch normalisation has seen images, in evaluation mode."
    model = build_model(name, 10, width=width)
    for _ in range(steps):
        model(torch.randn(2, 3, 32, 32))
    return model.eval()


@both
@pytest.mark.parametrize("size", [(16, 16), (17, 33), (31, 16), (19, 50), (64, 96)])
def test_logits_have_the_size_of_the_images(name, size):
    logits = build_model(name, 7, width=2)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7, *size) and logits.isfinite().all()


@both
def test_every_weight_gets_a_gradient(name):
    model = build_model(name, 3, width=2)
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


def convolutions(channels):
    "9 weights for each pair of channels; batch normalisation has a scale and a shift for each output."
    return sum(9 * a * b + 2 * b for a, b in channels)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("segnet", convolutions(SEGNET) + 9 * 8 * 10 + 10),  # 3x3 classifier with bias
        ("unet", convolutions(UNET) + sum(4 * a * b + b for a, b in UPSAMPLINGS) + 8 * 10 + 10),  # 1x1 classifier
    ],
)
def test_parameter_count(name, expected):
    assert sum(p.numel() for p in build_model(name, 10, width=8).parameters()) == expected


def test_one_convolution_per_stage():
    channels = [(3, 8), (8, 16), (16, 32), (32, 64), (64, 32), (32, 16), (16, 8)]  # the classifier is the eighth
    model = build_model("segnet", 10, width=8, depths=[1, 1, 1, 1])
    assert sum(p.numel() for p in model.parameters()) == convolutions(channels) + 9 * 8 * 10 + 10
    assert model(torch.randn(2, 3, 33, 47)).shape == (2, 10, 33, 47)


@both
def test_normalized_head_gives_cosines(name):
    model = build_model(name, 5, width=4, normalized_head=True).eval()
    images = torch.randn(2, 3, 32, 48)
    logits = model(images)
    assert logits.shape == (2, 5, 32, 48) and logits.abs().max() <= 1 + 1e-5
    logits.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_cosine_of_a_patch_by_hand():
    conv = NormalizedConv2d(1, 1, 3, padding=1)
    torch.nn.init.constant_(conv.weight, 2.0)  # normalised: 1/3 everywhere
    x = torch.zeros(1, 1, 3, 3)
    assert conv(x).eq(0).all()  # no features, no direction
    x[0, 0, 1, 1] = 5.0
    torch.testing.assert_close(conv(x), torch.full((1, 1, 3, 3), 1 / 3))  # one of nine equal weights meets the patch
    torch.testing.assert_close(conv(torch.ones(1, 1, 3, 3))[0, 0, 1, 1], torch.tensor(1.0))  # parallel


def test_default_width_is_32():
    assert build_model("segnet", 10).encoder[0][0].out_channels == 32
    assert build_model("unet", 10).encoder[0][0].out_channels == 32


@both
def test_one_batch_is_learnt_by_heart(name, scenes):
    "From log 10 = 2.3 of a guess, past the 1.6 of the labels' entropy, to below 0.4: 0.1 to 0.2 when measured."
    torch.manual_seed(1)
    batch = torch.from_numpy(scenes.images[:2].copy()), torch.from_numpy(scenes.labels[:2].copy())
    images, target = to_device(batch, torch.device("cpu"))
    model = build_model(name, 10, width=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = cross_entropy(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4


@both
def test_stored_weights_give_the_same_logits(name, tmp_path):
    model, other = trained(name), build_model(name, 10, width=4).eval()
    images = torch.randn(2, 3, 32, 48)
    assert not torch.equal(other(images), model(images))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other(images), model(images))


@both
@pytest.mark.parametrize("size", [(32, 48), (17, 33)])
def test_memory_layout_changes_no_logit(name, size):
    model, images = trained(name), torch.randn(2, 3, *size)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    logits = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@both
def test_images_of_a_batch_do_not_mix_in_evaluation(name):
    model, images = trained(name), torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-4, atol=1e-5)


def test_unknown_model():
    with pytest.raises(ValueError, match=r"unknown model 'segent'\. Did you mean 'segnet'\? There are: .*segnet.*unet"):
        build_model("segent", 10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("segnet", {"depth": 1}, r"unknown option of model 'segnet' 'depth'\. Did you mean 'depths'\?"),
        ("unet", {"depths": [1]}, r"unknown option of model 'unet' 'depths'"),
        ("unet", {"width": 0}, "width is 0, expected a whole number of at least 1"),
        ("unet", {"levels": 2.5}, r"levels is 2\.5, expected a whole number of at least 1"),
        ("segnet", {"depths": [2, 0]}, "an entry of depths is 0, expected a whole number of at least 1"),
    ],
)
def test_options_that_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, 10, **options)
