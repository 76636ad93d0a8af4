"""Tables of measures."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby, product

import numpy as np

from outlier_atlas.criteria.layer_measures.tables import QUANTILES, norm_name
from outlier_atlas.detection.columns import Columns, interval_columns, or_null
from outlier_atlas.detection.scan import Place, Scan
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.codes import Float64, Int64
from outlier_atlas.statistics.measures import QuantizationErrors
from outlier_atlas.statistics.moments import together
from outlier_atlas.statistics.quantization import FORMATS, KEPT


def measure_columns(scan: Scan, bootstrap: Bootstrap) -> Columns:
    """The table of measures, a row for each site and layer."""
    places, each = list(scan.measures), list(scan.measures.values())
    maxima = [scan.magnitudes[place].of_sequences.astype(np.float64) for place in places]
    tops = [max(scan.magnitudes[place].top, default=np.nan) for place in places]
    kurtosis, rms = _of_tensors(scan)
    norms = np.reshape([m.norms.quantiles(*QUANTILES) for m in each], (-1, len(QUANTILES)))
    return {
        "site": [site for site, _ in places],
        "layer": [layer for _, layer in places],
        "tokens": [int(scan.magnitudes[p].values) // scan.magnitudes[p].channels for p in places],
        "kurtosis_token": or_null([_ratio(m.kurtosis_sum, m.kurtosis_tokens) for m in each]),
        "kurtosis_token_max": or_null([_max(m.kurtosis_max) for m in each]),
        "kurtosis_tensor": or_null(kurtosis),
        "kurtosis_channel": or_null([_mean(m.moments.kurtosis) for m in each]),
        "kurtosis_channel_max": or_null([_max(m.moments.kurtosis) for m in each]),
        "kurtosis_rms": or_null([m.kurtosis_of_rms for m in each]),
        "infinity_norm": or_null([_mean(of_sequences) for of_sequences in maxima]),
        "rms": or_null(rms),
        "crest_factor": or_null([t / r if r else np.nan for t, r in zip(tops, rms, strict=True)]),
        "mmr_median": or_null([m.ratios.quantiles(0.5)[0] for m in each]),
        "mmr_max": or_null([_max(m.ratio_max) for m in each]),
        **{norm_name(q): or_null(norms[:, index]) for index, q in enumerate(QUANTILES)},
        **interval_columns(
            "kurtosis_token", [bootstrap.ratios(m.kurtosis_sum, m.kurtosis_tokens) for m in each]
        ),
        **interval_columns("kurtosis_token_max", [bootstrap.maxima(m.kurtosis_max) for m in each]),
        **interval_columns("mmr_max", [bootstrap.maxima(m.ratio_max) for m in each]),
        **interval_columns("infinity_norm", [bootstrap.means(m) for m in maxima]),
    }


def _of_tensors(scan: Scan) -> tuple[list[float], list[float]]:
    """Kurtosis and RMS of all values of each site and layer."""
    kurtosis, rms = [], []
    # Layers of a site together: as many array operations for all as for one.
    for _, places in groupby(scan.measures, key=lambda place: place[0]):
        whole = together([scan.measures[place].moments for place in places])
        kurtosis += whole.kurtosis.tolist()
        rms += np.sqrt(whole.mean_square).tolist()
    return kurtosis, rms


def _ratio(above: Float64, below: Int64) -> float:
    return float(above.sum() / below.sum()) if below.any() else float("nan")


def _mean(values: Float64) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _max(values: Float64) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else float("nan")


def quantization_columns(
    errors: Mapping[Place, QuantizationErrors], bootstrap: Bootstrap
) -> Columns:
    """The table of quantization errors."""
    rows = [
        (place, each, format_, scale_of, index, kept)
        for place, each in errors.items()
        for index, ((format_, scale_of), kept) in enumerate(product(FORMATS, range(len(KEPT))))
    ]
    most = {place: bootstrap.maxima(each.outlier_channels) for place, each in errors.items()}
    return {
        "site": [site for (site, _), *_ in rows],
        "layer": [layer for (_, layer), *_ in rows],
        "format": [format_ for _, _, format_, *_ in rows],
        "scale_of": [scale_of for *_, scale_of, _, _ in rows],
        "outlier_channels": ["quantized" if KEPT[kept] else "kept" for *_, kept in rows],
        "most_outlier_channels": [int(_max(each.outlier_channels)) for _, each, *_ in rows],
        "values": [each.values for _, each, *_ in rows],
        "rmse": [_root(e.square_errors[i], e.values) for _, e, _, _, i, _ in rows],
        "mae": [_over(e.errors[i], e.values) for _, e, _, _, i, _ in rows],
        "sqnr": [_decibel(e.squares, e.square_errors[i]) for _, e, _, _, i, _ in rows],
        **interval_columns("most_outlier_channels", [most[place] for place, *_ in rows]),
    }


def _over(total: float, count: int) -> float | None:
    return float(total / count) if count else None


def _root(total: float, count: int) -> float | None:
    return float(np.sqrt(total / count)) if count else None


def _decibel(signal: float, error: float) -> float | None:
    return float(10 * np.log10(signal / error)) if signal and error else None
