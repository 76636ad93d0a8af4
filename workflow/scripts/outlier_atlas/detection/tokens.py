"""Tables of tokens that are outliers as a whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from outlier_atlas.data.classes import token_class
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.columns import Columns, located, ratio
from outlier_atlas.statistics.norms import TokenNorms
from outlier_atlas.statistics.tokens import TokenOutlier

InLayer = tuple[int, TokenOutlier]


def systematic_columns(
    found: Sequence[InLayer], site: str, tokens: TokenStore, special_ids: Collection[int]
) -> Columns:
    """Systematic outliers, with the class of each token."""
    columns = _outliers(found, site, tokens, "mean")
    positions = columns["position"].tolist()
    places = zip(columns["token_text"], positions, columns["token_id"], strict=True)
    classes = [token_class(text, position, id in special_ids) for text, position, id in places]
    return columns | {"token_class": classes}


def token_outlier_columns(found: Sequence[InLayer], site: str, tokens: TokenStore) -> Columns:
    """Token outliers."""
    return _outliers(found, site, tokens, "median")


def _outliers(found: Sequence[InLayer], site: str, tokens: TokenStore, reference: str) -> Columns:
    return {
        "site": [site] * len(found),
        "layer": [layer for layer, _ in found],
        **located(tokens, [outlier.token for _, outlier in found]),
        "channel": [outlier.channel for _, outlier in found],
        "value": [outlier.value for _, outlier in found],
        reference: [outlier.reference for _, outlier in found],
        f"{reference}_ratio": [ratio(o.value, o.reference) for _, o in found],
    }


def norm_columns(norms: Mapping[int, TokenNorms], site: str, tokens: TokenStore) -> Columns:
    """Per layer the tokens of the largest norm."""
    medians = {layer: each.quantile(0.5) for layer, each in norms.items()}
    rows = [
        (layer, rank, int(token), float(norm), medians[layer])
        for layer, each in sorted(norms.items())
        for rank, (token, norm) in enumerate(zip(each.tokens, each.norms, strict=True), 1)
    ]
    return {
        "site": [site] * len(rows),
        "layer": [layer for layer, *_ in rows],
        "rank": [rank for _, rank, *_ in rows],
        **located(tokens, [token for _, _, token, _, _ in rows]),
        "norm": [norm for *_, norm, _ in rows],
        "median": [median for *_, median in rows],
        "median_ratio": [ratio(norm, median) for *_, norm, median in rows],
    }
