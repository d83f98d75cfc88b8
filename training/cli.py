"""`trimtab train KIND --base MODEL --data FILE --out FOLDER`: makes what trimtab serves, from preferences."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from trimtab.training import card
from trimtab.training.data import DataError, Preferences, percentiles, read_preferences
from trimtab.training.directions import Choice, make_answer_rows, make_direction_rows, objectives_of, read_prompts
from trimtab.training.rendering import Renderer, choose_padding
from trimtab.training.rows import Row, Rows, make_label_rows, make_pair_rows, make_value_rows, make_whole_rows
from trimtab.training.settings import Kind, Settings

Say = Callable[[str], None]
ONLY_FOR: dict[str, tuple[Kind, ...]] = {
    "reward": ("value",),
    "loss": ("guide",),
    "beta": ("guide", "twin"),
    "likelihood": ("guide", "twin"),
    "score": ("guide", "twin", "reward", "value"),
    "preference_prompts": ("directional",),
    "directions": ("directional",),
    "radius": ("directional",),
    "steer": ("guide", "twin"),
    "steer_prompts": ("guide", "twin"),
}
"""option -> the kinds that it is for; of the others it is refused"""


def parse(argv: Sequence[str]) -> tuple[Settings, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="trimtab train", description=__doc__)
    parser.add_argument("kind", choices=get_args(Kind))
    parser.add_argument("--base", required=True, help="the model that is served: a folder or a Hugging Face id")
    parser.add_argument("--data", required=True, nargs="+", help="JSON lines, JSON or parquet files, or hub datasets")
    parser.add_argument(
        "--test", nargs="+", default=(), help="preferences to measure on at the end; else the held-out ones"
    )
    parser.add_argument("--out", required=True, type=Path, help="the folder that the result is written to")
    parser.add_argument("--name", help="of the member in a configuration; the name of --out where it is left out")
    parser.add_argument("--from", dest="start", help="another model to train, with the base's tokenizer")
    parser.add_argument("--reward", help="of a value head: the folder of the reward model whose scores it foretells")
    parser.add_argument("--loss", choices=["genarm", "dpo"], default="genarm", help="of a guide")
    parser.add_argument("--beta", type=float, help="of the loss: 0.05 for genarm, 0.1 for dpo")
    parser.add_argument("--likelihood", type=float, default=0.0, help="weight of the chosen answers' likelihood beside")
    parser.add_argument(
        "--score", nargs="+", default=(), help="of rated answers: the score that pairs are made by; a reward's several"
    )
    parser.add_argument(
        "--preference-prompts", type=Path, help="a configuration with the texts that say directions to the model"
    )
    parser.add_argument("--directions", type=int, default=4, help="drawn for a prompt and a preference prompt")
    parser.add_argument(
        "--radius", type=float, help="choose the answer nearest to a direction times this; else the farthest along it"
    )
    parser.add_argument("--full", action="store_true", help="train the whole model, and not LoRA")
    parser.add_argument("--rank", type=int, default=8, help="of LoRA")
    parser.add_argument("--layers", type=int, help="train the last so many layers only")
    parser.add_argument(
        "--keep", type=float, default=2.0, help="GiB for states of the layers below those, computed once; 0: each time"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="that training computes in: auto is float32 on a CPU, bfloat16 on CUDA",
    )
    parser.add_argument("--learning-rate", type=float, help="5e-4 for LoRA, 1e-5 for whole models")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=2, help="pairs a forward pass")
    parser.add_argument("--accumulate", type=int, default=16, help="passes a step")
    parser.add_argument(
        "--max-length", type=int, default=512, help="tokens of prompt and answer; longer pairs are left out"
    )
    parser.add_argument("--heldout", type=float, default=0.1, help="share of the prompts that are not trained on")
    parser.add_argument("--patience", type=int, default=3, help="measurements without a gain until it ends; 0: never")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="use the first so many pairs")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--chat-template", dest="template", type=Path, help="a Jinja file; the base's own by default")
    parser.add_argument("--bare", action="store_true", help="prompts are texts, without a chat template")
    parser.add_argument("--skip-wrong", action="store_true", help="leave out rows that are no preferences")
    parser.add_argument(
        "--steer", help="of a guide: a reward model that scores answers drawn with it, for the card's table"
    )
    parser.add_argument("--steer-prompts", type=int, default=32, help="that so many answers are drawn to")
    parser.add_argument(
        "--dry-run", action="store_true", help="count, measure lengths and the time of a step, and stop"
    )
    parser.add_argument("--into", type=Path, help="a configuration to add the member to")
    args = parser.parse_args(argv)
    check(parser, args)
    fields = {key: value for key, value in vars(args).items() if key in Settings.__dataclass_fields__}
    several = {name: tuple(fields[name]) for name in ("data", "test", "score")}
    return Settings(**{**fields, **several}), args


LEAST = {
    "rank": 1, "layers": 1, "keep": 0, "batch": 1, "accumulate": 1, "max_length": 2, "patience": 0, "directions": 1,
    "steer_prompts": 8,
}  # fmt: skip


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the command for what cannot be."""
    if args.kind == "value" and args.reward is None:
        parser.error("a value head foretells a reward model's scores: name its folder with --reward")
    if args.kind == "directional" and args.preference_prompts is None:
        parser.error("what says a direction to the model is a preference prompt: name a configuration with some")
    for name, kinds in ONLY_FOR.items():
        if args.kind not in kinds and getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} is for {', '.join(kinds)}, and this is a {args.kind}")
    if args.kind != "reward" and len(args.score) > 1:
        parser.error(f"several names after --score are for a reward, and this is a {args.kind}")
    for name, low in LEAST.items():
        if (value := getattr(args, name)) is not None and not value >= low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}; got {value}")
    if args.radius is not None and not args.radius > 0:
        parser.error(f"--radius must be above 0; got {args.radius}")
    if not 0 < args.heldout < 1:
        parser.error(f"--heldout must lie between 0 and 1; got {args.heldout}")


