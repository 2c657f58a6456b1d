from collections import UserDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from al_lightning.posterior.forward import Keywords, arguments_of, called, logits_of, refuse_other_tasks

Pair = namedtuple("Pair", ["x", "y"])
Named = namedtuple("Named", ["logits", "features"])
X, Y, MASK, IDS = torch.ones(2, 3), torch.tensor([0, 1]), torch.ones(2, 3), torch.tensor([7, 8])


def model_of(forward):
    class Model(nn.Module):
        pass

    Model.forward = forward
    return Model()


@pytest.mark.parametrize("batch", [X, (X, None), [X], Pair(X, Y), (X, MASK, Y)])
def test_a_tensor_is_the_input_or_the_first_entry(batch):
    assert arguments_of(nn.Linear(3, 2), batch) is X
    assert arguments_of(model_of(lambda self, x, scale=1.0: 0), batch) is X


KEYWORDS = {
    "by name": (lambda self, ids, mask: 0, {"ids": X, "mask": MASK}, {"ids", "mask"}),
    "one by name": (lambda self, x: 0, {"x": X, "y": Y}, {"x"}),
    "labels with a default": (lambda self, ids, labels=None: 0, {"ids": X, "labels": Y}, {"ids"}),
    "each word for a label": (
        lambda self, **kwargs: 0,
        {"ids": X, "label": Y, "labels": Y, "target": Y, "targets": Y, "y": Y},
        {"ids"},
    ),
    "further keywords": (lambda self, **inputs: 0, {"ids": X, "idx": IDS, "text": ["a", "b"]}, {"ids", "idx", "text"}),
    "keyword only": (lambda self, *, ids: 0, {"ids": X}, {"ids"}),
    "positions of points": (lambda self, ids: 0, {"ids": X, "idx": IDS, "index": IDS, "id": IDS}, {"ids"}),
    "texts and numbers": (lambda self, ids: 0, {"ids": X, "text": ["a", "b"], "length": [3, 3], "none": None}, {"ids"}),
    "a named idx": (lambda self, ids, idx: 0, {"ids": X, "idx": IDS}, {"ids", "idx"}),
    "the rest has defaults": (lambda self, ids, mask=None, scale=1.0: 0, {"ids": X}, {"ids"}),
}


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType, lambda batch: (batch, Y)])
@pytest.mark.parametrize(("forward", "batch", "expected"), KEYWORDS.values(), ids=KEYWORDS)
def test_entries_of_a_dict_are_keyword_arguments_without_labels(kind, forward, batch, expected):
    model = model_of(forward)
    arguments = arguments_of(model, kind(batch))
    assert type(arguments) is Keywords
    assert arguments.keys() == expected
    assert all(arguments[key] is batch[key] for key in expected)
    assert arguments_of(model, arguments) is arguments
    assert called(model, arguments) == 0


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType])
def test_a_forward_of_one_other_name_gets_the_dict_without_labels(kind):
    model, batch = model_of(lambda self, batch: batch), kind({"ids": X, "labels": Y, "idx": IDS})
    arguments = arguments_of(model, batch)
    assert type(arguments) is type(batch)
    assert list(arguments) == ["ids", "idx"]
    assert list(batch) == ["ids", "labels", "idx"]
    assert called(model, arguments) is arguments


REFUSED = {
    "a missed mask": (
        lambda self, ids, mask=None: 0,
        {"ids": X, "attention_mask": MASK, "labels": Y},
        r"with the keys \['ids', 'attention_mask', 'labels'\] \(labels is left out, as labels\).*"
        r"`forward\(ids, mask=None\)`: `forward` has no parameter for attention_mask",
    ),
    "missing": (lambda self, ids, mask: 0, {"ids": X}, r"`forward\(ids, mask\)`: the batch does not give mask"),
    "a needed label": (lambda self, ids, label: 0, {"ids": X, "label": Y}, "does not give label"),
    "nested": (lambda self, ids: 0, {"ids": X, "other": [[1, 2], [3]]}, "no parameter for other"),
    "no tensor": (lambda self, **inputs: 0, {"text": ["a", "b"]}, "nothing that is left is a tensor"),
    "labels alone": (lambda self, **inputs: 0, {"labels": Y}, "nothing that is left is a tensor"),
    "nothing named": (lambda self, ids=None, mask=None: 0, {"pixels": X}, "has no parameter for pixels"),
    "numbered keys": (lambda self, x, mask: 0, {0: X}, r"with the keys \[0\], and nothing says how"),
    "more than the input": (
        lambda self, ids, mask: 0,
        (X, MASK, Y),
        r"`forward\(ids, mask\)` of Model takes more than",
    ),
    "a mask beside token ids": (
        lambda self, ids, mask=None: 0,
        (X.long(), MASK, Y),
        r"`forward\(ids, mask=None\)` of Model takes more than one input, but of a batch that is a tuple only",
    ),
    "a mask beside features": (
        lambda self, x, mask=None: 0,
        (torch.ones(4, 7, 3), torch.ones(4, 7), Y),
        r"`forward\(x, mask=None\)` of Model takes more than one input, but of a batch that is a tuple only",
    ),
    "empty": (lambda self, x: 0, [], "The batch is a list, and only a tensor or a dict"),
    "text": (lambda self, x: 0, "text", "The batch is a str, and only a tensor or a dict"),
    "a number": (lambda self, x: 0, torch.tensor(1.0), r"The batch is a Tensor of shape \(\), and only a tensor"),
    "a pair of texts": (lambda self, x: 0, (["a"], Y), "The batch is a tuple that begins with list"),
}


