"""The comparison with the reference run, on results made by hand."""

import json

import numpy as np
import pytest

from pat import report
from pat.report import compare, prediction_interval


@pytest.fixture
def results(tmp_path):
    "results/ of one run, ce-0, whose mIoU is 0.5."
    (tmp_path / "runs").mkdir()
    result = {"smoke": False, "test": {"miou": 0.5}}
    (tmp_path / "runs/ce-0.json").write_text(json.dumps(result))
    np.savez(tmp_path / "runs/ce-0.npz", counts=np.zeros((1, 3, 3)))
    return tmp_path


def test_prediction_interval_by_hand():
    # mean 2, standard deviation 1, n = 3; t with 2 degrees of freedom leaves 5 % outside at 4.3027
    low, high = prediction_interval([1, 2, 3], 0.95)
    half = 4.302653 * np.sqrt(1 + 1 / 3)
    assert np.allclose([low, high], [2 - half, 2 + half], rtol=1e-6)


def test_compare_says_which_run_did_not_reproduce(results, monkeypatch, capsys):
    ours = 0.5
    near, far = [ours, ours + 0.01, ours - 0.01], [ours + 0.3, ours + 0.31, ours + 0.29]
    assert [line[-1] for line in compare({"values": {"ce-0": near}}, results)] == [True]
    assert [line[-1] for line in compare({"values": {"ce-0": far}}, results)] == [False]

    root = results / "root"
    (root / "tests/expected").mkdir(parents=True)
    (root / "results").mkdir()
    (root / "results/sample").symlink_to(results)
    monkeypatch.setattr(report, "ROOT", root)
    for values, verdict, status in ((near, "reproduced", None), (far, "not reproduced", 1)):
        (root / "tests/expected/sample.json").write_text(json.dumps({"values": {"ce-0": values}}))
        if status:
            with pytest.raises(SystemExit, match="1"):
                report.main(["compare", "sample"])
        else:
            report.main(["compare", "sample"])
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.endswith(verdict) and f"{values[0]:.4f}" in line and f"{ours:.4f}" in line


def test_compare_names_a_profile_that_does_not_exist():
    with pytest.raises(SystemExit, match="Did you mean 'sample'"):
        report.main(["compare", "sampel"])


def test_compare_refuses_what_is_no_result(results):
    with pytest.raises(FileNotFoundError, match=r"run 'ce-7' has no result .*dvc repro"):
        compare({"values": {"ce-7": [0.5, 0.6, 0.7]}}, results)
    (results / "runs/ce-0.json").write_text(json.dumps({"smoke": True}))
    with pytest.raises(ValueError, match=r"ce-0\.json is from a smoke run"):
        compare({"values": {"ce-0": [0.5, 0.6, 0.7]}}, results)
