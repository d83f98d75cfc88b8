"""What real/'s guides and reward models are trained on, and measured on: human preferences, split by prompt.

    python -m trimtab.recipes.real_preferences FOLDER out/real/preferences

FOLDER holds PandaLM's test set (which of two answers to an instruction three people preferred) and the harmless part of
Anthropic's HH. The prompts of the last fifth, by a hash, are in `*-test.jsonl` and in no other file; the rest lie in
two halves, a and b, so that what one reward model learns from the other has not seen.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from trimtab.training.data import Pair, read_preferences
from trimtab.training.rows import place_of

SOURCES = {"helpful": "pandalm.jsonl.gz", "harmless": "hh-harmless.jsonl.gz"}
PARTS = ("a", "b", "test")


def choose_part(pair: Pair) -> str:
    """By the prompt alone. Its place below 0.8 is what `--heldout` goes by, so halves go by its finer digits."""
    place = place_of(pair.prompt)
    return "test" if place >= 0.8 else PARTS[int(place * 2**20) % 2]


def prefer_brevity(pair: Pair) -> Pair:
    """The same two answers, the shorter one preferred."""
    if len(pair.chosen) <= len(pair.rejected):
        return pair
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def write(path: Path, pairs: Iterable[Pair]) -> int:
    lines = [
        json.dumps({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}, ensure_ascii=False)
        for pair in pairs
    ]
    path.write_text("".join(f"{line}\n" for line in lines))
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    axes = {axis: read_preferences(str(args.source / name)).pairs for axis, name in SOURCES.items()}
    axes["brief"] = [prefer_brevity(pair) for pair in axes["helpful"]]
    for axis, pairs in axes.items():
        for part in PARTS:
            path = args.out / f"{axis}-{part}.jsonl"
            print(f"{path}: {write(path, (pair for pair in pairs if choose_part(pair) == part))} pairs")


if __name__ == "__main__":
    main()
