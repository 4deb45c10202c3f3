"""What is measured beside the runs: cost of a step and gradients of the classes, from small datasets to the figures."""

import json
import shutil

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from miniatures import draw
from scipy import stats

from pat import datasets, params
from pat.datasets import prepare_dataset
from pat.params import ROOT, grid_runs, load_params
from pat.report import geometric_mean, gradient_slope, step_ratio

CLASSES = (3, 14, 20)  # as many as the paper's datasets have
LOSSES = yaml.safe_load((ROOT / "params.yaml").read_text())["tables"]["table1"]["losses"]


def steps(**seconds):
    "A table of steps from the seconds of each round, by loss."
    rows = [(loss, n, value) for loss, values in seconds.items() for n, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["loss", "round", "seconds_per_step"]).sample(frac=1, random_state=0)


def test_step_ratio_is_the_geometric_mean_of_the_ratios_within_rounds():
    frame = steps(ce=[0.1, 1.0, 0.2], pat=[0.2, 1.0, 0.8])  # ratios 2, 1, 4
    ratio, low, high = step_ratio(frame, "pat")
    assert ratio == pytest.approx(2)
    # by hand: logs ln 2 times 1, 0, 2 have standard deviation ln 2; t of 2 degrees of freedom is 4.30265
    assert np.log(high / ratio) == pytest.approx(4.302653 * np.log(2) / 3**0.5, rel=1e-6)
    assert low * high == pytest.approx(ratio**2)
    assert step_ratio(frame, "ce", baseline="pat") == pytest.approx((1 / ratio, 1 / high, 1 / low))
    assert step_ratio(frame.rename(columns={"seconds_per_step": "x"}), "pat", column="x") == (ratio, low, high)


def test_step_ratio_agrees_with_scipy_and_a_slow_machine_changes_nothing():
    rng = np.random.default_rng(1)
    ce, pat, slow = rng.lognormal(0, 0.3, 15), rng.lognormal(0.1, 0.3, 15), rng.lognormal(0, 2, 15)
    test = stats.ttest_1samp(np.log(pat / ce), 0)
    expected = np.exp([np.log(pat / ce).mean(), *test.confidence_interval(0.95)])
    assert step_ratio(steps(ce=ce, pat=pat), "pat") == pytest.approx(tuple(expected))
    assert step_ratio(steps(ce=ce * slow, pat=pat * slow), "pat") == pytest.approx(tuple(expected))


def test_the_interval_of_the_ratio_covers_what_it_says_it_covers():
    rng = np.random.default_rng(2)
    draws = rng.lognormal(np.log(1.05), 0.1, (2000, 15))
    inside = [low <= 1.05 <= high for _, low, high in map(geometric_mean, draws)]
    assert abs(np.mean(inside) - 0.95) < 0.015


def test_one_round_has_no_interval_and_a_loss_that_was_not_measured_is_named():
    ratio, low, high = step_ratio(steps(ce=[0.1], pat=[0.3]), "pat")
    assert ratio == pytest.approx(3) and np.isnan([low, high]).all()
    with pytest.raises(ValueError, match=r"unknown loss among the measured steps 'pta'\. Did you mean 'pat'\?"):
        step_ratio(steps(ce=[0.1], pat=[0.3]), "pta")
    with pytest.raises(ValueError, match="measured steps 'ce'"):
        step_ratio(steps(pat=[0.3]), "pat")


def pulls(norm, share):
    return pd.DataFrame({"class": [f"class {c}" for c in range(len(share))], "norm": norm, "share": share})


@given(st.floats(-2, 2), st.floats(1e-3, 1e3), st.integers(3, 20))
def test_gradient_slope_is_the_exponent_of_a_power_law(exponent, scale, classes):
    share = np.geomspace(1e-3, 0.5, classes)
    slope, low, high = gradient_slope(pulls(scale * share**exponent, share))
    assert slope == pytest.approx(exponent, abs=1e-6)
    assert np.isnan(low) or low - 1e-4 <= slope <= high + 1e-4


