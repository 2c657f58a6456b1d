"""Label Studio: what a run asks becomes tasks of a project, and what people do there becomes answers."""

from al_lightning.labelling.label_studio.oracle import LabelStudio

__all__ = ["LabelStudio"]
