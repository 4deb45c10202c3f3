"""Predictions and the figures that show them, on untrained models and two small street scenes."""

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
import yaml

from pat import datasets, params
from pat.baselines import build_loss
from pat.figures import class_order, first_runs, leading_row, load_scenes, missing, prediction_grid, write_figure
from pat.losses import pat_loss
from pat.models import build_model
from pat.params import ROOT, run_settings

matplotlib.use("agg")
LOSSES = {
    "ce": {"name": "ce"},
    "focal": {"name": "focal"},
    "pat-inverse": {"name": "pat", "beta": "inverse", "epsilon": 1},
    "mask-size": {"name": "pat", "beta": "none", "alpha": 1},
    "pat-exponential": {"name": "pat", "beta": "exponential", "temperature": 2, "kappa": 3, "alpha": 0.5},
}
MODELS = {"segnet": {"name": "segnet", "width": 4, "depths": [1, 1]}, "unet": {"name": "unet", "width": 4, "levels": 2}}
PARAMS = {
    "profile": "sample",
    "root": ".",
    "params_file": "params.yaml",
    "datasets": {"streets": {"format": "folder", "path": "data/streets", "height": 32, "width": 48, "split": "paper"}},
    "models": MODELS,
    "train": {"epochs": 1, "batch_size": 2, "threads": 1},
    "losses": LOSSES,
    "tables": {
        "table1": {"models": ["segnet"], "losses": list(LOSSES)},
        "table2": {"models": ["unet"], "losses": ["ce", "pat-exponential"]},
    },
    "seeds": [0, 1],
    "tune": {},
    "trials": {},
}


