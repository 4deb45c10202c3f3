"Whatever passes the check of a params.yaml trains and draws: what is refused, and what is drawn of the rest."

import copy
import re
import shutil

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from pat.datasets import write_json
from pat.figures import first_runs, leading_row
from pat.params import ROOT, grid_runs, load_params, run_settings, write_file
from pat.tables import baseline_row
from pat.training import check_params, main

matplotlib.use("agg")
MINE = {
    "profile": "mine",
    "root": "../..",
    "params_file": "profiles/mine/params.yaml",
    "datasets": {"d": {"format": "folder", "path": "datasets/d", "height": 8, "width": 8, "split": "paper"}},
    "models": {"net": {"name": "segnet", "width": 4, "depths": [1]}},
    "train": {"epochs": 1, "batch_size": 4},
    "losses": {"ce": {"name": "ce"}, "soft": {"name": "pat", "beta": "exponential"}},
    "tables": {"table1": {"models": ["net"], "losses": ["ce", "soft"]}},
    "seeds": [0],
    "tune": {},
    "trials": {},
}


@pytest.fixture
def write(tmp_path):
    "Writes a profile with some sections replaced into a small project; returns its params.yaml."
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)

    def write(**sections):
        params = copy.deepcopy(MINE) | sections
        runs = {} if "runs" in sections else {"runs": grid_runs(params)}
        file = tmp_path / "profiles/mine/params.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(params | runs, sort_keys=False))
        if not (file.parent / "dvc.yaml").exists():
            (file.parent / "dvc.yaml").symlink_to("../../dvc.yaml")
        return file

    return write


def dataset(**options):
    return {"d": MINE["datasets"]["d"] | options}


def refused(file, message):
    with pytest.raises((ValueError, OSError), match=message):
        check_params(file)
    with pytest.raises(SystemExit, match=rf"^error: .*{message}"):
        main([str(file)])


# --- what is refused


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "is None, expected a folder from the project's root, such as datasets/mine"),
        (3, "is 3, expected a folder"),
        (True, "is True, expected a folder"),
        ("", "is '', expected a folder"),
        (" data", "is ' data', expected a folder"),
        ("a\nb", "expected a folder"),
        (["data"], r"is \['data'\], expected a folder"),
        ({"a": 1}, "is {'a': 1}, expected a folder"),
        ("~/data", "is '~/data', and nobody expands that"),
        ("~me/data", "nobody expands that"),
        ("$HOME/data", "nobody expands that"),
        ("${HOME}/data", "nobody expands that"),
        ("data/${item}", "nobody expands that"),
        ("https://example.org/a.zip", "nobody expands that"),
        ("C:\\data\\mine", "write it with forward slashes, 'C:/data/mine'"),
        ("datasets\\mine", "write it with forward slashes, 'datasets/mine'"),
        (".", "which holds the project itself"),
        ("..", "which holds the project itself"),
        ("../..", "which holds the project itself"),
        ("/", "which holds the project itself"),
        ("data/..", "which holds the project itself"),
        ("cache", "inside of cache, which is written to"),
        ("cache/mine/d", "inside of cache"),
        ("./results/mine", "inside of results"),
        ("data/../checkpoints/x", "inside of checkpoints"),
    ],
)
def test_a_path_that_cannot_be(write, path, message):
    refused(write(datasets=dataset(path=path)), rf"path of dataset 'd' in .*params\.yaml .*{message}")


def test_a_path_by_way_of_a_link_is_seen_through(write, tmp_path):
    (tmp_path / "mine").symlink_to(tmp_path)
    refused(write(datasets=dataset(path="mine")), "which holds the project itself")
    refused(write(datasets=dataset(path=str(tmp_path))), "which holds the project itself")


@pytest.mark.parametrize("path", ["datasets/d", "../elsewhere", "/data/my photos", "datasets/größe", "C:/d"])
def test_a_path_that_may_be(write, path):
    assert check_params(write(datasets=dataset(path=path)))["datasets"]["d"]["path"] == path


