"""Cost of a forward pass of all samples, and the part of it that all samples share."""

from dataclasses import dataclass

from torch import Tensor

from al_lightning.posterior.dropout.lazy.deferred import Deferred, ScaledChannels, SharedConvolution, depends_on_sample


@dataclass
class Results:
    """Bytes of what a forward pass of all samples computes, functions of torch being what computes."""

    shared: int = 0  # does not depend on the sample
    own: int = 0  # of one sample
    largest: int = 0  # of one sample, one tensor
    responses: int = 0  # of what is shared
    has_own_convolution: bool = False  # one whose input depends on the sample, with no responses to share

    @property
    def are_mostly_responses(self) -> bool:
        """Tell whether what is computed in coarse blocks, responses and their mixtures, takes most of the time."""
        return self.shared - self.responses < self.responses and not self.has_own_convolution

    def add(self, result: Tensor) -> None:
        """Count a result once, or as one of each sample."""
        size = result.numel() * result.element_size()
        if not depends_on_sample(result.unscaled if isinstance(result, ScaledChannels) else result):
            self.shared += size
            return
        self.own += size
        if not isinstance(result, Deferred):
            self.largest = max(self.largest, size)

    def add_computed(self, x: Deferred) -> None:
        """Count what was deferred and has been computed after all: the whole of a convolution, if that was needed."""
        if isinstance(x, ScaledChannels) and x.is_computed:
            self.largest = max(self.largest, x.numel() * x.element_size())
        convolution = x.unscaled if isinstance(x, ScaledChannels) else x
        if isinstance(convolution, SharedConvolution) and convolution.mixture.is_computed:
            self.largest = max(self.largest, convolution.mixture.num_bytes)

    def add_responses(self, x: Tensor, result: SharedConvolution) -> None:
        """Count those of the channels of `x` to a convolution."""
        size = x.shape[1] * result.mixture.num_bytes
        self.shared += size
        self.responses += size
