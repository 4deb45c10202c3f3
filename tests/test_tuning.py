"The search: which trials there are, what a trial leaves, and what is chosen."

import json
import re
from math import prod

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import pat.params
from pat.datasets import write_json
from pat.params import (
    check_like,
    combinations,
    grid_trials,
    load_params,
    read_params,
    run_settings,
    trial_settings,
    write_runs,
)
from pat.training import candidates, check_losses
from pat.tuning import choose_options, load_trial, search, write_trial

TUNE = {"dataset": "streets", "model": "segnet", "epochs": 2, "trials": 3, "seeds": [0, 5]}
PARAMS = {
    "profile": "sample", "root": ".", "params_file": "params.yaml",
    "datasets": {"streets": {"format": "folder"}}, "models": {"segnet": {"name": "segnet"}},
    "train": {"epochs": 9, "batch_size": 4, "lr": 0.1},
    "losses": {"ce": {"name": "ce"}, "focal": {"name": "focal", "gamma": [1, 2.5], "lr": [0.01]}, "x": {"name": "bms"}},
    "tables": {"table1": {"models": ["segnet"], "losses": ["ce", "focal"]}}, "seeds": [0],
    "tune": TUNE, "trials": {}, "runs": {},
}  # fmt: skip


@pytest.fixture
def searched(tmp_path, monkeypatch):
    "A project whose trials have run: the parameters, and its results."
    monkeypatch.setattr(pat.params, "ROOT", tmp_path)
    params = PARAMS | {"trials": grid_trials(PARAMS)}
    folder = tmp_path / "results" / "sample"
    for trial, miou in zip(params["trials"], (0.3, 0.5, 0.45, 0.4), strict=True):
        score(params, trial, miou, folder)
    return params, folder


def score(params, trial, miou, folder, **others):
    "What a trial leaves."
    scores = {
        "epoch": 1,
        "loss": 1.5,
        "val_miou": miou,
        "val_miou_tail": float("nan"),
        "val_miou_head": 0.9,
        "val_pixel_accuracy": 0.9,
    }
    result = {"settings": trial_settings(params, trial), "best_epoch": scores, "test": {"miou": 0.1}}
    write_trial({"result": result}, folder)


def test_the_trials_are_the_combinations_for_each_seed():
    trials = grid_trials(PARAMS)
    names = ["gamma1-lr0_01", "gamma1-lr0_01-5", "gamma2_5-lr0_01", "gamma2_5-lr0_01-5"]
    assert list(trials) == [f"tune-focal-{name}" for name in names]
    assert trials["tune-focal-gamma2_5-lr0_01-5"] == {
        "loss": "focal", "seed": 5, "dataset": "streets", "model": "segnet", "epochs": 2,
        "options": {"name": "focal", "gamma": 2.5, "lr": 0.01},
    }  # fmt: skip


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 20))
def test_no_loss_gets_more_trials_than_another(lengths, most):
    lists = {str(i): [*range(length)] for i, length in enumerate(lengths)}
    found = combinations(lists, most)
    assert len(found) == min(most, prod(lengths))
    assert all(found.count(options) == 1 for options in found) and found == combinations(lists, most)
    assert found == sorted(found, key=lambda options: [*options.values()])


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({}, r"tune of params.yaml is \{\}, expected the entries dataset, epochs, model, seeds, trials"),
        (TUNE | {"by": "val_ce"}, r"tune of params.yaml is .*expected the entries"),
        (TUNE | {"dataset": "street"}, r"unknown dataset of tune in params.yaml 'street'\. Did you mean 'streets'"),
        (TUNE | {"model": "segnt"}, r"unknown model of tune in params.yaml 'segnt'"),
        (TUNE | {"trials": 0}, r"trials of tune in params.yaml is 0, expected a whole number of at least 1"),
        (TUNE | {"epochs": "2"}, r"epochs of tune in params.yaml is '2', expected a whole number"),
        (TUNE | {"seeds": []}, r"seeds of tune in params.yaml is \[\], expected a list"),
    ],
)
def test_a_search_that_cannot_be(tune, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        grid_trials(PARAMS | {"tune": tune})


def test_without_a_list_there_is_nothing_to_tune():
    assert grid_trials(PARAMS | {"losses": {"ce": {"name": "ce"}}, "tune": {}}) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "focal", "gamma": [1, "two"]}, r"loss 'focal' in a.yaml: gamma is 'two', expected"),
        ({"name": "focal", "gama": [1]}, r"loss 'focal' in a.yaml: .*gama"),
        ({"name": "focal", "lr": [0.1, 0]}, r"loss 'focal' in a.yaml: train.lr is 0, expected a number above 0"),
        ({"name": "focal", "epochs": 0}, r"loss 'focal' in a.yaml: train.epochs is 0, expected a whole number"),
        ({"name": "focal", "lr": "fast"}, r"loss 'focal' in a.yaml: train.lr is 'fast'"),
        ({"name": "focal", "epochs": [5, 9]}, r"epochs of loss 'focal' in params.yaml is a list, expected one number"),
        ({"name": "focal", "gamma": []}, r"gamma of loss 'focal' in params.yaml is \[\], expected what to try"),
        ({"name": "focal", "gamma": [1]}, r"trials of a.yaml are not of its losses: `python -m pat.params a.yaml`"),
    ],
)
def test_every_candidate_is_checked(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_losses(PARAMS | {"losses": {"focal": options}}, "a.yaml")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"like": "focl"}, r"unknown like of loss 'more' in a.yaml 'focl'\. Did you mean 'focal'"),
        ({"like": "also"}, r"like of loss 'more' in a.yaml is 'also', which is like another: name that one"),
        ({"like": "focal", "gamma": [1, 2]}, r"gamma of loss 'more' in a.yaml is a list: .* is not tuned again"),
    ],
)
def test_a_loss_cannot_be_like_that(own, message):
    losses = PARAMS["losses"] | {"also": {"like": "focal"}}
    with pytest.raises(ValueError, match=f"^{message}"):
        check_like(losses | {"more": own}, "a.yaml")


