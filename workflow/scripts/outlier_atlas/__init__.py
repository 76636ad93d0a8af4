"""Outlier Atlas: where the outliers of a language model are, measured in bounded memory."""

__version__ = "0.1.0"