def test_gradient_slope_by_hand_and_against_an_independent_fit():
    # logs of the shares are -1, 0, 1 decades, of the norms 0, 1, 0: slope 0, residuals -1/3, 2/3, -1/3, whose squares
    # sum to 2/3; standard error sqrt(2/3 / 1 / 2) = 0.57735, t of 1 degree of freedom 12.7062
    slope, low, high = gradient_slope(pulls([1, 10, 1], [0.001, 0.01, 0.1]))
    assert (slope, low, high) == pytest.approx((0, -12.7062 * 3**-0.5, 12.7062 * 3**-0.5), abs=1e-4)

    rng = np.random.default_rng(3)
    share = rng.uniform(0.001, 0.5, 12)
    norm = share**0.4 * rng.lognormal(0, 0.5, 12)
    coefficients, covariance = np.polyfit(np.log(share), np.log(norm), 1, cov=True)
    half = stats.t.ppf(0.975, 10) * covariance[0, 0] ** 0.5
    expected = coefficients[0], coefficients[0] - half, coefficients[0] + half
    assert gradient_slope(pulls(norm, share)) == pytest.approx(expected)


def test_gradient_slope_leaves_out_classes_that_were_not_seen():
    share, norm = np.array([0.3, 0.1, 0.02, 0.01]), np.array([3, 2, 1, 0.4])
    expected = gradient_slope(pulls(norm, share))
    frame = pulls([*norm, np.nan, 0], [*share, np.nan, 0.2])
    assert gradient_slope(frame) == expected
    assert np.isnan(gradient_slope(pulls([1, 2, np.nan], [0.1, 0.2, np.nan]))).all()
    assert np.isnan(gradient_slope(pulls([1, 2, 3], [0.1, 0.1, 0.1]))).all()
    with pytest.raises(ValueError, match="a class is there twice: pass one measurement"):
        gradient_slope(pd.concat([frame, frame]))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project of three prepared datasets of 24 x 18 pixels, 14 and 20 classes with one in no image and one in one."
    root = tmp_path_factory.mktemp("project")
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    file = "profiles/mini/params.yaml"
    settings |= {"profile": "mini", "root": "../..", "params_file": file, "seeds": [0]}
    settings["tables"] = {"table1": settings["tables"]["table1"]}
    settings["datasets"] = {}
    for classes in CLASSES:
        name, folder = f"mini{classes}", root / "data" / f"mini{classes}"
        for i in range(10):
            common = [*range(classes - 2 if classes > 3 else classes), 255]
            values = [*common, classes - 2] if i == 0 and classes > 3 else common
            draw(folder / "images" / f"{i}.png", i, "RGB")
            draw(folder / "labels" / f"{i}.png", i, values)
        about = {"names": [f"c{c}" for c in range(classes)], "colours": [[c, c, c] for c in range(classes)]}
        (folder / "dataset.yaml").write_text(yaml.safe_dump(about | {"ignore_index": 255}))
        options = {"format": "folder", "path": str(folder), "height": 18, "width": 24, "split": "paper"}
        prepare_dataset(options, root / "cache" / "mini" / name)
        settings["datasets"][name] = options
    settings["runs"] = grid_runs(settings)
    (root / "profiles" / "mini").mkdir(parents=True)
    (root / file).write_text(yaml.safe_dump(settings, sort_keys=False))
    return root


def execute(root, notebook, changes, **parameters):
    "Run a notebook in this process, on a project in `root`, with some of its text changed. Returns its variables."
    code = [cell for cell in nbformat.read(ROOT / "nbs" / notebook, 4).cells if cell.cell_type == "code"]
    sources = [cell.source for cell in code]
    for old, new in changes.items():
        assert sum(old in source for source in sources) == 1, old
        sources = [source.replace(old, new) for source in sources]
    variables = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(params, "ROOT", root)
        patch.setattr(datasets, "ROOT", root)
        patch.setattr(plt, "show", lambda: None)
        for cell, source in zip(code, sources, strict=True):
            exec(source, variables)
            if "parameters" in cell.metadata.get("tags", []):
                assert set(parameters) <= set(variables)
                variables |= parameters
    return variables


FEW_ROUNDS = {"ROUNDS = 15": "ROUNDS = 3", "STEPS = 8": "STEPS = 2"}
FEW_STEPS = {"STEPS = 300": "STEPS = 6"}


def measure(root, notebook, dataset, changes):
    return execute(root, notebook, changes, dataset=dataset, params_file="profiles/mini/params.yaml")


@pytest.fixture(scope="module")
def measured(project):
    "The variables of the notebooks that have measured the three datasets."
    found = {}
    for classes in CLASSES:
        name = f"mini{classes}"
        found["cost", classes] = measure(project, "experiments/cost.ipynb", name, FEW_ROUNDS)
        found["gradients", classes] = measure(project, "experiments/gradients.ipynb", name, FEW_STEPS)
    plt.close("all")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("classes", CLASSES)
