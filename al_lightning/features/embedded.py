"""Data module of features: those of another data module's points, made once by an encoder."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from al_lightning._lightning import LightningDataModule, check_flavour, is_overridden
from al_lightning.data import ActiveLearningDataModule
from al_lightning.data.answered import own_with_label
from al_lightning.data.label_key import LabelKey
from al_lightning.data.loaders import pool_of
from al_lightning.data.rows import digests
from al_lightning.data.wrapper import Wrapper
from al_lightning.features.dataset import FeatureDataset, Form
from al_lightning.features.encoder import PoolEncoder, digest_of
from al_lightning.features.making import Fitted, Maker, Source, checked_version
from al_lightning.features.stored import Rows
from al_lightning.randomness import seeded

DTYPES = ("float32", "float16")


class Embedded(Wrapper):
    """Wrap a data module of images, texts or rows as one of their features, which an encoder makes once.

    All loaders yield (features, class) in the place of (input, class), so that a round trains and predicts a small
    model, such as a linear layer, in seconds: `ActiveLearningDataModule(Embedded(datamodule, encoder))`. People still
    see the items themselves. Where dict items have further entries, only the label is kept.

    The features are written to a folder of their own under `folder` and used by all rounds, runs and seeds from then
    on. They belong to the encoder's state, to its printed layers and to the number of points; in addition, 64 points
    are encoded anew at each start and compared. Points that were appended to the dataset are encoded, and features that
    are there stay as they are. All ranks share the work, and must see the folder.

    The encoder is called in evaluation mode, without gradients, on the Trainer's device, after the transfer hooks of
    the wrapped module, which see no features later. It is called as a model is: with the input of an (x, y) batch, or
    the entries of a dict batch as keywords, without labels. It returns a tensor (B, D).

    Args:
        datamodule: An ordinary data module. If it has a method `pool_dataset()`, its result is encoded, unless `pool`
            is given.
        encoder: Module that makes features of a batch, such as a part of a trained model, `Pretrained(net, file)`, or
            `GraphFeatures()`, which needs no training.
        folder: Folder of the features.
        pool: The training dataset without random transforms: the same points in the same order. Training gets its
            features, too.
        views: Number of views of each training point, if its transforms are random: they are drawn by seeds of their
            own, and training draws one of a point each time. The pool is the first one, unless there is a pool dataset.
        dtype: Precision in which features are stored; they are read as float32.
        version: Name that vouches for the features in the place of the encoder's state and the check of 64 points.
            Another name makes others.
        label_key: Key of the label in dict items, where it is no usual one. It is not given to
            `ActiveLearningDataModule` then, because items are (features, class).
        encoder_batch_size: Points that are encoded at a time; by default as many as the loader's batches hold.

    Example:
        >>> import tempfile
        >>> from al_lightning import DigitsDataModule
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     encoder = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
        ...     datamodule = Embedded(DigitsDataModule(batch_size=10), encoder, folder=folder)
        ...     datamodule.setup("fit")
        ...     features, classes = next(iter(datamodule.train_dataloader()))
        >>> features.shape, classes.shape
        (torch.Size([10, 4]), torch.Size([10]))
    """

    # Attributes of the wrapper; any other attribute is the wrapped module's.
    encoder: nn.Module
    folder: Path
    pool: Dataset[Any] | None
    views: int
    dtype: str
    version: str | None
    label_key: str | None
    encoder_batch_size: int | None
    _digest: str | None
    _train: FeatureDataset | None
    _pool: FeatureDataset | None
    _seen: dict[str, FeatureDataset]
    _pool_is_train: bool
    _fitted: Fitted | None

    # Labels are put into (features, class) items, whatever the items of the wrapped module are.
    with_label = None

    def __init__(  # noqa: PLR0913 - they are the fields of the configuration
        self,
        datamodule: LightningDataModule,
        encoder: nn.Module,
        *,
        folder: str = "features",
        pool: Dataset | None = None,  # type: ignore[type-arg] # jsonargparse resolves the plain class only
        views: int = 1,
        dtype: Literal["float32", "float16"] = "float32",
        version: str | None = None,
        label_key: str | None = None,
        encoder_batch_size: int | None = None,
    ) -> None:
        check_flavour("datamodule", datamodule, LightningDataModule)
        if isinstance(datamodule, (ActiveLearningDataModule, Embedded)):
            raise TypeError(
                f"`datamodule` is an {type(datamodule).__name__} already. Wrap the plain data module, once: "
                "`ActiveLearningDataModule(Embedded(datamodule, encoder))`."
            )
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"`encoder` is a {type(encoder).__name__}, but must be a module.")
        for name, value in (("views", views), ("encoder_batch_size", encoder_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}, but must be at least 1.")
        if dtype not in DTYPES:
            raise ValueError(f"`dtype` is {dtype!r}, but must be one of {DTYPES}.")
        if views > 1 and isinstance(encoder, PoolEncoder):
            raise ValueError(
                f"`views` is {views}, but by {type(encoder).__name__} the features of a point depend on the whole "
                "pool, of which there is one. Leave `views` out, or give an encoder that reads points one by one."
            )
        self.encoder = encoder
        self.folder = Path(folder)
        self.pool = pool
        self.views = views
        self.dtype = dtype
        self.version = checked_version(version)
        self.label_key = label_key
        self.encoder_batch_size = encoder_batch_size
        self._digest = None
        self._train = None
        self._pool = None
        self._seen = {}
        self._pool_is_train = True
        self._fitted = None
        super().__init__(datamodule)

    def setup(self, stage: str) -> None:
        """Set up the wrapped module; for a fit, make the features of the training data where there are none."""
        self.inner.setup(stage)
        if stage == "fit":
            self._make_train()

    def features_of(self, indices: Sequence[int]) -> Tensor:
        """Return the features of some points of the pool (n, D), float32."""
        return self._made(self._pool).rows.of(indices)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the wrapped module's training loader, of features."""
        loader = checked_loader(self.inner.train_dataloader(), "train")
        self._train = self._renewed("train", self._made(self._train), loader.dataset)
        if self._pool_is_train:
            self._pool = self._train
        return of_features(loader, self._train)

    def pool_dataset(self) -> Dataset[Any]:
        """Return the features of the pool: the dataset of the training loader, unless this has several views."""
        return self._made(self._pool)

    @property
    def val_dataloader(self) -> Callable[[], Any]:
        """Return the wrapped module's `val_dataloader`, of features, if it has one."""
        return self._of_features("val_dataloader", "val")

    @property
    def test_dataloader(self) -> Callable[[], Any]:
        """Return the wrapped module's `test_dataloader`, of features, if it has one."""
        return self._of_features("test_dataloader", "test")

    @property
    def predict_dataloader(self) -> Callable[[], Any]:
        """Return the wrapped module's `predict_dataloader`, of features, if it has one."""
        return self._of_features("predict_dataloader", "predict")

    @property
    def target_dataloader(self) -> Callable[[], Any]:
        """Return the wrapped module's `target_dataloader`, of features; it has none if that one has none."""
        if not hasattr(self.inner, "target_dataloader"):
            raise AttributeError(f"{type(self.inner).__name__} has no `target_dataloader`.")
        return partial(self._loaders, "target_dataloader", "target")

    # Batches of features go through no hook of the wrapped module, whose hooks have seen the inputs.

    @property
    def on_before_batch_transfer(self) -> Callable[..., Any]:
        """Return Lightning's own hook."""
        return super().on_before_batch_transfer

    @property
    def transfer_batch_to_device(self) -> Callable[..., Any]:
        """Return Lightning's own hook."""
        return super().transfer_batch_to_device

    @property
    def on_after_batch_transfer(self) -> Callable[..., Any]:
        """Return Lightning's own hook."""
        return super().on_after_batch_transfer

    def _of_features(self, hook: str, name: str) -> Callable[[], Any]:
        return partial(self._loaders, hook, name) if is_overridden(hook, self.inner) else getattr(self.inner, hook)

    def _loaders(self, hook: str, name: str) -> Any:  # noqa: ANN401 - whatever nesting the user returns
        """Return loaders of features for those of the wrapped module, in the same nesting."""
        with seeded(0):
            loaders = getattr(self.inner, hook)()
        if isinstance(loaders, Mapping):
            return {
                key: self._loader(loader, f"{name}-{number}") for number, (key, loader) in enumerate(loaders.items())
            }
        if isinstance(loaders, (list, tuple)):
            return [self._loader(loader, f"{name}-{number}") for number, loader in enumerate(loaders)]
        return self._loader(loaders, name)

    def _loader(self, given: object, name: str) -> DataLoader[Any]:
        loader = checked_loader(given, name)
        if name not in self._seen:
            self._seen[name] = self._first(Source(name, loader.dataset, loader, None, self._form.label_key))
        self._seen[name] = self._renewed(name, self._seen[name], loader.dataset)
        return of_features(loader, self._seen[name])

    def _first(self, source: Source) -> FeatureDataset:
        """Return the features of points that are no training data, made now where they are not on disk."""
        self._refuse_other_state(source.name)
        width = self._maker.width("train") if self._train is None else self._train.rows.width
        if isinstance(self.encoder, PoolEncoder) and width is None:
            self.setup("fit")  # as where a test runs before any fit
        fitted = self._fitted_to_pool if isinstance(self.encoder, PoolEncoder) else None
        return self._of(self._maker.made(source, fitted, width=width), source.dataset)

    def _make_train(self) -> None:
        """Make the features of the training data and of the pool; at a later fit only of points that are new."""
        with seeded(0):
            loader = checked_loader(self.inner.train_dataloader(), "train")
            pool = pool_of(self.inner, loader.dataset, given=self.pool)
        self._pool_is_train = pool is loader.dataset and self.views == 1
        if self._train is None or self._pool is None or len(pool) != len(self._pool):  # type: ignore[arg-type] # checked
            self._make_both(loader, pool)
        else:
            self._train = self._renewed("train", self._train, loader.dataset, is_told=False)
            self._pool = self._train if self._pool_is_train else self._renewed("pool", self._pool, pool, is_told=False)

    def _make_both(self, loader: DataLoader[Any], pool: Dataset[Any]) -> None:
        self._refuse_other_state("train")
        train, form = loader.dataset, self._form
        is_of_views = pool is train and self.views > 1
        rows = self._maker.made(
            Source("train", pool, loader, form, form.label_key, self.views if is_of_views else 1), fitted=None
        )
        self._pool = self._of(rows, pool)
        if self._pool_is_train:
            self._train = self._pool
        elif is_of_views:
            self._train = self._of(rows, train, draws_views=True)
        elif self.views > 1:
            views = Source("train-views", train, loader, form, form.label_key, self.views)
            self._train = self._of(self._maker.made(views, None, width=rows.width), train, draws_views=True)
        else:
            self._train = self._of(rows, train)

    def _refuse_other_state(self, name: str) -> None:
        """Refuse an encoder that was trained on since its first features were made: those of now would not match."""
        if self._digest is not None and digest_of(self.encoder) != self._digest:
            raise ValueError(
                f"`encoder` ({type(self.encoder).__name__}) has another state than when its first features were made, "
                f"so those of the {name} data would not match them: it was trained or changed in between. Give a copy, "
                "`Embedded(datamodule, copy.deepcopy(encoder))`, or set up the data module anew."
            )

    def _of(self, rows: Rows, dataset: Dataset[Any], *, draws_views: bool = False) -> FeatureDataset:
        with seeded(0):
            found = digests(dataset, len(rows), seed=0)
        return FeatureDataset(rows, dataset, self._form, found, draws_views=draws_views)

    def _renewed(
        self, name: str, made: FeatureDataset, dataset: Dataset[Any], *, is_told: bool = True
    ) -> FeatureDataset:
        """Return the same features with a dataset that the wrapped module may have built anew, of the same points.

        Args:
            name: Name of the dataset.
            made: The features.
            dataset: The dataset now.
            is_told: The targets of the same dataset are as they were.
        """
        if dataset is made.dataset:
            return made if is_told else made.looked_at_again()
        num_points = len(dataset)  # type: ignore[arg-type] # checked
        found = digests(dataset, num_points, seed=0) if num_points == len(made) else []
        if list(made.digests) != found:
            raise ValueError(
                f"The {name} data are others than those whose features were made ({num_points} points, and {len(made)} "
                "then). Let the data module build the same dataset always, splitting it by a seeded generator."
            )
        return FeatureDataset(made.rows, dataset, self._form, found, draws_views=made.draws_views)

    def _fitted_to_pool(self) -> Fitted:
        """Return what an encoder of the whole pool has found in it."""
        self._fitted = self._fitted or self._maker.fitted("train")
        return self._fitted

    def _made(self, dataset: FeatureDataset | None) -> FeatureDataset:
        if dataset is None:
            raise RuntimeError("There are no features before `setup('fit')`, which makes them.")
        return dataset

    @property
    def _form(self) -> Form:
        key = None if self.label_key is None else LabelKey(self.label_key, may_be_missing=True)
        return Form(key, own_with_label(self.inner))

    @property
    def features_name(self) -> str:
        """Return the name of the features, which follows from the encoder's state and the form of the features."""
        if self._digest is None and self.version is None:  # once, because training may go on elsewhere
            self._digest = digest_of(self.encoder)
        kind = ("" if self.dtype == "float32" else f"-{self.dtype}") + (
            "" if self.views == 1 else f"-{self.views}views"
        )
        return f"{self.version or self._digest}{kind}"

    @property
    def _maker(self) -> Maker:
        return Maker(
            self.encoder,
            self.inner,
            self.folder / self.features_name,
            self.dtype,
            self.encoder_batch_size,
            is_checked=self.version is None,
        )


def checked_loader(loader: object, name: str) -> DataLoader[Any]:
    """Refuse a loader whose points have no ids."""
    if type(loader) is not DataLoader:
        raise TypeError(
            f"The {name} loader is a {type(loader).__name__}, but features are made of the points of a plain "
            "`torch.utils.data.DataLoader(dataset, ...)`."
        )
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise TypeError(
            f"The {name} dataset is a {type(loader.dataset).__name__}, whose points have no ids 0 ... n-1. "
            "Use a dataset with `__getitem__` and `__len__`."
        )
    return loader


def of_features(loader: DataLoader[Any], dataset: FeatureDataset) -> DataLoader[Any]:
    """Return a loader of features that draws points as the given one does.

    It has no workers, because reading features takes no time, and the usual `collate_fn`.
    """
    drawing: dict[str, Any] = (
        {"batch_sampler": loader.batch_sampler}
        if loader.batch_size is None and loader.batch_sampler is not None
        else {"batch_size": loader.batch_size, "sampler": loader.sampler, "drop_last": loader.drop_last}
    )
    return DataLoader(dataset, generator=loader.generator, pin_memory=loader.pin_memory, **drawing)
