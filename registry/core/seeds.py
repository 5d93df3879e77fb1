"""Seeds as people write them."""

from __future__ import annotations

import re


def ranges_of(text: str) -> list[range]:
    """'0-9,20' -> range(0, 10), range(20, 21). However long a range is, it takes no memory. Raises ValueError, for people."""
    ranges = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,100})\s*(?:-\s*([0-9]{1,100})\s*)?", part)
        if not found:
            raise ValueError("write numbers and ranges, e.g. 0-49999 or 1,2,10-19")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"{first}-{last} is empty; write the lower number first")
        if last >= 2**32:
            raise ValueError(f"a seed must be below 2^32 = {2**32}")
        ranges.append(range(first, last + 1))
    return ranges
