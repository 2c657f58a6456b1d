"""Costs of a forward pass of all samples, and the part that all samples share."""

from dataclasses import dataclass

from torch import Tensor

from al_lightning.posterior.dropout.lazy.deferred import Deferred, ScaledChannels, SharedConvolution, depends_on_sample


@dataclass
class Results:
    """Bytes of the results of torch's functions in a forward pass of all samples."""

    shared: int = 0  # of results that do not depend on the sample, responses among them
    own: int = 0  # of the other results, for one sample
    largest: int = 0  # of the largest such tensor, for one sample
    responses: int = 0  # of shared responses of channels
    has_own_convolution: bool = False  # a convolution that depends on the sample and shares no responses

    @property
    def are_mostly_responses(self) -> bool:
        """Tell whether responses and their mixtures, computed in coarse blocks, take most of the time."""
        return self.shared - self.responses < self.responses and not self.has_own_convolution

    def add(self, result: Tensor) -> None:
        """Add a result, as shared by all samples or as one of each sample; see `add_product` for those of features."""
        if _is_product_of_features(result):
            return
        size = result.numel() * result.element_size()
        if not depends_on_sample(result.unscaled if isinstance(result, ScaledChannels) else result):
            self.shared += size
            return
        self.own += size
        if not isinstance(result, Deferred):
            self.largest = max(self.largest, size)

    def add_computed(self, x: Deferred) -> None:
        """Add the values of a deferred tensor that were computed, those of its whole convolution too."""
        if isinstance(x, ScaledChannels) and x.is_computed:
            self.largest = max(self.largest, x.numel() * x.element_size())
        convolution = x.unscaled if isinstance(x, ScaledChannels) else x
        if isinstance(convolution, SharedConvolution) and convolution.mixture.is_computed:
            self.largest = max(self.largest, convolution.mixture.num_bytes)

    def add_product(self, x: Deferred) -> None:
        """Add the product of features and their factors, if it was computed now: a linear layer may do without it."""
        if _is_product_of_features(x) and x.is_computed:
            self.own += x.numel() * x.element_size()

    def add_responses(self, x: Tensor, result: SharedConvolution) -> None:
        """Add the responses of the channels of `x` to a convolution."""
        size = x.shape[1] * result.mixture.num_bytes
        self.shared += size
        self.responses += size


def _is_product_of_features(x: Tensor) -> bool:
    return isinstance(x, ScaledChannels) and x.dim() == 2  # noqa: PLR2004 - (B, D)
