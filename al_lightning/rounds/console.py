"""Terminal output of a run: a header, a live line of the running round, a line for each round, and a table."""

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from al_lightning._lightning import FLAVOUR, Callback, LightningModule, Trainer, callbacks_of, pl
from al_lightning.records.foreign import as_aligned
from al_lightning.records.header import name_of
from al_lightning.records.round import Round

BAR_WIDTH = 15
HOLDOUT_FORMS = {"acc": ".2f", "low": ".2f", "high": ".2f", "num": "g"}
SECONDS_BETWEEN_UPDATES = 0.1
SAID_ANEW_IN_EACH_ROUND = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning on a newer torch than it was written for
    r"(?s)The number of training batches .* is smaller than the logging interval",  # few labels make few batches
    r"(?s)Checkpoint directory .* exists and is not empty",  # the rounds themselves fill it
    r"You defined a `validation_step` but have no `val_dataloader`",  # who has no labels has none to validate on
)
"""Warnings that the user of a run can do nothing about."""


class _SaidOnce(logging.Filter):
    """Pass what Lightning itself logs the first time, and everything that others log."""

    def __init__(self) -> None:
        super().__init__()
        self._folder, self._said = str(Path(str(pl.__file__)).parent), set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the message is shown."""
        if not record.pathname.startswith(self._folder):
            return True
        message = record.getMessage()
        is_new = message not in self._said and not message.startswith("`Trainer.fit` stopped: `max_")
        self._said.add(message)
        return is_new


class Live(Callback):
    """Show on a terminal how far the running round is, in one line that the next message takes."""

    def __init__(self) -> None:
        self._shown_at = 0.0
        self._is_shown = False
        self._round = self._num_labelled = 0

    def begin(self, round_index: int) -> None:
        """Count a new round."""
        self._round = round_index

    def wait(self, record: Round) -> None:
        """Show that people are asked."""
        self._num_labelled = record.num_labelled
        if self._is_shown:
            self.clear()

    def clear(self) -> None:
        """Leave the line to others."""
        if self._is_shown:
            sys.stderr.write("\x1b[K")
            sys.stderr.flush()
        self._is_shown = False

    def _show(self, trainer: Trainer, text: str, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if not (trainer.is_global_zero and sys.stderr.isatty()):
            return
        if at_once or now - self._shown_at > SECONDS_BETWEEN_UPDATES:
            self._shown_at, self._is_shown = now, True
            line = f"round {self._round} | {self._num_labelled} labels | {text}"
            # Back at its beginning, so that whatever is written next takes the line.
            sys.stderr.write(f"\x1b[K{line[: shutil.get_terminal_size().columns - 1]}\r")
            sys.stderr.flush()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Count the labels before more are acquired."""
        self._num_labelled = trainer.datamodule.labels.num_labelled  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: Trainer, *arguments: object) -> None:  # noqa: ARG002
        """Show epoch and batch."""
        last = "" if trainer.max_epochs in {None, -1} else f"/{trainer.max_epochs}"
        batch = f"{trainer.fit_loop.batch_idx + 1}/{trainer.num_training_batches}"
        self._show(trainer, f"epoch {trainer.current_epoch + 1}{last}, batch {batch}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Show that the pool is predicted and a batch chosen, or that the run ends."""
        self._show(trainer, "finishing the round", at_once=True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Show that the model is tested."""
        self._show(trainer, "testing", at_once=True)


@contextmanager
def quiet(trainer: Trainer, *, bars: bool) -> Iterator[None]:
    """Keep from the terminal, until the block ends, what Lightning says anew in each round.

    Bars of exactly the class that Lightning makes by itself are off meanwhile.

    Args:
        trainer: The Trainer of the run.
        bars: Whether its bars stay.
    """
    shown: Any = trainer.progress_bar_callback
    hidden = not bars and shown is not None and is_default_bar(shown) and not shown.is_disabled
    logger, once = logging.getLogger(f"{FLAVOUR}.utilities.rank_zero"), _SaidOnce()
    with warnings.catch_warnings():
        for message in SAID_ANEW_IN_EACH_ROUND:
            warnings.filterwarnings("ignore", message)
        logger.addFilter(once)
        if hidden:
            shown.disable()
        try:
            yield
        finally:
            logger.removeFilter(once)
            if hidden:
                shown.enable()


def is_default_bar(bar: object) -> bool:
    """Tell a bar of a class that the Trainer makes where none was given."""
    return type(bar) in {pl.callbacks.TQDMProgressBar, pl.callbacks.RichProgressBar}


@contextmanager
def no_summary(trainer: Trainer) -> Iterator[None]:
    """Have Lightning's own model summaries make none to see within the block: the first fit has shown it.

    They go on to be asked, because what they do to find out (a forward pass of `example_input_array`) may draw numbers.
    """
    kinds = {pl.callbacks.ModelSummary, pl.callbacks.RichModelSummary}
    summaries: list[Any] = [callback for callback in callbacks_of(trainer) if type(callback) in kinds]
    for summary in summaries:
        summary.summarize = _show_nothing
    try:
        yield
    finally:
        for summary in summaries:
            del summary.summarize


def _show_nothing(*arguments: object, **settings: object) -> None:
    """Take the place of what prints."""


def header_line(header: Mapping[str, Any], folder: Path | None, *, uses_posterior: bool = True) -> str:
    """Return what runs, for a person; the records have every argument.

    Args:
        header: The settings that identify the run.
        folder: Where its records are kept.
        uses_posterior: Name the posterior. Without predictions, as Random and TypiClust choose, it has no effect.

    Example:
        >>> header = {"acquisition": "BALD()", "query_size": 5, "max_labelled": 20, "posterior": "MCDropout()",
        ...     "num_samples": 9, "seed": 0, "fit_seed": 1}
        >>> header_line(header, Path("runs/a"))
        'BALD | 5 labels a round up to 20 | MCDropout, 9 samples | seed 0 of draws, 1 of fits | runs/a'
        >>> header_line({**header, "acquisition": "Random()", "fit_seed": 0}, None, uses_posterior=False)
        'Random | 5 labels a round up to 20 | seed 0 of draws and fits | no folder'
    """
    budget = "" if header["max_labelled"] is None else f" up to {header['max_labelled']}"
    of_both = header["fit_seed"] == header["seed"]
    of_fits = "" if of_both or header["fit_seed"] is None else f", {header['fit_seed']} of fits"
    acquisition, posterior = (name_of(header[name]) for name in ("acquisition", "posterior"))
    cold_start = header.get("cold_start")
    parts = [
        acquisition + ("" if cold_start is None else f", the first batch by {name_of(cold_start)}"),
        f"{header['query_size']} labels a round{budget}{_from_people(header)}",
        *(
            [f"{posterior}, {header['num_samples']} sample{'s' * (header['num_samples'] != 1)}"]
            if uses_posterior
            else []
        ),
        f"seed {header['seed']} of draws{' and fits' if of_both else of_fits}",
        "no folder" if folder is None else str(folder),
    ]
    return " | ".join(parts)


def _from_people(header: Mapping[str, Any]) -> str:
    """Return who labels, and the share that measures, of a run that asks people.

    Example:
        >>> _from_people({"asks_people": True, "holdout_share": 0.25}), _from_people({})
        (', by people, 25% of them the holdout', '')
    """
    if not header.get("asks_people"):
        return ""
    share = header.get("holdout_share")
    return ", by people" + ("" if share is None else f", {share:.0%} of them the holdout")


def resumes_line(rounds: Sequence[Round], found: Sequence[Round], *, num_labelled: int) -> str:
    """Return after which round a run resumes, and what is run again and why; an empty text for a run that begins.

    Args:
        rounds: The rounds that stand.
        found: The rounds on disk.
        num_labelled: Labels at the start of the round that is due.

    Example:
        >>> first, second = Round(0, 20, 80, acquired=[3], scores=[0.5]), Round(1, 21, 79, acquired=[4], scores=[0.5])
        >>> resumes_line([first, second], [first, second], num_labelled=22)
        'The run resumes after round 1 with 22 labels; round 2 starts again.'
        >>> ended = Round(2, 22, 78, stopped="max_rounds=3 reached")
        >>> resumes_line([first, second], [first, second, ended], num_labelled=22).partition(": ")[2]
        'it ended the run without a batch (max_rounds=3 reached), and the limits of this start do not.'
    """
    if not found:
        return ""
    number, again = len(rounds), found[len(rounds) :]
    after = f" after round {number - 1}" if rounds else ""
    line = f"The run resumes{after} with {num_labelled} labels; "
    last, is_over = found[-1], found[-1].stopped is not None
    if not again:
        return f"{line}round {number} starts{'' if is_over else ' again'}."
    line += f"round {number} starts again" if len(again) == 1 else f"rounds {number} and {number + 1} start again"
    reasons = [f"round {last.round} ended" if len(again) > 1 else "it ended"] if is_over else []
    reasons = [
        f"{each} the run without a batch ({last.stopped}), and the limits of this start do not" for each in reasons
    ]
    if again[0].stopped is None:
        limit = "that limit" if is_over else "a limit that is higher now"
        reasons.append(f"the batch of round {number} was cut by {limit}")
    return f"{line}: {'; '.join(reasons)}."


def round_line(record: Round, *, budget: int | None) -> str:
    """Return a round as one line: labels, test metrics, information of the batch, seconds."""
    parts = [f"round {record.round}", _labels_bar(record.num_paid, budget) + _parts_of(record)]
    if record.rejected:
        parts.append(f"{len(record.rejected)} of {_num_asked(record)} rejected")
    parts += [f"{name} {value:.3g}" for name, value in _shown_metrics(record).items() if value is not None]
    if record.holdout:
        parts.append(f"holdout_acc {_accuracy(record)}")
    joint, share = _joint_information(record)
    if joint is not None and share is not None:
        parts.append(f"batch tells {joint:.2f} nats ({share:.0%} of log K)")
    if record.seconds:
        parts.append(", ".join(f"{name} {value:.1f} s" for name, value in record.seconds.items()))
    return " | ".join(parts + ([record.stopped] if record.stopped else []))


def _num_asked(record: Round) -> int:
    """Count the points of the batches that a round has asked for, without the holdout."""
    return len({*record.acquired, *record.asked_without_label})


def _parts_of(record: Round) -> str:
    """Return of which labels those that are paid for consist, in a run with a holdout or rejected points.

    Example:
        >>> _parts_of(Round(1, 10, 9, num_held_out=7)), _parts_of(Round(1, 10, 9))
        (' paid for: 10 trained on, 7 held out', '')
        >>> _parts_of(Round(1, 10, 9, num_rejected=3))
        ' paid for: 10 of the classes, 3 rejected'
    """
    if not record.num_held_out and not record.num_rejected:
        return ""
    if not record.num_held_out:
        return f" paid for: {record.num_labelled} of the classes, {record.num_rejected} rejected"
    rejected = f", {record.num_rejected} rejected" if record.num_rejected else ""
    return f" paid for: {record.num_labelled} trained on, {record.num_held_out} held out{rejected}"


def _accuracy(record: Round) -> str:
    """Return the accuracy on the holdout with its interval and its points, those of the round's batch included.

    Example:
        >>> _accuracy(Round(1, 9, 9, holdout={"num": 4, "acc": 0.75, "low": 0.194, "high": 0.994}))
        '0.75 [0.19, 0.99] of 4'
    """
    acc, low, high, num = (f"{record.holdout[name]:{form}}" for name, form in HOLDOUT_FORMS.items())
    return f"{acc} [{low}, {high}] of {num}"


def _labels_bar(num_labelled: int, budget: int | None) -> str:
    """Draw the share of the label budget that is used."""
    if budget is None:
        return f"{num_labelled} labels"
    filled = min(BAR_WIDTH, BAR_WIDTH * num_labelled // budget)  # a run that goes on may have a lower budget
    return f"{'█' * filled}{'░' * (BAR_WIDTH - filled)} {num_labelled}/{budget} labels"


def _shown_metrics(record: Round) -> dict[str, float | None]:
    """Return the metrics of the test without counts, or else those of the fit."""
    names = [name for name in record.metrics if name.startswith("test") and not name.endswith("num_samples")]
    test = {name: record.metrics[name] for name in names}
    return test or record.metrics


def table(rounds: Sequence[Round]) -> str:
    """All rounds under each other, a column per number; the seconds are the last columns."""
    has_holdout = any(r.num_held_out or r.holdout for r in rounds)
    has_rejected = any(r.rejected for r in rounds)
    numbers = [
        {
            "round": str(r.round),
            **_counts(r, has_holdout=has_holdout),
            **({"rejected": f"{len(r.rejected)} of {_num_asked(r)}"} if has_rejected and r.acquired else {}),
            **_cells(r),
        }
        for r in rounds
    ]
    seconds = [{f"{name} s": f"{value:.2f}" for name, value in r.seconds.items()} for r in rounds]
    names = dict.fromkeys(name for row in [*numbers, *seconds] for name in row)
    rows = [{**own, **times} for own, times in zip(numbers, seconds, strict=True)]
    return as_aligned([{name: row.get(name, "") for name in names} for row in rows])


def _counts(record: Round, *, has_holdout: bool) -> dict[str, str]:
    """Return the labels when the batch of a round was chosen; with a holdout all of them, and those of each kind."""
    if not has_holdout:
        return {"labels": str(record.num_labelled)}
    counts = {"paid for": record.num_paid, "trained on": record.num_labelled, "held out": record.num_held_out}
    return {name: str(number) for name, number in counts.items()}


def _cells(record: Round) -> dict[str, str]:
    cells = {name: "" if value is None else f"{value:.4g}" for name, value in _shown_metrics(record).items()}
    if record.holdout:
        cells["holdout_acc"] = _accuracy(record)
    joint, share = _joint_information(record)
    if joint is not None and share is not None:
        cells["joint MI"] = f"{joint:.2f}"
        cells["of log K"] = f"{share:.0%}"
    return cells


def _joint_information(record: Round) -> tuple[float | None, float | None]:
    """Return the joint information of the batch and its share of log K; None without predictions or with K = 1."""
    return record.information.get("joint_mi"), record.information.get("joint_mi_over_log_k")