def test_resize_is_an_option(write):
    for resize in ("squeeze", "pad", "crop"):
        check_params(write(datasets=dataset(resize=resize)))
    refused(write(datasets=dataset(resize="padd")), r"unknown resize of dataset 'd' .*'padd'\. Did you mean 'pad'\?")


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("train", None, r"params\.yaml: the section train is None, expected entries"),
        ("train", [1], "the section train is .*expected entries"),
        ("train", {"epochs": 1, "batch_size": 4, "lr": True}, "train.lr is True, expected a number above 0"),
        ("train", {"epochs": 1, "batch_size": 4, "lr": "1e-3"}, "train.lr is '1e-3', expected a number above 0"),
        ("train", {"epochs": 1, "batch_size": 4, "channels_last": "yes"}, "unknown value of train.channels_last 'yes'"),
        ("train", {"epochs": 1, "batch_size": 4, "accelerator": "gpuu"}, "accelerator 'gpuu'. Did you mean 'gpu'"),
        ("tables", {}, r"tables of .* has no table1.*write `table1: {models: \[net\], losses: \[ce\]}`"),
        ("tables", {"table2": MINE["tables"]["table1"]}, "has no table1, which says what to train and to draw"),
        ("tables", MINE["tables"] | {"tabel2": MINE["tables"]["table1"]}, "'tabel2'. Did you mean 'table2'"),
        ("losses", {"ce": {"name": "ce"}, "soft": {"name": "pat", "ignore_index": 0}}, "ignore_index, which com"),
    ],
)
def test_sections_that_cannot_be(write, section, value, message):
    refused(write(**{section: value}), message)


@pytest.mark.parametrize("key", ["models", "losses"])
def test_table1_needs_a_model_and_a_loss(write, key):
    refused(write(runs={}, tables={"table1": MINE["tables"]["table1"] | {key: []}}), f"{key} of table 'table1' in .*")


@pytest.mark.parametrize("section", ["datasets", "models", "losses"])
def test_a_section_without_entries(write, section):
    refused(write(**{section: {}, "runs": {}, "tables": {}}), f"{section} of .* has no entry")


def test_a_copied_profile_is_refused(write):
    refused(write(profile="other"), "elsewhere .profile is 'other'.: change the lines to `profile: mine`")


def test_a_profile_needs_the_pipeline_beside_it(write, tmp_path):
    file = write()
    pipeline = file.with_name("dvc.yaml")
    check_params(file)
    pipeline.unlink()
    copy_it = re.escape(f"copy {tmp_path}/dvc.yaml there")
    refused(file, f"profiles/mine/dvc.yaml does not exist.*{copy_it}")
    pipeline.write_text("../../dvc.yaml")
    refused(file, f"is the text of a link, as Git for Windows leaves it: {copy_it}")
    pipeline.write_bytes((tmp_path / "dvc.yaml").read_bytes().replace(b"\n", b"\r\n"))
    check_params(file)
    pipeline.write_text("stages: {}\n")
    refused(file, f"is not the pipeline of the project any more: {copy_it}")
    (tmp_path / "dvc.yaml").unlink()
    refused(file, "dvc.yaml does not exist: it is the pipeline of all profiles")


def test_the_check_takes_the_file_of_the_working_directory(write, monkeypatch, capsys):
    monkeypatch.chdir(write().parent)
    main(["params.yaml"])
    assert capsys.readouterr().out == "profiles/mine/params.yaml: 2 runs, all names and options exist\n"


# --- what is drawn

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PAPER = ["table1", "table2", "table3", "figure1", "figure2", "figure3", "figure4", "figure5", "figure6", "figure7",
         "figure8", "figure9", "figure10", "figure11",
         "equations6_7", "curves", "claims", "report"]  # fmt: skip
SIZE, IMAGES = (12, 16), 3


def scores(counts):
    "What a run's JSON says of counts (N, C, 3); the groups are thirds, the first class is the most frequent."
    hit, labelled, predicted = counts.sum(0).T
    iou = hit / np.maximum(labelled + predicted - hit, 1)
    groups = {f"miou_{name}": iou[part].mean() if len(part) else None
              for name, part in zip(("head", "medium", "tail"), thirds(len(iou)), strict=True)}  # fmt: skip
    return groups | {"miou": iou.mean(), "miou_released": iou.mean(), "pixel_accuracy": hit.sum() / labelled.sum(),
                     "dice_error": 1 - (2 * iou / (1 + iou)).mean()}  # fmt: skip