def test_every_loss_has_a_turn_in_every_round(project, measured, classes):
    frame = pd.read_csv(project / "results" / "mini" / "steps" / f"mini{classes}.csv")
    assert len(frame) == 3 * len(LOSSES) and set(frame["loss"]) == set(LOSSES)
    orders = [tuple(turns["loss"]) for _, turns in frame.groupby("round")]
    assert len(set(orders)) == 3 and all(sorted(order) == sorted(LOSSES) for order in orders)
    assert (frame["seconds_per_step"] > 0).all() and (frame["cpu_seconds_per_step"] > 0).all()
    assert frame["utilisation"].between(0, 1.05).all()  # of all cores; the two clocks tick differently
    for column, value in {"steps": 2, "steps_per_epoch": 2, "device": "cpu", "threads": 1, "batch_size": 4}.items():
        assert (frame[column] == value).all(), column
    assert (frame.groupby("loss")["peak_memory_mib"].nunique() == 1).all()
    assert not [*(project / "results").rglob("*.tmp*")]


def test_a_slow_machine_gets_shorter_turns_never_fewer_rounds(project):
    few = FEW_ROUNDS | {"SECONDS = 900": "SECONDS = 1e-6"}
    shutil.copytree(project, project.with_name("slow"))
    found = measure(project.with_name("slow"), "experiments/cost.ipynb", "mini3", few)
    assert (found["frame"]["steps"] == 1).all() and found["frame"]["round"].nunique() == 3
    assert len(found["trainer"].batches) == 2  # the memory is that of two steps all the same


