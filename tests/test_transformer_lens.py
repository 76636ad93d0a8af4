"""The sites that TransformerLens has, too: its own forward pass gives the same numbers.

`make .venv/installed-validation` lets these tests run: with TransformerLens 3.9, the last one that
has a forward pass of its own (4 hooks that of transformers).
"""

import lens
import numpy as np
import pytest
import tiny
import transformers as t
from pipeline import Run, config
from test_architectures import GPT2, SIZES

ROWS = [[5, 17, 200, 9, 33, 41, 7, 250, 11, 19], [40, 6, 6, 90, 280, 14, 8]]
ARCHITECTURES = [t.GPT2Config(**GPT2, n_positions=64), t.LlamaConfig(**SIZES, rms_norm_eps=1e-5)]
SITES = [*lens.HOOKS, *lens.NORMS, "attn_sink"]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda c: c.model_type)
def test_sites_are_what_transformer_lens_has_there(architecture, tmp_path):
    pytest.importorskip(
        "transformer_lens.HookedTransformer", reason="TransformerLens 3 is not installed"
    )
    model = tiny.checkpoint(tmp_path / "model", architecture)
    extraction = {"sites": SITES, "layer_groups": 2}
    data = config(model, ROWS, tmp_path / "data", extraction=extraction)
    data["model"]["dtype"] = "float32"
    run = Run(tmp_path, data)
    run.prepare()
    run.extract()
    want = [lens.activations(model, row) for row in ROWS]
    for site in SITES:
        expected = np.concatenate([each[site] for each in want], axis=1)
        # Two implementations in float32, whose sums are in other orders.
        limit = 2e-6 * np.abs(expected).max()
        difference = np.nanmax(np.abs(run.array(site) - expected)) / np.nanmax(np.abs(expected))
        print(f"{site:12} {difference:.1e}")
        np.testing.assert_allclose(run.array(site), expected, rtol=0, atol=limit, err_msg=site)
        assert np.abs(expected).max() > 0