def main(argv: Sequence[str], say: Say = print) -> int:
    """The exit status."""
    settings, args = parse(argv)
    try:
        if args.into is not None:  # what cannot be added is said before the hours of training
            card.add_to_configuration(args.into, card.snippet(settings, folder=args.into.parent))
        if settings.has_checkpoints and not (settings.resume or args.dry_run):
            raise DataError(
                f"{settings.checkpoints} is of a training that did not end: --resume goes on from it; to begin anew, "
                "delete it"
            )
        renderer = Renderer.of(settings.base, template=settings.template, bare=settings.bare)
        rows, summary = prepare(settings, renderer, say)
        say(card.render_summary(summary))
        if settings.kind == "directional" and not any(row["other_ids"] for row in rows.test):
            raise DataError("every direction chooses the same of a prompt's answers: --radius makes them turn with it")
        if not rows.train or not rows.heldout:
            counts = f"{len(rows.train)} {settings.unit} to train on and {len(rows.heldout)} held out"
            raise DataError(f"{counts}: one of each at least")
        prompts = choose_prompts(settings, renderer.tokenizer, rows)
        padding = choose_padding(renderer.tokenizer, renderer.ends)
        renderer.tokenizer.pad_token_id = padding
        if args.dry_run:
            seconds, size = time_step(settings, renderer, rows), settings.batch * settings.accumulate
            steps = -(-len(rows.train) // size)
            say(f"a step of {size} {settings.unit} takes about {seconds:.1f} s; an epoch has {steps}")
            return 0
        model, measured, more = train(settings, renderer, padding, rows)
        summary |= more
        if more:
            say(card.render_summary(more))
        write = partial(card.write_card, settings, summary, measured)
        (settings.out / "README.md").write_text(write())
        (settings.out / "training.json").write_text(card.write_record(settings, summary, measured))
        if prompts:
            steering = measure_steering(settings, renderer, padding, prompts, model, say)
            (settings.out / "README.md").write_text(write(steering))
    except KeyboardInterrupt:
        sys.stderr.write("trimtab train: interrupted; --resume goes on from the last checkpoint\n")
        return 130
    except ModuleNotFoundError as error:
        sys.stderr.write(f"trimtab train: {error.name} is missing: pip install 'trimtab[train]'\n")
        return 1
    except (DataError, OSError, ValueError, MemoryError) as error:
        sys.stderr.write(f"trimtab train: {error}\n")
        return 1
    say("measured: " + ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in measured.items()))
    if args.into is None:
        import yaml

        say("to serve it:\n\n" + yaml.safe_dump(card.snippet(settings), sort_keys=False))
    else:
        args.into.write_text(card.add_to_configuration(args.into, card.snippet(settings, folder=args.into.parent)))
        say(f"{args.into} has it now; `trimtab calibrate {args.into} --prompts FILE` makes its weights comparable")
    return 0