@pytest.mark.parametrize(("forward", "batch", "words"), REFUSED.values(), ids=REFUSED)
def test_other_batches_are_refused_with_what_was_seen_and_the_remedy(forward, batch, words):
    with pytest.raises(TypeError, match=words + r".*MCDropout\(predict=lambda module, batch: "):
        arguments_of(model_of(forward), batch)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
def test_a_model_without_a_signature_gets_tensors_alone():
    model = torch.jit.trace(nn.Linear(3, 2), X)
    assert arguments_of(model, (X, Y)) is X
    with pytest.raises(TypeError, match="nothing says how"):
        arguments_of(model, {"input": X})


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, batch: batch["ids"] + batch["labels"],
        lambda self, x: nn.functional.relu(x),
        lambda self, batch: batch.ids,
    ],
    ids=["labels", "a tensor", "an attribute"],
)
def test_a_forward_that_cannot_take_the_dict_says_what_it_got(forward):
    model = model_of(forward)
    with pytest.raises(TypeError, match=r"got the batch itself, a dict with the keys \['ids'\].*predict=lambda"):
        called(model, arguments_of(model, {"ids": X, "labels": Y}))


@pytest.mark.parametrize("batch", [X, (X, Y), {"ids": X, "labels": Y}])
@pytest.mark.parametrize("kind", [nn.Module, LightningModule])
def test_a_model_without_forward_is_told_to_have_one(kind, batch):
    with pytest.raises(TypeError, match=r"has no `forward`.*def forward\(self, \*\*inputs\)"):
        arguments_of(kind(), batch)


@dataclass
class Output:
    loss: Tensor | None
    logits: object


LOGITS, OTHER = torch.randn(4, 3), torch.randn(4, 2)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "domain": OTHER},
        Output(None, LOGITS),
        SimpleNamespace(logits=LOGITS),
        Named(LOGITS, OTHER),
        (LOGITS,),
        [LOGITS, None],
        (LOGITS, torch.randn(4, 5, 6)),
        (LOGITS, (torch.randn(4, 2), torch.randn(4, 2))),
        (LOGITS, torch.tensor(0.5)),
        (LOGITS, torch.tensor([1, 2, 0, 1])),
        (LOGITS, torch.randn(7, 3)),
    ],
)
def test_logits_are_the_output_or_named_or_first(output):
    assert logits_of(output) is LOGITS


def test_one_number_for_each_point_may_be_first():
    assert logits_of((LOGITS[:, 0], None)).shape == (4,)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ((LOGITS, OTHER), r"a tuple \(float32 \(4, 3\), float32 \(4, 2\)\), several outputs that may be logits"),
        ([LOGITS, LOGITS, None], "several outputs"),
        ((LOGITS[:, 0], LOGITS[:, 1]), "several outputs"),
        ({"digit": LOGITS, "letter": OTHER}, r"a dict \(digit: float32 \(4, 3\), letter: float32 \(4, 2\)\), several"),
        ({"prediction": LOGITS}, "in which nothing says which are the logits"),
        (Output(None, (LOGITS, OTHER)), "a Output, in which nothing says"),
        ({"logits": {"a": LOGITS, "b": OTHER}}, r"a dict \(logits: dict \(a: "),
        ((torch.tensor(0.5), LOGITS), r"a tuple \(float32 \(\), float32 \(4, 3\)\), in which nothing says"),
        ((torch.zeros(4, 3, dtype=torch.long),), "in which nothing says"),
        ((torch.randn(4, 5, 6), LOGITS), "in which nothing says"),
        ((), r"a tuple \(\), in which"),
        (None, "a NoneType, in which"),
        ("text", "a str, in which"),
    ],
)
def test_other_outputs_are_refused_with_what_was_seen_and_the_remedy(output, words):
    with pytest.raises(TypeError, match=rf"The model returned .*{words}.*predict=lambda module, batch"):
        logits_of(output)


def head(num_labels, task):
    model = nn.Sequential(nn.Linear(3, num_labels))
    model[0].num_labels, model[0].config = num_labels, SimpleNamespace(problem_type=task)
    return model


@pytest.mark.parametrize(
    ("num_labels", "task", "has_predict", "words"),
    [
        (1, None, False, r"`0` \(Linear\) has `num_labels` 1 and `config.problem_type` None.*Regression is not"),
        (3, "regression", False, "Regression is not supported"),
        (3, "regression", True, "Regression is not supported"),
        (3, "multi_label_classification", True, "'multi_label_classification': models of several labels at once"),
    ],
)
def test_heads_of_other_tasks_are_refused(num_labels, task, has_predict, words):
    with pytest.raises(ValueError, match=words):
        refuse_other_tasks(head(num_labels, task), has_predict=has_predict)


def test_heads_of_classifiers_are_not():
    refuse_other_tasks(head(3, None), has_predict=False)
    refuse_other_tasks(head(3, "single_label_classification"), has_predict=False)
    refuse_other_tasks(head(1, None), has_predict=True)  # a sigmoid's logit, as the user says
    refuse_other_tasks(head(1, "multi_label_classification"), has_predict=False)  # a sigmoid's too
    refuse_other_tasks(nn.Linear(3, 1), has_predict=False)
