"""Draws a suite's ratios as horizontal bars: left of 1 is faster than the peer."""

from __future__ import annotations

import json
from pathlib import Path


def draw(path: Path) -> Path:
    """Reads a result file and writes the PNG beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    record = json.loads(path.read_text())
    cases = record["cases"]
    subject, *peers = record["versions"]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.34 * len(cases)))
    height = 0.8 / max(len(peers), 1)
    for i, peer in enumerate(peers):
        rows = [(k, c["ratio"][peer]) for k, c in enumerate(cases.values()) if peer in c["ratio"]]
        at = [k + (i - (len(peers) - 1) / 2) * height for k, _ in rows]
        values = [r["median"] for _, r in rows]
        axes.barh(at, values, height, label=f"{peer} {record['versions'][peer]}")
        for y, (_, r) in zip(at, rows, strict=True):
            axes.plot([r["p10"], r["p90"]], [y, y], color="black", linewidth=1)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(cases)), list(cases))
    axes.invert_yaxis()
    axes.set_xlabel(f"time of {subject} / time of peer (log; lines: 10th to 90th percentile)")
    axes.set_title(f"{record['suite']}, {record['threads']} thread(s), {record['machine']['cpu']}")
    axes.legend()
    figure.tight_layout()
    out = path.with_suffix(".png")
    figure.savefig(out, dpi=110)
    return out
