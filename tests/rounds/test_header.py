from al_lightning import ActiveLearning, DeepEnsemble, Random, Screening
from al_lightning.records.header import as_call
from al_lightning.rounds.header import described

SEEDS = {"seed": 1, "fit_seed": None}


def test_functions_in_the_settings_are_the_same_in_the_next_process(make_model, make_data):
    def init(module):
        raise NotImplementedError

    data = make_data()
    data.setup("fit")
    callback = ActiveLearning(Random(), posterior=DeepEnsemble(3, init=init), query_size=1, max_rounds=2)
    header = described(callback.settings, SEEDS, make_model(), data)
    assert header["screening"] is None
    screened = ActiveLearning(Random(), screening=Screening(90)).settings
    assert described(screened, SEEDS, make_model(), data)["screening"]["init_args"]["num_points"] == 90
    assert header["posterior"]["init_args"]["init"].endswith(".<locals>.init")
    assert (as_call(header["acquisition"]), header["max_rounds"], header["query_size"]) == ("Random()", 2, 1)


def test_hyper_parameters_are_told_by_the_whole_of_their_words(make_model, make_data):
    class Broken:
        def __repr__(self):
            raise RuntimeError

    def told(**values):
        model = make_model()
        model.save_hyperparameters(values)
        data = make_data()
        data.setup("fit")
        return described(ActiveLearning(Random()).settings, SEEDS, model, data)["hyper_parameters"]

    one, other = (told(config={"layers": list(range(200)), "rate": rate}) for rate in (0.1, 0.2))
    assert one != other
    assert len(one["model.config"]) < 250
    assert told(broken=Broken()) == {"model.broken": "<Broken>"}
    names = [f"class {number}" for number in range(9)]
    assert told(names=[set(names)]) == {"model.names": "[{" + ", ".join(map(repr, names)) + "}]"}
