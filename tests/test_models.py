import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from al_lightning import ActiveLearningDataModule, models
from al_lightning.models import EMNISTCNN, MLP, VGG16, Classifier, EncoderClassifier, PaperCNN, TextClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]


class Table(nn.Module):
    """Logits that a person can check: each input is its own row of logits."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        return inputs + self.shift


def table_loader():
    logits = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]])
    return DataLoader(TensorDataset(logits, torch.tensor([0, 1, 0, 0, 2])), batch_size=3)


def quiet_trainer(**arguments):
    return Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "max_steps": 2,
            **arguments,
        }
    )


def test_mlp_has_the_layers_asked_for():
    shapes = [tuple(p.shape) for p in MLP(12, num_classes=3, hidden=(5, 4)).parameters()]
    assert shapes == [(5, 12), (5,), (4, 5), (4,), (3, 4), (3,)]
    assert [tuple(p.shape) for p in MLP(12, num_classes=3, hidden=()).parameters()] == [(3, 12), (3,)]


def test_mlp_says_how_many_values_an_input_has():
    net = MLP(192, num_classes=2)
    with pytest.raises(ValueError, match=r"^An input has 2304 values, 3 x 32 x 24, and the MLP takes 192: set `in_fe"):
        net(torch.zeros(5, 3, 32, 24))
    with pytest.raises(ValueError, match=r"^An input has 64 values, and the MLP takes 192: set `in_features` to 64"):
        net(torch.zeros(5, 64))


def test_mlp_drops_half_after_each_hidden_layer():
    kinds = [type(layer).__name__ for layer in MLP(12, num_classes=3, hidden=(5, 4)).layers]
    assert kinds == ["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert all(layer.p == 0.5 for layer in MLP(12, num_classes=3).modules() if isinstance(layer, nn.Dropout))


def test_an_encoder_gets_dropout_and_a_layer_and_all_of_it_is_trained():
    encoder = nn.Linear(4, 3)
    net = EncoderClassifier(encoder, in_features=3, num_classes=2, dropout=0.25)
    inputs = torch.ones(5, 4)
    assert torch.equal(net.eval()(inputs), net.head[1](encoder(inputs)))
    assert net.head[0].p == 0.25
    net(inputs).sum().backward()
    assert encoder.weight.grad is not None


def test_the_papers_net_is_the_papers():
    net = PaperCNN()
    kinds = [type(layer).__name__ for layer in (*net.features, *net.head)]
    convolution = ["Conv2d", "Dropout2d", "MaxPool2d", "ReLU"]
    assert kinds == [*convolution, *convolution, "Flatten", "Linear", "Dropout", "ReLU", "Linear"]
    sizes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    assert sizes == [(32, 1, 5, 5), (64, 32, 5, 5), (128, 1024), (10, 128)]


def test_the_papers_net_takes_other_channels_and_classes():
    assert PaperCNN(channels=3, num_classes=47)(torch.zeros(2, 3, 28, 28)).shape == (2, 47)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_loss_and_accuracy_are_means_over_samples_and_not_over_batches(stage):
    trainer = quiet_trainer()
    run = trainer.validate if stage == "val" else trainer.test
    metrics = run(Classifier(Table()), table_loader(), verbose=False)[0]
    right, wrong = torch.tensor([1.0, 0, 0]).log_softmax(0)[:2].neg().tolist()
    assert metrics[f"{stage}_acc"] == pytest.approx(3 / 5)  # batches of 3 and 2: their own mean is 7/12
    assert metrics[f"{stage}_loss"] == pytest.approx((3 * right + 2 * wrong) / 5)


def test_metrics_start_afresh_with_each_run():
    model, trainer = Classifier(Table()), quiet_trainer()
    runs = [trainer.validate(model, table_loader(), verbose=False)[0]["val_acc"] for _ in range(2)]
    assert runs == pytest.approx([3 / 5, 3 / 5])


def test_training_logs_its_loss_and_steps_as_plain_torch_does():
    def net():
        torch.manual_seed(0)
        return MLP(3, num_classes=3, hidden=(8,), dropout=0.0)

    model, trainer = Classifier(net(), lr=0.1, weight_decay=0.01), quiet_trainer(max_epochs=2, max_steps=-1)
    trainer.fit(model, table_loader(), table_loader())
    plain = net()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.1, weight_decay=0.01)
    for _ in range(2):
        total = 0.0
        for inputs, targets in table_loader():
            loss = nn.functional.cross_entropy(plain(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(targets)
    for ours, theirs in zip(model.net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(total / 5)
    assert {"train_loss", "val_loss", "val_acc"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize("with_targets", [True, False])
def test_prediction_takes_inputs_with_and_without_targets(with_targets):
    inputs, _ = table_loader().dataset.tensors
    loader = table_loader() if with_targets else DataLoader(inputs, batch_size=3)
    predicted = quiet_trainer().predict(Classifier(Table()), loader)
    assert torch.equal(torch.cat(predicted), inputs)


def test_a_checkpoint_holds_the_weights_and_the_hyper_parameters_but_no_net(tmp_path):
    model, trainer = Classifier(Table(), lr=0.5), quiet_trainer()
    trainer.fit(model, table_loader(), table_loader())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"] == {"lr": 0.5, "weight_decay": 0.0, "has_reject": False}
    assert list(checkpoint["state_dict"]) == ["net.shift"]  # accuracies are no weights
    assert torch.equal(Classifier.load_from_checkpoint(tmp_path / "model.ckpt", net=Table()).net.shift, model.net.shift)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_that_cannot_train_is_refused(lr):
    with pytest.raises(ValueError, match=r"`lr` is .*, but a learning rate must be positive and finite"):
        Classifier(Table(), lr=lr)


def test_the_command_line_builds_it_from_yaml(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    (tmp_path / "config.yaml").write_text("""
model:
  class_path: al_lightning.models.Classifier
  init_args:
    lr: 0.01
    net: {class_path: al_lightning.models.MLP, init_args: {in_features: 64, num_classes: 10, hidden: [32]}}
