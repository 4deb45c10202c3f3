"""params.yaml: what is read, joined and refused."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pat.params import (
    ROOT,
    SECTIONS,
    arrived,
    choose,
    grid_runs,
    load_params,
    main,
    named_path,
    profile_file,
    project_root,
    read_params,
    run_settings,
    with_section,
    write_file,
    write_runs,
)  # fmt: skip

PARAMS = {
    "profile": "sample",
    "root": ".",
    "params_file": "params.yaml",
    "datasets": {"streets": {"format": "folder"}, "camvid": {"format": "camvid"}},
    "models": {"segnet": {"name": "segnet", "width": 8}, "unet": {"name": "unet", "levels": 4}},
    "train": {"epochs": 2, "batch_size": 4},
    "losses": {"ce": {"name": "ce"}, "soft": {"name": "pat", "beta": "exponential", "kappa": 3}},
    "runs": {
        "a": {"dataset": "streets", "model": "unet", "loss": "ce", "seed": 1},
        "b": {"dataset": "camvid", "model": "segnet", "loss": "soft", "seed": 2},
    },
    "tables": {},
    "seeds": [0, 1],
    "tune": {},
    "trials": {},
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


# --- where paths start


def test_the_root_is_the_project_that_one_works_in():
    assert Path(__file__).parents[1] == ROOT
    for folder in (".", "nbs", "nbs/paper", "profiles/camvid", "tests/expected"):
        assert project_root(ROOT / folder) == ROOT, folder


def test_a_relative_start_is_one_of_the_working_directory(tmp_path, monkeypatch):
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert project_root(Path("nbs")) == project_root(Path(".")) == tmp_path


def test_the_nearest_project_counts(tmp_path):
    for folder in (tmp_path, tmp_path / "copy"):
        folder.mkdir(exist_ok=True)
        (folder / "params.yaml").write_text("params_file: 'params.yaml'  # this one\n")
        (folder / "dvc.yaml").touch()
    assert project_root(tmp_path / "copy") == tmp_path / "copy" and project_root(tmp_path) == tmp_path


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"params.yaml": "params_file: params.yaml\n"},  # no pipeline
        {"dvc.yaml": "stages: {}\n"},
        {"params.yaml": "lr: 0.1\n", "dvc.yaml": "stages: {}\n"},  # somebody's own DVC project
        {"params.yaml": "# params_file: params.yaml\n", "dvc.yaml": "stages: {}\n"},
        {"params.yaml": "params_file: profiles/tiny/params.yaml\n", "dvc.yaml": "stages: {}\n"},
        {"params.yaml": b"\xff\xfe", "dvc.yaml": "stages: {}\n"},
        {"params.yaml/is": "a folder", "dvc.yaml": "stages: {}\n"},
    ],
)
def test_outside_of_a_project_it_is_the_start(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "a/b").mkdir(parents=True)
    assert project_root(tmp_path) == tmp_path and project_root(tmp_path / "a/b") == tmp_path / "a/b"


def python(folder, *arguments):
    "What Python prints when it runs in `folder` with the package of this project."
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_a_process_finds_its_project_or_stays_where_it_is(tmp_path):
    code = "from pat.params import ROOT; print(ROOT)"
    assert python(ROOT / "nbs/paper", "-c", code) == str(ROOT)
    assert python(tmp_path, "-c", code) == str(tmp_path)


def test_the_checks_need_no_yaml(tmp_path):
    "The losses use them, and need torch alone."
    code = "import sys; sys.modules['yaml'] = None; from pat.params import choose; print(choose(1, [1], 'x'))"
    assert python(tmp_path, "-c", code) == "1"


def test_the_command_line_takes_a_root(tmp_path, write):
    write(tables=TABLES)
    assert python(ROOT, "-m", "pat.params", "params.yaml", "--root", str(tmp_path)) == "params.yaml: 14 runs"
    assert load_params(tmp_path / "params.yaml")["runs"]
    assert python(tmp_path, "-m", "pat.params", "params.yaml") == "params.yaml: 14 runs"
    error = python(tmp_path, "-m", "pat.params", "params.yaml", "--root", "nowhere")
    assert error.endswith("argument --root: nowhere is no folder: make it first, or correct the path")


# --- files


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
    assert read_params(write()) == PARAMS and set(PARAMS) == SECTIONS


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
        "run": "a", "profile": "sample", "dataset": "streets", "seed": 1, "train": PARAMS["train"],
        "model": "unet", "model_options": {"name": "unet", "levels": 4}, "loss": "ce", "loss_options": {"name": "ce"},
    }  # fmt: skip


def test_a_run_has_no_options_of_its_own():
    entry = {"dataset": "camvid", "model": "segnet", "loss": "soft", "seed": 2, "kappa": 5}
    message = r"unknown key of run 'x' in params.yaml 'kappa'.*There are: dataset, model, loss, seed"
    with pytest.raises(ValueError, match=message):
        run_settings(PARAMS | {"runs": {"x": entry}}, "x")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dataset": "streets", "model": "unet", "loss": "ce"}, "run 'x' of params.yaml has no seed"),
        ({"model": "unet", "loss": "ce"}, "has no dataset, seed"),
        (
            {"dataset": "streets", "model": "unet", "loss": "sofft", "seed": 0},
            r"unknown loss of run 'x' in params.yaml 'sofft'\. Did you mean 'soft'\? There are: ce, soft",
        ),
        (
            {"dataset": "street", "model": "unet", "loss": "ce", "seed": 0},
            r"unknown dataset of run 'x' in params.yaml 'street'\. Did you mean 'streets'\?",
        ),
        (
            {"dataset": "streets", "model": "u-net", "loss": "ce", "seed": 0},
            r"unknown model of run 'x' in params.yaml 'u-net'\. Did you mean 'unet'\?",
        ),
    ],
)
def test_run_that_cannot_be(entry, message):
    with pytest.raises(ValueError, match=message):
        run_settings(PARAMS | {"runs": {"x": entry}}, "x")


def test_unknown_run():
    params = PARAMS | {"runs": {"streets-ce": PARAMS["runs"]["a"]}}
    message = r"unknown run of params.yaml 'street-ce'\. Did you mean 'streets-ce'"
    with pytest.raises(ValueError, match=message):
        run_settings(params, "street-ce")


# --- the grid

TABLES = {
    "table1": {"models": ["segnet"], "losses": ["ce", "soft"]},
    "table3": {"models": ["segnet", "unet"], "losses": ["soft"], "seeds": [0, 3]},
}


def test_the_tables_are_the_grid_and_a_shared_run_is_one_run():
    runs = grid_runs(PARAMS | {"tables": TABLES, "runs": {}})
    assert list(runs) == [
        "streets-segnet-ce", "streets-segnet-soft", "camvid-segnet-ce", "camvid-segnet-soft",
        "streets-segnet-ce-1", "streets-segnet-soft-1", "camvid-segnet-ce-1", "camvid-segnet-soft-1",
        "streets-unet-soft", "camvid-unet-soft",
        "streets-segnet-soft-3", "streets-unet-soft-3", "camvid-segnet-soft-3", "camvid-unet-soft-3",
    ]  # fmt: skip
    assert runs["camvid-unet-soft-3"] == {"dataset": "camvid", "model": "unet", "loss": "soft", "seed": 3}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"models": ["unte"], "losses": ["ce"]},
            r"unknown entry of models of table 't' .* 'unte'\. Did you mean 'unet'",
        ),
        ({"models": ["unet"], "losses": ["sofft"]}, r"unknown entry of losses of table 't' .*\. Did you mean 'soft'"),
        ({"models": ["unet"]}, r"losses of table 't' in .* is None, expected a list of names"),
        ({"models": "unet", "losses": ["ce"]}, r"models of table 't' in .* is 'unet', expected a list of names"),
        ({"models": ["unet"], "loses": ["ce"]}, r"unknown key of table 't' in .* 'loses'\. Did you mean 'losses'"),
        ({"models": ["unet"], "losses": ["ce"], "seeds": []}, r"seeds of table 't' in .* is \[\], expected a list"),
        ({"models": ["unet"], "losses": ["ce"], "seeds": [1, 1]}, r"is \[1, 1\], expected a list of different whole"),
        ({"models": ["unet"], "losses": ["ce"], "seeds": [0.5]}, r"an entry of seeds of table 't' .* is 0.5, expected"),
    ],
)
def test_a_grid_that_cannot_be(table, message):
    with pytest.raises(ValueError, match=message):
        grid_runs(PARAMS | {"tables": {"t": table}})


def test_two_runs_of_one_name_are_refused():
    losses = {"ce": {"name": "ce"}, "ce-1": {"name": "ce"}}
    table = {"models": ["unet"], "losses": ["ce", "ce-1"]}
    with pytest.raises(ValueError, match=r"would both be run 'streets-unet-ce-1' of .*: rename one of them"):
        grid_runs(PARAMS | {"losses": losses, "tables": {"t": table}})


@pytest.mark.parametrize("seeds", [0, [], None, [0, -1], ["0"], [True]])
def test_seeds_that_are_none(write, seeds):
    file = write(seeds=seeds) if seeds is not None else write()
    if seeds is None:
        file.write_text(file.read_text().replace("seeds:\n- 0\n- 1\n", "seeds:\n"))
    with pytest.raises(ValueError, match=r"seeds of .*params.yaml is"):
        load_params(file)


def test_writing_the_runs_leaves_everything_else(write):
    file = write(tables=TABLES)
    text = "# a comment\n" + file.read_text() + "# the end\n"
    file.write_text(re.sub(r"(?m)^tables:", "# the grid\ntables:", text))
    before = file.read_text()
    runs = write_runs(file)
    assert load_params(file)["runs"] == runs == grid_runs(load_params(file)) and len(runs) == 14
    section = r"(?ms)^runs:.*?(?=^[a-z#])"
    assert re.sub(section, "", file.read_text()) == re.sub(section, "", before)
    once = file.read_text()
    write_runs(file)
    assert file.read_text() == once and not [*file.parent.glob("*.tmp*")]


@pytest.mark.parametrize("empty", ["runs: {}\n", "runs:\n  old: {dataset: a}\n\n  older: {dataset: b}\n"])
def test_runs_at_the_end_of_the_file(write, empty):
    file = write(tables=TABLES, runs=None)
    file.write_text(file.read_text() + empty)
    assert len(write_runs(file)) == 14 and load_params(file)["runs"] == grid_runs(load_params(file))


def test_runs_that_start_no_line_are_not_lost_silently(write):
    file = write(tables=TABLES)
    file.write_text(file.read_text().replace("\nruns:", '\n"runs":'))
    before = file.read_text()
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}: no line starts with `runs:`, expected"):
        write_runs(file)
    assert file.read_text() == before


def test_a_wrong_grid_writes_nothing(write, capsys):
    file = write(tables={"t": {"models": ["unte"], "losses": ["ce"]}})
    before = file.read_text()
    with pytest.raises(SystemExit, match="error: unknown entry of models"):
        main([str(file)])
    assert file.read_text() == before
    main([str(write(tables=TABLES))])
    assert capsys.readouterr().out.endswith("params.yaml: 14 runs\n")


# --- a file says where it lies


def profile(folder, **changed):
    "A project whose params.yaml and dvc.yaml are sound, and in it a profile at `folder` that says `changed`."
    top = folder
    while top.name != "project":
        top = top.parent
    folder.mkdir(parents=True)
    (top / "dvc.yaml").write_text("stages: {}\n")
    for place, said in ((top, {}), (folder, changed)):
        text = yaml.safe_dump(PARAMS | {"tables": TABLES} | said, sort_keys=False)
        (place / "params.yaml").write_text(text)
    return folder / "params.yaml"


MINE = {"profile": "mine", "root": "../..", "params_file": "profiles/mine/params.yaml"}


def test_a_profile_that_says_where_it_lies_is_written(tmp_path, capsys, monkeypatch):
    file = profile(tmp_path / "project/profiles/mine", **MINE)
    main([str(file)])
    assert capsys.readouterr().out == "profiles/mine/params.yaml: 14 runs\n" and load_params(file)["runs"]


@pytest.mark.parametrize(
    ("changed", "lines"),
    [
        ({"profile": "camvid"}, r"\(profile is 'camvid'\): change the lines to `profile: mine`"),
        ({"profile": None}, r"\(profile is None\): change the lines to `profile: mine`"),
        ({"root": "."}, r"\(root is '\.'\): change the lines to `root: \.\./\.\.`"),
        ({"root": "/srv/project"}, "change the lines to `root: "),
        ({"params_file": "params.yaml"}, "`params_file: profiles/mine/params.yaml`"),
        ({"params_file": "/srv/project/profiles/mine/params.yaml"}, "`params_file: profiles/mine/params.yaml`"),
        ({"profile": "sample", "root": ".", "params_file": "params.yaml"}, "`profile: mine`; `root: .*; `params_file"),
    ],
)
@pytest.mark.parametrize("pipeline", [False, True])  # with dvc.yaml, a copy of the top looks like a top
def test_a_copied_profile_is_refused_before_it_is_written(tmp_path, changed, lines, pipeline):
    file = profile(tmp_path / "project/profiles/mine", **MINE | changed)
    if pipeline:
        (file.parent / "dvc.yaml").symlink_to("../../dvc.yaml")
    before = file.read_text()
    with pytest.raises(SystemExit, match=rf"error: {re.escape(str(file))} says that it is elsewhere .*{lines}"):
        main([str(file)])
    assert file.read_text() == before and project_root(file.parent) == tmp_path / "project"


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("profiles/a/b", "at a place where no profile is looked for, expected .*/project/profiles/<name>/params.yaml"),
        ("elsewhere", "at a place where no profile is looked for"),
        ("profiles/sample", "in a folder of the name 'sample', expected letters"),
        ("profiles/my own", "in a folder of the name 'my own', expected letters"),
        ("profiles/-mine", "in a folder of the name '-mine', expected letters"),
    ],
)
def test_a_profile_at_another_place_is_refused(tmp_path, folder, said):
    file = profile(tmp_path / "project" / folder, **MINE)
    with pytest.raises(SystemExit, match=rf"error: .*params\.yaml is {said}"):
        main([str(file)])


def test_the_top_is_the_sample(tmp_path):
    file = profile(tmp_path / "project/profiles/mine", **MINE)
    top = tmp_path / "project/params.yaml"
    shutil.copy(file, top)  # somebody made his profile the top
    with pytest.raises(SystemExit, match=r"change the lines to `profile: sample`; `root: \.`; `params_file: "):
        main([str(top)])


def test_a_name_of_digits_needs_quotes(tmp_path):
    said = {"root": "../..", "params_file": "profiles/2024/params.yaml"}
    with pytest.raises(SystemExit, match=r"profile is 2024.*`profile: 2024`, with quotes"):
        main([str(profile(tmp_path / "project/profiles/2024", profile=2024, **said))])
    main([str(profile(tmp_path / "again/project/profiles/2024", profile="2024", **said))])


def test_the_file_of_the_working_directory_is_the_one_that_is_meant(tmp_path):
    file = profile(tmp_path / "project/profiles/mine", **MINE)
    for name in ("params.yaml", "./params.yaml", "../mine/params.yaml", "profiles/mine/params.yaml", str(file)):
        assert python(file.parent, "-m", "pat.params", name) == "profiles/mine/params.yaml: 14 runs", name
    assert python(tmp_path / "project", "-m", "pat.params", "params.yaml") == "params.yaml: 14 runs"
    assert python(tmp_path / "project/profiles", "-m", "pat.params", "params.yaml") == "params.yaml: 14 runs"
    top = ("--root", str(tmp_path / "project"))
    assert python(file.parent, "-m", "pat.params", "params.yaml", *top) == "params.yaml: 14 runs"


def test_a_path_of_a_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named_path("data/new") == ROOT / "data/new"
    assert named_path("./new") == tmp_path / "new" and named_path("..") == tmp_path.parent
    assert named_path("/somewhere/else") == Path("/somewhere/else")
    (tmp_path / "new").mkdir()
    assert named_path("new") == tmp_path / "new"
    assert named_path("new", tmp_path.parent) == tmp_path.parent / "new"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"ce": {}, "Ce": {}}, "has '(ce|Ce)' and '(ce|Ce)', which are one file on some systems: rename one"),
        ({"-ce": {}}, "has the name '-ce', expected letters, digits"),
        ({"a.b": {}}, r"has the name 'a\.b', expected"),
        ({"a b": {}}, "has the name 'a b', expected"),
        ({"a@b": {}}, "has the name 'a@b', expected"),
        ({"${a}": {}}, "has the name .* expected"),
        ({"": {}}, "has the name '', expected"),
        ({"bäume": {}}, "has the name 'bäume', expected"),
        ({True: {}}, "has the name True, expected"),
        ({None: {}}, "has the name None, expected"),
    ],
)
@pytest.mark.parametrize("section", ["datasets", "models", "losses", "runs"])
def test_names_that_templates_or_file_systems_do_not_take(write, section, entries, message):
    with pytest.raises(ValueError, match=rf"{section} of .*params\.yaml {message}"):
        load_params(write(**{section: entries}))


def test_a_name_twice_in_a_table_is_refused():
    for key in ("models", "losses"):
        table = {"models": ["unet"], "losses": ["ce"]}
        table[key] *= 2
        with pytest.raises(ValueError, match=rf"{key} of table 't' in params.yaml has the entry .* twice"):
            grid_runs(PARAMS | {"tables": {"t": table}})


@pytest.mark.parametrize("old", ["seeds: [0]", "seeds:\n- 0\n- 1", "seeds:\n  - 0\n\n  - 1", "seeds: [\n  0,\n]"])
def test_a_section_is_replaced_and_nothing_else(old):
    text = f"# one\n{old}\n\n# two\nruns: {{}}\n"
    assert with_section(text, "seeds", "seeds: [3]") == "# one\nseeds: [3]\n\n# two\nruns: {}\n"
    assert with_section(f"a: 1\n{old}", "seeds", "seeds: [3]\n") == "a: 1\nseeds: [3]\n"
    with pytest.raises(ValueError, match="no line starts with `seed:`"):
        with_section(text, "seed", "seed: 1")


def test_a_file_is_written_whole_with_the_line_ends_of_unix(tmp_path):
    write_file(tmp_path / "a/b.txt", "ä\nb\n")
    assert (tmp_path / "a/b.txt").read_bytes() == "ä\nb\n".encode() and len([*(tmp_path / "a").iterdir()]) == 1


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