@pytest.mark.slow
def test_peak_memory_is_what_is_held_and_the_most_that_a_step_allocates(measured):
    found = measured["cost", 3]
    trainer, kept = found["trainer"], []
    weights = list(trainer.model.parameters())
    buffers = [t for module in (trainer.model, *found["losses"].values()) for t in module.buffers()]
    adam = sum(2 * w.nbytes + 4 for w in weights)  # two averages, and the number of the step
    held = sum(t.nbytes for t in [*weights, *buffers]) + adam

    def train_epoch(trainer, bar):  # 1 MiB stays, 3 MiB come and go, then 2: at most 1 + 3 at once
        kept.append(torch.empty(2**20, dtype=torch.uint8))
        for size in (3, 2):
            torch.empty(size * 2**20, dtype=torch.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(found, "train_epoch", train_epoch)
        assert found["peak_memory"]("ce") == held / 2**20 + 4
    assert found["peak_memory"]("ce") > (held + sum(w.nbytes for w in weights)) / 2**20  # and gradients, activations


@pytest.mark.slow
def test_losses_that_change_the_logits_hold_one_more_array_of_their_size(measured):
    memory = measured["cost", 20]["frame"].groupby("loss")["peak_memory_mib"].first()
    logits = 4 * 20 * 18 * 24 * 4 / 2**20  # 4 images, 20 classes, float32
    assert memory["bms"] - memory["ce"] == pytest.approx(logits, rel=0.25)
    assert memory["pat-exponential"] - memory["ce"] < logits / 4


@pytest.mark.slow
def test_gpu_utilisation_is_the_mean_of_the_samples_after_the_first_second(measured):
    found = measured["cost", 3]
    samples, clock = iter([20, 40, 60]), iter([0, 0.5, 1.5, 2.5, 3.5, 4.5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "utilization", lambda device: next(samples))
        patch.setattr(found["time"], "perf_counter", lambda: next(clock))
        patch.setitem(found, "train_epoch", lambda trainer, bar: None)
        assert found["gpu_utilisation"]("ce") == pytest.approx(0.3)  # at 1.5 and 2.5 s


@pytest.mark.slow
@pytest.mark.parametrize("classes", CLASSES)
def test_gradients_have_a_row_for_every_class_weight_and_state(project, measured, classes):
    frame = pd.read_csv(project / "results" / "mini" / "gradients" / f"mini{classes}.csv")
    states = [("before training", "nothing"), ("after 6 steps", "cross-entropy"), ("after 6 steps", "mask-size weight")]
    assert list(dict.fromkeys(zip(frame["when"], frame["trained_with"], strict=True))) == states
    for _, part in frame.groupby(["when", "trained_with", "weight"]):
        assert list(part["class"]) == [f"c{c}" for c in range(classes)]
        there = json.loads((project / f"cache/mini/mini{classes}/meta.json").read_text())["statistics"]["train"]
        assert list(part["norm"].isna()) == [images == 0 for images in there["class_images"]]
        assert (part["norm"].isna() == part["share"].isna()).all()
    before = frame[frame["when"] == "before training"].set_index(["weight", "class"])
    equal = before.loc["none", "norm"] / (before.loc["mask size", "norm"] * before.loc["none", "share"])
    assert np.allclose(equal.dropna(), 1, atol=0.15)  # Eq. 6, up to the mean over images of a product


@pytest.mark.slow
def test_gradients_are_those_of_autograd_on_the_loss_of_one_class(measured):
    found = measured["gradients", 14]
    model, (images, target) = found["exact"], found["image"](found["member"])
    nll = torch.nn.functional.cross_entropy(model(images.double()), target, ignore_index=255, reduction="none")
    mine = found["class_gradients"](model, images.double(), target)
    for c in found["present"]:
        for weight, pixels in (("none", target.numel()), ("mask size", (target == c).sum())):
            model.zero_grad()
            (nll[target == c].sum() / pixels).backward(retain_graph=True)
            expected = torch.cat([w.grad.flatten() for w in model.parameters()])
            assert torch.allclose(mine[weight, c], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.slow
def test_the_figures_of_the_three_datasets(project, measured):
    figures = project / "results" / "mini" / "figures"
    cost = execute(project, "paper/figure6.ipynb", {}, profile="mini", out="results/mini")
    equations = execute(project, "paper/equations6_7.ipynb", {}, profile="mini", out="results/mini")
    for name in ("figure6", "equations6_7"):
        assert all((figures / f"{name}.{ending}").stat().st_size > 500 for ending in ("pdf", "png"))
        caption = (figures / f"{name}.md").read_text()
        assert "mini3, mini14, mini20; segnet" in caption
    assert cost["axes"].shape == equations["axes"].shape == (3, 3)
    assert cost["axes"][0, 0].get_title("right") == "filled: wall time, open: CPU time"
    for figure in (cost["fig"], equations["fig"]):
        figure.draw_without_rendering()
        for ax in figure.axes:
            boxes = [plt.Text.get_window_extent(text) for text in ax.texts]  # without the leader
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
            inside = ax.get_window_extent().padded(1)
            for line in ax.lines:  # no class lies outside of its panel
                points = ax.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
                marked = line.get_marker() in ("o", "s") and line.get_linestyle() == "None"
                assert not marked or all(inside.contains(*p) for p in points if not np.isnan(p).any())
    ticks = [label.get_text() for label in equations["axes"][2, 0].get_yticklabels()]
    assert "c19  absent" in ticks and len(ticks) == 20
    plt.close("all")


@pytest.mark.slow
def test_figure6_without_utilisation_and_on_a_gpu(project, measured):
    root = project.with_name("gpu")
    shutil.copytree(project, root)
    for file in (root / "results" / "mini" / "steps").glob("*.csv"):
        pd.read_csv(file).assign(utilisation=np.nan, device="NVIDIA H100").to_csv(file, index=False)
    found = execute(root, "paper/figure6.ipynb", {}, profile="mini", out="results/mini")
    time, memory, busy = found["axes"][0]
    assert [text.get_text() for text in busy.texts] == ["not known"] and not memory.texts
    assert not time.get_title("right")  # CPU time has no marker
    caption = (root / "results/mini/figures/figure6.md").read_text()
    assert "NVIDIA H100" in caption and "CPU" not in caption
    plt.close("all")


def test_what_is_missing_is_named(project, tmp_path):
    with pytest.raises(ValueError, match=r"unknown dataset of \S+params.yaml 'mini4'\. Did you mean 'mini14'\?"):
        measure(project, "experiments/gradients.ipynb", "mini4", {})
    (tmp_path / "profiles").mkdir()
    shutil.copytree(project / "profiles", tmp_path / "profiles", dirs_exist_ok=True)
    for notebook, folder in (("figure6", "steps"), ("equations6_7", "gradients")):
        with pytest.raises(FileNotFoundError, match=f"{folder}/mini3.csv does not exist: `dvc repro` measures it"):
            execute(tmp_path, f"paper/{notebook}.ipynb", {}, profile="mini")


def test_params_of_the_miniatures_are_sound(project):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(params, "ROOT", project)
        assert load_params("profiles/mini/params.yaml")["profile"] == "mini"
