import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional

import al_lightning
from al_lightning.posterior import MCDropout, Point
from al_lightning.posterior.base import Posterior, another_posterior
from al_lightning.posterior.checks import (
    check_before_training,
    check_rows,
    fill_zeros,
    have_same_points,
    learning,
    refuse_dependence_on_batch,
    refuse_dropout_without_effect,
    refuse_equal_samples,
    refuse_fixed_first_axis,
    refuse_no_masks,
    refuse_other_outputs,
    refuse_points_second,
    rounding_tolerance,
    rows_again,
)
from al_lightning.posterior.dropout.function_mode import LayerMasks
from al_lightning.posterior.model_state import ModelState, handed_back

MASKS = {("head.1", 0): LayerMasks(0.5, torch.ones(2, 3, dtype=torch.bool))}
K = 4


def points(num_points=6, num_features=5):
    return torch.randn(num_points, num_features, generator=torch.Generator().manual_seed(0))


def mlp():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))


class Forward(nn.Module):
    """A model whose forward is a function of an MLP and the inputs."""

    def __init__(self, function):
        super().__init__()
        self.net = mlp()
        self.function = function

    def forward(self, x):
        return self.function(self.net, x)


def predictions(model, batch, *, predict=None):
    with MCDropout(predict=predict).sample(model, K, seed=1) as predict_batch:
        return predict_batch(batch)


def test_a_model_without_dropout_is_told_so():
    with pytest.raises(ValueError, match=r"drew no mask in a forward pass of Sequential, whose .* are: none\. Add nn"):
        refuse_no_masks(nn.Sequential(nn.Linear(2, 2)), {})


def test_of_many_dropout_layers_the_first_are_named_and_the_others_counted():
    with pytest.raises(
        ValueError, match=r"are: `0` \(Dropout, p=0.0\), .*, `5` \(Dropout, p=0.0\) and 3 more\. Add nn"
    ):
        refuse_no_masks(nn.Sequential(*(nn.Dropout(0.0) for _ in range(9))), {})


def test_a_model_whose_dropout_draws_nothing_sees_its_layers():
    model = nn.Sequential(nn.Dropout(0.0), nn.Sequential(nn.AlphaDropout(1.0)))
    with pytest.raises(ValueError, match=r"are: `0` \(Dropout, p=0.0\), `1.0` \(AlphaDropout, p=1.0\)\. Add"):
        refuse_no_masks(model, {})


def test_a_model_with_masks_passes():
    refuse_no_masks(nn.Linear(2, 2), MASKS)


def test_equal_samples_are_refused_with_the_layers_that_drew():
    with pytest.raises(ValueError, match=r"All 3 samples predict exactly the same, .* in `head.1` \(p=0.5\)"):
        refuse_equal_samples(torch.randn(4, 1, 2).expand(4, 3, 2), MASKS)


def test_one_row_of_disagreement_is_enough():
    log_probs_B_K_C = torch.zeros(4, 3, 2)
    log_probs_B_K_C[2, 1, 0] = -1
    refuse_equal_samples(log_probs_B_K_C, MASKS)


@pytest.mark.parametrize(("num_rows", "expected"), [(1, [0]), (2, [1]), (3, [2, 1]), (6, [5, 4, 3])])
def test_the_second_half_comes_again_in_reverse(num_rows, expected):
    inputs, rows = rows_again({"x": torch.arange(num_rows) + 10}, num_rows)
    assert rows.tolist() == expected
    assert inputs["x"].tolist() == [row + 10 for row in expected]


def test_a_batch_that_cannot_be_cut_comes_again_whole():
    batch = {"x": torch.arange(4), "text": ["a", "b", "c", "d"]}
    inputs, rows = rows_again(batch, 4)
    assert inputs is batch
    assert rows.tolist() == [0, 1, 2, 3]


def test_a_first_axis_that_does_not_follow_the_batch_is_refused_by_name():
    with pytest.raises(ValueError, match=r"first axis of the input to dropout in `rnn` \(call 1\) has length 7"):
        refuse_fixed_first_axis({("rnn", 0): 8, ("rnn", 1): 7}, {("rnn", 0): 4, ("rnn", 1): 7})


def test_a_first_axis_that_follows_the_batch_or_holds_one_entry_passes():
    refuse_fixed_first_axis(
        {("tokens", 0): 80, ("positions", 0): 1, ("gone", 0): 5}, {("tokens", 0): 40, ("positions", 0): 1}
    )


