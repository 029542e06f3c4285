"""Reads handwritten digits row by row with an LSTM, first eagerly, then as one compiled program.

    python tutorials/digits_lstm.py

The data are the 1,797 images of 8x8 pixels that come with scikit-learn; a fifth of them is held
out.  The same training step runs twice from the same initial weights on the same batches: as it
stands, and under `jit.compile`, which turns forward, backward and the optimizer's update into one
program launch.  Writes a plot and the trained weights into --out; exits with 1 if the held-out
accuracy is below 97 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import eager
import jit
from eager import Tensor, nn, optim
from eager.nn import functional as F
from eager.utils.data import DataLoader, TensorDataset

REQUIRED_ACCURACY = 0.97
EARLY = 200  # steps


class RowReader(nn.Module):
    """Classifies a sequence of rows by the LSTM's hidden state after the last one."""

    def __init__(self, row: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(row, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, rows, row) to logits (batch, classes)."""
        _, (last, _) = self.lstm(images)
        return self.head(last[0])


@dataclass
class Data:
    """Training and held-out images (n, 8, 8) with values from 0 to 1, and their labels (n,)."""

    train: TensorDataset
    images: Tensor
    labels: Tensor


@dataclass
class Run:
    """What one training run gave."""

    losses: list[float]
    step_seconds: list[float]
    model: RowReader
    stats: jit.Stats | None = None

    @property
    def step_ms(self) -> float:
        """The median time of a step in milliseconds; steps that compiled do not sway it."""
        return statistics.median(self.step_seconds) * 1e3


def load_data(seed: int) -> Data:
    """The digits, split 80:20 with every class represented alike."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=seed
    )
    train = TensorDataset(eager.tensor(train_x), eager.tensor(train_y))
    return Data(train, eager.tensor(test_x), eager.tensor(test_y))


def train(name: str, data: Data, options: argparse.Namespace, compiled: bool) -> Run:
    """Trains from the initial weights and on the batches that `options.seed` determines."""
    eager.manual_seed(options.seed)
    model = RowReader(8, options.hidden, 10)
    optimizer = optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.1)
    # Only full batches: every step has the same shapes, so one program serves them all.
    batches = DataLoader(
        data.train,
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        generator=eager.Generator().manual_seed(options.seed),
    )
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(batches))

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return loss.detach()

    call: Callable[[Tensor, Tensor], Tensor] = jit.compile(step) if compiled else step
    run = Run([], [], model)
    total = options.epochs * len(batches)
    with tqdm(total=total, desc=name, unit="step", mininterval=0.5) as bar:
        for _ in range(options.epochs):
            for images, labels in batches:
                start = time.perf_counter()
                loss = call(images, labels)
                run.step_seconds.append(time.perf_counter() - start)
                schedule.step()
                run.losses.append(loss.item())
                bar.update()
            bar.set_postfix(loss=f"{run.losses[-1]:.3f}", refresh=False)
    if compiled:
        run.stats = call.stats()  # type: ignore[attr-defined]
    return run


def accuracy(model: RowReader, data: Data) -> float:
    """The fraction of held-out images that are classified correctly."""
    model.eval()
    with eager.no_grad():
        return (model(data.images).argmax(1) == data.labels).float().mean().item()


def plot(path: Path, runs: dict[str, Run]) -> None:
    """Loss curves of all runs, and a bar for the step time of each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (curves, bars) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(2, 1))
    for (name, run), style in zip(runs.items(), ("-", "--"), strict=False):
        curves.plot(run.losses, style, label=name, linewidth=1)
    curves.set(xlabel="step", ylabel="training loss", title="loss")
    curves.legend()
    times = [run.step_ms for run in runs.values()]
    shapes = bars.bar(list(runs), times, color=["tab:blue", "tab:orange"][: len(runs)])
    bars.bar_label(shapes, [f"{t:.2f} ms" for t in times])
    bars.margins(y=0.15)
    bars.set(ylabel="median step time (ms)", title="step time")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(runs: dict[str, Run]) -> None:
    """Prints step times, and how the compiled run compares with the eager one."""
    for name, run in runs.items():
        print(f"{name + ' step':<24}{run.step_ms:.3f} ms (median of {len(run.losses)})")
    if "compiled" not in runs:
        return
    first, second = runs["eager"], runs["compiled"]
    assert second.stats is not None
    # Sums are taken in another order; training amplifies what that does to the last bits.
    differences = [abs(a - b) for a, b in zip(first.losses, second.losses, strict=True)]
    print(f"{'eager / compiled':<24}{first.step_ms / second.step_ms:.2f} x")
    print(f"{'compile time':<24}{second.stats.compile_seconds:.2f} s (not in the step time)")
    print(f"{'launches_per_call':<24}{second.stats.launches_per_call}")
    print(
        f"{'largest loss difference':<24}{max(differences):.2e} "
        f"({max(differences[:EARLY]):.2e} in the first {EARLY} steps)"
    )


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(
        description="Train an LSTM on scikit-learn's digits, eagerly and compiled."
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=48, help="size of the LSTM's state")
    parser.add_argument("--lr", type=float, default=1.2e-2, help="learning rate at the beginning")
    parser.add_argument("--seed", type=int, default=0, help="of split, weights and batches")
    parser.add_argument("--threads", type=int, default=None, help="default: all cores")
    parser.add_argument("--out", type=Path, default=Path("out/digits"))
    parser.add_argument("--no-compile", action="store_true", help="only the eager run")
    options = parser.parse_args(arguments)

    if options.threads is not None:
        eager.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    data = load_data(options.seed)
    start = time.perf_counter()
    runs = {"eager": train("eager", data, options, compiled=False)}
    if not options.no_compile:
        runs["compiled"] = train("compiled", data, options, compiled=True)
    seconds = time.perf_counter() - start

    report(runs)
    reached = {name: accuracy(run.model, data) for name, run in runs.items()}
    for name, value in reached.items():
        print(f"{name + ' accuracy':<24}{value:.2%} of {len(data.labels)} held-out images")
    print(f"{'training time':<24}{seconds:.1f} s")
    plot(options.out / "digits.png", runs)
    last = list(runs)[-1]
    weights = options.out / "digits.safetensors"
    eager.save_file(runs[last].model.state_dict(), weights)
    print(f"{'written':<24}{options.out / 'digits.png'}, {weights}")
    if min(reached.values()) < REQUIRED_ACCURACY:
        print(f"the accuracy is below {REQUIRED_ACCURACY:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
