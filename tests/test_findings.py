"""Tests of the sentences about super weights, super experts, sinks and ablations."""

import math

import pytest

from outlier_atlas.criteria.attention_sinks import show as attention_sinks
from outlier_atlas.criteria.finding_table import joined
from outlier_atlas.criteria.super_experts import show as super_experts
from outlier_atlas.criteria.super_weights import show as super_weights
from outlier_atlas.report import ablation, mechanisms

UNALTERED = {"draw": None, "ratio": 1.0, "perplexity": 20.0, "intervention": "none"}


def altered(
    ratio, target="super_weight", intervention="zero", draw=None, low=None, sequences=10, **places
):
    ends = {"ratio_low": low, "ratio_high": None if low is None else 2 * ratio - low}
    places = {"expert": None, "row": 5, "column": 9, "first_layer": 2, "last_layer": 2, **places}
    return {
        "target": target, "intervention": intervention, "draw": draw, "ratio": ratio,
        "perplexity": 20 * ratio, "sequences": sequences, "round": None, **ends, **places,
    }  # fmt: skip


def test_the_super_weight_with_the_largest_output_is_said():
    weights = [
        {"super_weight": made, "layer": layer, "row": 5, "column": 9, "weight": weight,
         "input": 80.0, "output": output, "expert": None, "share": 0.8}
        for layer, made, weight, output in (
            (0, False, 9.0, -900.0), (1, True, None, 60.0), (2, True, -3.5, -700.0),
        )
    ]  # fmt: skip
    (said,) = super_weights.sentence(weights, "Definition.")
    assert said.text == (
        "The down projection of layer 2 has a super weight, W[5, 9] = -3.5: at one token its input "
        "is 80 in channel 9, and it makes 80 % of the output of -700 in channel 5. The run has 2 "
        "super weights in all."
    )
    assert said.definition == "Definition."
    (several,) = super_weights.sentence(weights[1:2], "")
    assert "a super weight, W[5, 9]: at" in several.text
    assert super_weights.sentence(weights[:1], "") == []


def test_the_super_expert_with_the_largest_output_is_said():
    experts = [
        {"layer": layer, "expert": 3, "channel": 7, "value": value}
        for layer, value in ((1, -5600.0), (2, 300.0))
    ]
    (said,) = super_experts.sentence(experts, "")
    assert said.text == (
        "The run has 2 super experts: the output of expert 3 of layer 1 reaches -5,600 in channel "
        "7."
    )
    assert super_experts.sentence([], "") == []


def test_sinks_are_said_where_there_are_some():
    layers = [{"heads": 4, "sink_heads": 3, "sink_metric": 75.0}]
    ends = {"sink_metric_low": 70.0, "sink_metric_high": 80.0}
    (said,) = attention_sinks.sentence(layers, [{"sink_metric": 75.0} | ends], "")
    assert said.text.startswith("The first token is a sink in 75 % (70 to 80 %) of all (sequence,")
    for metric in (0.0, None):
        assert attention_sinks.sentence(layers, [{"sink_metric": metric} | ends], "") == []
    assert attention_sinks.sentence([], [], "") == []


def test_what_raises_perplexity_most_stands_beside_its_own_random_draws():
    channel = {"row": None, "column": None, "channels": "7", "site": "resid_post"}
    rows = [
        UNALTERED,
        altered(1.5),
        altered(2.0, intervention="random", draw=0),
        altered(9.0, "massive_channel", low=8.0, **channel),
        altered(3.0, "massive_channel", "mean", **channel),
        altered(1.25, "massive_channel", "random", 0, **channel),
        altered(1.0, "massive_channel", "random", 1, **channel),
        altered(1.0),
    ]
    (said,) = mechanisms.ablation_findings(rows)
    assert said.text == (
        "Without the channel of massive activations (channel 7 of resid_post, layer 2, set to "
        "zero) the perplexity of held-out tokens is 180, 9 (8 to 10) times the model's own 20; 2 "
        "random "
        "draws: 1 to 1.25 times."
    )
    assert said.striking == 4
    # The effect is not larger than that of a random draw.
    (dull,) = mechanisms.ablation_findings(rows[:3])
    assert dull.striking == 1
    assert mechanisms.ablation_findings(rows[:1]) == []


@pytest.mark.parametrize(
    ("ratio", "low", "said", "striking"),
    [
        (1.5, 1.25, "30, 1.5 (1.25 to 1.75) times the model's own", 4),
        (1.5, 1.0, "30, 1.5 (1 to 2) times", 1),
        (1.0004, 0.99999, "20.01, 1.00040 (0.9999900 to 1.00081) times", 1),
        (1.5, None, "30, 1.5 times", 3),
    ],
)
def test_what_may_be_chance_over_sequences_does_not_stand_out(ratio, low, said, striking):
    (finding,) = mechanisms.ablation_findings([UNALTERED, altered(ratio, low=low)])
    assert said in finding.text
    assert finding.striking == striking
    surer = altered(1.125, low=1.0625)
    (finding,) = mechanisms.ablation_findings([UNALTERED, altered(ratio, low=low), surer])
    assert (said in finding.text) == (striking == 4 or low is None)
    assert finding.striking == (3 if low is None else 4)


def test_of_few_sequences_only_the_interval_is_shown():
    (enough,) = mechanisms.ablation_findings([UNALTERED, altered(1.5, low=1.25, sequences=10)])
    assert "too few" not in enough.text
    assert enough.striking == 4
    (few,) = mechanisms.ablation_findings([UNALTERED, altered(1.5, low=1.25, sequences=2)])
    assert "1.5 (1.25 to 1.75) times the model's own 20. Over 2 sequences: too few to" in few.text
    assert few.striking == 3
    rows = [UNALTERED | {"tokens": 9, "perplexity_low": 1.0, "perplexity_high": 2.0}]
    for sequences in (2, 9):
        said = ablation.section([rows[0] | {"sequences": sequences}])["intervals"]
        assert f"Over {sequences} sequences: too few to tell an effect from chance" in said
        assert "more than chance" not in said
    said = ablation.section([rows[0] | {"sequences": 10}])["intervals"]
    assert "where one does not hold 1, the effect is more than chance over sequences." in said


def test_a_perplexity_that_is_nan_is_compared_with_nothing():
    rows = [UNALTERED | {"perplexity": math.nan}, altered(math.nan), altered(math.nan, draw=0)]
    (said,) = mechanisms.ablation_findings(rows)
    assert said.text.startswith("The ablation cannot be judged: the perplexity of the held-")
    (said,) = mechanisms.ablation_findings([UNALTERED, altered(math.nan), altered(2.0, low=1.5)])
    assert "is 40, 2 (1.5 to 2.5) times" in said.text


def test_layers_of_one_channel_of_a_token_are_joined():
    rows = [
        {"token_index": token, "channel": 7, "layer": layer, "value": value}
        for token, layer, value in ((4, 1, 2.0), (4, 2, -5.0), (4, 3, 1.0), (9, 2, 3.0))
    ]
    assert joined(rows) == [rows[1] | {"layers": "1 to 3"}, rows[3] | {"layers": "2"}]
