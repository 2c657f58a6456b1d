"""How much a forward pass of all samples computes, and how much of it all samples share."""

from dataclasses import dataclass

from torch import Tensor

from al_lightning.posterior.deferred import Deferred, ScaledChannels, SharedConvolution, depends_on_sample


@dataclass
class Results:
    """Bytes of what a forward pass of all samples computes, functions of torch being what computes."""

    shared: int = 0  # does not depend on the sample
    own: int = 0  # of one sample
    largest: int = 0  # of one sample, one tensor

    def add(self, result: Tensor) -> None:
        """Count a result once, or as one of each sample."""
        size = result.numel() * result.element_size()
        if isinstance(result, ScaledChannels) or not depends_on_sample(result):
            self.shared += size
        else:
            self.own += size
            if not isinstance(result, SharedConvolution):
                self.largest = max(self.largest, size)

    def add_computed(self, x: Deferred) -> None:
        """Count a convolution whose whole result was needed after all."""
        convolution = x.unscaled if isinstance(x, ScaledChannels) else x
        if isinstance(convolution, SharedConvolution) and convolution.is_computed:
            self.largest = max(self.largest, convolution.numel() * convolution.element_size())

    def add_responses(self, x: Tensor, result: object) -> None:
        """Count those of the channels of `x` to a convolution, if `result` is one's."""
        if isinstance(result, Tensor) and depends_on_sample(result):
            self.shared += x.shape[1] * result.numel() * result.element_size()
