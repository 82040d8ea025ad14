"""A small tokenizer of the usual kind, with the files beside it."""

import json
from pathlib import Path


def save_bpe(folder: Path, *, vocab_size: int = 300) -> None:
    """Write a byte-level BPE, trained on text with characters of 1 to 4 bytes; token 1 ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the cat \u00e9t\u00e9 \u4f60\u597d \U0001f600 the dog \u00e9t\u00e9 \u4f60\u597d"
    tokenizer.train_from_iterator([text] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "</s>"}, "bos_token": "<s>"})
    )
