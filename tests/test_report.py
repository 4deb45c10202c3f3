"""The comparison with the reference run, on results made by hand."""

import json

import numpy as np
import pytest

from pat import report
from pat.report import compare, prediction_interval, reference_range, reproduced


@pytest.fixture
def results(tmp_path):
    "results/ of one run, ce-0, whose mIoU is 0.5 and tail mIoU 0.2."
    (tmp_path / "runs").mkdir()
    result = {"smoke": False, "test": {"miou": 0.5, "miou_tail": 0.2}}
    (tmp_path / "runs/ce-0.json").write_text(json.dumps(result))
    np.savez(tmp_path / "runs/ce-0.npz", counts=np.zeros((1, 3, 3)))
    return tmp_path


def test_prediction_interval_by_hand():
    # mean 2, standard deviation 1, n = 3; t with 2 degrees of freedom leaves 5 % outside at 4.3027
    low, high = prediction_interval([1, 2, 3], 0.95)
    half = 4.302653 * np.sqrt(1 + 1 / 3)
    assert np.allclose([low, high], [2 - half, 2 + half], rtol=1e-6)


def expected_of(miou, tail=(0.2, 0.21, 0.19), run="ce-0"):
    return {"miou": {run: list(miou)}, "miou_tail": {run: list(tail)}}


NEAR, FAR = (0.5, 0.51, 0.49), (0.8, 0.81, 0.79)  # of the run's mIoU, 0.5; its tail mIoU is 0.2


@pytest.mark.parametrize(("expected", "same"), [
    (expected_of(NEAR), True),
    (expected_of(FAR), False),
    (expected_of(NEAR, (0.6, 0.61, 0.59)), False),  # the tail alone is another one
    (expected_of(NEAR, (0.203, 0.203, 0.203)), True),  # seeds that do not scatter still allow half a point
    (expected_of(NEAR, (0.206, 0.206, 0.206)), False),
])  # fmt: skip
def test_compare_says_which_run_did_not_reproduce(results, monkeypatch, capsys, expected, same):
    (scores,) = compare(expected, results).values()
    assert reproduced(scores) == same and [ours for _, ours, _, _ in scores] == [0.5, 0.2]

    root = results / "root"
    (root / "tests/expected").mkdir(parents=True)
    (root / "results").mkdir()
    (root / "results/sample").symlink_to(results)
    (root / "tests/expected/sample.json").write_text(json.dumps(expected))
    monkeypatch.setattr(report, "ROOT", root)
    if same:
        report.main(["compare", "sample"])
    else:
        with pytest.raises(SystemExit, match="1"):
            report.main(["compare", "sample"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith("  reproduced" if same else "  not reproduced")
    for score, ours in (("miou", "0.5000"), ("miou_tail", "0.2000")):
        assert f"{expected[score]['ce-0'][0]:.4f} {ours}" in line


def test_a_score_is_never_expected_below_zero():
    assert reference_range([0.0, 0.0, 0.001], 10) == (0.0, pytest.approx(0.0101, abs=1e-3))


def test_compare_names_a_profile_that_does_not_exist():
    with pytest.raises(SystemExit, match="Did you mean 'sample'"):
        report.main(["compare", "sampel"])


def test_compare_refuses_what_is_no_result(results):
    with pytest.raises(FileNotFoundError, match=r"run 'ce-7' has no result .*dvc repro"):
        compare(expected_of(NEAR, run="ce-7"), results)
    (results / "runs/ce-0.json").write_text(json.dumps({"smoke": True}))
    with pytest.raises(ValueError, match=r"ce-0\.json is from a smoke run"):
        compare(expected_of(NEAR), results)