def prepare(settings: Settings, renderer: Renderer, say: Say) -> tuple[Rows, dict[str, Any]]:
    """The rows of all parts, and what is to be known of them."""
    prompts = {} if settings.preference_prompts is None else read_prompts(settings.preference_prompts, settings.member)
    objectives, max_length = settings.labels or objectives_of(prompts), settings.max_length

    def make(read: Preferences, heldout: float) -> Rows:
        if settings.labels:
            return make_label_rows(read.rated, settings.labels, renderer, max_length=max_length, heldout=heldout)
        if not prompts:
            return make_pair_rows(read.pairs, renderer, max_length=max_length, heldout=heldout)
        choice = Choice(directions=settings.directions, radius=settings.radius, seed=settings.seed)
        return make_direction_rows(read.rated, prompts, choice, renderer, max_length=max_length, heldout=heldout)

    data = collect(settings, settings.data, objectives, say)
    data = replace(data, pairs=data.pairs[: settings.limit], rated=data.rated[: settings.limit])
    rows = make(data, settings.heldout)
    rows.test = make(collect(settings, settings.test, objectives, say), 1.0).heldout or rows.heldout
    return rows, summarise(settings, data, rows)


def choose_prompts(settings: Settings, tokenizer: Any, rows: Rows) -> list[tuple[int, ...]]:
    """The first of those to test on, in tokens, for answers that --steer scores; none without it.

    Raises DataError for a reward model that reads other tokens than the base writes, OSError where there is none.
    """
    from transformers import AutoTokenizer

    if settings.steer is None:
        return []
    if AutoTokenizer.from_pretrained(settings.steer).get_vocab() != tokenizer.get_vocab():
        raise DataError(f"--steer {settings.steer}: its tokenizer is not the base's, and it scores the base's tokens")
    from trimtab.training import trainers

    if (labels := trainers.count_labels(settings.steer)) != 1:
        raise DataError(f"--steer {settings.steer}: its head has {labels} labels, and answers are compared by one")
    prompts = list(dict.fromkeys(tuple(row["prompt_ids"]) for row in rows.test))[: settings.steer_prompts]
    if len(prompts) < LEAST["steer_prompts"]:
        raise DataError(
            f"--steer: {len(prompts)} prompts to test on, and an interval needs {LEAST['steer_prompts']}: raise "
            "--heldout, or name more with --test"
        )
    return prompts


def collect(settings: Settings, sources: Sequence[str], objectives: Sequence[str], say: Say) -> Preferences:
    """Raises DataError for rows that are no preferences, unless they are to be skipped."""
    whole = Preferences()
    for source in sources:
        read = read_preferences(source, score=next(iter(settings.score), None), objectives=objectives)
        if read.wrong:
            if not settings.skip_wrong:
                raise DataError(card.list_wrong(read.wrong, source))
            say(card.list_wrong(read.wrong, source))
            read.dropped["no preference"] += len(read.wrong)
        whole.pairs += read.pairs
        whole.rated += read.rated
        whole.dropped += read.dropped
    return whole


def summarise(settings: Settings, preferences: Preferences, rows: Rows) -> dict[str, Any]:
    parts = {"prompts": "prompt_ids", "chosen answers": "chosen_ids", "rejected answers": "rejected_ids"}
    counts: dict[str, Any] = {
        "pairs": len(preferences.pairs),
        "the longer answer is the chosen one": f"{preferences.longer_chosen:.0%}",
    }
    if settings.kind == "directional":
        del parts["rejected answers"]
    if settings.labels or settings.kind == "directional":
        answers = sum(len(one.answers) for one in preferences.rated)
        counts = {"rated prompts": len(preferences.rated), "answers to them": answers}
    lengths = {what: percentiles(rows.lengths(key)) for what, key in parts.items()}
    summary = card.describe_run(settings, counts, Counter(preferences.dropped) + rows.dropped, lengths)
    if settings.kind == "directional":
        share = sum(bool(row["other_ids"]) for row in rows.all) / max(1, len(rows.all))
        summary["two directions choose different answers"] = f"{share:.0%}"
    summary["trained on, held out"] = f"{len(rows.train)}, {len(rows.heldout)}"
    if rows.joined:
        summary["prompts whose last token an answer would change"] = rows.joined
    return summary


