"""Three real fast tokenizers, trained on the spot: byte-level BPE, SentencePiece-like with BOS, and whole words."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The Colosseum is located in the city of Rome. The Eiffel Tower is located in the city of Paris.",
    "When Mary and John went to the store, John gave a drink to Mary.",
    "The city of Rome and the city of Paris and Rome and Paris",
    "Überraschung in 東京 🗼 naïve café",
]


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind: bytes, a leading space belongs to the word, no BOS. Letters can be split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<eos>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def with_bos(*, eos: bool = False) -> PreTrainedTokenizerFast:
    """Llama's kind: ▁ marks a space, BOS first (and, if asked for, EOS last)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>", "<bos>", "<eos>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    template = "<bos> $A <eos>" if eos else "<bos> $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>")


def words(*known: str, digits: bool = False) -> PreTrainedTokenizerFast:
    """One token a word of those that are known, its leading space included; with `digits`, one a digit."""
    vocabulary = {word: number for number, word in enumerate(("<unk>", *known))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = _at_digits() if digits else _at_spaces()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def words_of(*texts: str) -> PreTrainedTokenizerFast:
    """One token a word or digit of these texts."""
    pieces = (piece for text in texts for piece, _ in _at_digits().pre_tokenize_str(text))
    return words(*dict.fromkeys(pieces), digits=True)


def _at_spaces() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(" ", "merged_with_next")


def _at_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _at_spaces()])