def thirds(classes):
    "Classes in head, medium and tail; of two, none is medium."
    return ([0], [], [1]) if classes == 2 else np.array_split(np.arange(classes), 3)


def results(params, folder, classes):
    "Results as a training leaves them, made up: runs, datasets, steps, gradients and predictions."
    rng, names = np.random.default_rng(0), ["None", "nan", "3", "road_a", "car & co", "b"][:classes]
    share = np.geomspace(0.5, 0.01, classes)
    for run in params["runs"]:
        hit = rng.binomial(100, 0.7, (6, classes))
        counts = np.stack([hit, np.full_like(hit, 100), hit + 20], -1)
        result = {"smoke": False, "settings": run_settings(params, run), "best_epoch": {"val_ce": 0.5}}
        write_json(folder / f"runs/{run}.json", result | {"test": scores(counts)})
        np.savez(folder / f"runs/{run}.npz", counts=counts)
        epochs = pd.DataFrame({"epoch": [0, 1], "loss": [2.0, 1.0], "val_miou": [0.1, 0.2], "val_ce": [2.0, 1.5]})
        epochs.to_csv(folder / f"runs/{run}.csv", index=False)
    for dataset in params["datasets"]:
        split = {"images": 9, "class_pixels": (1000 * share).astype(int).tolist(), "class_images": [9] * classes,
                 "mask_share_quantiles": np.outer(share, np.linspace(0.5, 1.5, 21)).tolist()}  # fmt: skip
        about = {"names": names, "colours": rng.integers(255, size=(classes, 3)).tolist(), "ignore_index": 255}
        write_json(folder / f"datasets/{dataset}.json", about | {"statistics": {"train": split, "test": split}})
        measured(params, folder, dataset, names, share)
        predicted(params, folder, dataset, classes)


def measured(params, folder, dataset, names, share):
    "steps/<dataset>.csv and gradients/<dataset>.csv."
    rng, table = np.random.default_rng(1), params["tables"]["table1"]
    steps = [{"loss": loss, "round": k, "seconds_per_step": t, "cpu_seconds_per_step": t, "peak_memory_mib": 9.0,
              "utilisation": 0.5, "steps": 2, "steps_per_epoch": 3, "model": table["models"][0], "batch_size": 4,
              "precision": "32-true", "device": "cpu", "threads": 1}
             for loss in table["losses"] for k, t in enumerate(rng.uniform(1, 1.1, 3))]  # fmt: skip
    gradients = [{"when": when, "trained_with": loss, "weight": weight, "class": name, "norm": norm, "share": part,
                  "model": table["models"][0]}
                 for when, loss in (("before training", "nothing"), ("after 9 steps", "cross-entropy"),
                                    ("after 9 steps", "mask-size weight"))
                 for weight in ("none", "mask size")
                 for name, part, norm in zip(names, share, rng.uniform(1, 2, len(names)), strict=True)]  # fmt: skip
    for kind, rows in (("steps", steps), ("gradients", gradients)):
        (folder / kind).mkdir(exist_ok=True)
        pd.DataFrame(rows).to_csv(folder / kind / f"{dataset}.csv", index=False)


def predicted(params, folder, dataset, classes):
    "predictions/<dataset>.npz, with the logits of what Figures 1 and 3 show. The first image lacks the last class."
    rng, runs = np.random.default_rng(2), first_runs(params, dataset)
    sizes = np.array([SIZE[0] * SIZE[1] - 10 * (classes - 2), *[10] * (classes - 2), 0])
    arrays = {"images": np.arange(IMAGES), "source": ["", ""], "sizes": sizes}
    arrays |= {f"classes/{run}": rng.integers(classes, size=(IMAGES, *SIZE), dtype=np.uint8) for run in runs.values()}
    arrays |= {f"miou/{run}": rng.random(IMAGES) for run in runs.values()}
    for loss in (baseline_row(params, "table1"), leading_row(params)):
        if loss:
            run = runs[params["tables"]["table1"]["models"][0], loss]
            arrays[f"logits/{run}"] = rng.normal(size=(sizes.sum(), classes)).astype(np.float16)
    (folder / "predictions").mkdir(exist_ok=True)
    np.savez(folder / "predictions" / f"{dataset}.npz", **arrays)