def time_step(settings: Settings, renderer: Renderer, rows: Rows) -> float:
    """Seconds, by one step on a few pairs of middling length, after one that warms up."""
    from trimtab.training import trainers

    size = settings.batch * settings.accumulate
    ordered = sorted(rows.train, key=lambda row: len(row["prompt_ids"]) + len(row["chosen_ids"]))
    middle = (ordered[len(ordered) // 2 :] + ordered)[:1] * (2 * size)
    if settings.kind == "directional":
        middle = make_answer_rows(Rows(train=middle)).train
    trial = replace(settings, out=settings.out / "dry-run", epochs=1.0, patience=0)
    return trainers.time_steps(trial, renderer.tokenizer, renderer.tokenizer.pad_token_id, middle) / 2


def train(
    settings: Settings, renderer: Renderer, padding: int, rows: Rows
) -> tuple[Any, dict[str, float], dict[str, Any]]:
    """(model, figures, more of the summary): the model is in --out, the figures are of the pairs to test on."""
    from trimtab.training import measure, trainers

    tokenizer, began = renderer.tokenizer, time.monotonic()
    if settings.kind == "reward":
        rows = make_whole_rows(rows, renderer)
        if settings.labels:  # TRL's trainer is for one label
            trainer = trainers.train_labels(settings, tokenizer, padding, rows.train, rows.heldout)
        else:
            trainer = trainers.train_reward(settings, tokenizer, padding, rows.train, rows.heldout)
    elif settings.kind == "value":
        scorer = trainers.load_scorer(str(settings.reward), padding)
        rows = make_value_rows(rows, renderer, lambda ids: measure.score(scorer, ids), seed=settings.seed)
        labels = measure.labels_of(scorer)
        trainer = trainers.train_value(settings, tokenizer, padding, rows.train, rows.heldout, labels)
    elif settings.kind == "directional":
        answers = make_answer_rows(rows)
        trainer = trainers.train_answers(settings, tokenizer, padding, answers.train, answers.heldout)
    else:
        trainer = trainers.train_pairs(settings, tokenizer, padding, rows.train, rows.heldout)
    seconds = time.monotonic() - began
    measured = measure_model(settings, trainer.model.eval(), rows.test)
    trainers.save(trainer, settings, renderer)
    more = {}
    if trainer.lower is not None:
        size = f"{trainer.lower.bytes / 2**20:.4g} MiB of {settings.keep * 1024:.4g}"
        more["states of lower layers that were kept"] = f"{size}, of {trainer.lower.rows} sequences"
    return trainer.model, {**measured, "seconds of training": seconds}, more


def measure_steering(
    settings: Settings, renderer: Renderer, padding: int, prompts: Sequence[Sequence[int]], guide: Any, say: Say
) -> list[str]:
    """Lines of the card."""
    from trimtab.training import steer, trainers

    say(f"drawing answers to {len(prompts)} prompts by each of {len(steer.list_laws(difference=False))} laws")
    measured = steer.measure_steering(
        trainers.load_frozen(settings.base).to(guide.device),
        guide,
        trainers.load_scorer(str(settings.steer), padding).to(guide.device),
        prompts,
        renderer=renderer,
        difference=not trainers.is_reference_free(settings),
        seed=settings.seed,
    )
    say(conclusion := steer.conclude(measured))
    about = (
        f"One answer to each prompt by each law, of {steer.ANSWER_TOKENS} tokens at most, scored by "
        f"`{settings.steer}`. An exponent is the guide's, at temperature 1; colder bases are the control."
    )
    return [conclusion, "", about, "", *steer.render_table(measured)]


def measure_model(settings: Settings, model: Any, rows: Sequence[Row]) -> dict[str, float]:
    """Beside the model's own figures, what the longer answer and the model that training began with would get."""
    from trimtab.training import measure, trainers

    if settings.kind == "value":
        return measure.foretell(model, rows)
    if settings.kind == "directional":
        return measure.compare_directions(model, trainers.load_frozen(settings.origin), rows)
    longer = measure.accuracy([len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in rows])
    if settings.kind == "reward":
        margins, places, by_label = measure.label_margins(model, rows)
        return {**measure.summarise(margins, places), **by_label, "accuracy of the longer answer": longer}
    before = measure.language_margins(trainers.load_frozen(settings.origin), rows, beta=settings.scale)
    margins = measure.language_margins(model, rows, beta=settings.scale)
    if not trainers.is_reference_free(settings):
        margins = [after - reference for after, reference in zip(margins, before, strict=True)]
    others = {"accuracy of the longer answer": longer, "accuracy of the start": measure.accuracy(before)}
    return {**measure.summarise(margins, [row["place"] for row in rows]), **others}
