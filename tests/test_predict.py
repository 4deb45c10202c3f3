"A look at one's own picture: any run, any size, nothing written over, and weights that stand alone."

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from pat.params import ROOT, read_params, run_settings
from pat.predict import (
    enlarged_classes,
    find_run,
    main,
    output_names,
    predict,
    predictor_of_run,
    read_weights,
    with_legend,
)
from pat.training import train, write_outcome

RUN = "streets-segnet-ce"


@pytest.fixture(scope="module")
def project(tmp_path_factory, scenes, scenes_folder):
    "A project with one run that trained for an epoch, as the pipeline leaves it."
    root = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, root / name)
    params = read_params(root / "params.yaml")
    params["train"] |= {"epochs": 1}
    params["datasets"]["streets"] |= {"height": 32, "width": 48}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    outcome = train(run_settings(params, RUN), scenes, root / "checkpoints" / "sample" / RUN, progress=False)
    write_outcome(outcome, root / "results" / "sample")
    known = {key: scenes.meta[key] for key in ("names", "colours", "ignore_index", "statistics", "source_sha256")}
    (root / "results/sample/datasets").mkdir()
    (root / "results/sample/datasets/streets.json").write_text(json.dumps(known))
    return root


@pytest.fixture(scope="module")
def predictor(project):
    return predictor_of_run(find_run(RUN, project), RUN, project)


def photo(folder, name="photo.jpg", size=(90, 61), **options):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


def test_it_sees_what_the_test_of_the_run_saw(predictor, scenes, project):
    counts = np.load(project / "results/sample/runs" / f"{RUN}.npz")["counts"]  # image, class; hit, labelled, predicted
    for i, member in enumerate(scenes.meta["splits"]["test"]):
        classes = predict(predictor, Image.fromarray(scenes.images[member]))
        np.testing.assert_array_equal(np.bincount(classes.ravel(), minlength=10), counts[i, :, 2])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 60), st.integers(1, 60))
def test_logits_are_enlarged_as_torch_does_it(h, w, height, width):
    logits = torch.randn(4, h, w, generator=torch.Generator().manual_seed(h * w))
    wanted = F.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    ours = torch.from_numpy(enlarged_classes(logits, height, width, strip=7)).long()
    chosen = wanted.gather(0, ours[None])[0]
    torch.testing.assert_close(chosen, wanted.amax(0))  # the largest logit, but for ties in the last bits


