"""params.yaml: what is read, joined and refused."""

import re

import pytest
import yaml

from pat.params import ROOT, SECTIONS, arrived, choose, load_params, profile_file, run_settings

PARAMS = {
    "profile": "tiny",
    "root": ".",
    "params_file": "profiles/tiny/params.yaml",
    "datasets": {"streets": {"format": "folder"}, "camvid": {"format": "camvid"}},
    "models": {"segnet": {"name": "segnet", "width": 8}, "unet": {"name": "unet", "levels": 4}},
    "train": {"epochs": 2, "batch_size": 4},
    "losses": {"ce": {"name": "ce"}, "soft": {"name": "pat", "beta": "exponential", "kappa": 3}},
    "runs": {
        "a": {"dataset": "streets", "model": "unet", "loss": "ce", "seed": 1},
        "b": {"dataset": "camvid", "model": "segnet", "loss": "soft", "seed": 2, "kappa": 5, "alpha": 0.25},
    },
    "tables": {},
}


@pytest.fixture
def write(tmp_path):
    "Writes a params.yaml with some sections replaced, None to leave one out."

    def write(**sections):
        file = tmp_path / "params.yaml"
        merged = {k: v for k, v in (PARAMS | sections).items() if v is not None}
        file.write_text(yaml.safe_dump(merged))
        return file

    return write


# --- choose


def test_choose_returns_a_known_name():
    assert choose("unet", {"unet": 1, "segnet": 2}, "model") == "unet"


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("unte", ["segnet", "unet"], "unknown model 'unte'. Did you mean 'unet'? There are: segnet, unet"),
        ("zzz", ["segnet", "unet"], "unknown model 'zzz'. There are: segnet, unet"),
        ("unet", [], "unknown model 'unet'. There are: none"),
        (None, ["unet"], "unknown model None. There are: unet"),
        (3, ["30", "x"], "unknown model 3. Did you mean '30'? There are: 30, x"),
    ],
)
def test_choose_names_the_nearest_and_all(name, known, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        choose(name, known, "model")


# --- files


def test_root_holds_the_parameters():
    assert (ROOT / "params.yaml").is_file() and (ROOT / "pat" / "params.py").is_file()


def test_sample_is_the_params_file_of_the_root():
    assert profile_file("sample") == "params.yaml"
    assert load_params("params.yaml")["profile"] == "sample"


def test_other_profiles_have_a_folder(monkeypatch, tmp_path):
    for name in ("camvid", "empty"):
        (tmp_path / "profiles" / name).mkdir(parents=True)
    (tmp_path / "profiles" / "camvid" / "params.yaml").touch()
    monkeypatch.setattr("pat.params.ROOT", tmp_path)
    assert profile_file("camvid") == "profiles/camvid/params.yaml"
    message = r"unknown profile 'canvid'\. Did you mean 'camvid'\? There are: sample, camvid$"
    with pytest.raises(ValueError, match=message):
        profile_file("canvid")
    with pytest.raises(ValueError, match="unknown profile 'empty'"):
        profile_file("empty")


def test_load_params_returns_the_sections(write):
    assert load_params(write()) == PARAMS and set(PARAMS) == SECTIONS


def test_missing_file():
    message = f"{ROOT / 'profiles/none/params.yaml'} does not exist: params_file names a params.yaml"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load_params("profiles/none/params.yaml")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_params(tmp_path)


def test_bad_yaml_names_file_and_line(write):
    file = write()
    file.write_text("profile: sample\nruns: {a: [1, 2}\n")
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(file))} is not valid YAML: .*line 2"):
        load_params(file)


def test_unknown_section(write):
    file = write(losess={})
    message = rf"unknown section of {re.escape(str(file))} 'losess'\. Did you mean 'losses'\? There are: datasets"
    with pytest.raises(ValueError, match=message):
        load_params(file)


def test_missing_sections_are_all_named(write):
    with pytest.raises(ValueError, match=r"params\.yaml has no section losses, train$"):
        load_params(write(train=None, losses=None))


# --- run_settings


def test_run_settings_join_run_and_loss():
    assert run_settings(PARAMS, "a") == {
        "run": "a", "profile": "tiny", "dataset": "streets", "seed": 1, "train": PARAMS["train"],
        "model": "unet", "model_options": {"name": "unet", "levels": 4}, "loss": "ce", "loss_options": {"name": "ce"},
    }  # fmt: skip


def test_options_of_a_run_are_those_of_its_loss_changed():
    before = yaml.safe_dump(PARAMS)
    settings = run_settings(PARAMS, "b")
    assert settings["loss_options"] == {"name": "pat", "beta": "exponential", "kappa": 5, "alpha": 0.25}
    assert yaml.safe_dump(PARAMS) == before  # nothing is taken out of the parameters


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dataset": "streets", "model": "unet", "loss": "ce"}, "run 'x' of profiles/tiny/params.yaml has no seed"),
        ({"model": "unet", "loss": "ce"}, "has no dataset, seed"),
        (
            {"dataset": "streets", "model": "unet", "loss": "sofft", "seed": 0},
            r"unknown loss of run 'x' in profiles/tiny/params.yaml 'sofft'\. Did you mean 'soft'\? There are: ce, soft",
        ),
        (
            {"dataset": "street", "model": "unet", "loss": "ce", "seed": 0},
            r"unknown dataset of run 'x' in profiles/tiny/params.yaml 'street'\. Did you mean 'streets'\?",
        ),
        (
            {"dataset": "streets", "model": "u-net", "loss": "ce", "seed": 0},
            r"unknown model of run 'x' in profiles/tiny/params.yaml 'u-net'\. Did you mean 'unet'\?",
        ),
    ],
)
def test_run_that_cannot_be(entry, message):
    with pytest.raises(ValueError, match=message):
        run_settings(PARAMS | {"runs": {"x": entry}}, "x")


def test_unknown_run():
    params = PARAMS | {"runs": {"streets-ce": PARAMS["runs"]["a"]}}
    message = r"unknown run of profiles/tiny/params.yaml 'street-ce'\. Did you mean 'streets-ce'"
    with pytest.raises(ValueError, match=message):
        run_settings(params, "street-ce")


# --- arrived


def test_parameters_that_came(monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert arrived(run="a", params_file="params.yaml") is True
    assert arrived(run=0, smoke=False) is True  # false values came too


def test_an_opened_notebook_has_none(monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert arrived(run=None, params_file=None) is False


def test_a_stage_without_parameters_is_an_error(monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "train")
    message = r"parameter run, params_file did not arrive: pass `-r run VALUE`.*tag `parameters`"
    with pytest.raises(ValueError, match=message):
        arrived(run=None, params_file=None)
    assert arrived(run="a", params_file="params.yaml") is True


@pytest.mark.parametrize("stage", [None, "train"])
def test_some_parameters_are_an_error_everywhere(monkeypatch, stage):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    if stage:
        monkeypatch.setenv("DVC_STAGE", stage)
    with pytest.raises(ValueError, match="papermill parameter seed did not arrive: pass `-r seed VALUE`"):
        arrived(run="a", seed=None)