def test_predictions_that_depend_on_the_batch_are_refused_with_the_difference():
    once, again = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.6, 0.4]]).log()
    refuse_dependence_on_batch(once, again, tolerance=0.11)
    with pytest.raises(ValueError, match=r"other probabilities in another batch \(by up to 0.100\)"):
        refuse_dependence_on_batch(once, again, tolerance=0.09)


def test_the_tolerance_follows_the_coarsest_number_format_in_use():
    model = nn.Linear(2, 2)
    assert rounding_tolerance(torch.zeros(1), model) == 0.002
    assert rounding_tolerance(torch.zeros(1, dtype=torch.bfloat16), model) == pytest.approx(0.0884, abs=1e-4)
    assert rounding_tolerance(torch.zeros(1), nn.Linear(2, 2).half()) == pytest.approx(0.03125)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rounding_tolerance(torch.zeros(1), model) == pytest.approx(0.0884, abs=1e-4)


def test_noise_of_the_model_itself_is_refused():
    model = Forward(lambda net, x: net(x + torch.randn_like(x)))
    with pytest.raises(
        ValueError, match=r"One sample gave the same points other probabilities .*noise drawn in `forward`"
    ):
        predictions(model, points())


def test_noise_is_seen_in_a_batch_that_cannot_be_cut_too():
    model = Forward(lambda net, x: net(x + torch.randn_like(x)))
    with pytest.raises(ValueError, match="One sample gave the same points other probabilities"):
        predictions(model, {"x": points(), "text": ["a"]}, predict=lambda module, batch: module(batch["x"]))


def test_batch_statistics_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), *mlp())
    with pytest.raises(ValueError, match="BatchNorm without running statistics"):
        predictions(model, points() * 3)


def test_time_before_batch_is_refused():
    model = nn.Sequential(nn.Unflatten(1, (7, 5)), Forward(lambda net, x: net(x.transpose(0, 1))[-1]))
    with pytest.raises(ValueError, match=r"first axis of the input to dropout in `1.net.2` \(call 0\) has length 7"):
        predictions(model, points(6, 35))


def test_dropout_of_a_weight_is_refused():
    class DropConnect(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x):
            return functional.linear(x, functional.dropout(self.linear.weight), self.linear.bias)

    with pytest.raises(
        ValueError, match=r"dropout in the model itself \(call 0\) has length 3 whatever the number of rows"
    ):
        predictions(DropConnect(), points())


def test_texts_of_different_lengths_meet_the_same_network():
    model = Forward(lambda net, x: net(x)[:, 0])
    with MCDropout().sample(model, K, seed=0) as predict:
        short = predict(points(8).reshape(4, 2, 5))
        padded = torch.cat([points(8).reshape(4, 2, 5), torch.zeros(4, 70, 5)], dim=1)
        torch.testing.assert_close(predict(padded), short)
        torch.testing.assert_close(predict(padded[:, :40].flip(0)).flip(0), short)


def test_predictions_that_depend_on_the_length_of_the_padding_are_refused_before_the_training():
    batch = torch.cat([points(12).reshape(4, 3, 5), torch.zeros(4, 6, 5)], dim=1)
    smaller = batch[:2, :3]
    MCDropout().preview(Forward(lambda net, x: net(x)[:, 0]), batch, smaller=smaller)
    with pytest.raises(ValueError, match="padded to another length: let the model mask the padding"):
        MCDropout().preview(Forward(lambda net, x: net(x).mean(dim=1)), batch, smaller=smaller)


