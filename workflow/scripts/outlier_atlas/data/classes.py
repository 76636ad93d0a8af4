"""Classes of tokens by their text, after An et al. 2025.

The paper does not list the tokens of each class; the lists here are ours.
"""

from __future__ import annotations

from typing import Literal

TokenClass = Literal["initial", "strong_delimiter", "weakly_semantic", "other"]

STRONG = set(".!?;:")

FUNCTION_WORDS = """
a an and any as at be been but by can did do does for from had has have he her him his i if in is it
its may me my no nor not of on or our shall she should so such than that the their them then there
these they this those to up upon us was we were what when which who will with would you your
"""
"""English function words."""


def token_class(text: str, position: int, special: bool) -> TokenClass:
    """Return the class of a token: the first one that applies.

    Args:
        text: the token's own text.
        position: position of the token in its sequence.
        special: whether it is one of the tokenizer's special tokens, whose text is a name.
    """
    if position == 0:
        return "initial"
    if special:
        return "other"
    stripped = text.strip()
    if (not stripped and "\n" in text) or (stripped and set(stripped) <= STRONG):
        return "strong_delimiter"
    if not any(map(str.isalnum, stripped)) or stripped.lower() in FUNCTION_WORDS.split():
        return "weakly_semantic"
    return "other"