data: {class_path: al_lightning.DigitsDataModule, init_args: {batch_size: 16}}
trainer: {accelerator: cpu, logger: false, enable_checkpointing: false}
""")
    cli = LightningCLI(
        args=["--config", str(tmp_path / "config.yaml")],
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
    )
    assert cli.model.lr == 0.01
    assert [layer.out_features for layer in cli.model.net.layers if isinstance(layer, nn.Linear)] == [32, 10]
    assert cli.datamodule.batch_size == 16


def test_the_papers_net_for_emnist_is_the_papers():
    net = EMNISTCNN()
    sizes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    assert sizes == [(32, 1, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (512, 2048), (47, 512)]
    kinds = [type(layer).__name__ for layer in net.features]
    plain, pooled = ["Conv2d", "Dropout2d", "ReLU"], ["Conv2d", "Dropout2d", "MaxPool2d", "ReLU"]
    assert kinds == [*pooled, *plain, *pooled]


def test_vgg_16_has_thirteen_convolutions_and_dropout_before_its_head():
    net = VGG16(num_classes=7)
    widths = [layer.out_channels for layer in net.features if isinstance(layer, nn.Conv2d)]
    assert widths == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in net.features) == 5
    kinds = [type(layer).__name__ for layer in net.head]
    assert kinds == ["AdaptiveAvgPool2d", "Flatten", "Dropout", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert net.head[-1].out_features == 7


@pytest.mark.slow
def test_vgg_16_takes_the_convolutions_of_torchvisions_file(tmp_path):
    torch.manual_seed(0)
    source = VGG16()
    states = {f"features.{name}": tensor for name, tensor in source.features.state_dict().items()}
    # Torchvision numbers its layers alike: 0 is the first convolution, 1 its normalisation, 40 the last convolution.
    assert {"features.0.weight", "features.1.running_mean", "features.40.weight", "features.41.bias"} <= set(states)
    torch.save({**states, "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16_bn.pth")
    net = VGG16(pretrained=str(tmp_path / "vgg16_bn.pth"))
    assert all(
        torch.equal(net.features.state_dict()[name], tensor) for name, tensor in source.features.state_dict().items()
    )
    torch.save({"features.0.weight": states["features.0.weight"]}, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match="Missing key"):
        VGG16(pretrained=str(tmp_path / "other.pth"))


def test_the_output_of_rejected_points_is_trained_and_not_measured():
    model = Classifier(Table(), has_reject=True)
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))  # logits
    logits = model(inputs).detach()
    targets = logits[:, :-1].argmax(dim=1)  # of the real classes always right
    assert (logits.argmax(dim=1) != targets).any()
    logged = {}
    model.log = lambda name, value, **_: logged.update({name: value})
    model.test_step((inputs, targets), 0)
    assert float(model.test_acc.compute()) == 1
    assert torch.isclose(logged["test_loss"], nn.functional.cross_entropy(logits[:, :-1], targets))
    loss = model.training_step((inputs, torch.full((20,), logits.shape[1] - 1)), 0)
    assert torch.isclose(loss, -logits.log_softmax(dim=1)[:, -1].mean())


def test_junk_among_what_is_measured_is_refused_with_the_way_out():
    model = Classifier(nn.Linear(4, 3), has_reject=True)
    with pytest.raises(
        ValueError, match=r"2 classes.* 1 points of a batch of the test data have the target 2\. Leave junk out"
    ):
        model.test_step((torch.zeros(3, 4), torch.tensor([0, 2, 1])), 0)
    with pytest.raises(ValueError, match="Leave junk out of the val data"):
        model.validation_step((torch.zeros(1, 4), torch.tensor([5])), 0)


@pytest.mark.parametrize("reject", ["train", "set_aside"])
def test_metrics_of_other_classes_than_are_trained_are_refused_before_the_training(reject):
    has_reject = reject == "set_aside"  # the other way round
    dataset = TensorDataset(torch.randn(20, 4), torch.arange(20) % 3)
    plain = LightningDataModule.from_datasets(dataset, dataset, dataset, batch_size=5)
    datamodule = ActiveLearningDataModule(plain, initial=6, reject=reject)
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(
        ValueError, match=f"`has_reject` is {has_reject}, but `reject` of the data module is {reject!r}"
    ):
        trainer.fit(Classifier(nn.Linear(4, 4), has_reject=has_reject), datamodule=datamodule)


def test_texts_without_transformers_are_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'needs transformers: `pip install "al-lightning\[text\]"`\.$'):
        TextClassifier()


@pytest.mark.parametrize("stage", ["val", "test"])
def test_points_that_are_none_of_the_classes_are_refused_in_the_data_that_measure(stage):
    model = Classifier(nn.Linear(4, 3))
    step = {"val": model.validation_step, "test": model.test_step}[stage]
    with pytest.raises(ValueError, match=f"3 outputs, .* 2 points of a batch of the {stage} data have the target 10"):
        step((torch.zeros(3, 4), torch.tensor([0, 10, 11])), 0)
