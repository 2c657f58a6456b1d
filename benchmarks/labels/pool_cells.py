"""The cells of `pool.py`: which runs there are, in which order, and the configuration of each."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common import CONFIGS

Config = dict[str, Any]
Variant = tuple[str, str, str, int]  # way, acquisition, cold start, query size

WAYS = {
    "scratch": "from scratch",
    "augmented": "from scratch, augmented",
    "frozen": "on frozen features",
    "tuned": "fine-tuned encoder, augmented",
}
FAMILY = (
    *("PowerBALD", "SoftmaxBALD", "SoftrankBALD", "EPIG", "BAIT"),
    *("BADGE", "CoreSet", "TypiClust", "ProbCover"),
)
SCREENING = {"num_points": 2000, "num_samples": 20}  # the points of highest BALD by few posterior samples
PREDICTING = {"BatchBALD", "BALD", "PowerBALD", "SoftmaxBALD", "SoftrankBALD", "EPIG", "BAIT", "BADGE"}
RECIPE = "TypiClust"  # cold start of the recipe on features
GRAPH = 40  # features of a graph
WORDS = 512
STEPS = {"points_per_epoch": 1280, "max_epochs": 30}  # 600 steps of 64 images: about as many as the paper's fits take


@dataclass(frozen=True)
class Pool:
    """A set of points.

    Args:
        datamodule: Its data module; `DATA` in a path is the folder of all data.
        num_classes: Number of classes.
        recipe: Configuration whose recipe its runs on features follow.
        size: Height and width of images; None for rows and texts, which have no augmentation and no encoder.
        width: Width of the encoder, or of the rows.
        encoder_epochs: Epochs of the encoder's training.
        query_size: Labels of a round.
        max_labelled: Labels at the end, those of junk included.
        cpu_s: CPU seconds of a run by its way, as far as nothing was measured yet.
        reject: Use of junk, which is one more class in the dataset; None where there is none.
        max_predicted: Points of the pool, drawn anew each round, among which a net trained end to end chooses; None for
            all.
        screened: Acquisitions that choose among the points that a screening leaves. The others see all.
        without: Ways that are left out.
        last_priority: Priority of the least important of its cells that are run.
    """

    datamodule: Config
    num_classes: int = 10
    recipe: str = "digits_features"
    size: int | None = None
    width: int = 64
    encoder_epochs: int = 10
    query_size: int = 10
    max_labelled: int = 100
    cpu_s: tuple[float, ...] = (60, 60, 30, 60)
    reject: str | None = None
    max_predicted: int | None = None
    screened: Collection[str] = ()
    without: tuple[str, ...] = ()
    last_priority: int = 3

    @property
    def ways(self) -> list[str]:
        """Return what is compared."""
        possible = WAYS if self.size is not None else ("scratch", "frozen")
        return [way for way in possible if way not in self.without]


def _of(class_path: str, **arguments: object) -> Config:
    return {"class_path": class_path, "init_args": arguments}


def _idx(name: str) -> Config:
    return _of("IDXDataModule", root=f"DATA/{name}", batch_size=64, val_size=0)


_DIGITS = _of("DigitsDataModule", batch_size=64, repeat=4, noise=0.1)
_OWN = "benchmarks.labels.pool_data."
_MNIST = {"recipe": "mnist_features", "size": 28, "width": 128, "encoder_epochs": 5, "max_predicted": 10_000}
_MNIST |= {"cpu_s": (300, 350, 60, 350), "screened": PREDICTING}
_USPS = {"size": 16, "width": 128, "encoder_epochs": 20, "cpu_s": (150, 170, 40, 170)}
_OF_JUNK = {"size": 8, "query_size": 5, "max_labelled": 85}
_AUGMENTED = ("augmented", "tuned")

POOLS = {
    "digits": Pool(_DIGITS, size=8, last_priority=4),
    "digits, junk trained": Pool(_of(f"{_OWN}WithJunk", datamodule=_DIGITS, junk=10), reject="train", **_OF_JUNK),
    "digits, junk set aside": Pool(
        _of(f"{_OWN}WithJunk", datamodule=_DIGITS, junk=10),
        reject="set_aside",
        **_OF_JUNK,
        without=_AUGMENTED,
    ),
    "USPS": Pool(_idx("usps"), **_USPS),
    "letters": Pool(
        _of(f"{_OWN}Letters", root="DATA/letter"),
        num_classes=26,
        width=16,
        max_labelled=300,
        cpu_s=(90, 0, 150, 0),
        screened={"EPIG"},  # 1,000 targets, 26 classes: 100 s a round for all points
    ),
    "TREC": Pool(
        _of("al_lightning.datasets.TextDataModule", root="DATA/text"),
        num_classes=6,
        width=WORDS,
        query_size=20,
        max_labelled=200,
        cpu_s=(200, 0, 40, 0),
    ),
    "MNIST": Pool(_idx("mnist"), **_MNIST, last_priority=4),
    "USPS, unbalanced": Pool(
        _of(f"{_OWN}Unbalanced", datamodule=_idx("usps")), **{**_USPS, "encoder_epochs": 60}, without=_AUGMENTED
    ),
    "MNIST, junk trained": Pool(
        _of(f"{_OWN}WithJunk", datamodule=_idx("mnist"), junk=10),
        reject="train",
        **{**_MNIST, **_OF_JUNK, "size": 28},
        without=("scratch", *_AUGMENTED),
        last_priority=2,
    ),
}


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        pool: Its set.
        way: How it uses the pool.
        acquisition: Its class.
        cold_start: The class that chooses the first batch, without labels.
        query_size: Labels of a round.
        seed: Of everything that is drawn, the training of the encoder included.
    """

    pool: str
    way: str
    acquisition: str
    cold_start: str
    query_size: int
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.pool}, {WAYS[self.way]}, {self.acquisition} after {self.cold_start}, b = {self.query_size}, "
            f"seed {self.seed}"
        )

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        parts = (folder_name(self.pool), self.way, self.acquisition, self.cold_start, self.query_size, self.seed)
        return "-".join(map(str, parts))