def run_notebook(name, **parameters):
    "Run the code cells of a notebook with `parameters` in place of its own. Returns its variables."
    variables = {}
    for cell in nbformat.read(ROOT / "nbs" / f"{name}.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), variables)
            if "parameters" in cell.metadata.get("tags", []):
                assert set(parameters) == set(variables) - {"__builtins__"}
                variables |= parameters
    return variables


@pytest.fixture
def project(tmp_path, monkeypatch, prepared_folder, scenes):
    "A project's root with params.yaml, the two test scenes of the cache, and a checkpoint of every run, untrained."
    values = PARAMS | {"runs": params.grid_runs(PARAMS)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    for module in (params, datasets):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "cache/sample").mkdir(parents=True)
    (tmp_path / "cache/sample/streets").symlink_to(prepared_folder)
    meta = {key: scenes.meta[key] for key in ("names", "colours", "ignore_index")}
    datasets.write_json(tmp_path / "results/sample/datasets/streets.json", meta)
    for run in first_runs(values, "streets").values():
        settings = run_settings(values, run)
        model = build_model(classes=scenes.classes, **settings["model_options"])
        (tmp_path / "checkpoints/sample" / run).mkdir(parents=True)
        state = {"settings": settings, "model": model.state_dict()}
        torch.save(state, tmp_path / "checkpoints/sample" / run / "best.ckpt")
    return tmp_path


def predict():
    run_notebook("experiments/predict", dataset="streets", params_file="params.yaml")


def figure(number, out=None):
    "The variables of a figure's notebook."
    return run_notebook(f"paper/figure{number}", profile="sample", out=out)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_predictions_are_what_the_models_see(project, scenes):
    predict()
    with np.load(project / "results/sample/predictions/streets.npz") as arrays:
        stored = dict(arrays)
    test = scenes.meta["splits"]["test"]
    assert sorted(stored["images"]) == sorted(test) and len(test) == 2  # fewer than four: all
    runs = first_runs(PARAMS | {"runs": params.grid_runs(PARAMS)}, "streets")
    assert len(runs) == 7 and {key.split("/")[1] for key in stored if "/" in key} == set(runs.values())
    for (name, _), run in runs.items():
        model = build_model(classes=scenes.classes, **MODELS[name])
        model.load_state_dict(torch.load(project / f"checkpoints/sample/{run}/best.ckpt")["model"])
        pixels = torch.from_numpy(scenes.images[stored["images"]]).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            logits = model.eval()(pixels)
        assert np.mean(logits.argmax(1).numpy() == stored[f"classes/{run}"]) > 0.999
        for k, image in enumerate(stored["images"]):
            label, seen = scenes.labels[image], stored[f"classes/{run}"][k]
            present = set(np.unique(label)) - {255}
            hits = [np.sum((label == c) & (seen == c)) for c in present]
            unions = [np.sum(((label == c) | (seen == c)) & (label != 255)) for c in present]
            assert np.isclose(stored[f"miou/{run}"][k], np.mean(np.divide(hits, unions)))
        if name == "segnet" and f"logits/{run}" in stored:
            label = scenes.labels[stored["images"][0]]
            for c in np.unique(label[label != 255]):
                rows = np.repeat(np.arange(scenes.classes), stored["sizes"]) == c
                ours = logits[0].numpy()[:, label == c].T
                assert np.allclose(stored[f"logits/{run}"][rows], ours, atol=0.01)
    with_logits = {key for key in stored if key.startswith("logits/")}
    assert with_logits == {"logits/streets-segnet-ce", "logits/streets-segnet-pat-exponential"}


def test_the_same_models_give_the_same_bytes(project):
    predict()
    file = project / "results/sample/predictions/streets.npz"
    before = file.read_bytes()
    predict()
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["streets.npz"]


def test_a_run_without_checkpoint_is_named(project):
    (project / "checkpoints/sample/streets-unet-ce/best.ckpt").unlink()
    message = r"`dvc repro -f -s dvc\.yaml:train@streets-unet-ce` trains run 'streets-unet-ce'"
    with pytest.raises(FileNotFoundError, match=message):
        predict()
    assert not [*(project / "results/sample").rglob("*.npz")]


def test_a_checkpoint_of_other_settings_is_refused(project):
    file = project / "params.yaml"
    file.write_text(file.read_text().replace("kappa: 3", "kappa: 4"))
    run, changed = "streets-segnet-pat-exponential", r"\(loss_options\.kappa is 3 instead of 4\)"
    message = rf"{run}/best\.ckpt was trained with other settings than params\.yaml has {changed}: `dvc repro .*@{run}`"
    with pytest.raises(ValueError, match=message):
        predict()


def test_a_checkpoint_with_an_option_of_former_times_or_none_at_all_is_refused(project):
    file = project / "checkpoints/sample/streets-unet-ce/best.ckpt"
    saved = torch.load(file, weights_only=True)
    saved["settings"]["loss_options"]["gone"] = 0.1
    torch.save(saved, file)
    again = r"`dvc repro -f -s dvc\.yaml:train@streets-unet-ce` trains run 'streets-unet-ce'"
    message = rf"streets-unet-ce/best\.ckpt .* \(loss_options\.gone is 0\.1 instead of nothing\): {again}"
    with pytest.raises(ValueError, match=message):
        predict()
    torch.save(saved["model"], file)
    with pytest.raises(ValueError, match=rf"does not say what it belongs to, it has no 'settings': {again}"):
        predict()


def test_the_loss_map_of_figure_1_is_that_of_the_loss(project, scenes):
    predict()
    figure1 = figure(1)
    image = figure1["scenes"].predictions["images"][0]
    logits = torch.zeros(1, scenes.classes, 32, 48)
    stored = figure1["scenes"].of("logits", "streets-segnet-ce")
    label = torch.from_numpy(scenes.labels[image].astype(np.int64))[None]
    for c in range(scenes.classes):  # put back class by class
        rows = np.repeat(np.arange(scenes.classes), figure1["scenes"].predictions["sizes"]) == c
        logits[0][:, label[0] == c] = torch.from_numpy(stored[rows].astype(np.float32)).T
    options = {"temperature": 2, "kappa": 3, "alpha": 0.5, "scale": "paper"}  # the maps of Eq. 4 itself
    expected = pat_loss(logits, label, "exponential", reduction="none", **options)[0]
    labelled = label[0] != 255
    assert torch.allclose(torch.from_numpy(figure1["final"])[labelled], expected[labelled], rtol=1e-4)
    assert np.isnan(figure1["final"]).sum() == (~labelled).sum()
    p_y = logits.softmax(1).gather(1, label.clamp(max=scenes.classes - 1)[:, None])[0, 0]
    assert np.allclose(figure1["p_y"][labelled], p_y[labelled], atol=1e-5)


def test_figure_3_adds_up_to_the_loss_of_the_image(project, scenes):
    predict()
    figure3 = figure(3)
    sizes = figure3["scenes"].predictions["sizes"]
    absent = np.setdiff1d(np.arange(scenes.classes), scenes.labels[figure3["scenes"].predictions["images"][0]])
    assert len(absent) and (sizes[absent] == 0).all()
    assert (figure3["contribution"][absent] == 0).all()
    figure1 = figure(1)  # the same loss, of the pixels in their places
    assert np.isclose(figure3["contribution"].sum(), np.nansum(figure1["final"]), rtol=1e-4)
    loss = build_loss(**LOSSES["pat-exponential"])
    assert loss.options["temperature"] == 2 and figure3["ratio"]["focal, γ = 2"] < 0.001


@pytest.mark.slow
def test_every_figure_leaves_a_picture_and_a_caption(project):
    predict()
    for number in (1, 3, 4, 5):
        figure(number, out=str(project / "out"))
        for ending in ("pdf", "png", "md"):
            assert (project / f"out/figures/figure{number}.{ending}").stat().st_size > 100
        assert "not in the repository" not in (project / f"out/figures/figure{number}.md").read_text()


@pytest.mark.slow
def test_figures_show_each_row_of_pat_that_has_a_beta(project):
    predict()
    rows = ["image", "label", "cross-entropy", "pat-inverse", "pat-exponential", "focal", "mask-size"]
    figure4, figure5, figure3 = figure(4), figure(5), figure(3)
    assert [ax.get_ylabel() for ax in figure4["fig"].axes if ax.get_ylabel()] == rows
    assert "PAT: pat-inverse with beta inverse, epsilon 1; pat-exponential with alpha 0.5, beta" in figure4["caption"]
    assert [ax.get_ylabel() for ax in figure5["fig"].axes if ax.get_ylabel()] == [
        "image", "label", "UNet\ncross-entropy", "UNet\npat-exponential"]  # fmt: skip
    assert list(figure3["families"]) == ["PAT, inverse, ε = 1", "PAT, exponential, κ = 3", "focal"]
    assert "PAT (pat-inverse, pat-exponential) at four temperatures" in figure3["caption"]
    assert "row pat-exponential (alpha 0.5, beta exponential, kappa 3, temperature 2)" in figure(1)["caption"]


def test_without_pat_or_cross_entropy_the_first_row_is_predicted_and_the_recommended_setting_shown(project):
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["tables"] = {"table1": {"models": ["segnet"], "losses": ["focal", "mask-size"]}}
    values["runs"] = params.grid_runs(values)
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    predict()
    with np.load(project / "results/sample/predictions/streets.npz") as stored:
        assert {key for key in stored if key.startswith("logits/")} == {"logits/streets-segnet-focal"}
    assert "epochs with focal; PAT as recommended." in figure(1)["caption"]
    assert list(figure(3)["families"]) == ["PAT, exponential, κ = 3", "focal"]
    assert figure(5)["caption"] == "This profile has no table2."


def test_the_leading_row_is_exponential_or_else_the_first():
    def leading(*rows):
        return leading_row(PARAMS | {"tables": {"table1": {"models": ["segnet"], "losses": list(rows)}}})

    assert leading("ce", "pat-inverse", "mask-size", "pat-exponential") == "pat-exponential"
    assert leading("mask-size", "pat-inverse") == "pat-inverse"
    assert leading("ce", "mask-size") is None


def texts(fig):
    return [text.get_text() for ax in fig.axes for text in ax.texts]


@pytest.mark.slow
def test_without_the_dataset_the_pictures_are_grey_and_the_rest_is_there(project):
    predict()
    whole = {number: figure(number)["fig"] for number in (3, 4)}
    (project / "cache/sample/streets").unlink()
    alone = {number: figure(number) for number in (1, 3, 4)}
    grey = "image not in\nthe repository"
    assert texts(whole[4]) == [] and texts(alone[4]["fig"]) == [grey] * 4  # image and label of two images
    assert texts(alone[1]["fig"]) == [grey] * 6
    for before, after in zip(whole[4].axes[4:], alone[4]["fig"].axes[4:], strict=True):
        assert np.array_equal(before.images[0].get_array(), after.images[0].get_array())
        assert before.get_xlabel() == after.get_xlabel() != ""
    for number in (1, 4):
        assert "`dvc pull data.dvc`, `dvc repro dvc.yaml:prepare@streets`, " in alone[number]["caption"]
    assert texts(alone[3]["fig"]) == texts(whole[3]) and "not in" not in alone[3]["caption"]  # shows no picture


def test_a_missing_picture_says_how_to_get_a_fetched_dataset():
    data = {"camvid": {"format": "camvid", "path": "datasets/camvid"}}
    camvid = {"params_file": "profiles/camvid/params.yaml", "datasets": data}
    assert "`python -m pat.fetch camvid`, `dvc repro profiles/camvid/dvc.yaml:prepare@camvid`" in missing(
        camvid, "camvid", "figure4")  # fmt: skip


def test_predictions_of_other_images_are_refused(project, scenes):
    predict()
    file = project / "results/sample/predictions/streets.npz"
    with np.load(file) as arrays:
        stored = dict(arrays) | {"source": np.array(["another", "(20, 32, 48)"])}
    np.savez(file, **stored)
    with pytest.raises(ValueError, match=r"streets\.npz is not of the images in .*: run the stage predict@streets"):
        figure(4)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset 'streets' has no predictions .*stage predict@streets makes"):
        figure(4)


def test_a_figure_without_any_of_its_runs_says_so(project):
    predict()
    scenes = load_scenes(project / "results/sample", project / "cache/sample", "streets")
    with pytest.raises(ValueError, match="no run to show"):
        prediction_grid(scenes, {})


def test_class_order_groups_pixels_by_class_and_drops_the_unlabelled():
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 4, 255], size=(9, 7)).astype(np.uint8)
    order = class_order(label)
    expected = sorted((c, i) for i, c in enumerate(label.ravel()) if c != 255)
    assert order.tolist() == [i for _, i in expected]


