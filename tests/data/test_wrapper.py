import copy
import pickle

import pytest
from pytorch_lightning import LightningDataModule

from al_lightning.data.wrapper import Wrapper


class Plain(LightningDataModule):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"size": 3})
        self.batch_size = 8

    def val_dataloader(self):
        return ["a batch"]


class Doubling(Wrapper):
    factor: int

    def __init__(self, inner):
        self.factor = 2
        super().__init__(inner)

    def doubled(self):
        return self.factor * self.batch_size


@pytest.fixture
def wrapper():
    return Doubling(Plain())


def test_what_the_wrapper_does_not_define_is_read_set_and_deleted_on_the_wrapped_module(wrapper):
    assert (wrapper.batch_size, wrapper.val_dataloader(), wrapper.hparams["size"]) == (8, ["a batch"], 3)
    wrapper.batch_size = 5
    wrapper.factor = 3
    assert (wrapper.inner.batch_size, wrapper.doubled(), hasattr(wrapper.inner, "factor")) == (5, 15, False)
    del wrapper.batch_size
    assert not hasattr(wrapper, "batch_size")
    assert {"factor", "doubled", "val_dataloader"} <= set(dir(wrapper))


def test_wrappers_of_wrappers_reach_the_innermost_module(wrapper):
    outer = Doubling(wrapper)
    outer.trainer = "a trainer"
    assert wrapper.inner.trainer == "a trainer"
    assert outer.val_dataloader() == ["a batch"]


def test_a_wrapper_is_copied_and_pickled_with_its_module(wrapper):
    for again in (copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):  # noqa: S301 - made here
        again.batch_size = 1
        assert (again.doubled(), wrapper.doubled()) == (2, 16)


def test_what_was_set_from_outside_is_put_back(wrapper):
    wrapper.keep_settings()
    wrapper.batch_size = 64
    wrapper.new = 1
    wrapper.hparams["size"] = 4
    wrapper.put_settings_back()
    assert (wrapper.batch_size, hasattr(wrapper, "new"), wrapper.hparams["size"]) == (8, False, 3)
