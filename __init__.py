"""amex: extract video features once into one Zarr store, and train text-video retrieval from that store.

The public Python surface is ``amex.manifests`` (what to process), ``amex.features`` (where features live) and
``amex.extract`` (how pixels become features). Importing ``amex`` itself loads none of them.
"""

from importlib.metadata import version

__version__ = version("amex")
__all__ = ["__version__"]
