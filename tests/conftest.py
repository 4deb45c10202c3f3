"What the tests share: reproducible hypothesis runs, and small prepared street scenes."

import pytest
import torch
from hypothesis import settings

from pat.datasets import load_prepared, open_source, prepare
from pat.streets import build

settings.register_profile("tests", derandomize=True, max_examples=100, deadline=None, database=None)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def fixed_seed():
    "A test that draws from torch's global generator draws the same numbers whenever it runs."
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory):
    "Twenty street scenes of 32 x 48 pixels in the folder format."
    return build(tmp_path_factory.mktemp("scenes") / "streets", scenes=20, height=32, width=48)


@pytest.fixture(scope="session")
def prepared_folder(scenes_folder):
    "The scenes as training reads them: 16 to train, 2 to validate, 2 to test."
    folder = scenes_folder.with_name("prepared")
    prepare(open_source("folder", scenes_folder), folder, 32, 48)
    return folder


@pytest.fixture(scope="session")
def scenes(prepared_folder):
    return load_prepared(prepared_folder)
