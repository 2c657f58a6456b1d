import csv

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from al_lightning import active_fit
from al_lightning.tracking import log_round


def test_every_logger_receives_the_numbers_that_are_there(make_trainer, tmp_path):
    loggers = [CSVLogger(tmp_path, name="a"), CSVLogger(tmp_path, name="b")]
    log_round(make_trainer(logger=loggers), {"n_labelled": 10, "test_acc": 0.5, "joint_mi": None})
    for logger in loggers:
        with open(logger.experiment.metrics_file_path, newline="") as file:
            assert list(csv.DictReader(file)) == [{"al/n_labelled": "10.0", "al/test_acc": "0.5", "step": "0"}]


def test_tensorboard_shows_labels_and_information_of_each_round(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    logger = TensorBoardLogger(tmp_path)
    active_fit(make_trainer(make_callback(), logger=logger), make_model(), make_data())
    events = EventAccumulator(logger.log_dir).Reload()
    assert sorted({event.value for event in events.Scalars("al/n_labelled")}) == [6, 10, 14]
    assert len(events.Scalars("al/joint_mi")) == 2
    assert len(events.Scalars("al/test_acc")) == 3
