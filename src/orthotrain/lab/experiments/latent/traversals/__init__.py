"""Reports of generators: what each latent dimension does, on a page where one can drag it."""

from orthotrain.lab.experiments.latent.traversals.arrays import Traversals, image_frames
from orthotrain.lab.experiments.latent.traversals.page import save_traversals, traversal_page

__all__ = ["Traversals", "image_frames", "save_traversals", "traversal_page"]
