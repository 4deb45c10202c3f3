"Networks of segmentation-models-pytorch by name: sizes, options, weights, and the classifier that all networks share."

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pat.encoders import NormalizedConv2d
from pat.models import build_model
from pat.training import check_model


def test_cosine_of_a_patch_by_hand():
    conv = NormalizedConv2d(1, 1, 3, padding=1)
    torch.nn.init.constant_(conv.weight, 2.0)  # normalised: 1/3 everywhere
    x = torch.zeros(1, 1, 3, 3)
    assert conv(x).eq(0).all()  # no features, no direction
    x[0, 0, 1, 1] = 5.0
    torch.testing.assert_close(conv(x), torch.full((1, 1, 3, 3), 1 / 3))  # one of nine equal weights meets the patch
    torch.testing.assert_close(conv(torch.ones(1, 1, 3, 3))[0, 0, 1, 1], torch.tensor(1.0))  # parallel


ARCHITECTURES = ["Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN"]
ARCHITECTURES += ["UPerNet", "Segformer"]
SMP = [*(f"smp/{architecture}/resnet18" for architecture in ARCHITECTURES), "smp/DPT/tu-vit_tiny_patch16_224"]


@pytest.mark.parametrize("name", SMP)
def test_smp_models_take_any_size(name):
    model = build_model(name, 5).eval()
    with torch.no_grad():
        for size in [(1, 1), (33, 70), (64, 96)]:
            logits = model(torch.randn(1, 3, *size))
            assert logits.shape == (1, 5, *size) and logits.isfinite().all()


@pytest.mark.parametrize("name", ["smp/Unet/resnet18", "smp/DPT/tu-vit_tiny_patch16_224"])
def test_smp_normalized_head_gives_cosines(name):
    model = build_model(name, 5, normalized_head=True, in_channels=4).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 4, 33, 70)).abs().max() <= 1 + 1e-5
    assert sum(isinstance(layer, NormalizedConv2d) for layer in model.modules()) == 1


def test_smp_images_are_padded_with_their_edge_and_logits_cut():
    model, images = build_model("smp/FPN/resnet18", 5).eval(), torch.randn(2, 3, 33, 70)
    padded = torch.from_numpy(np.pad(images.numpy(), [(0, 0), (0, 0), (0, 31), (0, 26)], mode="edge"))
    with torch.no_grad():
        assert torch.equal(model(images), model.model(padded)[:, :, :33, :70])
        assert torch.equal(model(padded), model.model(padded))  # 64 x 96 fits


def test_smp_options_reach_the_model():
    model = build_model("smp/Unet/resnet18", 5, encoder_depth=3, decoder_channels=[16, 8, 4])
    assert [block.conv1[0].out_channels for block in model.model.decoder.blocks] == [16, 8, 4] and model.multiple == 8


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smp/Unet", {}, r"model 'smp/Unet' is not of the form smp/<Architecture>/<encoder>, such as smp/"),
        ("smp/unet++/resnet18", {}, r"unknown architecture of .* 'unet\+\+'.*There are: Unet, UnetPlusPlus, MAnet"),
        ("smp/Unet/resnt18", {}, r"encoder of .* 'resnt18'\. Did you mean 'resnet18'\? There are: .*mobileone_s4"),
        ("smp/Unet/tu-resnet_18", {}, r"Did you mean 'tu-resnet18'\? There are: .*tu-<model of timm>$"),
        ("smp/Unet/resnet18", {"decoder_chanels": [1]}, r"unknown option of .* Did you mean 'decoder_channels'\?"),
        ("smp/Unet/resnet18", {"activation": "softmax"}, "unknown option of model .* 'activation'"),  # logits, always
        ("smp/Unet/resnet18", {"encoder_depth": 9}, r"'smp/Unet/resnet18' cannot be built with .*in range \[1, 5\]"),
        ("smp/Unet/resnet18", {"decoder_channels": 3}, "model 'smp/Unet/resnet18' cannot be built with .*'int'"),
        ("smp/DPT/resnet18", {}, "model 'smp/DPT/resnet18' cannot be built with .*must start with 'tu-'"),
        ("smp/Unet/tu-swin_tiny_patch4_window7_224", {}, r"has a built-in image size: give the option img_size"),
        ("smp/Unet/resnet18", {"encoder_weights": "imgnet"}, "weights of resnet18 .*There are: imagenet, ssl, swsl$"),
        ("smp/Unet/resnext101_32x48d", {"encoder_weights": "imagenet"}, "There are: instagram$"),
        ("smp/Unet/tu-resnet18", {"encoder_weights": "imagenet"}, "weights of tu-resnet18 .*There are: a1_in1k,"),
    ],
)
def test_smp_names_and_options_that_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build_model(name, 10, **options)


def test_smp_classes_that_cannot_be():
    with pytest.raises(ValueError, match="classes is 0, expected a whole number of at least 1"):
        build_model("smp/Unet/resnet18", 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smp/Unet/mit_b0", "smp/Unet/tu-swin_tiny_patch4_window7_224"])
def test_smp_encoders_with_needs_of_their_own(name):
    options = {"img_size": [64, 96]} if "swin" in name else {}
    check_model({"name": name, **options}, "here")
    with torch.no_grad():
        assert build_model(name, 3, **options).eval()(torch.randn(1, 3, 60, 90)).shape == (1, 3, 60, 90)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    "No network, and an empty cache in the returned folder."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("name", "weights"), [("smp/Unet/resnet18", "imagenet"), ("smp/Unet/tu-resnet18", "a1_in1k")])
def test_weights_that_cannot_be_downloaded(name, weights, offline):
    message = f"weights '{weights}' of model '{name}' cannot be downloaded from huggingface.co .*Go online"
    with pytest.raises(ConnectionError, match=message):
        build_model(name, 3, encoder_weights=weights)
    check_model({"name": name, "encoder_weights": weights}, "here")  # checking options downloads nothing
    assert not list(offline.iterdir())


def test_weights_from_the_cache_and_the_images_they_know(offline):
    import segmentation_models_pytorch as smp

    revision = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]["revision"]
    snapshot = offline / "models--smp-hub--resnet18.imagenet" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    stored = {k: v.contiguous() for k, v in smp.encoders.get_encoder("resnet18").state_dict().items()}
    save_file(stored, snapshot / "model.safetensors")
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.4]
    (snapshot / "config.json").write_text(f'{{"mean": {mean}, "std": {std}, "input_range": [0, 1]}}')

    model = build_model("smp/Unet/resnet18", 3, encoder_weights="imagenet").eval()
    assert all(torch.equal(v, stored[k]) for k, v in model.model.encoder.state_dict().items())
    pixels = torch.randint(256, (1, 3, 32, 64)) / 255
    known = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(model(2 * pixels - 1), model.model(known), rtol=1e-4, atol=1e-4)
