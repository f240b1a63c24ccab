"""Where the time of training goes, with each executor: verdicts, pictures, a report, a trace, and two runs compared.

python examples/where_the_time_goes.py
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import miai_graph as mg
from miai_graph import layers
from miai_graph.digits import load_digits
from miai_graph.timing import Timing

BATCH_SIZE = 128
SAMPLES = 10 * BATCH_SIZE  # whole batches, so that all steps are alike
EXECUTORS = {
    "serial": {"threads": 1},
    "processes": {"workers": 2, "wait_for_workers": True},  # so that both are in each step
    "hosts": {"stages": 2, "micro_batches": 4},  # two more processes of this machine, one stage each
}


def make_model() -> mg.Sequential:
    return mg.Sequential(
        [
            layers.Input((8, 8, 1), name="image"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(10, activation="softmax"),
        ],
        name="digits_cnn",
    )


def train(name: str, epochs: int) -> tuple[mg.Sequential, Timing]:
    """The trained model, always from the same seed, and where the time went."""
    mg.set_seed(0)
    digits = load_digits()
    images, labels = digits.train_images[:SAMPLES], digits.train_labels[:SAMPLES]
    model = make_model()
    with mg.executor(name, **EXECUTORS[name]) as executor:
        model.compile("adam", "sparse_categorical_crossentropy", executor=executor)
        history = model.fit(images, labels, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
        return model, history.timing


def draw(timings: Mapping[str, Timing], folder: Path) -> None:
    """Pictures of each run, and one of all."""
    for name, timing in timings.items():
        timing.plot(folder / f"{name}_layers.png")
        timing.plot(folder / f"{name}_timeline.png", "timeline", steps=[timing.steps - 1])
    timings["serial"].plot(folder / "serial_roofline.png", "roofline")
    mg.plot_scaling(timings, folder / "scaling.png", samples_per_step=BATCH_SIZE)


def main(epochs: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    timings = {}
    for name in EXECUTORS:
        model, timings[name] = train(name, epochs)
        print(f"{name}:\n{timings[name].verdict()}\n")
    timings["hosts"].timeline()

    difference = timings["serial"] - timings["processes"]
    print("\nserial, the first, and processes, the second:")
    difference.table()
    print(f"processes is {difference.first_seconds / difference.second_seconds:.2f} times as fast as serial.")

    draw(timings, folder)
    mg.report(model, timings["hosts"], folder / "hosts.html")
    mg.report(model, timings["processes"], folder / "processes.html", compare=timings["serial"])
    timings["hosts"].to_chrome_trace(folder / "hosts_trace.json")
    print(f"\nPictures, reports, and a trace for ui.perfetto.dev are in {folder}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("where_the_time_goes"))
    arguments = parser.parse_args()
    main(arguments.epochs, arguments.folder)