def folder_name(pool: str) -> str:
    """Return the name of a set in paths."""
    return pool.replace(",", "").replace(" ", "_")


def cells_of(pools: Sequence[str], seeds: Sequence[int]) -> list[tuple[int, Cell]]:
    """Return the cells with their priority, 1 first; of equal ones those of the first set, then of the first seed."""
    ranked = [
        (priority, place, seed, Cell(pool, *what, seed))
        for place, pool in enumerate(pools)
        for priority, what in _variants(POOLS[pool])
        if priority <= POOLS[pool].last_priority
        for seed in seeds
    ]
    return [(priority, cell) for priority, _, _, cell in sorted(ranked, key=lambda entry: entry[:3])]


def _variants(pool: Pool) -> list[tuple[int, Variant]]:
    """Return (priority, variant)."""
    usual = pool.query_size
    others = [way for way in pool.ways if way != "frozen"]
    return [
        *((1, (way, name, "Random", usual)) for way in pool.ways for name in ("Random", "BatchBALD")),
        *((1, ("frozen", name, RECIPE, usual)) for name in ("Random", "BatchBALD")),
        *((2, (way, "BALD", "Random", usual)) for way in others),
        (2, ("frozen", "BALD", RECIPE, usual)),
        *((3, ("frozen", name, RECIPE, usual)) for name in FAMILY),
        *((4, ("frozen", "BatchBALD", cold_start, usual)) for cold_start in ("CoreSet", "ProbCover")),
        *(
            (4, ("frozen", name, RECIPE, size))
            for size in (usual // 2, 2 * usual)
            for name in ("Random", "BALD", "BatchBALD")
        ),
    ]


def reference_of(pool: str) -> Variant:
    """Return way, acquisition, cold start and query size of the runs with which those of a set are compared."""
    return "scratch", "Random", "Random", POOLS[pool].query_size


@dataclass(frozen=True)
class Place:
    """Where things lie.

    Args:
        root: Folder of all runs.
        data: Folder of all data; None for sets that need none.
    """

    root: Path
    data: Path | None

    def encoder(self, cell: Cell) -> Path:
        """Return the folder of the encoder and the features of a set and seed, which its cells share."""
        return self.root / "features" / f"{folder_name(cell.pool)}-{cell.seed}"

    def datamodule(self, pool: Pool) -> Config:
        """Return the configuration of a set's data module."""
        return self._filled(pool.datamodule)

    def _filled(self, value: Any) -> Any:  # noqa: ANN401 - whatever a configuration holds
        if isinstance(value, Mapping):
            return {key: self._filled(one) for key, one in value.items()}
        if isinstance(value, str) and value.startswith("DATA/"):
            if self.data is None:
                raise ValueError(f"`{value}` is read from the folder of the data: name it with `--data`.")
            return str(self.data / value.removeprefix("DATA/"))
        return value


def read_config(name: str) -> Config:
    """Return a configuration of the repository."""
    config: Config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return config


def encoder_config(cell: Cell, place: Place) -> Config:
    """Return the configuration that trains the encoder of a set of images."""
    pool = POOLS[cell.pool]
    config = read_config(
        pool.recipe.replace("digits_features", "features_digits").replace("mnist_features", "features_mnist")
    )
    batch_size = config["data"]["init_args"]["batch_size"]
    config["seed_everything"] = cell.seed
    config["model"]["init_args"] |= {
        "encoder": _conv(pool),
        "shift": round(2.5 * pool.size / 28, 2),
        "seed": cell.seed,
    }
    config["data"] = _with_batches(place.datamodule(pool), batch_size)
    config["trainer"] |= {"max_epochs": pool.encoder_epochs, "logger": False, "enable_progress_bar": False}
    config["trainer"]["default_root_dir"] = str(place.encoder(cell))
    config["trainer"]["callbacks"][0]["init_args"]["dirpath"] = str(place.encoder(cell) / "training")
    return config


def _with_batches(datamodule: Config, batch_size: int) -> Config:
    """Return a data module whose innermost one has another batch size."""
    arguments = datamodule["init_args"]
    if "datamodule" in arguments:
        return {
            **datamodule,
            "init_args": {**arguments, "datamodule": _with_batches(arguments["datamodule"], batch_size)},
        }
    return {**datamodule, "init_args": {**arguments, "batch_size": batch_size}}


def config_of(cell: Cell, place: Place) -> Config:
    """Return the configuration of a cell: the recipe of its set's features, changed where the way differs."""
    pool = POOLS[cell.pool]
    config = read_config(pool.recipe)
    config["seed_everything"] = cell.seed
    data = config["data"]["init_args"]
    data |= {"initial": 0, "seed": cell.seed}
    if pool.reject is not None:
        data |= {"junk": pool.num_classes, "reject": pool.reject}
    recipe = {entry["class_path"]: entry.get("init_args", {}) for entry in config["trainer"]["callbacks"]}
    active = recipe["ActiveLearning"]
    if cell.way == "frozen":
        _on_features(config, cell, place)
    else:
        _end_to_end(config, cell, place)
        active["posterior"] = "MCDropout"
    active |= {
        "acquisition": cell.acquisition,
        "cold_start": cell.cold_start,
        "query_size": cell.query_size,
        "max_labelled": pool.max_labelled,
        "folder": str(place.root / cell.name),
    }
    if cell.acquisition in pool.screened:
        active["screening"] = dict(SCREENING)
    config["trainer"] |= {
        "logger": False,
        "enable_progress_bar": False,
        "default_root_dir": str(place.root / cell.name),
        "callbacks": [{"class_path": "MeanPrediction"}, {"class_path": "ActiveLearning", "init_args": active}],
    }
    return config


def _on_features(config: Config, cell: Cell, place: Place) -> None:
    pool, embedded = POOLS[cell.pool], config["data"]["init_args"]["datamodule"]["init_args"]
    embedded |= {"folder": str(place.encoder(cell)), "datamodule": place.datamodule(pool)}
    in_recipe = embedded["encoder"]["init_args"]["encoders"]
    has_both = sum(one["class_path"] == "GraphFeatures" for one in in_recipe) > 1  # of what the encoder has learnt, too
    config["model"]["init_args"]["net"]["init_args"] = {
        "in_features": GRAPH * (1 + has_both) + pool.width,
        "out_features": _num_outputs(pool),
    }
    config["model"]["init_args"]["has_reject"] = pool.reject == "train"
    encoders = _of("Combined", encoders=None)
    own: Config = _pretrained(cell, place)
    graph = _of("GraphFeatures")
    if cell.pool == "TREC":
        own = _of(f"{_OWN}RandomWords", vocab_size=10_000, width=WORDS)
        graph = _of("GraphFeatures", encoder=copy.deepcopy(own))
    elif pool.size is None:
        own = _of("torch.nn.Flatten")
    graphs = [graph, _of("GraphFeatures", encoder=copy.deepcopy(own))] if has_both else [graph]
    encoders["init_args"]["encoders"] = [*graphs, own]
    embedded["encoder"] = encoders


def _end_to_end(config: Config, cell: Cell, place: Place) -> None:
    pool, data = POOLS[cell.pool], config["data"]["init_args"]
    data["datamodule"] = place.datamodule(pool)
    if cell.pool == "TREC":
        text = read_config("text")
        config["model"] = text["model"]
        data |= {name: text["data"]["init_args"][name] for name in ("points_per_epoch", "pool_batch_size")}
        config["trainer"]["max_epochs"] = text["trainer"]["max_epochs"]
        _active(config)["max_predicted"] = _active(text)["max_predicted"]
        _active(config)["num_samples"] = _active(text)["num_samples"]
        return
    data["points_per_epoch"], config["trainer"]["max_epochs"] = STEPS["points_per_epoch"], STEPS["max_epochs"]
    if pool.max_predicted is not None:
        _active(config)["max_predicted"] = pool.max_predicted
    if pool.size is None:
        net = _of("MLP", in_features=pool.width, num_classes=_num_outputs(pool), hidden=[128, 128], dropout=0.5)
    else:
        encoder = _pretrained(cell, place) if cell.way == "tuned" else _conv(pool)
        arguments = {"in_features": pool.width, "num_classes": _num_outputs(pool), "dropout": 0.5}
        net = _of("EncoderClassifier", encoder=encoder, **arguments)
    config["model"] = _of("Classifier", lr=0.001, net=net, has_reject=pool.reject == "train")
    if cell.way in {"augmented", "tuned"}:
        shift = round(2.5 * pool.size / 28, 2)
        data["datamodule"] = _of("Augmented", shift=shift, datamodule=data["datamodule"])


def _active(config: Config) -> Config:
    arguments: Config = config["trainer"]["callbacks"][-1]["init_args"]
    return arguments


def _num_outputs(pool: Pool) -> int:
    return pool.num_classes + (pool.reject == "train")


def _conv(pool: Pool) -> Config:
    return _of("ConvEncoder", size=pool.size, width=pool.width)


def _pretrained(cell: Cell, place: Place) -> Config:
    return _of(
        "Pretrained",
        net=_conv(POOLS[cell.pool]),
        checkpoint=str(place.encoder(cell) / "encoder.ckpt"),
        part="encoder",
    )
