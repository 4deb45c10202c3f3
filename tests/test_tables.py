"""Tables and their intervals, on results made by hand; and that the results in git are those of their params.yaml."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from pat.params import ROOT, load_params, run_settings
from pat.stats import bootstrap_miou, interval
from pat.tables import (
    check_settings,
    load_result,
    pat_rows,
    readable,
    setting,
    table_groups,
    table_values,
    with_paper,
    write_table,
)

PARAMS = {
    "params_file": "params.yaml",
    "profile": "sample",
    "datasets": {"oxford_pet": {}},
    "losses": {"ce": {"name": "ce"}, "pat-inverse": {"name": "pat", "beta": "inverse"}},
    "seeds": [0, 1],
    "models": {"segnet": {"name": "segnet", "width": 8}},
    "train": {"epochs": 20},
    "runs": {
        f"{loss}-{seed}": {"dataset": "oxford_pet", "model": "segnet", "loss": loss, "seed": seed}
        for loss in ("ce", "pat-inverse")
        for seed in (0, 1)
    },
    "tables": {"table1": {"models": ["segnet"], "losses": ["ce", "pat-inverse"]}},
}


def write_result(folder, run, counts, smoke=False):
    "A run's JSON and counts, with every score of the JSON computed from the counts."
    hit, labelled, predicted = counts.sum(0).T
    iou = hit / (labelled + predicted - hit)
    test = {
        "miou": iou.mean(), "miou_tail": iou[2], "miou_medium": iou[1], "miou_head": iou[0],
        "miou_released": iou.mean(),
        "pixel_accuracy": hit.sum() / labelled.sum(), "dice_error": 1 - (2 * iou / (1 + iou)).mean(),
    }  # fmt: skip
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    np.savez(folder / "runs" / f"{run}.npz", counts=counts)
    result = {"smoke": smoke, "settings": run_settings(PARAMS, run), "best_epoch": {"val_ce": 0.5}, "test": test}
    (folder / "runs" / f"{run}.json").write_text(json.dumps(result))


def counts(rng, images=20, quality=0.8):
    "Random counts (N, 3, 3) of three classes of 100 labelled pixels each."
    hit = rng.binomial(100, quality, size=(images, 3))
    return np.stack([hit, np.full_like(hit, 100), hit + rng.integers(0, 30, hit.shape)], -1)


@pytest.fixture
def results(tmp_path):
    "results/ of two losses with two seeds each; class 2 is the rarest, and so the tail."
    rng = np.random.default_rng(0)
    for run, entry in PARAMS["runs"].items():
        write_result(tmp_path, run, counts(rng, quality=0.6 if entry["loss"] == "ce" else 0.8))
    (tmp_path / "datasets").mkdir()
    statistics = {"statistics": {"train": {"class_pixels": [300, 200, 100]}}}
    (tmp_path / "datasets" / "oxford_pet.json").write_text(json.dumps(statistics))
    return tmp_path


def test_table_has_the_mean_over_seeds_and_the_paired_gain(results):
    values = table_values(PARAMS, "table1", results).set_index(["loss", "metric"])
    for loss in ("ce", "pat-inverse"):
        each = [load_result(results, f"{loss}-{seed}")[0]["test"]["miou"] for seed in (0, 1)]
        row = values.loc[loss, "miou"]
        assert np.isclose(row["value"], 100 * np.mean(each)) and row["seeds"] == 2
        assert row["low"] < row["value"] < row["high"]
    gain = values.loc["pat-inverse", "miou_gain"]
    assert np.isclose(gain["value"], values.loc["pat-inverse", "miou"]["value"] - values.loc["ce", "miou"]["value"])
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert ("ce", "miou_gain") not in values.index


def test_tail_is_the_rarest_class(results):
    values = table_values(PARAMS, "table1", results).set_index(["loss", "metric"])
    each = [load_result(results, f"ce-{seed}")[0]["test"]["miou_tail"] for seed in (0, 1)]
    assert np.isclose(values.loc["ce", "miou_tail"]["value"], 100 * np.mean(each))
    assert values.loc["ce", "miou_tail"]["low"] <= 100 * np.mean(each) <= values.loc["ce", "miou_tail"]["high"]


def test_head_has_an_interval_and_a_paired_gain(results):
    values = table_values(PARAMS, "table1", results).set_index(["loss", "metric"])
    draws = {}
    for loss in ("ce", "pat-inverse"):
        seeds = [load_result(results, f"{loss}-{seed}")[1] for seed in (0, 1)]
        draws[loss] = 100 * bootstrap_miou(np.stack(seeds), [0])  # class 0 is the most frequent
    row, gain = values.loc["ce", "miou_head"], values.loc["pat-inverse", "miou_head_gain"]
    assert np.allclose([row["low"], row["high"]], interval(draws["ce"]))
    assert np.allclose([gain["low"], gain["high"]], interval(draws["pat-inverse"] - draws["ce"]))


def test_the_papers_numbers_stand_beside_ours(results):
    values = with_paper(table_values(PARAMS, "table1", results), 1).set_index(["loss", "metric"])
    # Table 1, Oxford-IIIT Pet, SegNet: cross-entropy 76.14 / 91.21 / 0.23, PAT 76.69 / 91.28 / 0.23
    assert values.loc["ce", "miou_released"]["paper"] == 76.14
    assert values.loc["pat-inverse", "pixel_accuracy"]["paper"] == 91.28
    row = values.loc["ce", "dice_error"]
    assert row["paper"] == 0.23 and np.isclose(row["difference"], row["value"] - 0.23)
    assert pd.isna(values.loc["ce", "miou_tail"]["paper"])
    text = readable(values.reset_index(), ["miou_released", "miou_tail"])
    assert "(paper 76.14, " in text["mIoU as released"][0] and "paper" not in text["tail"][0]


def test_the_best_value_of_a_column_is_bold(results):
    values = with_paper(table_values(PARAMS, "table1", results), 1)
    text = readable(values, ["miou", "dice_error", "miou_gain"]).set_index("loss")
    assert text.loc["pat-inverse", "mIoU"].startswith("**") and "**" not in text.loc["ce", "mIoU"]
    # of the Dice error the lower is the better
    assert text.loc["pat-inverse", "Dice err"].startswith("**") and "**" not in text.loc["ce", "Dice err"]
    assert "**" not in text.loc["pat-inverse", "mIoU − ce"] and text.loc["ce", "mIoU − ce"] == ""


def test_tables_are_written_in_three_forms(results, tmp_path):
    values = with_paper(table_values(PARAMS, "table1", results), 1)
    text = readable(values, ["miou", "miou_image_gain", "dice_error", "miou_released"])
    write_table(text, values, tmp_path / "tables", "table1", "100 % of it.")
    assert sorted(file.name for file in (tmp_path / "tables").iterdir()) == ["table1.csv", "table1.md", "table1.tex"]
    read = pd.read_csv(tmp_path / "tables" / "table1.csv")
    assert len(read) == len(values) and np.allclose(read["value"], values["value"], rtol=1e-5)
    tex = (tmp_path / "tables" / "table1.tex").read_text()
    for word in (
        r"\toprule",
        r"\bottomrule",
        r"\textbf{",
        r"100 \% of it.",
        r"\label{tab:table1}",
        "by image",
    ):
        assert word in tex
    assert not re.search(r"(?<!\\)%", tex) and "−" not in tex  # what LaTeX would not print


def test_a_row_without_a_run_is_named():
    for wanted in ({"models": ["unet"], "losses": ["ce"]}, {"models": ["segnet"], "losses": ["ce"], "seeds": [0, 7]}):
        with pytest.raises(ValueError, match=r"table1 of params.yaml asks for .*('unet'|7).*, and no run"):
            table_groups(PARAMS | {"tables": {"table1": wanted}}, "table1")


def test_a_table_takes_its_own_seeds():
    wanted = PARAMS["tables"]["table1"] | {"seeds": [1]}
    groups = table_groups(PARAMS | {"tables": {"table1": wanted}}, "table1")
    assert groups["oxford_pet", "segnet", "ce"] == ["ce-1"]


def test_a_score_that_is_missing_is_no_number(results):
    file = results / "runs" / "ce-0.json"
    result = json.loads(file.read_text())
    result["test"]["miou_tail"] = None  # JSON has no NaN
    file.write_text(json.dumps(result))
    values = table_values(PARAMS, "table1", results).set_index(["loss", "metric"])
    assert np.isnan(values.loc["ce", "miou_tail"]["value"]) and values.loc["ce", "miou"]["value"] > 0
    assert readable(with_paper(values.reset_index(), 1), ["miou_tail"])["tail"][0].startswith(" [")


@pytest.mark.filterwarnings("error")
def test_two_classes_leave_the_medium_group_without_a_number(results):
    for run in PARAMS["runs"]:
        with np.load(results / "runs" / f"{run}.npz") as arrays:
            np.savez(results / "runs" / f"{run}.npz", counts=arrays["counts"][:, :2])
        file = results / "runs" / f"{run}.json"
        result = json.loads(file.read_text())
        file.write_text(json.dumps(result | {"test": result["test"] | {"miou_medium": None}}))
    statistics = {"statistics": {"train": {"class_pixels": [300, 200]}}}
    (results / "datasets" / "oxford_pet.json").write_text(json.dumps(statistics))
    values = table_values(PARAMS, "table1", results).set_index(["loss", "metric"])
    for metric in ("miou_medium", "miou_medium_gain"):
        assert values.loc["pat-inverse", metric][["value", "low", "high"]].isna().all()
    for group in ("tail", "head"):
        assert values.loc["ce", f"miou_{group}"][["value", "low", "high"]].notna().all()
    assert set(readable(with_paper(values.reset_index(), 1), ["miou_medium"])["medium"]) == {""}


def test_captions_say_what_was_trained():
    said = setting(PARAMS, "table1")
    for words in ("segnet (width 8)", "oxford_pet", "20 epochs", "2 seeds", "images and seeds"):
        assert words in said
    assert "another seed moves the numbers" in setting(PARAMS | {"seeds": [0]}, "table1")


def test_missing_and_smoke_results_are_refused(results):
    with pytest.raises(FileNotFoundError, match=r"run 'ce-7' has no result .*dvc repro"):
        load_result(results, "ce-7")
    write_result(results, "ce-0", counts(np.random.default_rng(0)), smoke=True)
    with pytest.raises(ValueError, match=r"ce-0.json is from a smoke run"):
        table_values(PARAMS, "table1", results)


@pytest.mark.parametrize(
    ("section", "entry", "said"),
    [
        ("losses", {"pat-inverse": {"name": "pat", "beta": "exponential"}}, "loss_options.beta: inverse stored, exp"),
        ("losses", {"pat-inverse": {"name": "pat-as-written"}}, "loss_options.name: pat stored, pat-as-written now"),
        ("losses", {"pat-inverse": {"name": "pat"}}, "loss_options.beta: inverse stored, absent now"),
        ("models", {"segnet": {"name": "segnet", "width": 16}}, "model_options.width: 8 stored, 16 now"),
        ("train", {"epochs": 20, "lr": 0.1}, "train.lr: absent stored, 0.1 now"),
        ("runs", {"pat-inverse-0": PARAMS["runs"]["pat-inverse-1"]}, "seed: 0 stored, 1 now"),
    ],
)
def test_a_result_of_other_settings_is_refused(results, section, entry, said):
    edited = PARAMS | {section: PARAMS[section] | entry, "params_file": "profiles/mine/params.yaml"}
    with pytest.raises(ValueError, match=re.escape(f"({said}")) as refused:
        load_result(results, "pat-inverse-0", edited)
    file = results / "runs" / "pat-inverse-0.json"
    assert str(refused.value).startswith(f"{file} is of run 'pat-inverse-0' with other settings than profiles/mine")
    assert "`dvc repro profiles/mine/dvc.yaml:train@pat-inverse-0` trains it anew" in str(refused.value)
    if section != "runs":
        with pytest.raises(ValueError, match="with other settings"):
            table_values(edited, "table1", results)


def test_all_options_that_differ_are_named(results):
    edited = PARAMS | {"train": {"epochs": 3}, "models": {"segnet": {"name": "segnet", "width": 4}}}
    with pytest.raises(ValueError, match=r"width: 8 stored, 4 now; train.epochs: 20 stored, 3 now\)"):
        load_result(results, "ce-0", edited)


def test_other_names_and_other_rows_leave_a_result_as_it_is(results):
    losses = {"cross-entropy": PARAMS["losses"]["ce"], "pat-inverse": {"name": "pat", "beta": "exponential"}}
    renamed = PARAMS | {"profile": "mine", "losses": losses, "runs": {"ce-0": PARAMS["runs"]["ce-0"]}}
    renamed["runs"]["ce-0"] = renamed["runs"]["ce-0"] | {"loss": "cross-entropy"}
    assert load_result(results, "ce-0", renamed)[0] == load_result(results, "ce-0")[0]


def test_a_result_whose_run_is_gone_says_so(results):
    gone = PARAMS | {"runs": {"ce-0": PARAMS["runs"]["ce-0"]}}
    with pytest.raises(ValueError, match=r"pat-inverse-0\.json is left from run 'pat-inverse-0', which params"):
        load_result(results, "pat-inverse-0", gone)


def test_the_results_in_git_are_those_of_their_params():
    params = load_params("profiles/camvid/params.yaml")
    files = sorted((ROOT / "results/camvid/runs").glob("*.json"))
    assert {file.stem for file in files} == set(params["runs"])
    for file in files:
        check_settings(file, json.loads(file.read_text())["settings"], params, file.stem)


def test_the_papers_number_is_not_that_of_an_ablation(results):
    losses = PARAMS["losses"] | {"pat-inverse": {"name": "pat", "beta": "none"}}
    ablated = PARAMS | {"losses": losses}
    for seed in (0, 1):
        file = results / f"runs/pat-inverse-{seed}.json"
        result = json.loads(file.read_text())
        result["settings"]["loss_options"] = losses["pat-inverse"]
        file.write_text(json.dumps(result))
    values = with_paper(table_values(ablated, "table1", results), 1)
    assert values[values["loss"] == "pat-inverse"]["paper"].isna().all()
    assert values[values["loss"] == "ce"]["paper"].notna().any()
    assert pat_rows(ablated, "table1") == [] and pat_rows(ablated, "table1", ablations=True) == ["pat-inverse"]
