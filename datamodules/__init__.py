"""Thin LightningDataModules around ``cefam.datasets``. Import as ``cefam.datamodules``."""

from cefam.datamodules.features import FeaturesData
from cefam.datamodules.images import ImagesData
from cefam.datamodules.regions import RegionsData

__all__ = ["FeaturesData", "ImagesData", "RegionsData"]
