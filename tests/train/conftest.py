import pytest
import torch
from train_toys import make_pairs, save_model, write_data


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """40 prompts with two pairs each to train on, 12 to evaluate."""
    splits = {"train": make_pairs(40, 2), "test": make_pairs(12, 3, seed=9)}
    return write_data(tmp_path_factory.mktemp("data") / "toy", splits)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "llama")
