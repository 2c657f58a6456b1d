from al_lightning import ActiveLearning, DeepEnsemble, Random, Screening
from al_lightning.records.header import as_call
from al_lightning.rounds.header import described

SEEDS = {"seed": 1, "fit_seed": None}


def test_functions_in_the_settings_are_the_same_in_the_next_process(make_trainer, make_model, make_data):
    def init(module):
        raise NotImplementedError

    data = make_data()
    data.setup("fit")
    callback = ActiveLearning(Random(), posterior=DeepEnsemble(3, init=init), query_size=1, max_rounds=2)
    header = described(callback.settings, SEEDS, make_trainer(), make_model(), data)
    assert header["screening"] is None
    screened = ActiveLearning(Random(), screening=Screening(90)).settings
    assert described(screened, SEEDS, make_trainer(), make_model(), data)["screening"]["init_args"]["num_points"] == 90
    assert header["posterior"]["init_args"]["init"].endswith(".<locals>.init")
    assert (as_call(header["acquisition"]), header["max_rounds"], header["query_size"]) == ("Random()", 2, 1)


def test_hyper_parameters_are_told_by_the_whole_of_their_words(make_trainer, make_model, make_data):
    class Broken:
        def __repr__(self):
            raise RuntimeError

    def told(**values):
        model = make_model()
        model.save_hyperparameters(values)
        data = make_data()
        data.setup("fit")
        header = described(ActiveLearning(Random()).settings, SEEDS, make_trainer(), model, data)
        return {name: value for name, value in header["hyper_parameters"].items() if name.startswith("model.")}

    one, other = (told(config={"layers": list(range(200)), "rate": rate}) for rate in (0.1, 0.2))
    assert one != other
    assert len(one["model.config"]) < 250
    assert told(broken=Broken()) == {"model.broken": "<Broken>"}
    names = [f"class {number}" for number in range(9)]
    assert told(names=[set(names)]) == {"model.names": "[{" + ", ".join(map(repr, names)) + "}]"}


def test_what_changes_a_training_is_among_the_hyper_parameters(make_trainer, make_model, make_data):
    data = make_data()
    data.setup("fit")
    trainer = make_trainer(max_epochs=7, accumulate_grad_batches=2, gradient_clip_val=0.5, precision="bf16-mixed")
    header = described(ActiveLearning(Random()).settings, SEEDS, trainer, make_model(), data)
    assert header["hyper_parameters"] == {
        "trainer.max_epochs": "7",
        "trainer.min_epochs": "None",
        "trainer.max_steps": "-1",
        "trainer.min_steps": "None",
        "trainer.limit_train_batches": "1.0",
        "trainer.accumulate_grad_batches": "2",
        "trainer.gradient_clip_val": "0.5",
        "trainer.gradient_clip_algorithm": "None",
        "trainer.precision": "'bf16-mixed'",
        "trainer.world_size": "1",
        "data.batch_size": "8",
    }