@pytest.mark.parametrize("is_on_left", [False, True])
def test_masks_by_position_are_refused_before_the_training_where_padding_moves_the_words(is_on_left):
    class MeanOfWords(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.last = nn.Dropout(), nn.Linear(5, 3)

        def forward(self, x):
            num_words_B_1 = (x != 0).any(dim=2).sum(dim=1, keepdim=True)
            return self.last(self.drop(x).sum(dim=1) / num_words_B_1)

    words, padding = points(12).reshape(4, 3, 5), torch.zeros(4, 6, 5)
    batch = torch.cat([padding, words] if is_on_left else [words, padding], dim=1)
    smaller = batch[:2, -3:] if is_on_left else batch[:2, :3]
    with pytest.raises(ValueError, match="pad on the right") if is_on_left else nullcontext():
        MCDropout().preview(MeanOfWords(), batch, smaller=smaller)
    Point().preview(MeanOfWords(), batch, smaller=smaller)


def test_other_points_in_the_smaller_batch_are_not_compared():
    batch = points(12).reshape(4, 3, 5)
    MCDropout().preview(Forward(lambda net, x: net(x).mean(dim=1)), batch, smaller=batch[2:, :2])


@pytest.mark.parametrize(
    ("smaller", "expected"),
    [
        (torch.tensor([[1, 2, 3]]), True),
        (torch.tensor([[1, 2]]), True),
        (torch.tensor([[2, 3]]), True),
        (torch.tensor([[1, 3]]), False),
        (torch.tensor([[1, 2, 3, 0]]), True),
        (torch.tensor([[0, 1, 2, 3]]), True),
        (torch.tensor([[4, 5, 6]]), False),
        (torch.tensor([1, 2]), False),
        ([torch.tensor([[1]]), torch.tensor([[1]])], False),
    ],
)
def test_the_first_points_are_known_again_whatever_their_padding(smaller, expected):
    assert have_same_points(torch.tensor([[1, 2, 3], [4, 5, 6]]), smaller) == expected


def test_points_on_the_second_axis_are_refused_by_name():
    words = r"second axis of the input to dropout in `rnn` \(call 0\) has length 8 in a batch of 8 points and 4 in one"
    with pytest.raises(ValueError, match=words):
        refuse_points_second({("rnn", 0): (7, 8)}, {("rnn", 0): (9, 4)}, (8, 4))


def test_texts_as_long_as_there_are_points_pass():
    refuse_points_second({("a", 0): (8, 8), ("b", 0): (16,)}, {("a", 0): (4, 4), ("b", 0): (4,)}, (8, 4))


def test_a_first_batch_of_one_row_leaves_the_check_to_the_next():
    model = Forward(lambda net, x: net(x * len(x)))
    with MCDropout().sample(model, K, seed=0) as predict:
        predict(points(1))
        with pytest.raises(ValueError, match="One sample gave the same points other probabilities"):
            predict(points())


def test_a_first_batch_of_one_blank_row_on_which_all_samples_agree_is_no_reason_to_refuse():
    with MCDropout().sample(nn.Sequential(nn.Dropout(), nn.Linear(5, 3)), K, seed=0) as predict:
        blank_1_K_C = predict(torch.zeros(1, 5))
        assert torch.equal(blank_1_K_C, blank_1_K_C[:, :1].expand(-1, K, -1))
        predict(points())


def test_other_outputs_are_refused_with_the_difference_and_nan_is_equal_to_nan():
    looped = torch.tensor([[0.0, 0.0], [torch.nan, 0.0]])
    refuse_other_outputs(looped, looped + 3, tolerance=1e-6)  # the same probabilities
    with pytest.raises(RuntimeError, match=r"at once, probabilities differ by up to 0\.23"):
        refuse_other_outputs(looped[:1], torch.tensor([[1.0, 0.0]]), tolerance=0.1)
    with pytest.raises(RuntimeError, match="differ by up to nan"):
        refuse_other_outputs(looped, torch.zeros(2, 2), tolerance=0.1)


def test_the_checks_cost_four_forward_passes_and_one_of_two_rows_in_all():
    calls = []
    model = Forward(lambda net, x: (calls.append(len(x)), net(x))[1])
    with MCDropout().sample(model, K, seed=0) as predict:
        predict(points())
        predict(points())
    in_training, first, few_rows, half = 2, 6, 4, 3
    assert calls == [in_training, first, half, few_rows, few_rows, 6, 6]


def test_the_checks_of_a_loop_cost_three_forward_passes_and_two_attempts():
    calls = []
    model = Forward(lambda net, x: (calls.append(len(x)), net(x) * net(x).isfinite().all().item())[1])
    with MCDropout().sample(model, K, seed=0) as predict:
        predict(points())
        predict(points())
    assert calls == [2] + [6, 3, 4, 4] + [6] * (K - 1) + [6] + [6] * K


def test_the_way_out_names_the_other_posteriors_that_there_are():
    ours = {kind.__name__ for kind in Posterior.__subclasses__()} & set(al_lightning.__all__) - {"Point"}
    for refused in ours:
        assert set(re.findall(r"`(\w+)\(", another_posterior(refused))) - {"ActiveLearning"} == ours - {refused}
    words = f"it never drops), or {another_posterior('MCDropout')}. Entropy()"
    with pytest.raises(ValueError, match=re.escape(words)):
        refuse_no_masks(nn.Linear(1, 1), {})


class Counting(nn.Module):
    """Scales by how often it was called."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Hidden(nn.Module):
    """Adds what it returned before, as a recurrent layer whose state nobody resets."""

    def __init__(self):
        super().__init__()
        self.state = None

    def forward(self, x):
        self.state = x if self.state is None else x + self.state
        return self.state


def output_of(model):
    return lambda inputs: model(inputs).detach()


def check(model, inputs, smaller=None):
    model.eval()
    check_before_training(model, output_of(model), inputs, smaller)


def test_a_steady_network_passes_before_the_training():
    check(mlp(), points())
    check(mlp(), points(1))


def test_noise_is_refused_before_the_training_by_the_layer_that_draws_it_and_however_small():
    model = nn.Sequential(nn.Linear(5, 5), Forward(lambda net, x: net(x + 1e-2 * torch.randn_like(x))), nn.Identity())
    with pytest.raises(ValueError, match=r"second pass over the same points gave other .* first in `1`, so the model"):
        check(model, points())


def test_what_is_kept_is_refused_before_the_training_by_its_name_and_put_back():
    model = nn.Sequential(nn.Linear(5, 5), Counting(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"first in `1`, so .* A forward pass changes `1\.calls`\. Let `forward` draw"):
        check(model, points())
    assert model[1].calls == 0


def test_what_is_kept_and_fails_with_another_batch_is_refused_by_its_name():
    model = nn.Sequential(nn.Linear(5, 5), Hidden(), nn.Linear(5, 3)).eval()
    state = ModelState(model)
    once = output_of(model)(points())
    with pytest.raises(ValueError, match=r"failed at the next one \(RuntimeError: .*A forward pass changes `1\.state`"):
        check_rows(model, output_of(model), points(), once, state)
    assert model[1].state is None


def test_what_a_model_says_of_another_batch_by_itself_is_left_as_it_is():
    model = Forward(lambda net, x: net(x.reshape(6, 5)))
    with pytest.raises(RuntimeError, match=r"shape '\[6, 5\]' is invalid"):
        check(model, points())


def test_batch_statistics_are_refused_before_the_training_by_name():
    model = nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), mlp(), nn.BatchNorm1d(3))
    with pytest.raises(
        ValueError, match=r"so it is not one network\. BatchNorm has no running statistics in `0`\. Look"
    ):
        check(model, points() * 3)


def test_a_smaller_batch_is_tried_where_a_batch_cannot_be_cut():
    model = Forward(lambda net, x: net(x["x"].reshape(6, 5)))
    batch = {"x": points(), "text": ["a"]}
    check(model, batch)
    with pytest.raises(RuntimeError, match="is invalid for input of size 15"):
        check(model, batch, {"x": points(3), "text": ["a"]})


def test_a_softmax_is_refused_before_the_training_and_a_single_row_is_no_proof():
    model = nn.Sequential(mlp(), nn.Softmax(dim=1))
    with pytest.raises(ValueError, match="returns probabilities"):
        check(model, points())
    check(model, points(1))


def test_zeros_are_filled_whole_tensors_only_and_alike_each_time():
    once, again = torch.zeros(4, 2), torch.zeros(4, 2)
    some = torch.tensor([0.0, 2.0])
    fill_zeros([once, some, torch.zeros(2, dtype=torch.long)])
    fill_zeros([again])
    assert torch.equal(once, again)
    assert once.count_nonzero() == 8
    assert some.tolist() == [0, 2]


def test_what_does_not_learn_is_not_filled():
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(requires_grad=False)
    assert [id(parameter) for parameter in learning(model)] == [id(model.weight)]


def test_dropout_without_effect_is_refused_by_its_layers():
    refuse_dropout_without_effect(torch.tensor([[[1.0], [1.0], [2.0]]]), MASKS)
    with pytest.raises(ValueError, match=r"changes nothing of what the model predicts, .*: `head.1` \(p=0.5\)\. Look"):
        refuse_dropout_without_effect(torch.ones(4, 3, 2), MASKS)


def test_weights_that_are_filled_and_put_back_take_effect_in_half_precision_too():
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert not layer(x).any()
        with handed_back(layer):
            fill_zeros(layer.parameters())
            assert layer(x).all()
        assert not layer(x).any()