@pytest.mark.parametrize(("K", "H", "W", "rows"), [(4, 256, 512, 7), (4, 256, 256, 6), (1, 18, 24, 2), (4, 18, 24, 7)])
def test_a_grid_fits_on_a_page(tmp_path, K, H, W, rows):
    names = [f"class {c}" for c in range(20)]
    meta = {"names": names, "colours": [[10 * c, 0, 0] for c in range(20)], "ignore_index": 255}
    datasets.write_json(tmp_path / "datasets/d.json", meta)
    (tmp_path / "predictions").mkdir()
    runs = {f"row {r}": f"run-{r}" for r in range(rows)}
    arrays = {f"classes/{run}": np.zeros((K, H, W), np.uint8) for run in runs.values()}
    arrays |= {f"miou/{run}": np.full(K, 0.5) for run in runs.values()}
    np.savez(tmp_path / "predictions/d.npz", images=np.arange(K), source=["", ""], **arrays)
    fig = prediction_grid(load_scenes(tmp_path, tmp_path / "cache", "d"), runs)
    width, height = fig.get_size_inches()
    assert width <= 7.01 and height <= 9.5
    fig.draw_without_rendering()
    assert min(ax.get_window_extent().width for ax in fig.axes) / fig.dpi > 0.4


def test_figures_are_the_same_bytes_each_time(tmp_path):
    for name in ("a", "b"):
        fig, ax = plt.subplots()
        ax.plot([1, 2])
        write_figure(fig, tmp_path / name, "figure", "A line.")
        plt.close(fig)
    for ending in ("pdf", "png", "md"):
        assert (tmp_path / f"a/figure.{ending}").read_bytes() == (tmp_path / f"b/figure.{ending}").read_bytes()
