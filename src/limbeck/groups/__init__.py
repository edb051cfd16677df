"""Groups: declared over attributes and the label, or numbered by hand.

The types live in `limbeck.data.columns`, because `Data` is built from them and rooms import in one direction only.
"""

from limbeck.data.columns import MAX_GROUPS, Column, Groups, declare

__all__ = ["MAX_GROUPS", "Column", "Groups", "declare"]
