"""Reports of generators: what each latent dimension does, on a page where one can drag it."""

from orthotrain.lab.report.latent.traversal_page import save_traversals, traversal_page
from orthotrain.lab.report.latent.traversals import Traversals, image_frames

__all__ = ["Traversals", "image_frames", "save_traversals", "traversal_page"]
