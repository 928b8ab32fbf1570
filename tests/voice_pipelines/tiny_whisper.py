"""A Whisper checkpoint with random weights in the real formats, small enough to make in a test.

Transformers saves it, CTranslate2 converts it, faster-whisper loads it: exactly the way real weights come. What it writes is noise
made of menu words; it depends on the audio, so plumbing that mixes up windows or callers shows.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

WORDS = [
    "could",
    "i",
    "get",
    "a",
    "large",
    "small",
    "flat",
    "white",
    "latte",
    "with",
    "oat",
    "milk",
    "and",
    "two",
    "sugars",
    "please",
    "thank",
    "you",
    "how",
    "much",
    "is",
    "that",
]
SPECIAL = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE with Whisper's special tokens and its 1501 timestamps, in Whisper's order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" " + " ".join(WORDS)] * 4, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_special_tokens([f"<|{index * 0.02:.2f}|>" for index in range(1501)])
    return tokenizer


def make_tiny_whisper(folder: Path, seed: int = 0) -> Path:
    """Write a converted int8 checkpoint below `folder` and return where it is."""
    tokenizer = tiny_tokenizer()
    end = tokenizer.token_to_id("<|endoftext|>")
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=tokenizer.token_to_id("<|startoftranscript|>"),
        suppress_tokens=[],
        begin_suppress_tokens=[end],
        init_std=0.4,
    )
    model = WhisperForConditionalGeneration(config)
    _prefer_words(model, tokenizer)
    model.generation_config.suppress_tokens = []
    model.generation_config.begin_suppress_tokens = [end]
    source = folder / "transformers"
    model.save_pretrained(source)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(source)
    (source / "preprocessor_config.json").write_text(
        json.dumps({"feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "chunk_length": 30, "n_fft": 400})
    )
    target = folder / "ctranslate2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter's own calls into newer transformers
        TransformersConverter(str(source), copy_files=["tokenizer.json", "preprocessor_config.json"]).convert(
            str(target), quantization="int8"
        )
    return target


def add_languages(checkpoint: Path) -> None:
    """Let a converted checkpoint pass for one that hears more than English: the vocabularies of those have a token without text."""
    path = checkpoint / "vocabulary.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), ""]))


def _prefer_words(model: WhisperForConditionalGeneration, tokenizer: Tokenizer) -> None:
    """Push the output towards whole words: one direction of the last layer is constant, and only words point along it."""
    embedding = model.model.decoder.embed_tokens.weight.data
    embedding[:, 0] = -1.0
    for word in WORDS:
        embedding[tokenizer.token_to_id("\u0120" + word), 0] = 1.0
    embedding[tokenizer.token_to_id("<|endoftext|>"), 0] = 0.6
    norm = model.model.decoder.layer_norm
    norm.weight.data[0] = 0.0
    norm.bias.data[0] = 12.0
