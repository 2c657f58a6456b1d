from al_lightning import DeepEnsemble, Random, Screening
from al_lightning.header import SETTINGS_RECORDED, described
from al_lightning.stopping import Limits


def test_functions_in_the_settings_are_the_same_in_the_next_process(make_model, make_data):
    def init(module):
        raise NotImplementedError

    data = make_data()
    data.setup("fit")
    settings = dict.fromkeys(SETTINGS_RECORDED, 1)
    rules = {"acquisition": Random(), "posterior": DeepEnsemble(3, init=init), "screening": None}
    settings |= {**rules, "limits": Limits(max_rounds=2)}
    header = described(settings, make_model(), data)
    assert header["screening"] is None
    assert described({**settings, "screening": Screening(9)}, make_model(), data)["screening"]["num_points"] == 9
    assert header["posterior"].endswith(".<locals>.init>, predict=None)")
    assert (header["acquisition"], header["max_rounds"], header["query_size"]) == ("Random()", 2, 1)
