"""Training steps of an LSTM classifier that reads 8x8 images row by row: the main job's step.

`jit` is the same step as `eager`, under `jit.compile`; `torch` runs it as PyTorch users write it
(its LSTM is one fused call there, ours a Python loop over steps)."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.suites import Case

LIBRARIES = ["jit", "eager", "torch"]
# name -> (batch, hidden)
_SIZES = {
    "lstm_b16_h48": (16, 48),  # the main job's
    "lstm_b64_h64": (64, 64),
    "lstm_b64_h128": (64, 128),
    "lstm_b256_h128": (256, 128),
}
CASES = list(_SIZES)


def cases(library: str, module: Any) -> dict[str, Case]:
    """Training steps: forward, backward and Adam's update."""
    lib = module
    if library == "jit":
        import eager as lib

    def build(batch: int, hidden: int) -> dict[str, Any]:
        lib.manual_seed(0)
        rng = np.random.default_rng(0)
        nn = lib.nn

        class Classifier(nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.lstm = nn.LSTM(8, hidden, batch_first=True)
                self.head = nn.Linear(hidden, 10)

            def forward(self, x: Any) -> Any:
                out, _ = self.lstm(x)
                return self.head(out[:, -1])

        model = Classifier()
        optimizer = lib.optim.Adam(model.parameters(), lr=1e-3)
        loss_fn = nn.CrossEntropyLoss()
        x = lib.from_numpy(rng.standard_normal((batch, 8, 8)).astype(np.float32))
        y = lib.from_numpy(rng.integers(0, 10, batch))

        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        if library == "jit":
            step = module.compile(step)
            for _ in range(3):
                step(x, y)
            assert step.stats().launches_per_call == 1
        return {"step": step, "x": x, "y": y}

    return {
        name: Case("step(x, y)", lambda size=size: build(*size)) for name, size in _SIZES.items()
    }
