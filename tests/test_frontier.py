"Figure 7 on results made by hand, whose curves and gains are known."

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from pat.params import ROOT, grid_runs, run_settings
from pat.training import check_tables

# pixels hit, of 1000 in the head and of 100 in the other two classes
LABELLED = (1000, 100, 100)
HIT = {
    "ce": (950, 70, 10), "half": (900, 70, 20), "one": (800, 70, 30), "plain-half": (850, 70, 15),
    "pat-a": (840, 70, 35), "pat-b": (600, 70, 40), "focal": (950, 70, 10),
}  # fmt: skip
LOSSES = {
    "ce": {"name": "ce"}, "one": {"name": "logit-adjustment", "tau": 1},
    "half": {"name": "logit-adjustment", "tau": 0.5}, "plain-half": {"name": "post-hoc", "tau": 0.5},
    "pat-a": {"name": "pat", "alpha": 0.5}, "pat-b": {"name": "pat", "alpha": None}, "focal": {"name": "focal"},
}  # fmt: skip


def drawn(root, monkeypatch, tables, seeds=(0, 1, 2), own=None):
    "Write results, run the notebook's cells, and return its variables."
    params = {
        "profile": "sample", "root": ".", "params_file": "params.yaml", "losses": LOSSES, "datasets": {"streets": {}},
        "models": {"segnet": {"name": "segnet"}}, "train": {"epochs": 1}, "seeds": list(seeds), "tune": {},
        "trials": {}, "tables": {table: {"models": ["segnet"], "losses": rows} for table, rows in tables.items()},
        "runs": {},
    }  # fmt: skip
    if own is not None:
        params["tables"]["frontier"]["seeds"] = own
    params["runs"] = grid_runs(params)
    check_tables(params, "params.yaml")
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    folder = root / "results/sample"
    for kind in ("runs", "datasets"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    statistics = {"names": list("abc"), "statistics": {"train": {"class_pixels": [3, 2, 1]}}}
    (folder / "datasets/streets.json").write_text(json.dumps(statistics))
    for name, run in params["runs"].items():
        hit = np.tile(HIT[run["loss"]], (9, 1)) + (run["seed"] - 1) * np.array([0, 0, 1])
        counts = np.stack([hit, np.tile(LABELLED, (9, 1)), hit], -1)  # no false alarm: IoU is the share that is hit
        iou, accuracy = hit.mean(0) / LABELLED, hit.sum() / (9 * sum(LABELLED))
        test = dict(zip(("miou_head", "miou_medium", "miou_tail"), iou.tolist(), strict=True))
        test |= {"miou": iou.mean(), "pixel_accuracy": accuracy, "dice_error": 0.5, "miou_released": iou.mean()}
        result = {"smoke": False, "settings": run_settings(params, name), "best_epoch": {"val_ce": 0.5}, "test": test}
        (folder / f"runs/{name}.json").write_text(json.dumps(result))
        np.savez(folder / f"runs/{name}.npz", counts=counts)
    monkeypatch.setattr("pat.params.ROOT", root)
    names = {"display": lambda _: None}
    for cell in json.loads((ROOT / "nbs/paper/figure7.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            tagged = "parameters" in cell["metadata"].get("tags", [])
            exec('profile, out = "sample", "results/sample"' if tagged else "".join(cell["source"]), names)
    return names


TABLES = {"table1": ["ce", "half", "plain-half", "pat-a"], "frontier": ["one", "pat-b"]}


def test_rows_of_one_kind_are_a_curve_from_cross_entropy_on(tmp_path, monkeypatch):
    curves = drawn(tmp_path, monkeypatch, TABLES)["panels"]["streets", "segnet"]
    assert curves == {
        "ce": ["ce"], "half": ["ce", "half", "one"], "plain-half": ["ce", "plain-half"], "pat-a": ["pat-a", "pat-b"],
    }  # fmt: skip


def test_gains_are_read_off_at_the_same_accuracy(tmp_path, monkeypatch):
    drawn(tmp_path, monkeypatch, TABLES)
    gains = pd.read_csv(tmp_path / "results/sample/tables/frontier.csv").set_index(["PAT", "rival"])
    assert set(gains.index) == {(pat, rival) for pat in ("pat-a", "pat-b") for rival in ("half", "plain-half")}
    # pat-a hits 945 of 1200, as much as the middle of tau = 0.5 (990) and tau = 1 (900), where the tail is 25
    assert gains.loc[("pat-a", "half"), "gain"] == pytest.approx(35 - 25) and gains.loc[("pat-a", "half"), "inside"]
    # post hoc goes from 1030 with a tail of 10 to 935 with one of 15
    expected = 35 - (10 + 5 * (1030 - 945) / (1030 - 935))
    assert gains.loc[("pat-a", "plain-half"), "gain"] == pytest.approx(expected, rel=1e-4)
    # pat-b hits less than the strongest of either, which counts then
    assert gains.loc["pat-b", "gain"].tolist() == pytest.approx([40 - 30, 40 - 15])
    assert not gains.loc["pat-b", "inside"].any() and (gains["seeds"] == 3).all()


def test_a_frontier_of_fewer_seeds_is_paired_with_the_first(tmp_path, monkeypatch):
    found = drawn(tmp_path, monkeypatch, TABLES, own=[0, 1])["gains"].set_index(["PAT", "rival"])
    assert found["seeds"].to_dict() == {
        ("pat-a", "half"): 2, ("pat-a", "plain-half"): 3, ("pat-b", "half"): 2, ("pat-b", "plain-half"): 2}  # fmt: skip
    assert found.loc[("pat-a", "half"), "gain"] == pytest.approx(35 - 25)
    with pytest.raises(AssertionError, match="the seeds of frontier are not the first of table1"):
        drawn(tmp_path, monkeypatch, TABLES, own=[2])


@pytest.mark.parametrize("tables", [{"table1": ["ce", "focal"]}, {"table1": ["pat-a"]}, {"table1": ["ce"]}])
def test_without_anything_to_compare_the_figure_is_drawn_all_the_same(tmp_path, monkeypatch, tables):
    assert drawn(tmp_path, monkeypatch, tables)["lines"] == []
    written = tmp_path / "results/sample"
    assert (written / "figures/figure7.pdf").stat().st_size > 1000 and (written / "tables/frontier.md").exists()