def leave(fig, folder, name, caption):
    "What `write_figure` leaves, without the seconds that pixels take: all of it is drawn, onto nothing."
    fig.set_layout_engine("none")
    fig.draw_without_rendering()
    for ending in ("pdf", "png", "md"):
        write_file(f"{folder}/{name}.{ending}", caption)


def draw(notebook, **parameters):
    "Run the code of a notebook with `parameters`. Returns its variables."
    variables = {"display": lambda _: None}
    for cell in nbformat.read(ROOT / f"nbs/paper/{notebook}.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, notebook, "exec"), variables)
            if "parameters" in cell.metadata.get("tags", []):
                variables |= parameters
    plt.close("all")
    return variables


def table(losses, models=("net",), **more):
    return {"models": list(models), "losses": list(losses), **more}


CE, PAT, FOCAL = {"name": "ce"}, {"name": "pat", "beta": "exponential"}, {"name": "focal"}
NETS = {name: {"name": "segnet", "width": 4, "depths": [1]} for name in ("net", "NA", "nan")}
PROFILES = {
    "one loss, not cross-entropy": (3, {"losses": {"only": FOCAL}, "tables": {"table1": table(["only"])}}),
    "no cross-entropy, only PAT": (6, {"losses": {"p": {"name": "pat"}}, "tables": {"table1": table(["p"])}}),
    "two losses of own names, two classes": (2, {
        "losses": {"plain": CE, "mine": PAT | {"kappa": 5}}, "tables": {"table1": table(["mine", "plain"])}}),
    "no PAT, own seeds": (3, {
        "losses": {"nan": FOCAL | {"gamma": 1}, "x": CE, "NA": {"name": "bms"}}, "models": NETS,
        "tables": {"table1": table(["nan", "x", "NA"], ["nan", "net"], seeds=[4, 5]),
                   "table2": table(["NA"], ["NA"], seeds=[7]), "table3": table(["nan", "x"])}}),
    "three tables, no temperature": (6, {
        "losses": {"ce": CE, "pat-exponential": PAT}, "seeds": [0, 1],
        "tables": {"table1": table(["ce", "pat-exponential"]), "table2": table(["ce", "pat-exponential"]),
                   "table3": table(["pat-exponential"])}}),
    "every option of PAT": (3, {
        "losses": {"ce": CE, "a": PAT | {"alpha": None}, "b": {"name": "pat", "beta": "inverse", "epsilon": 20},
                   "c": PAT | {"reduction": "sum", "detach_beta": True},
                   "d": PAT | {"log_temperature": True, "kappa": 0},
                   "g": {"name": "pat", "beta": "none"}, "h": PAT | {"scale": "paper", "temperature": 0.5}},
        "tables": {"table1": table("abcdgh"), "table3": table(["ce", "d", "a", "h", "g"])}}),
    "released, seeds of their own": (6, {
        "losses": {"ce": CE, "r": {"name": "bms-released"}, "s": {"name": "pat-released"}, "p": PAT},
        "tables": {"table1": table(["ce", "p"]), "released": table(["r", "s"], seeds=[0, 1])}}),
    "released without what they compare with": (3, {
        "losses": {"f": FOCAL, "r": {"name": "bms-released"}}, "models": NETS,
        "tables": {"table1": table(["f"]), "released": table(["r"], ["NA"]), "table2": table(["f", "r"])}}),
    "an ablation": (6, {
        "losses": {"ce": CE, "p": PAT, "q": PAT | {"kappa": 5, "alpha": 1}, "i": {"name": "pat", "beta": "inverse"},
                   "t": {"like": "p", "temperature": 2}, "m": {"name": "pat", "beta": "none"}}, "models": NETS,
        "tables": {"table1": table(["ce", "p"]), "ablation": table("qitm", ["net", "NA"])}}),
    "lengths, and two classes": (2, {
        "losses": {"ce": CE, "p": PAT, "ce-4": {"like": "ce", "epochs": 4}, "p-4": {"like": "p", "epochs": 4}},
        "seeds": [0, 1],
        "tables": {"table1": table(["ce", "p"]), "length": table(["ce-4", "p-4"])}}),
    "two datasets": (3, {
        "datasets": {name: MINE["datasets"]["d"] for name in ("few", "oxford_pet")},
        "losses": {"ce": CE, "p": PAT, "q": PAT | {"temperature": 9}},
        "tables": {"table1": table(["ce", "p"]), "table2": table(["p", "q"]), "table3": table(["p", "q"])}}),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (i > 0)) for i, name in enumerate(PROFILES)]
)
@pytest.mark.filterwarnings("ignore:.*non-interactive")
def test_what_passes_the_check_is_drawn(write, tmp_path, monkeypatch, name):
    classes, sections = PROFILES[name]
    file = write(**sections)
    check_params(file)
    params, folder = load_params(file), tmp_path / "results/mine"
    results(params, folder, classes)
    (tmp_path / "nbs").symlink_to(ROOT / "nbs")
    monkeypatch.setattr("pat.params.ROOT", tmp_path)
    monkeypatch.setattr("pat.figures.write_figure", leave)
    drawn = {notebook: draw(notebook, profile="mine", out="results/mine") for notebook in PAPER}
    for stage in PAPER[:-1]:
        outs = [*PIPELINE[stage]["outs"], *PIPELINE[stage].get("plots", [])]
        for out in (next(iter(out)).replace("${profile}", "mine") for out in outs):
            assert (tmp_path / out).stat().st_size > 0, out
    for stage in ("table2", "table3"):
        said = (folder / f"tables/{stage}.md").read_text()
        assert (said == f"This profile has no {stage}.\n") == (stage not in params["tables"])
    assert ("This profile has no table2." in (folder / "figures/figure5.md").read_text()) == (
        "table2" not in params["tables"])  # fmt: skip
    assert set(pd.DataFrame(drawn["claims"]["judged"])["claim"]) == {f"C{k}" for k in range(1, 9)}
    if name != "no PAT, own seeds":  # its rows are called so
        assert "nan" not in (folder / "tables/table1.md").read_text()
    if name == "an ablation":  # a temperature of 2 has no place in the map; Table 1 has the first network alone
        strong, mild, bare = [(1, "κ = 5"), (0.5, "ε = 0.1"), (0.5, "no beta")], (0.5, "κ = 3"), (0, "no beta")
        assert {key[1]: set(found) for key, found in drawn["figure9"]["maps"].items()} == {
            "net": {*strong, mild, bare}, "NA": {*strong}}  # fmt: skip
    if name == "lengths, and two classes":
        assert drawn["figure10"]["curves"]["d", "net"] == {"ce": ["ce", "ce-4"], "p": ["p", "p-4"]}
        assert drawn["figure10"]["table"]["epochs"].tolist() == ["1", "4", "1", "4"]
    if name == "two datasets":
        frames = drawn["figure11"]["numbers"], pd.read_csv(folder / "tables/table1.csv")
        gains, levels = (frame[frame["metric"] == "miou"].pivot(index="dataset", columns="loss", values="value")
                         for frame in frames)  # fmt: skip
        assert set(gains.index) == {"few", "oxford_pet"} and np.allclose(gains["ce"], levels["ce"], atol=1e-3)
        assert np.allclose(gains["p"], levels["p"] - levels["ce"], atol=1e-3)
    else:
        said = (folder / "figures/figure11.md").read_text()
        assert "This profile has one dataset, or none with cross-entropy." in said
    report = drawn["report"]
    for made in [report["table"](n) for n in ("table1", "table2", "table3", "claims", "oddities")] + [
            report["figure"](name, "") for name in ("claims", *(f"figure{n}" for n in range(1, 12)))]:  # fmt: skip
        assert "is not in this results folder" not in made.data