def test_a_loss_that_is_like_another_is_checked_with_all_that_the_other_may_be():
    losses = {"focal": {"name": "focal", "gamma": [1, 2.5]}, "more": {"like": "focal", "name": "cb-focal"}}
    every = candidates(losses, grid_trials(PARAMS | {"losses": losses}))
    found = [options for loss, options in every if loss == "more"]
    assert [options["gamma"] for options in found] == [1, 1, 2.5, 2.5] and found[0]["name"] == "cb-focal"
    with pytest.raises(ValueError, match=r"^loss 'more' in a.yaml: .*gama"):
        check_losses(PARAMS | {"losses": losses | {"more": {"like": "focal", "gama": 1}}}, "a.yaml")


def test_a_loss_is_like_what_was_chosen_for_the_other(searched, tmp_path):
    params, folder = searched
    losses = PARAMS["losses"] | {"more": {"like": "focal", "ignore_background": 1}}
    chosen = choose_options(params | {"losses": losses}, search(params, folder))
    assert chosen["more"] == {"name": "focal", "gamma": 2.5, "lr": 0.01, "ignore_background": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"losses": losses}))
    (tmp_path / "dvc.yaml").touch()
    for loss, options in chosen.items():
        write_json(folder / "chosen" / f"{loss}.json", options)
    read = load_params("params.yaml")
    assert read["losses"]["more"] == {"name": "focal", "gamma": 2.5, "ignore_background": 1}
    assert read["own_train"]["more"] == {"lr": 0.01}


def test_the_best_on_average_over_the_seeds_is_chosen(searched):
    params, folder = searched
    found = search(params, folder)
    assert found["val_miou"].tolist() == pytest.approx([40, 42.5]) and found["chosen"].tolist() == [False, True]
    assert found["val_miou_tail"].isna().all()
    assert choose_options(params, found)["focal"] == {"name": "focal", "gamma": 2.5, "lr": 0.01}
    assert choose_options(params, found)["x"] == {"name": "bms"}


def test_of_equals_the_first_is_chosen(searched):
    params, folder = searched
    for trial in params["trials"]:
        score(params, trial, 0.4, folder)
    assert choose_options(params, search(params, folder))["focal"]["gamma"] == 1


def test_a_trial_says_nothing_of_the_test_split(searched):
    _, folder = searched
    texts = [file.read_text() for file in (folder / "trials").iterdir()]
    assert len(texts) == 4 and not any("test" in json.loads(text) for text in texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"tune-focal-gamma1-lr0_01.json does not exist: `dvc repro` trains trial 'tune-focal-gamma1-lr0_01'"),
        (('"smoke": false', '"smoke": true'), "is from a smoke run of seconds, not a trial: delete it"),
        (('"gamma": 1', '"gamma": 3'), r"other settings than params.yaml has \(loss_options.gamma is 3 instead of 1\)"),
        (('"lr": 0.01', '"lr": 0.2'), r"\(train.lr is 0.2 instead of 0.01\): `dvc repro`"),
    ],
)
def test_a_trial_that_cannot_be_used(searched, change, message):
    params, folder = searched
    file = folder / "trials" / "tune-focal-gamma1-lr0_01.json"
    file.write_text(file.read_text().replace(*change)) if change else file.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_trial(params, "tune-focal-gamma1-lr0_01", folder)


def test_what_was_chosen_takes_the_place_of_the_lists(searched, tmp_path):
    params, folder = searched
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    (tmp_path / "dvc.yaml").touch()
    assert len(write_runs("params.yaml")) == 2 and read_params("params.yaml")["trials"] == params["trials"]
    message = re.escape("gamma, lr of loss 'focal' in params.yaml has not been chosen yet: `dvc repro` tunes it")
    with pytest.raises(ValueError, match=f"^{message}$"):
        run_settings(load_params("params.yaml"), "streets-segnet-focal")
    (folder / "chosen").mkdir()
    (folder / "chosen" / "focal.json").write_text('{"name": "focal", "gamma": 2.5, "lr": 0.01}')
    settings = run_settings(load_params("params.yaml"), "streets-segnet-focal")
    assert settings["loss_options"] == {"name": "focal", "gamma": 2.5}
    assert settings["train"] == PARAMS["train"] | {"lr": 0.01}
    assert run_settings(load_params("params.yaml"), "streets-segnet-ce")["train"] == PARAMS["train"]
    assert read_params("params.yaml")["losses"] == PARAMS["losses"]