@pytest.mark.slow
def test_command_line_writes_three_things_at_the_photos_own_size(project, tmp_path):
    file, out = photo(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "pat.predict", RUN, str(file), "-o", str(out)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(f.name for f in out.iterdir()) == ["photo.classes.png", "photo.overlay.png", "shares.csv"]
    numbers = Image.open(out / "photo.classes.png")
    classes, shares = np.asarray(numbers), pd.read_csv(out / "shares.csv")
    assert numbers.size == (90, 61) and numbers.mode == "P" and classes.max() < 10
    names = yaml.safe_load((ROOT / "data/streets/dataset.yaml").read_text())
    assert numbers.getpalette()[:30] == [channel for colour in names["colours"] for channel in colour]
    for row in shares.itertuples():
        share = 100 * (classes == names["names"].index(row[2])).mean()
        assert row.percent == pytest.approx(share, rel=1e-3)
    assert Image.open(out / "photo.overlay.png").size[0] >= 90


def test_photos_are_turned_as_a_viewer_shows_them(project, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    file = photo(tmp_path, exif=exif)
    main([RUN, str(file), "-o", str(tmp_path / "out"), "--root", str(project)])
    assert Image.open(tmp_path / "out/photo.classes.png").size == (61, 90)


def test_an_unreadable_photo_is_named_and_the_others_are_looked_at(project, tmp_path):
    good, bad = photo(tmp_path), tmp_path / "bad.jpg"
    bad.write_bytes(good.read_bytes()[:300])
    missing = tmp_path / "missing.jpg"
    with pytest.raises(SystemExit) as stop:
        main([RUN, str(bad), str(good), str(missing), "-o", str(tmp_path / "out"), "--root", str(project)])
    assert "bad.jpg" in str(stop.value) and "missing.jpg does not exist" in str(stop.value)
    assert (tmp_path / "out/photo.classes.png").exists() and not (tmp_path / "out/bad.classes.png").exists()


def test_nothing_is_written_over_unless_told(project, tmp_path):
    file, arguments = photo(tmp_path), [RUN, str(tmp_path / "photo.jpg"), "--root", str(project)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/photo.overlay.png").write_text("mine")
    with pytest.raises(SystemExit, match=r"overlay.png exists: choose another folder, or say --overwrite"):
        main([*arguments, "-o", str(tmp_path / "out")])
    assert (tmp_path / "out/photo.overlay.png").read_text() == "mine" and file.exists()
    main([*arguments, "-o", str(tmp_path / "out"), "--overwrite"])
    assert Image.open(tmp_path / "out/photo.overlay.png").format == "PNG"


def test_pictures_of_one_name_do_not_share_files():
    paths = [
        Path(p) for p in ("a/x/1.jpg", "b/x/1.jpg", "c/2.jpg", "c/2.png", "C/3.jpg", "d/3.JPG", "p/a.jpg", "p/a.png")
    ]
    names = output_names([*paths, Path("p/a.jpg.png"), Path("p/p-a.jpg")])
    assert len({name.lower() for name in names}) == len(names) == 10
    assert names[:4] == ["x-1", "x-1-2", "c-2", "c-2-2"] and output_names(paths[:1]) == ["1"]


def test_names_of_any_alphabet_are_legible(predictor):
    "Letters that a font lacks are all drawn alike, as a box."
    legends = set()
    for name in ("ü", "é", "ł", "д", "Ω"):
        there = predictor.about | {"names": [name, *predictor.about["names"][1:]]}
        legends.add(with_legend(Image.new("RGB", (90, 20)), np.zeros((20, 90), np.uint8), there).tobytes())
    assert len(legends) == 5


def test_a_run_is_looked_for_in_every_profile(project, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(project, root)
    mine = read_params(root / "params.yaml") | {"profile": "mine", "params_file": "profiles/mine/params.yaml"}
    (root / "profiles/mine").mkdir(parents=True)
    (root / "profiles/mine/params.yaml").write_text(yaml.safe_dump(mine))
    with pytest.raises(ValueError, match="profiles sample and mine both have a run streets-segnet-ce: say which"):
        find_run(RUN, root)
    assert find_run(RUN, root, "mine")["profile"] == "mine"
    with pytest.raises(ValueError, match=r"unknown run 'streets-segnet-cee'. Did you mean 'streets-segnet-ce'"):
        find_run("streets-segnet-cee", root)
    with pytest.raises(ValueError, match=r"unknown profile 'mime'. Did you mean 'mine'"):
        find_run(RUN, root, "mime")


def test_a_run_without_checkpoint_says_what_trains_it(project):
    params = find_run(RUN, project)
    with pytest.raises(FileNotFoundError, match="streets-segnet-focal"):
        predictor_of_run(params, "streets-segnet-focal", project)


@pytest.mark.slow
def test_weights_stand_alone(project, predictor, tmp_path, scenes):
    file, weights = photo(tmp_path), tmp_path / "weights"
    main([RUN, "--export", str(weights), "--root", str(project)])
    again = read_weights(weights / "model.safetensors")
    image = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(again.network(image), predictor.network.cpu()(image))
    with pytest.raises(SystemExit, match=r"model\.safetensors exists: choose another folder, or say --overwrite"):
        main([RUN, "--export", str(weights), "--root", str(project)])
    assert "path" not in again.about["dataset"]  # nobody's folders are passed on
    card = (weights / "card.md").read_text()
    assert "name: segnet" in card and "127.5" in card and "32x48" in card and "| bicycle |" in card
    command = [sys.executable, "-m", "pat.predict", "weights/model.safetensors", file.name, "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)  # no project here
    assert done.returncode == 0, done.stderr
    classes = np.asarray(Image.open(tmp_path / "out/photo.classes.png"))
    np.testing.assert_array_equal(classes, predict(predictor, Image.open(file)))


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_other_files_are_no_weights(tmp_path, content):
    file = tmp_path / "model.safetensors"
    if content is None:
        save_file({"a": torch.zeros(1)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is not what `python -m pat.predict RUN --export` writes"):
        read_weights(file)


def about(predictor, resize):
    return replace(predictor, about=predictor.about | {"dataset": predictor.about["dataset"] | {"resize": resize}})


def test_a_padded_picture_is_seen_without_its_bars(predictor):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 120, 3), dtype=np.uint8))
    padded = Image.new("RGB", (48, 32), (128,) * 3)
    padded.paste(image.resize((48, 16), Image.Resampling.BILINEAR), (0, 8))
    pixels = torch.from_numpy(np.asarray(padded).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        logits = predictor.network(pixels.contiguous())[0][:, 8:24]
    wanted = F.interpolate(logits[None], size=(40, 120), mode="bilinear", align_corners=False)[0].argmax(0)
    assert (predict(about(predictor, "pad"), image) == wanted.numpy()).mean() > 0.999


def test_tiles_are_seen_at_the_pictures_own_resolution(predictor, scenes):
    first, second = (Image.fromarray(scenes.images[i]) for i in (0, 1))
    both = Image.new("RGB", (48 + 20, 32))
    both.paste(first, (0, 0))
    both.paste(second.crop((0, 0, 20, 32)), (48, 0))
    classes = predict(about(predictor, "crop"), both)
    assert classes.shape == (32, 68)
    assert (classes[:, :48] == predict(predictor, first)).mean() > 0.999
