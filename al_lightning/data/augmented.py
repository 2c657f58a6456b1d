"""Small random affine maps of images: of the labelled ones in training, and of the views of SimCLR."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import DataLoader, Dataset

from al_lightning._lightning import LightningDataModule, check_flavour
from al_lightning.data.loaders import check_train_loader, kept_settings, pool_of
from al_lightning.data.targets import targets_of
from al_lightning.data.wrapper import Wrapper
from al_lightning.randomness import seeded

_AXES = 3  # channels, height and width of an image


def random_affine(
    images_B: Tensor, *, degrees: float, scale: float, shear: float, shift: float, generator: torch.Generator
) -> Tensor:
    """Return images (B, C, H, W), each under a random affine map of its own; their borders go on outside.

    Args:
        images_B: The images.
        degrees: Largest rotation.
        scale: Largest share by which an axis is stretched or squeezed.
        shear: Largest share of its height by which a row is moved.
        shift: Largest shift, in pixels.
        generator: Generator on the CPU, so that the maps are the same on every device.

    Example:
        >>> image = torch.arange(16.0).view(1, 1, 4, 4)
        >>> same = random_affine(image, degrees=0, scale=0, shear=0, shift=0, generator=torch.Generator())
        >>> torch.allclose(same, image, atol=1e-5)
        True
    """
    num_images, _, height, width = images_B.shape
    drawn_B_6 = 2 * torch.rand(num_images, 6, generator=generator) - 1
    angle_B = torch.deg2rad(degrees * drawn_B_6[:, 0])
    cos_B, sin_B = angle_B.cos(), angle_B.sin()
    rotation_B_2_2 = torch.stack([cos_B, -sin_B, sin_B, cos_B], dim=1).view(-1, 2, 2)
    stretch_B_2_2 = torch.diag_embed(1 + scale * drawn_B_6[:, 1:3])
    shear_B_2_2 = torch.eye(2).repeat(num_images, 1, 1)
    shear_B_2_2[:, 0, 1] = shear * drawn_B_6[:, 3]
    pixels_2 = torch.tensor([2 / width, 2 / height])  # of a grid from -1 to 1
    shift_B_2_1 = (shift * drawn_B_6[:, 4:6] * pixels_2)[:, :, None]
    per_axis_2_2 = torch.tensor([[1, height / width], [width / height, 1]])  # the grid's axes are of unequal pixels
    linear_B_2_2 = (rotation_B_2_2 @ shear_B_2_2 @ stretch_B_2_2) * per_axis_2_2
    map_B_2_3 = torch.cat([linear_B_2_2, shift_B_2_1], dim=2).to(images_B)
    grid = affine_grid(map_B_2_3, list(images_B.shape), align_corners=False)
    return grid_sample(images_B, grid, padding_mode="border", align_corners=False)


class Views(Dataset[Any]):
    """Dataset of images, each read under another random affine map each time; the rest of an item stays.

    The maps are drawn from the global generator, of a worker its own: a seeded run reads the same ones again.

    Args:
        dataset: Items (image (C, H, W), class, ...).
        maps: Arguments of `random_affine`.
    """

    def __init__(self, dataset: Dataset[Any], maps: dict[str, float]) -> None:
        self.dataset = dataset
        self.maps = maps

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type] # checked where the loader is built

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - whatever items are
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return several items, whose images are changed together: one by one takes twenty times as long."""
        items = [self.dataset[index] for index in indices]
        for index, item in zip(indices, items, strict=True):
            image = item[0] if isinstance(item, (tuple, list)) and item else item
            if item is image or not _is_image(image):
                shape = tuple(image.shape) if isinstance(image, Tensor) else None
                raise TypeError(
                    f"Point {index} is a {type(item).__name__} whose first entry is a {type(image).__name__}"
                    f"{'' if shape is None else f' of shape {shape}'}, but images are augmented in items "
                    "(image, class), where the image is a tensor of floating-point numbers (C, H, W)."
                )
        images_B = torch.stack([item[0] for item in items])
        changed_B = random_affine(images_B, **self.maps, generator=torch.default_generator)
        return [(image, *item[1:]) for image, item in zip(changed_B.unbind(), items, strict=True)]

    @property
    def targets(self) -> list[int]:
        """Return the class of each point."""
        targets_N = targets_of(self.dataset, range(len(self)))
        if targets_N is None:
            raise AttributeError(f"The targets of the augmented {type(self.dataset).__name__} cannot be read.")
        return targets_N


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == _AXES and value.is_floating_point()


class Augmented(Wrapper):
    """Wrap a data module of images: training sees each image under a small random affine map, the pool sees none.

    `ActiveLearningDataModule(Augmented(datamodule))` trains on changed copies of the few labelled images, while the
    acquisition, validation and test see the images themselves. The training dataset has items (image, class).

    Args:
        datamodule: An ordinary data module, whose training loader returns images (C, H, W) without augmentation.
        degrees: Largest rotation.
        scale: Largest share by which an axis is stretched or squeezed.
        shear: Largest share of its height by which a row is moved.
        shift: Largest shift, in pixels; 2.5 suit images of 28 pixels.

    Example:
        >>> from al_lightning import DigitsDataModule
        >>> datamodule = Augmented(DigitsDataModule(), shift=0.7)
        >>> datamodule.setup("fit")
        >>> views, images = datamodule.train_dataloader().dataset, datamodule.pool_dataset()
        >>> bool((views[0][0] == images[0][0]).all()), views[0][0].shape, views[0][1] == images[0][1]
        (False, torch.Size([1, 8, 8]), tensor(True))
    """

    # Attributes of the wrapper; any other attribute is the wrapped module's.
    maps: dict[str, float]

    def __init__(
        self,
        datamodule: LightningDataModule,
        *,
        degrees: float = 15.0,
        scale: float = 0.15,
        shear: float = 0.2,
        shift: float = 2.5,
    ) -> None:
        check_flavour("datamodule", datamodule, LightningDataModule)
        self.maps = {"degrees": degrees, "scale": scale, "shear": shear, "shift": shift}
        for name, value in self.maps.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` is {value}, but must be at least 0 and finite. 0 leaves it out.")
        super().__init__(datamodule)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the wrapped module's training loader, of changed images."""
        loader = check_train_loader(self.inner.train_dataloader())
        return DataLoader(
            Views(loader.dataset, self.maps),
            batch_size=loader.batch_size,
            sampler=loader.sampler,
            drop_last=loader.drop_last,
            generator=loader.generator,
            persistent_workers=loader.persistent_workers,
            **kept_settings(loader),
        )

    def pool_dataset(self) -> Dataset[Any]:
        """Return the images themselves."""
        with seeded(0):
            loader = check_train_loader(self.inner.train_dataloader())
            return pool_of(self.inner, loader.dataset, given=None)
