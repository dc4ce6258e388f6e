"""The results for the HParams tab of TensorBoard: what was chosen in each run, and what came of it."""

from collections.abc import Sequence

from gsopt.monitor import wait_for_a_later_name
from gsopt.sweep.results import DONE, Result
from gsopt.sweep.table import MEASURES

SUFFIX = ".hparams"  # of the event files written here


def choices(results: Sequence[Result]) -> dict[str, list[str | float]]:
    """What was chosen on each axis: numbers where every choice of the axis is one, else text."""
    found: dict[str, list[str | float]] = {}
    for axis in results[0].run.configuration.choices:
        texts = [result.run.configuration.choices[axis] for result in results]
        numbers = [_number(text) for text in texts]
        all_numbers = [number for number in numbers if number is not None]
        found[axis] = [*all_numbers] if len(all_numbers) == len(texts) else [*texts]
    return found | {"seed": [float(result.run.seed) for result in results]}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def write_hparams(results: Sequence[Result]) -> None:
    """Write an event file beside those of each finished run; files of an earlier call are replaced.

    Metrics have the tags `hparam/psnr` and so on, by the names in `table.MEASURES`.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    chosen = choices(results)
    domains = {axis: list(dict.fromkeys(values)) for axis, values in chosen.items()}
    for index, result in enumerate(results):
        if result.status != DONE:
            continue
        folder, steps = result.run.folder.path, result.run.config.iterations
        for old in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
            old.unlink()
        metrics = {f"hparam/{name}": result.values[name] for name in MEASURES}
        metrics = {tag: value for tag, value in metrics.items() if value is not None}
        here = {axis: values[index] for axis, values in chosen.items()}
        wait_for_a_later_name(folder)
        with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:
            for summary in hparams(here, metrics, hparam_domain_discrete=domains):
                writer.file_writer.add_summary(summary)
            for tag, value in metrics.items():
                writer.add_scalar(tag, value, steps)
